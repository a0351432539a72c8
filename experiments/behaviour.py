"""How well adapted functions and policies do: numbers of Figures 4 and 5.

Each measure takes a run and a number of tasks, which none of these needs, and returns
what JSON can hold.
"""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import curves
from experiments.plots import Numbers
from experiments.runs import Run, judge, last_state
from l2f_jax.inner import constant
from l2f_jax.types import Episode, MetaParams, Stats

SHOWN = 3  # tasks that are drawn one by one


def fits(run: Run, tasks: int) -> dict[str, Any]:
    """Fit test tasks by the last checkpoint, of the first seed (Figure 4).

    tasks: of the first `SHOWN`, the support points, the curve itself and the
    predictions on `x` before adaptation and after the trained number of steps.
    """
    del tasks
    experiment, state = run.experiment, last_state(run)
    learner, steps = experiment.learner, experiment.steps
    x = jnp.linspace(*run.config["data"]["train"]["inputs"], 201)

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


def learning(run: Run, tasks: int) -> dict[str, Any]:
    """Read the validation scores of a run (Figure 5)."""
    del tasks
    return curves.learning(run.path, run.experiment.score)


def adaptation(run: Run, tasks: int) -> dict[str, Any]:
    """Return the recorded test scores of a run, as a curve (Figures 4 and 5)."""
    del tasks
    return curves.adaptation(judge([run])[run.name])


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
