"""Figures of runs: learning curves, and accuracy against inner steps."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: no display needed
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of backend)

from experiments.evaluate import Evaluation
from experiments.recording import read_metrics
from l2f_jax.evaluation import interval
from l2f_jax.problems import Score


def learning_curves(runs: Sequence[Path], score: Score, axes: plt.Axes) -> None:
    """Draw validation score against meta-iteration, a line per run."""
    key, scale = f"validation/{score.name}", 100 if score.percent else 1
    for run in runs:
        records = [r for r in read_metrics(run) if key in r]
        values = [scale * r[key] for r in records]
        axes.plot([r["step"] for r in records], values, marker=".", label=run.name)
    axes.set(xlabel="meta-iteration", ylabel=f"validation {_label(score)}")
    axes.legend(frameon=False)


def adaptation(evaluations: Sequence[Evaluation], axes: plt.Axes) -> None:
    """Draw the last checkpoints' scores against inner steps, with 95 % intervals."""
    for evaluation in evaluations:
        scale = 100 if evaluation.score.percent else 1
        points = [interval(column) for column in evaluation.scores["last"].T]
        axes.errorbar(
            evaluation.points,
            [scale * p.mean for p in points],
            [scale * p.half for p in points],
            marker=".",
            capsize=3,
            label=evaluation.run.name,
        )
    first = evaluations[0]
    axes.set(xlabel="inner steps", ylabel=f"{first.split} {_label(first.score)}")


def _label(score: Score) -> str:
    return f"{score.name} (%)" if score.percent else score.name


def comparison(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write one figure with both panels."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    learning_curves([e.run for e in evaluations], evaluations[0].score, left)
    adaptation(evaluations, right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)
