"""The sections of a report about gammas, and about conflict between tasks."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments import curves, page, panels, plots
from experiments.page import Block, Table, Text
from experiments.runs import Run, last_state

CONFLICTING = 40  # training tasks whose conflict is measured, whole batches


def attenuation(
    found: Mapping[str, dict[str, np.ndarray]], split: str
) -> Iterator[Block]:
    """Show how the gammas of each tensor spread: run -> path -> [tasks, ...]."""
    paths = list(dict.fromkeys(path for tensors in found.values() for path in tensors))
    with page.drawing():
        height = 0.8 + 0.28 * len(paths) * len(found)
        figure = Figure(figsize=(8, height), layout="constrained")
        axes = figure.subplots()
        plots.spreads(found, paths, axes)
        plots.plain(axes)
        axes.set(xlabel="gamma")
        yield page.picture(
            "gammas",
            figure,
            f"What the last checkpoints multiply each tensor of theta by, over the "
            f"{split} tasks: median, the middle half (bar) and all (line).",
        )
    rows = [
        [p, *(_spread(tensors.get(p)) for tensors in found.values())] for p in paths
    ]
    yield Table(["mean (least .. most)", *found], rows)


def attenuation_in_training(trained: Mapping[str, dict[str, list]]) -> Block:
    """Show the gammas of policy searches: run -> numbers of `curves.attenuation`."""
    last = ", ".join(
        f"{name} {n['gamma'][-1]:.4f} with {n['deviation'][-1]:.1e}"
        for name, n in trained.items()
        if n["step"]
    )
    with page.drawing():
        figure = Figure(figsize=(8, 2.8), layout="constrained")
        axes = figure.subplots()
        curves.draw_attenuation(trained, axes)  # all, for their colours
        plots.plain(axes)
        return page.picture(
            "gammas",
            figure,
            "Mean gamma of the tensors during training; shaded is its standard "
            f"deviation over the tasks. At last: {last}.",
        )


def conflict(runs: Sequence[Run]) -> Iterator[Block]:
    """Show how much training tasks disagree about the update of theta (Figure 3)."""
    found = {
        run.name: panels.conflict_at(run.experiment, last_state(run), CONFLICTING)
        for run in runs
    }
    orthogonal = math.acos(panels.BATCH**-0.5)
    yield Text(
        "The angle between a task's own update of theta, by the exact meta-gradient, "
        f"and that of all {panels.BATCH} training tasks of a batch, in rad, at the "
        f"last checkpoints; mean of {CONFLICTING} tasks. Tasks that are orthogonal "
        f"have {orthogonal:.3f}, tasks that agree 0."
    )
    paths = list(
        dict.fromkeys(path for _, layers, _ in found.values() for path in layers)
    )
    rows = [
        [path, *(_angle(layers.get(path)) for _, layers, _ in found.values())]
        for path in paths
    ]
    rows.append(["all of theta", *(_angle(x.mean()) for *_, x in found.values())])
    yield Table(["tensor", *found], rows)
    with page.drawing():
        figure = Figure(figsize=(8, 2.8), layout="constrained")
        axes = figure.subplots()
        numbers = {name: {"by_task": x.tolist()} for name, (*_, x) in found.items()}
        plots.task_conflicts(numbers, axes)
        plots.plain(axes)
        yield page.picture(
            "conflict", figure, "The same of all of theta, task by task."
        )


def _angle(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _spread(values: np.ndarray | None) -> str:
    if values is None:
        return ""
    return f"{values.mean():.3f} ({values.min():.3f} .. {values.max():.3f})"
