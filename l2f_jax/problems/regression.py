"""Few-shot sinusoid regression: the sections of a config -> Experiment."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2f_jax.data.episodes import FIRST_TASK, episode_keys
from l2f_jax.data.sinusoid import WaveSpec, check_spec, sample_episode
from l2f_jax.evaluation import Predictions, quartiles
from l2f_jax.losses import squared_error
from l2f_jax.models.mlp import mlp
from l2f_jax.problems import supervised
from l2f_jax.problems.experiment import Experiment, Score
from l2f_jax.problems.running import run
from l2f_jax.problems.schedule import Evaluation, points_to_test
from l2f_jax.problems.sections import Section, call, check_least, select
from l2f_jax.types import Array, Episode


def _rank(errors: np.ndarray) -> float:
    """Rank by the median, which a few diverged tasks do not move."""
    return -float(quartiles(errors)[1])


# A mean squared error. Predicting 0 always has at most A^2 = 25.
ERROR = Score("mse", rank=_rank, limit=100.0)


def regression(
    *,
    data: Section,
    model: Section,
    learner: Section,
    transform: Section,
    optimiser: Section,
    training: Section,
    evaluation: Section,
) -> Experiment:
    """Build sinusoid regression; `configs/regression/sinusoid.py` has all keys."""
    feeds, facts = call(_feeds, data, "data")
    training = dict(training)
    seeds = training.pop("seeds", 1)
    network = select(model, "model", {"mlp": mlp}, outputs=1)
    agent, steps = supervised.adapting(
        network, squared_error, learner=learner, transform=transform
    )
    built = supervised.method(
        agent, steps, squared_error, optimiser=optimiser, training=training
    )
    check_least("training", {"seeds": seeds}, {"seeds": 1})
    rest = dict(evaluation)
    points = points_to_test(rest.pop("points", range(built.steps + 1)), built.steps)
    example = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    held = call(Evaluation, rest, "evaluation")
    runs = run(built, feeds.__getitem__, example, points, fixed=held.seed, seeds=seeds)
    return Experiment(
        **runs._asdict(),
        scores=_scores,
        score=ERROR,
        schedule=built.schedule,
        evaluation=held,
        steps=built.steps,
        points=points,
        learner=built.learner,
        protocol="every query point is predicted by itself",
        facts=facts,
        seeds=seeds,
    )


class SinusoidFeed:
    """Episodes made on the device; `queries` points in training, `test` when judged.

    first: the number of the first fixed task.
    """

    shared: Any = ()

    def __init__(self, spec: WaveSpec, shots: int, queries: int, test: int, first: int):
        self.spec, self.shots, self.queries, self.test = spec, shots, queries, test
        self.first = first

    def episode(self, shared: Any, item: Any, key: Array) -> Episode:
        return sample_episode(self.spec, self.shots, self.queries, key)

    def fixed_episode(self, shared: Any, item: Array) -> Episode:
        return sample_episode(self.spec, self.shots, self.test, item)

    def training_items(self, key: Array, step: int, iterations: int, tasks: int) -> Any:
        return ()

    def fixed_items(self, seed: int, tasks: int) -> Array:
        return episode_keys(seed, self.first, tasks)


def _feeds(
    *, shots: int, queries: int, test_queries: int, train: Section, test: Section
) -> tuple[dict[str, SinusoidFeed], dict[str, Any]]:
    """Return split -> feed, and the ranges; validation draws from those of training."""
    sizes = {"shots": shots, "queries": queries, "test_queries": test_queries}
    check_least("data", sizes, dict.fromkeys(sizes, 1))
    specs = {"train": _spec(train, "data.train")}
    own = {name: limits for name, limits in test.items() if len(limits)}
    specs["test"] = _spec({**train, **own}, "data.test")
    specs["val"] = specs["train"]
    feeds = {
        split: SinusoidFeed(spec, shots, queries, test_queries, FIRST_TASK[split])
        for split, spec in specs.items()
    }
    return feeds, {split: spec._asdict() for split, spec in specs.items()}


def _spec(section: Mapping[str, Any], where: str) -> WaveSpec:
    ranges = {k: tuple(v) for k, v in section.items()}
    spec = call(WaveSpec, ranges, where)
    check_spec(spec, where)
    return spec


def _scores(predictions: Predictions) -> dict[str, np.ndarray]:
    """Return the error of each task, and whether it has diverged (or is no number)."""
    targets = np.asarray(predictions.targets, np.float64)[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        error = ((predictions.outputs - targets) ** 2).mean((-2, -1))
    return {ERROR.name: error, "diverged": ERROR.diverged(error) * 1.0}
