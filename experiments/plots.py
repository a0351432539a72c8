"""Figures of runs: their frame, and panels of the paper's figures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # before pyplot: no display needed
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of backend)
from matplotlib.lines import Line2D  # noqa: E402

from experiments.recording import replacing  # noqa: E402


@contextmanager
def grid(panels: int, path: Path) -> Iterator[list[plt.Axes]]:
    """Write one figure of panels side by side, two or three in a row."""
    columns = 2 if panels == 4 else min(panels, 3)
    rows = -(-panels // columns)
    size = 4.5 * columns, 3.4 * rows
    figure, axes = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False
    )
    yield list(axes.flat[:panels])
    for unused in axes.flat[panels:]:
        unused.set_axis_off()
    plain(*axes.flat[:panels])
    with replacing(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=150)
    plt.close(figure)


def plain(*panels: plt.Axes) -> None:
    """Leave out the box around each panel, and rule it lightly."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)


def spreads(
    found: Mapping[str, Mapping[str, np.ndarray]], rows: Sequence[str], axes: plt.Axes
) -> None:
    """Draw how numbers spread: name -> row -> numbers of any shape.

    A bar covers the middle half of them, a line all; a tick marks the median.
    """
    for i, (name, numbers) in enumerate(found.items()):
        for row in numbers.keys() & {*rows}:
            y = rows.index(row) + (i + 0.5) / len(found) - 0.5
            low, first, middle, third, high = np.quantile(
                numbers[row], (0, 0.25, 0.5, 0.75, 1)
            )
            axes.plot([low, high], [y, y], f"C{i}-", linewidth=1)
            axes.plot([first, third], [y, y], f"C{i}-", linewidth=4, alpha=0.6)
            axes.plot([middle], [y], f"C{i}|", markersize=9)
        axes.plot([], [], f"C{i}-", label=name)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)


STYLES = ("-", "--", ":", "-.")
Numbers = dict[str, dict[str, Any]]  # of a measure in `panels`, by the run's name


def loss_variation(runs: Numbers, axes: plt.Axes) -> None:
    """Shade the range of the loss along the gradient, over training (Figure 2a)."""
    _ranges({run: (n["step"], n["loss"]) for run, n in runs.items()}, axes)
    axes.set(xlabel="meta-iteration", ylabel="support loss along its gradient (nats)")


def gradient_difference(runs: Numbers, axes: plt.Axes) -> None:
    """Shade the range of the gradient's change along itself (Figure 2b)."""
    _ranges({run: (n["step"], n["difference"]) for run, n in runs.items()}, axes)
    axes.set(xlabel="meta-iteration", ylabel="ℓ2 change of the gradient")


def smoothness(runs: Numbers, axes: plt.Axes) -> None:
    """Draw the effective beta-smoothness over training (Figure 2c)."""
    over_training(runs, "smoothness", axes)
    axes.set(ylabel="effective β-smoothness")


def over_training(runs: Numbers, name: str, axes: plt.Axes) -> None:
    """Draw a number against the meta-iteration, a line per run."""
    for run, n in runs.items():
        axes.plot(n["step"], n[name], marker=".", label=run)
    axes.set(xlabel="meta-iteration")
    axes.legend(frameon=False)


def layer_conflicts(runs: Numbers, axes: plt.Axes) -> None:
    """Draw each layer's degree of conflict over training (Figure 3a)."""
    orthogonal = math.acos(next(iter(runs.values()))["batch"] ** -0.5)
    axes.axhline(orthogonal, color="grey", ls=":", label="orthogonal tasks")
    _by_layer({run: (n["step"], n["layers"]) for run, n in runs.items()}, axes)
    axes.set(xlabel="meta-iteration", ylabel="degree of conflict (rad)")


def attenuations(runs: Numbers, axes: plt.Axes) -> None:
    """Draw accuracy against the attenuation of each layer (Figure 3b)."""

    def percent(layers: dict[str, list]) -> dict[str, list]:
        return {p: [100 * mean for mean, _ in found] for p, found in layers.items()}

    _by_layer(
        {run: (n["gamma"], percent(n["layers"])) for run, n in runs.items()}, axes
    )
    axes.set(xlabel="γ of one layer, by hand", ylabel="test accuracy (%)")


def task_conflicts(runs: Numbers, axes: plt.Axes) -> None:
    """Draw the distribution of the degree of conflict over tasks (Figure 3c)."""
    edges = np.histogram_bin_edges([n["by_task"] for n in runs.values()], 25)
    for run, n in runs.items():
        axes.hist(n["by_task"], edges, histtype="stepfilled", alpha=0.5, label=run)
    axes.set(xlabel="degree of conflict of a task (rad)", ylabel="training tasks")
    axes.legend(frameon=False)


def gammas(runs: Numbers, axes: plt.Axes) -> None:
    """Draw a histogram of gamma over tasks for each layer, the first on top (3d)."""
    layers = sorted({p for n in runs.values() for p in n["layers"]}, reverse=True)
    values = [x for n in runs.values() for found in n["layers"].values() for x in found]
    edges = np.histogram_bin_edges(values, 60)
    for i, (run, n) in enumerate(runs.items()):
        look = {"fill": True, "alpha": 0.6, "color": f"C{i}"}
        for path, found in n["layers"].items():
            counts, floor = np.histogram(found, edges)[0], layers.index(path)
            # Each to the height of its own largest bin.
            tops = floor + 0.9 * counts / counts.max()
            label = run if floor == 0 else None
            axes.stairs(tops, edges, baseline=floor, label=label, **look)
    axes.set_yticks(range(len(layers)), layers)
    axes.set(xlabel="γ", ylabel="test tasks, by layer")
    axes.legend(frameon=False)


def effective_rates(runs: Numbers, axes: plt.Axes) -> None:
    """Draw how the inner rates that gammas amount to spread over tasks."""
    _spread_by_layer({run: n["layers"] for run, n in runs.items()}, axes)
    for lr in {n["lr"] for n in runs.values()}:
        axes.axvline(lr, color="grey", ls=":")
    axes.set(xlabel="α / γ² (dotted: α)", xscale="log")


def embedded(runs: Numbers, axes: plt.Axes) -> None:
    """Draw how the magnitude of each entry of the embedding spreads over tasks."""
    found = {
        run: {path: np.abs(x) for path, x in n["layers"].items()}
        for run, n in runs.items()
    }
    _spread_by_layer(found, axes)
    axes.set(xlabel="size of the mean gradient", xscale="log")


def _spread_by_layer(found: Mapping[str, Mapping[str, Any]], axes: plt.Axes) -> None:
    spreads(found, sorted({path for layers in found.values() for path in layers}), axes)
    axes.legend(frameon=False)  # within; the panel's title stands above


def _ranges(runs: dict[str, tuple[list, list]], axes: plt.Axes) -> None:
    """Shade (steps, [least, largest] at each), a colour per run."""
    for run, (steps, ranges) in runs.items():
        low, high = zip(*ranges, strict=True)
        axes.fill_between(steps, low, high, alpha=0.4, label=run)
    axes.legend(frameon=False)


def _by_layer(runs: dict[str, tuple[list, dict[str, list]]], axes: plt.Axes) -> None:
    """Draw (x, {layer: y}): a colour per layer, dark to bright, a style per run."""
    layers = sorted({path for _, found in runs.values() for path in found})
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(layers)))
    for (x, found), style in zip(runs.values(), cycle(STYLES)):
        for path, y in found.items():
            axes.plot(x, y, style, marker=".", color=colours[layers.index(path)])
    keys, _ = axes.get_legend_handles_labels()
    keys += [
        Line2D([], [], color=c, label=p) for p, c in zip(layers, colours, strict=True)
    ]
    if len(runs) > 1:
        keys += [
            Line2D([], [], color="black", ls=style, label=run)
            for run, style in zip(runs, cycle(STYLES))
        ]
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    axes.legend(handles=keys, frameon=False, fontsize="small", **beside)
