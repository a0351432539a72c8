"""Figures of runs: learning curves, and accuracy against inner steps."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: no display needed
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of backend)

from experiments.evaluate import Evaluation
from experiments.recording import read_metrics
from l2f_jax.evaluation import interval


def learning_curves(runs: Sequence[Path], score: str, axes: plt.Axes) -> None:
    """Draw validation score against meta-iteration, a line per run."""
    for run in runs:
        records = [r for r in read_metrics(run) if f"validation/{score}" in r]
        values = [100 * r[f"validation/{score}"] for r in records]
        axes.plot([r["step"] for r in records], values, marker=".", label=run.name)
    axes.set(xlabel="meta-iteration", ylabel=f"validation {score} (%)")
    axes.legend(frameon=False)


def adaptation(evaluations: Sequence[Evaluation], axes: plt.Axes) -> None:
    """Draw the last checkpoints' scores against inner steps, with 95 % intervals."""
    for evaluation in evaluations:
        points = [interval(column) for column in evaluation.scores["last"].T]
        axes.errorbar(
            range(len(points)),
            [100 * p.mean for p in points],
            [100 * p.half for p in points],
            marker=".",
            capsize=3,
            label=evaluation.run.name,
        )
    first = evaluations[0]
    axes.set(xlabel="inner steps", ylabel=f"{first.split} {first.score} (%)")


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
