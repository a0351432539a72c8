"""Scores as curves: validation during training, and tests against inner steps.

Each curve is first what JSON can hold, then drawn, a line for the name of each run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments.plots import Numbers, grid, over_training
from experiments.recording import read_metrics
from experiments.scores import Evaluation
from l2f_jax.evaluation import quartiles
from l2f_jax.problems import Score


def learning(run: Path, score: Score) -> dict[str, Any]:
    """Read a run's mean validation score after the trained number of inner steps."""
    key = f"validation/{score.name}"
    records = [r for r in read_metrics(run) if key in r]
    return {
        "step": [r["step"] for r in records],
        score.name: [_scale(score) * r[key] for r in records],
    }


def draw_learning(runs: Numbers, axes: plt.Axes, *, score: Score) -> None:
    """Draw the validation score against the meta-iteration."""
    over_training(runs, score.name, axes)
    mean = "" if score.limit is None else ", mean"
    axes.set(ylabel=f"validation {label(score)}{mean}", yscale=_axis(score))


def attenuation(run: Path) -> dict[str, list]:
    """Read the gammas that a policy search recorded while it trained, if it has any.

    gamma: mean over tensors and tasks.  deviation: standard, over tasks.
    """
    records = [r for r in read_metrics(run) if "transform/gamma" in r]
    return {
        "step": [r["step"] for r in records],
        "gamma": [r["transform/gamma"] for r in records],
        "deviation": [r["transform/gamma_deviation"] for r in records],
    }


def draw_attenuation(runs: Numbers, axes: plt.Axes) -> None:
    """Draw mean gammas against the meta-iteration, and within their deviation."""
    over_training(runs, "gamma", axes)
    for line, n in zip(axes.get_lines(), runs.values(), strict=True):
        mean, width = np.array(n["gamma"]), np.array(n["deviation"])
        shade = {"color": line.get_color(), "alpha": 0.2}
        axes.fill_between(n["step"], mean - width, mean + width, **shade)
    axes.set(ylabel="gamma")


def adaptation(e: Evaluation) -> dict[str, Any]:
    """Return the last checkpoints' score after each number of inner steps, `point`.

    mean, half: of the 95 % interval over tasks.  quartiles: of errors, instead, whose
    means a few diverged tasks decide; over tasks and seeds, [points, 3].
    """
    numbers: dict[str, Any] = {"point": list(e.points)}
    if e.score.limit is not None:
        found = [quartiles(e.at(point=point)).tolist() for point in e.points]
        return numbers | {"quartiles": found}
    mean, half, _ = _scale(e.score) * np.transpose(e.curve())
    return numbers | {"mean": mean.tolist(), "half": half.tolist()}


def draw_adaptation(
    runs: Numbers, axes: plt.Axes, *, score: Score, split: str = "test"
) -> None:
    """Draw scores against inner steps: means and intervals, or the middle half."""
    for run, n in runs.items():
        look = {"marker": ".", "label": run}
        if score.limit is None:
            axes.errorbar(n["point"], n["mean"], n["half"], capsize=3, **look)
        else:
            low, middle, high = np.transpose(n["quartiles"])
            (line,) = axes.plot(n["point"], middle, **look)
            shade = {"color": line.get_color(), "alpha": 0.2}
            axes.fill_between(n["point"], low, high, **shade)
    middle = "" if score.limit is None else ", median and quartiles"
    axes.set(xlabel="inner steps", ylabel=f"{split} {label(score)}{middle}")
    axes.set(yscale=_axis(score))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)


def comparison(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write one figure with both curves, of the last checkpoints of each run."""
    score = evaluations[0].score
    with grid(2, path) as (left, right):
        learned = {e.run.name: learning(e.run, score) for e in evaluations}
        draw_learning(learned, left, score=score)
        adapted = {e.run.name: adaptation(e) for e in evaluations}
        draw_adaptation(adapted, right, score=score)


def label(score: Score) -> str:
    """Name a score with its unit."""
    return f"{score.name} (%)" if score.percent else score.name


def _scale(score: Score) -> int:
    return 100 if score.percent else 1


def _axis(score: Score) -> str:
    return "linear" if score.limit is None else "log"
