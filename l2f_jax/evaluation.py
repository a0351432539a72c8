"""Judging a learner: outputs after every inner step on fixed tasks, and their scores.

Scores are first computed per task; intervals are over tasks, because the predictions of
one task are correlated.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from scipy.special import stdtrit

from l2f_jax.inner import constant
from l2f_jax.parallel import REPLICATED, map_over_tasks
from l2f_jax.tree import at
from l2f_jax.types import Array, Learner, MetaParams, Stats

GROUPS = 32  # of tasks, in one call of a compiled pass; two calls' items are held


class Predictions(NamedTuple):
    """outputs [tasks, points, queries, ...] after `points` inner steps each, and the
    targets [tasks, queries, ...] they are judged by; on the host.
    """

    outputs: np.ndarray
    targets: np.ndarray


class Interval(NamedTuple):
    """mean +- half: a 95 % interval over `tasks` independent task scores."""

    mean: float
    half: float
    tasks: int


def make_measure(
    measure: Callable[[MetaParams, Stats, Any], Any],
    episode: Callable[[Any, Any], Any],
    *,
    mesh: Mesh,
    at_once: int = 1,
) -> Callable[[MetaParams, Stats, Any, Any], Any]:
    """Build the jitted pass that measures something of each task.

    Args:
      measure: (meta, stats, Episode) -> arrays; written for one task.
      episode: (shared, item) -> Episode, without augmentation.
      at_once: tasks that a device measures at once.
    Returns:
      run(meta, stats, shared, items [tasks, ...]) -> what `measure` returns, with a
      leading axis of tasks, on the host. Any number of tasks: they are measured in
      equal parts, the last filled up with copies, which are cut off again. Items need
      a length and `items[numbers]`, by which the parts are taken in turn.
    """

    def task(shared, item):
        meta, stats, data = shared
        return measure(meta, stats, episode(data, item))

    def run(meta, stats, shared, items):
        return map_over_tasks(task, items, (meta, stats, shared), mesh, at_once)

    compiled = jax.jit(run, out_shardings=NamedSharding(mesh, REPLICATED))

    def measured(meta: MetaParams, stats: Stats, shared, items):
        tasks, found = len(jax.tree.leaves(items)[0]), []
        for numbers in _parts(tasks, mesh.size * at_once):
            taken = at(items, numbers)
            if found:  # only now: items are read while the part before is computed
                found[-1] = jax.tree.map(np.asarray, found[-1])
            found.append(compiled(meta, stats, shared, taken))
        return jax.tree.map(lambda *x: np.concatenate(x)[:tasks], *found)

    return measured


def make_predict(
    learner: Learner,
    episode: Callable[[Any, Any], Any],
    *,
    steps: int,
    points: Sequence[int] | None = None,
    mesh: Mesh,
    at_once: int = 1,
) -> Callable[[MetaParams, Stats, Any, Any], Predictions]:
    """Build the jitted evaluation pass.

    Args:
      learner: how a task is adapted.
      episode: (shared, item) -> Episode, without augmentation.
      steps: inner steps taken.
      points: after how many of them to predict; all of 0 .. steps by default.
      mesh, at_once: see `make_measure`.
    Returns:
      predict(meta, stats, shared, items [tasks, ...]) -> Predictions.
    Raises:
      ValueError: a point outside 0 .. steps.
    """
    points = range(steps + 1) if points is None else points
    if not points or min(points) < 0 or max(points) > steps:
        raise ValueError(f"`points` ({list(points)}) must lie in 0 .. {steps}")

    def outputs(meta, stats, episode):
        support, query = episode
        # Nothing differentiates through this adaptation, so nothing is stored for it.
        adapted = learner.adapt(meta, stats, constant(support), steps, first_order=True)

        def at_point(t: Array) -> Array:
            return learner.predict(adapted, t, query.inputs, phase="test")[0]

        found = jax.lax.map(at_point, jnp.asarray(points))
        return Predictions(found, query.targets)  # pyright: ignore  (on the host later)

    return make_measure(outputs, episode, mesh=mesh, at_once=at_once)


def task_accuracies(predictions: Predictions) -> np.ndarray:
    """Return each task's accuracy after each point, [tasks, points], in [0, 1]."""
    hits = predictions.outputs.argmax(-1) == predictions.targets[:, None]
    return hits.mean(-1)


def task_cross_entropies(predictions: Predictions) -> np.ndarray:
    """Return each task's mean query cross-entropy after each point, [tasks, points]."""
    logits = np.asarray(predictions.outputs, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    labels = predictions.targets[:, None, :, None]
    return -np.take_along_axis(log_probabilities, labels, axis=-1).mean((-2, -1))


def ensemble(members: Sequence[Predictions]) -> Predictions:
    """Average the logits of several checkpoints on the same tasks (before softmax).

    The official code's test protocol, with the three best checkpoints by validation.
    """
    first = members[0]
    if any(not np.array_equal(m.targets, first.targets) for m in members):
        raise ValueError("`members` predict different tasks; they must be the same")
    mean = np.mean([m.outputs for m in members], axis=0)
    return Predictions(mean, first.targets)


def interval(scores: np.ndarray) -> Interval:
    """Return the mean of task scores [tasks] and its 95 % interval, 1.96 s / sqrt(n).

    s is the sample standard deviation over tasks. With a single task, or with one that
    is not finite, the half width is not a number.
    """
    scores = np.asarray(scores, np.float64)
    n, known = len(scores), len(scores) > 1 and np.isfinite(scores).all()
    half = 1.96 * scores.std(ddof=1) / np.sqrt(n) if known else float("nan")
    return Interval(float(scores.mean()), float(half), n)


def over_seeds(means: np.ndarray) -> tuple[float, float]:
    """Return the mean of runs [seeds] and the half width of its 95 % interval.

    t s / sqrt(n), t Student's with n - 1 degrees of freedom: where the mean over all
    seeds lies, as far as these tell, when the tasks are given. A single run may lie
    sqrt(n + 1) times as far from this mean. With one run, or with one that is not
    finite, the half width is not a number.
    """
    mean, half, n = interval(means)
    return mean, half * float(stdtrit(n - 1, 0.975)) / 1.96 if n > 1 else float("nan")


def quartiles(errors: np.ndarray) -> np.ndarray:
    """Return the first quartile, the median and the third of errors of any shape.

    An error that is not finite counts as infinite: larger than all others.
    """
    largest = np.finfo(np.float64).max  # infinities have no differences to interpolate
    bounded = np.where(np.isfinite(errors), errors, largest)
    found = np.quantile(bounded, (0.25, 0.5, 0.75))
    return np.where(found < largest / 8, found, np.inf)


def paired(a: np.ndarray, b: np.ndarray) -> Interval:
    """Return the interval of a - b, scores [tasks] of two methods on the same tasks."""
    if np.shape(a) != np.shape(b):
        raise ValueError(f"paired scores differ in shape: {np.shape(a)}, {np.shape(b)}")
    return interval(np.asarray(a) - np.asarray(b))


def _parts(tasks: int, group: int) -> np.ndarray:
    """Return the task numbers of each call, [calls, n]: n <= GROUPS groups, filled up.

    All of one size, because each size is compiled for itself.
    """
    groups = -(-tasks // group)
    calls = -(-groups // GROUPS)
    size = -(-groups // calls) * group
    return np.minimum(np.arange(calls * size), tasks - 1).reshape(calls, size)
