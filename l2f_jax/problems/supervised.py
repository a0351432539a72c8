"""Supervised few-shot learning: how a network learns, in the sections of a config."""

from typing import Any, NamedTuple

import jax
import optax

from l2f_jax import inner, recipes
from l2f_jax.embeddings import Embedding
from l2f_jax.losses import Criterion, supervised
from l2f_jax.objectives import multi_step_loss, multi_step_weights, query_loss
from l2f_jax.outer import cosine_by_epoch, meta_optimiser
from l2f_jax.problems.schedule import Program, Schedule
from l2f_jax.problems.sections import (
    POSITIVE,
    Section,
    call,
    check_least,
    check_ranges,
    select,
)
from l2f_jax.transforms import attenuate, identity
from l2f_jax.tree import everything, is_not_norm
from l2f_jax.types import Learner, Model, Objective


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


def _optimiser(
    *, name: str, lr: float, min_lr: float, clip: float, schedule: Schedule
) -> optax.GradientTransformation:
    """Build the outer optimiser; `clip` 0 does not clip."""
    check_least("optimiser", {"clip": clip}, {"clip": 0})
    if not 0 <= min_lr <= lr:
        raise ValueError(
            f"`optimiser.min_lr` ({min_lr}) must lie in 0 .. `optimiser.lr` ({lr}); "
            "set both"
        )
    rate = cosine_by_epoch(lr, min_lr, schedule.epochs, schedule.iterations_per_epoch)
    return meta_optimiser(rate, clip=clip or None, name=name)
