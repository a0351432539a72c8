"""How well adapted functions and policies do: numbers and drawings of Figures 4, 5.

Each measure takes a run and a number of tasks and returns what JSON can hold.
"""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments.panels import Run, last
from experiments.plots import Numbers, over_training
from experiments.recording import read_metrics
from l2f_jax.evaluation import interval
from l2f_jax.inner import constant
from l2f_jax.types import Episode, MetaParams, Stats

SHOWN = 3  # tasks that are drawn one by one


def fits(run: Run, tasks: int) -> dict[str, Any]:
    """Fit test tasks by the last checkpoint, of the first seed (Figure 4).

    tasks: of the first `SHOWN`, the support points, the curve itself and the
    predictions on `x` before adaptation and after the trained number of steps.
    """
    del tasks
    experiment, state = run.experiment, last(run)
    learner, steps = experiment.learner, experiment.steps
    x = jnp.linspace(*run.config.data.train.inputs, 201)

    def fit(meta: MetaParams, stats: Stats, episode: Episode) -> dict[str, Any]:
        adapted = learner.adapt(
            meta, stats, constant(episode.support), steps, first_order=True
        )

        def predicted(t: int) -> jax.Array:
            return learner.predict(adapted, t, x[:, None], phase="test")[0][:, 0]

        flat = jax.tree.map(lambda leaf: leaf[:, 0], episode)
        order = jnp.argsort(flat.query.inputs)
        return {
            "support": flat.support._asdict(),
            "curve": jax.tree.map(lambda leaf: leaf[order], flat.query)._asdict(),
            "before": predicted(0),
            "after": predicted(steps),
        }

    found = experiment.measure(state.meta, state.stats, "test", SHOWN, fit)
    each = [
        jax.tree.map(lambda leaf, i=i: leaf[i].tolist(), found) for i in range(SHOWN)
    ]
    return {"steps": steps, "x": x.tolist(), "tasks": each}


def errors(run: Run, tasks: int) -> dict[str, Any]:
    """Test the last checkpoint after each number of steps (Figure 4).

    quartiles of the tasks' mean squared errors, all seeds together: [points, 3].
    """
    experiment, state = run.experiment, last(run)
    predictions = experiment.predict(state.meta, state.stats, "test", tasks)
    scores = np.nan_to_num(experiment.scores(predictions)["mse"], nan=np.inf)
    quartiles = np.quantile(scores, (0.25, 0.5, 0.75), axis=0).T
    return {"point": list(experiment.points), "quartiles": quartiles.tolist()}


def learning(run: Run, tasks: int) -> dict[str, Any]:
    """Read the validation returns of a run, after the trained number of updates."""
    del tasks
    records = [r for r in read_metrics(run.path) if "validation/return" in r]
    return {
        "step": [r["step"] for r in records],
        "return": [r["validation/return"] for r in records],
    }


def returns(run: Run, tasks: int) -> dict[str, Any]:
    """Test the last checkpoint after each number of updates: [points] mean, half."""
    experiment, state = run.experiment, last(run)
    predictions = experiment.predict(state.meta, state.stats, "test", tasks)
    columns = experiment.scores(predictions)["return"].T
    found = [interval(column) for column in columns]
    return {
        "point": list(experiment.points),
        "mean": [i.mean for i in found],
        "half": [i.half for i in found],
    }


def draw_fits(runs: Numbers, axes: plt.Axes) -> None:
    """Draw each task's curve and fits, one task above the other."""
    apart = 10.0  # twice the largest amplitude
    for i, (run, n) in enumerate(runs.items()):
        for row, task in enumerate(n["tasks"]):
            floor = apart * row
            first = row == 0
            curve, support = task["curve"], task["support"]
            if i == 0:
                y = floor + np.asarray(curve["targets"])
                axes.plot(curve["inputs"], y, color="grey", lw=4, alpha=0.3)
                y = floor + np.asarray(support["targets"])
                axes.plot(support["inputs"], y, "k^", markersize=5)
            for name, style in (("before", ":"), ("after", "-")):
                label = f"{run}, {name}" if first else None
                y = floor + np.asarray(task[name])
                axes.plot(n["x"], y, f"C{i}{style}", label=label)
    top = apart * len(n["tasks"]) + 6  # room for the names
    axes.set(xlabel="x", ylabel=f"y, tasks {apart:.0f} apart", ylim=(-6, top))
    axes.legend(frameon=False, fontsize="small", loc="upper center", ncols=2)


def draw_errors(runs: Numbers, axes: plt.Axes) -> None:
    """Draw the median task's error against inner steps, shading the middle half."""
    for run, n in runs.items():
        low, middle, high = np.transpose(n["quartiles"])
        (line,) = axes.plot(n["point"], middle, marker=".", label=run)
        axes.fill_between(n["point"], low, high, color=line.get_color(), alpha=0.2)
    axes.set(xlabel="inner steps", ylabel="mean squared error", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)


def draw_learning(runs: Numbers, axes: plt.Axes) -> None:
    """Draw the validation return against meta-iterations."""
    over_training(runs, "return", axes)
    axes.set(ylabel="validation return after adaptation")


def draw_returns(runs: Numbers, axes: plt.Axes) -> None:
    """Draw the mean return against updates, with 95 % intervals over tasks."""
    for run, n in runs.items():
        axes.errorbar(
            n["point"], n["mean"], n["half"], marker=".", capsize=3, label=run
        )
    axes.set(xlabel="updates", ylabel="test return")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
