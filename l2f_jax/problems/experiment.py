"""What the training loop and the evaluation know of a problem: an Experiment."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from l2f_jax.evaluation import Predictions
from l2f_jax.outer import TrainState
from l2f_jax.problems.schedule import Evaluation, Schedule
from l2f_jax.types import Learner


class Experiment(NamedTuple):
    """A problem, built from a config, as functions of a TrainState.

    init(seed) -> TrainState: a new run's state, on all devices.
    update(state, step, iterations) -> (state, metrics {name: [iterations]}): that many
      meta-iterations in one dispatch, which must not cross `schedule.boundary(step)`;
      `step` is the state's own, as the host knows it.
    predict(meta, stats, split, tasks, points=None, seed=0) -> Predictions on the first
      `tasks` fixed evaluation tasks of "val" or "test", after `points` inner steps.
    scores(predictions) -> {name: [tasks, points]}; checkpoints are chosen by `score`,
      of which larger is better.
    steps: inner steps.  learner: the algorithm itself, for uses beyond these.
    protocol: what the prediction of one query example may depend on.
    facts: of the data, for the record.
    """

    init: Callable[[int], TrainState]
    update: Callable[[TrainState, int, int], tuple[TrainState, dict[str, Any]]]
    predict: Callable[..., Predictions]
    scores: Callable[[Predictions], dict[str, np.ndarray]]
    score: str
    schedule: Schedule
    evaluation: Evaluation
    steps: int
    learner: Learner
    protocol: str
    facts: dict[str, Any]
