"""The numbers that the paper's figures show, measured on the checkpoints of a run.

Each measure takes a run and a number of tasks and returns what JSON can hold.
"""

from typing import Any

import jax
import numpy as np

from experiments.runs import Run, checkpoints, gammas, last_state
from l2f_jax.analysis import (
    attenuate_tensor,
    conflict,
    embeddings,
    inner_landscape,
    update_direction,
)
from l2f_jax.evaluation import interval
from l2f_jax.losses import cross_entropy
from l2f_jax.objectives import query_loss
from l2f_jax.outer import TrainState
from l2f_jax.problems import Experiment
from l2f_jax.scopes import Scope, scope_of
from l2f_jax.tree import is_not_norm, split
from l2f_jax.types import MetaParams, Params

RATES = np.geomspace(0.5, 4, 7)  # step sizes of a landscape, relative to learner.lr
GAMMAS = (0.1, 0.25, 0.5, 0.75)  # attenuations by hand, besides none
BATCH = (
    4  # tasks whose directions are summed, as in a meta-update; the same for all runs
)


def landscapes(run: Run, tasks: int) -> dict[str, Any]:
    """Measure the inner loss landscape over training, on training tasks (Figure 2).

    loss [nats], difference: [smallest, largest] over the step sizes `rates`;
    smoothness: the effective beta. All are means over inner steps and tasks.
    """
    experiment, rates = run.experiment, run.config["learner"]["lr"] * RATES
    of = inner_landscape(experiment.learner, steps=experiment.steps, rates=rates)
    rows = []
    for state in checkpoints(run):
        found = experiment.measure(state.meta, state.stats, "train", tasks, of)
        smoothness = float(found.smoothness.mean())
        ranges = _range(found.loss), _range(found.difference)
        rows.append((int(state.step), *ranges, smoothness))
    names = ("step", "loss", "difference", "smoothness")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return {"rates": rates.tolist(), **columns}


def conflicts(run: Run, tasks: int) -> dict[str, Any]:
    """Measure the degree of conflict over training, of training tasks in batches.

    layers: of each tensor outside norm layers, mean over tasks (Figure 3a).
    by_task: of all of theta, at the last checkpoint (Figure 3c).
    In rad; by the exact meta-gradient, also for a run trained with first order.
    """
    if tasks % BATCH:
        raise ValueError(
            f"--tasks ({tasks}) must be a multiple of {BATCH} for conflict"
        )
    found = [conflict_at(run.experiment, state, tasks) for state in checkpoints(run)]
    steps, by_layer, by_task = zip(*found, strict=True)
    return {
        "step": list(steps),
        "batch": BATCH,
        "layers": {path: [layers[path] for layers in by_layer] for path in by_layer[0]},
        "by_task": by_task[-1].tolist(),
    }


def conflict_at(
    experiment: Experiment, state: TrainState, tasks: int
) -> tuple[int, dict[str, float], np.ndarray]:
    """Measure the conflict of training tasks, in batches, at a state.

    Returns its step; of each tensor outside norm layers, the mean over tasks; and of
    all of theta, each task's [tasks]. In rad.
    """
    objective = query_loss(experiment.learner, cross_entropy, steps=experiment.steps)
    of = update_direction(objective)
    u = experiment.measure(state.meta, state.stats, "train", tasks, of)
    layers = _layers(state.meta)
    by_layer = _in_batches(scope_of(layers, "layer"), u).mean(0).tolist()
    by_task = _in_batches(scope_of(state.meta.params, "network"), u)[:, 0]
    return int(state.step), dict(zip(layers, by_layer, strict=True)), by_task


def attenuations(run: Run, tasks: int) -> dict[str, Any]:
    """Test the last checkpoint with one layer at a time attenuated by hand (Figure 3b).

    layers: for each of `gamma`, accuracy on test tasks and the half of its interval.
    """
    experiment, state = run.experiment, last_state(run)

    def accuracy(meta: MetaParams) -> tuple[float, float]:
        points = (experiment.steps,)
        predictions = experiment.predict(meta, state.stats, "test", tasks, points)
        found = interval(experiment.scores(predictions)["accuracy"][:, 0])
        return found.mean, found.half

    def by_hand(path: str) -> list[tuple[float, float]]:
        return [accuracy(attenuate_tensor(state.meta, path, gamma)) for gamma in GAMMAS]

    untouched = accuracy(state.meta)
    layers = {path: [*by_hand(path), untouched] for path in _layers(state.meta)}
    return {"gamma": [*GAMMAS, 1.0], "layers": layers}


def generated(run: Run, tasks: int, split: str = "test") -> dict[str, Any]:
    """Generate gammas for tasks of a split by the last checkpoint (Figure 3d).

    layers: each task's gamma; the mean of them where a tensor has several. Empty where
    nothing is attenuated.
    """
    found = gammas(run, tasks, split)
    means = {path: x.reshape(tasks, -1).mean(1) for path, x in found.items()}
    return {"layers": {path: means[path].tolist() for path in sorted(means)}}


def effective_rates(run: Run, tasks: int, split: str = "test") -> dict[str, Any]:
    """Turn the gammas of convolutions into the inner rates that they amount to.

    Behind a batch normalisation gamma changes no output, but its inner updates: those
    of gamma * theta at rate alpha are those of theta at rate alpha / gamma^2.
    lr: alpha.  layers: each task's rate; empty where nothing is attenuated.
    """
    lr = run.config["learner"]["lr"]
    kernels = {
        path: gamma
        for path, gamma in generated(run, tasks, split)["layers"].items()
        if path.endswith("/kernel") and path != "head/kernel"
    }
    rates = {path: (lr / np.square(x)).tolist() for path, x in kernels.items()}
    return {"lr": lr, "layers": rates}


def embedded(run: Run, tasks: int) -> dict[str, Any]:
    """Embed test tasks by the last checkpoint: layers: each task's mean gradient."""
    experiment, state = run.experiment, last_state(run)
    of = embeddings(experiment.learner)
    found = experiment.measure(state.meta, state.stats, "test", tasks, of)
    return {"layers": {path: x.tolist() for path, x in sorted(found.items())}}


def _layers(meta: MetaParams) -> Params:
    """Return what the figures call layers: the tensors outside norm layers."""
    return split(meta.params, is_not_norm)[0]


def _in_batches(scope: Scope, directions: Params) -> np.ndarray:
    """Return the conflicts of tasks in batches of their own, [tasks, scope.size]."""
    batches = {
        path: u.reshape(-1, BATCH, *u.shape[1:]) for path, u in directions.items()
    }
    found = jax.vmap(lambda u: conflict(scope, u))(batches)
    return np.asarray(found).reshape(-1, scope.size)


def _range(values: np.ndarray) -> tuple[float, float]:
    """Return the least and the largest over the last axis, each a mean of the rest."""
    return float(values.min(-1).mean()), float(values.max(-1).mean())
