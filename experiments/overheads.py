"""Measure what a training step costs beside its arithmetic: dispatch and episodes."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments import measure
from l2f_jax import backend
from l2f_jax.outer import make_update
from l2f_jax.parallel import mesh_for, tasks_at_once
from l2f_jax.problems import Experiment, build
from l2f_jax.problems.classifier import method_of
from l2f_jax.problems.supervised import objective
from l2f_jax.types import Batch, Episode


def shares(
    config: ConfigDict, experiment: Experiment, repeats: int
) -> dict[str, float]:
    """Measure what dispatching and episodes cost, as shares of a step.

    Takes as many meta-iterations in four ways, in turn: one a dispatch, all in one
    dispatch, all in one with episodes that are there already, and all in one with
    images from a stream.

    Returns:
      iterations in a dispatch; dispatch_share, what single dispatches would add;
      sampling_share, what ready episodes would save; stream_share, what reading the
      images on the host while the dispatch before runs would add.
    """
    state, step, iterations = measure.last_epoch(experiment)
    ready = presampled(config, experiment, iterations)
    streaming = ConfigDict(config.to_dict())
    streaming.data.placement = "stream"
    streamed, begins = build(streaming), itertools.count(step, iterations)

    def one_by_one():
        now = state
        for i in range(iterations):
            now, _ = experiment.update(now, step + i, 1)
        return now

    calls = {
        "single": lambda: measure.seconds(one_by_one),
        "all": lambda: measure.seconds(
            lambda: experiment.update(state, step, iterations)
        ),
        "ready": lambda: measure.seconds(lambda: ready(state)),
        "stream": lambda: measure.seconds(
            lambda: streamed.update(state, next(begins), iterations)
        ),
    }
    measure.alternate(1, **calls)  # compiles
    taken = measure.alternate(repeats, **calls)
    return {
        "iterations": iterations,
        "dispatch_share": measure.median_ratio(taken["single"], taken["all"]) - 1,
        "sampling_share": 1 - measure.median_ratio(taken["ready"], taken["all"]),
        "stream_share": measure.median_ratio(taken["stream"], taken["all"]) - 1,
    }


def presampled(config: ConfigDict, experiment: Experiment, iterations: int) -> Callable:
    """Return state -> update: the training step on given episodes of random numbers."""
    schedule, ways = experiment.schedule, config.data.ways
    built = method_of(config, ways)
    mesh = mesh_for(schedule.tasks)
    task_map = backend.task_map(schedule.task_map, (1, *experiment.facts["shape"]))
    at_once = tasks_at_once(task_map, schedule.tasks, mesh)
    update = make_update(
        objective(built, schedule.program(schedule.iterations - 1)),
        built.optimiser,
        lambda shared, item, key: item,
        tasks=schedule.tasks,
        mesh=mesh,
        at_once=at_once,
        reduction=schedule.reduction,
    )

    def batch(number: int) -> Batch:
        lead = (iterations, schedule.tasks, ways * number)
        inputs = jax.random.normal(
            jax.random.key(0), (*lead, *experiment.facts["shape"])
        )
        return Batch(inputs, jnp.broadcast_to(jnp.arange(lead[-1]) // number, lead))

    episodes = Episode(batch(config.data.shots), batch(config.data.queries))
    return lambda state: update(state, (), episodes, iterations=iterations)
