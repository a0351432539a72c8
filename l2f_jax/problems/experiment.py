"""What the training loop and the evaluation know of a problem: an Experiment."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from l2f_jax.evaluation import Interval, Predictions
from l2f_jax.outer import TrainState
from l2f_jax.problems.schedule import Evaluation, Schedule
from l2f_jax.types import Learner


class Score(NamedTuple):
    """The score that a problem is judged by, and how to read it.

    name: its key in what `Experiment.scores` returns.
    rank: task scores [tasks] -> what the best checkpoints have most of.
    percent: whether it is a share, to be printed in percent.
    limit: of an error, above which (or with no number) a task has diverged. A few such
      tasks decide a mean, so that errors are shown with their median.
    """

    name: str
    rank: Callable[[np.ndarray], float]
    percent: bool = False
    limit: float | None = None

    def diverged(self, errors: np.ndarray) -> np.ndarray:
        """Return for each error whether it is above the limit or no number."""
        return ~(errors <= self.limit)

    def text(self, value: Interval) -> str:
        """Write a mean and its interval, such as "63.20 +- 0.95" for a share."""
        return f"{self.number(value.mean)} +- {self.number(value.half)}"

    def number(self, value: float) -> str:
        """Write a score, a share in percent."""
        if self.percent:
            return f"{100 * value:.2f}"
        return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.1e}"


class Experiment(NamedTuple):
    """A problem, built from a config, as functions of a TrainState.

    init(seed) -> TrainState: a new run's state, on all devices.
    update(state, step, iterations) -> (state, metrics {name: [iterations]}): that many
      meta-iterations in one dispatch, which must not cross `schedule.boundary(step)`;
      `step` is the state's own, as the host knows it.
    predict(meta, stats, split, tasks, points=None) -> Predictions on the first
      `tasks` fixed evaluation tasks of "val" or "test", after `points` inner steps
      (by default those of the field `points`).
    measure(meta, stats, split, tasks, of) -> what `of(meta, stats, episode)`
      returns for each of those tasks, stacked; "train" has fixed tasks for it, too.
      None where a task is no episode.
    scores(predictions) -> {name: [tasks, points]}; checkpoints are chosen by `score`.
    seeds: runs that train side by side; their predictions follow each other in the
      tasks axis, each on the same tasks.
    steps: inner steps trained with.  points: after how many of them tests predict.
    learner: the algorithm itself, for uses beyond these.
    protocol: what the prediction of one query example may depend on.
    facts: of the data, for the record.
    """

    init: Callable[[int], TrainState]
    update: Callable[[TrainState, int, int], tuple[TrainState, dict[str, Any]]]
    predict: Callable[..., Predictions]
    scores: Callable[[Predictions], dict[str, np.ndarray]]
    score: Score
    schedule: Schedule
    evaluation: Evaluation
    steps: int
    points: tuple[int, ...]
    learner: Learner
    protocol: str
    facts: dict[str, Any]
    seeds: int = 1
    measure: Callable[..., Any] | None = None
