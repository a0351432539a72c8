"""Supervised few-shot learning: a network, a criterion and a feed of episodes."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from l2f_jax import backend, inner, recipes
from l2f_jax.embeddings import Embedding
from l2f_jax.evaluation import Predictions, make_measure, make_predict
from l2f_jax.losses import Criterion, supervised
from l2f_jax.objectives import multi_step_loss, multi_step_weights, query_loss
from l2f_jax.outer import (
    TrainState,
    cosine_by_epoch,
    initial_state,
    make_update,
    meta_optimiser,
)
from l2f_jax.parallel import mesh_for, tasks_at_once
from l2f_jax.problems.schedule import POSITIVE, Program, Schedule, check_ranges
from l2f_jax.problems.sections import call, select
from l2f_jax.problems.seeds import (
    init_side_by_side,
    judge_side_by_side,
    update_side_by_side,
)
from l2f_jax.transforms import attenuate, identity
from l2f_jax.tree import everything, is_not_norm
from l2f_jax.types import Array, Episode, Learner, Model, Objective

Section = Mapping[str, Any]


class Method(NamedTuple):
    """How a network learns: all that a config describes except its data.

    criterion: the loss, inside and outside; metrics: further criteria to report.
    """

    learner: Learner
    steps: int
    schedule: Schedule
    optimiser: optax.GradientTransformation
    criterion: Criterion
    metrics: dict[str, Criterion]


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


def method(
    agent: Learner,
    steps: int,
    criterion: Criterion,
    *,
    optimiser: Section,
    training: Section,
    metrics: dict[str, Criterion] | None = None,
) -> Method:
    """Build how a learner is trained; needs no data.

    Raises:
      ValueError: one sentence naming the key, for anything wrong in a section.
    """
    schedule = call(Schedule, training, "training")
    if schedule.multi_step_epochs and not steps:
        raise ValueError("`training.multi_step_epochs` needs `learner.steps` above 0")
    outer = call(_optimiser, optimiser, "optimiser", schedule=schedule)
    return Method(agent, steps, schedule, outer, criterion, metrics or {})


def adapting(
    network: Model,
    criterion: Criterion,
    *,
    learner: Section,
    transform: Section,
    embedding: Embedding | None = None,
) -> tuple[Learner, int]:
    """Build a learner of the MAML family; return it and its number of inner steps.

    Args:
      embedding: what an attenuation is conditioned on; the gradients by default.
    Raises:
      ValueError: one sentence naming the key, for anything wrong in a section.
    """
    options = dict(learner)
    steps = options.pop("steps", None)
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"`learner.steps` ({steps}) must be an integer of at least 0")
    if isinstance(lr := options.get("lr"), int | float):
        check_ranges("learner", {"lr": lr}, {"lr": POSITIVE})
    adapted = everything if options.get("adapt_norm") else is_not_norm
    starts = {"identity": identity, "attenuate": attenuate}
    attenuated = transform.get("name") == "attenuate"
    context: dict[str, Any] = (
        {"select": adapted, "embedding": embedding} if attenuated else {}
    )
    start = select(transform, "transform", starts, **context)
    learners = {
        "maml": recipes.maml,
        "fomaml": recipes.fomaml,
        "meta_sgd": recipes.meta_sgd,
        "mamlpp": recipes.mamlpp,
        "anil": recipes.anil,
        "boil": recipes.boil,
    }
    context = {"steps": steps} if options.get("name") == "mamlpp" else {}
    if rates := options.pop("rates", None):
        if options.get("name") in ("meta_sgd", "mamlpp"):
            raise ValueError(
                f"`learner.rates` {dict(rates)} must be empty with `learner.name` "
                f"{options.get('name')!r}, which learns its rates"
            )
        context["rule"] = inner.fixed_rates(dict(rates), options.get("lr"))
    loss = supervised(network, criterion)
    agent = select(
        options,
        "learner",
        learners,
        model=network,
        loss=loss,
        transform=start,
        **context,
    )
    return agent, steps


def objective(built: Method, program: Program) -> Objective:
    """Build the loss of one task in a program of the schedule."""
    steps, schedule = built.steps, built.schedule
    common: dict[str, Any] = {
        "steps": steps,
        "first_order": program.first_order,
        "scores": built.metrics,
    }
    if not program.multi_step:
        return query_loss(built.learner, built.criterion, **common)

    def weights(step: jax.Array) -> jax.Array:
        epoch = step // schedule.iterations_per_epoch
        return multi_step_weights(epoch, steps, schedule.multi_step_epochs)

    return multi_step_loss(built.learner, built.criterion, weights=weights, **common)


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


def _optimiser(
    *, name: str, lr: float, min_lr: float, clip: float, schedule: Schedule
) -> optax.GradientTransformation:
    """Build the outer optimiser; `clip` 0 does not clip."""
    if not 0 <= min_lr <= lr:
        raise ValueError(
            f"`optimiser.min_lr` ({min_lr}) must lie in 0 .. `optimiser.lr` ({lr}); "
            "set both"
        )
    rate = cosine_by_epoch(lr, min_lr, schedule.epochs, schedule.iterations_per_epoch)
    return meta_optimiser(rate, clip=clip or None, name=name)
