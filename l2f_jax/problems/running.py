"""Run a supervised learner on a feed of episodes: train, predict, measure."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from l2f_jax import backend
from l2f_jax.evaluation import Predictions, make_measure, make_predict
from l2f_jax.outer import TrainState, initial_state, make_update
from l2f_jax.parallel import mesh_for, tasks_at_once
from l2f_jax.problems.schedule import Program
from l2f_jax.problems.seeds import (
    init_side_by_side,
    judge_side_by_side,
    update_side_by_side,
)
from l2f_jax.problems.supervised import Method, objective
from l2f_jax.types import Array, Episode


class Feed(Protocol):
    """The episodes of one split, see `problems.episodic.Feed`."""

    shared: Any

    def episode(self, shared: Any, item: Any, key: Array) -> Episode: ...

    def fixed_episode(self, shared: Any, item: Any) -> Episode: ...

    def training_items(
        self, key: Array, step: int, iterations: int, tasks: int
    ) -> Any: ...

    def fixed_items(self, seed: int, tasks: int) -> Any: ...


class Runs(NamedTuple):
    """The functions of an `Experiment` that depend on episodes; see there."""

    init: Callable[[int], TrainState]
    update: Callable[[TrainState, int, int], tuple[TrainState, dict[str, Any]]]
    predict: Callable[..., Predictions]
    measure: Callable[..., Any]


def run(
    built: Method,
    feed: Callable[[str], Feed],
    example: jax.ShapeDtypeStruct,
    points: Sequence[int],
    *,
    fixed: int,
    seeds: int = 1,
) -> Runs:
    """Build the functions that train and judge a method.

    Args:
      built: the method.
      feed: split ("train", "val" or "test") -> its episodes.
      example: shape and dtype of one input, with a leading axis of length 1.
      points: after how many inner steps tests predict.
      fixed: the seed of the tasks that are the same for all runs.
      seeds: runs that train side by side, see `problems.seeds`.
    """
    schedule, mesh = built.schedule, mesh_for(built.schedule.tasks)
    task_map = backend.task_map(schedule.task_map, example.shape)
    at_once = tasks_at_once(task_map, schedule.tasks, mesh)

    def init(seed: int) -> TrainState:
        inputs = jnp.zeros(example.shape, example.dtype)
        return initial_state(
            built.learner,
            built.optimiser,
            inputs,
            seed,
            mesh,
            episodes=schedule.seed,
        )

    @functools.cache
    def program(which: Program):
        update = make_update(
            objective(built, which),
            built.optimiser,
            feed("train").episode,
            tasks=schedule.tasks,
            mesh=mesh,
            at_once=at_once,
            reduction=schedule.reduction,
        )
        return update if seeds == 1 else update_side_by_side(update)

    def update(state: TrainState, step: int, iterations: int):
        train = feed("train")
        items = train.training_items(state.key, step, iterations, schedule.tasks)
        compiled = program(schedule.program(step))
        return compiled(state, train.shared, items, iterations=iterations)

    @functools.cache
    def predictor(split: str, points: tuple[int, ...]):
        return make_predict(
            built.learner,
            feed(split).fixed_episode,
            steps=max(built.steps, *points),
            points=points,
            mesh=mesh,
            at_once=at_once,
        )

    def predict(meta, stats, split: str, tasks: int, points=points):
        held = feed(split)
        compiled = predictor(split, tuple(points))
        return compiled(meta, stats, held.shared, held.fixed_items(fixed, tasks))

    @functools.cache
    def measurer(split: str, of: Callable):
        episode = feed(split).fixed_episode
        return make_measure(of, episode, mesh=mesh, at_once=at_once)

    def measure(meta, stats, split: str, tasks: int, of: Callable):
        held = feed(split)
        compiled = measurer(split, of)
        return compiled(meta, stats, held.shared, held.fixed_items(fixed, tasks))

    if seeds == 1:
        return Runs(init, update, predict, measure)
    return Runs(
        init_side_by_side(init, seeds),
        update,
        judge_side_by_side(predict, seeds),
        judge_side_by_side(measure, seeds),
    )
