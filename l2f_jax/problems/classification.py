"""Few-shot image classification: the sections of a config -> Experiment."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2f_jax import backend, recipes
from l2f_jax.data.augment import augment as augmentation
from l2f_jax.data.bank import ImageBank, embedded_icons, load_bank
from l2f_jax.data.episodes import EpisodeSpec, Preprocess, preprocessing
from l2f_jax.evaluation import (
    Predictions,
    make_predict,
    task_accuracies,
    task_cross_entropies,
)
from l2f_jax.losses import accuracy, cross_entropy, supervised
from l2f_jax.models.conv4 import conv4
from l2f_jax.models.layers import Norm
from l2f_jax.models.resnet12 import resnet12
from l2f_jax.objectives import multi_step_loss, multi_step_weights, query_loss
from l2f_jax.outer import cosine_by_epoch, initial_state, make_update, meta_optimiser
from l2f_jax.parallel import check_divisible, task_mesh, tasks_at_once
from l2f_jax.problems.episodic import Feed
from l2f_jax.problems.experiment import Experiment
from l2f_jax.problems.schedule import Evaluation, Program, Schedule
from l2f_jax.problems.sections import call, select
from l2f_jax.transforms import attenuate, everything, identity, is_not_norm
from l2f_jax.types import Learner, Model, Objective

Section = Mapping[str, Any]

PROTOCOLS = {
    "batch": "transductive: the query images of a task are normalised together",
    "support": "inductive: query images are normalised by the support set's statistics",
    "running": "inductive: query images are normalised by running statistics",
    "layer": "inductive: every image is normalised by itself",
}


def classification(
    *,
    data: Section,
    model: Section,
    learner: Section,
    transform: Section,
    optimiser: Section,
    training: Section,
    evaluation: Section,
) -> Experiment:
    """Build few-shot classification; `configs/classification/base.py` has all keys."""
    data = dict(data)
    sizes = {key: data.pop(key) for key in EpisodeSpec._fields if key in data}
    spec = call(EpisodeSpec, sizes, "data")
    built = method(
        ways=spec.ways,
        model=model,
        learner=learner,
        transform=transform,
        optimiser=optimiser,
        training=training,
    )
    schedule, mesh = built.schedule, task_mesh()
    check_divisible(schedule.tasks, mesh)
    at_once = tasks_at_once(backend.task_map(schedule.task_map), schedule.tasks, mesh)
    bank, feed = call(_feed, data, "data", spec=spec, mesh=mesh)

    def init(seed: int):
        example = jnp.zeros((1, *bank.images.shape[1:]))
        return initial_state(built.learner, built.optimiser, example, seed, mesh)

    @functools.cache
    def program(which: Program):
        return make_update(
            objective(built, which),
            built.optimiser,
            feed("train").episode,
            tasks=schedule.tasks,
            mesh=mesh,
            at_once=at_once,
            reduction=schedule.reduction,
        )

    def update(state, step: int, iterations: int):
        train = feed("train")
        items = train.training_items(state.key, step, iterations, schedule.tasks)
        run = program(schedule.program(step))
        return run(state, train.shared, items, iterations=iterations)

    @functools.cache
    def predictor(split: str, points: tuple[int, ...] | None):
        return make_predict(
            built.learner,
            feed(split).fixed_episode,
            steps=built.steps,
            points=points,
            mesh=mesh,
            at_once=at_once,
        )

    def predict(meta, stats, split: str, tasks: int, points=None, seed: int = 0):
        held = feed(split)
        run = predictor(split, None if points is None else tuple(points))
        return run(meta, stats, held.shared, held.fixed_items(seed, tasks))

    feed("train")  # a data set too small for the episodes is refused here
    return Experiment(
        init=init,
        update=update,
        predict=predict,
        scores=_scores,
        score="accuracy",
        schedule=schedule,
        evaluation=call(Evaluation, evaluation, "evaluation"),
        steps=built.steps,
        learner=built.learner,
        protocol=built.protocol,
        facts=_facts(bank),
    )


class Method(NamedTuple):
    """All that a config describes except its data; see `method`."""

    learner: Learner
    steps: int
    schedule: Schedule
    optimiser: optax.GradientTransformation
    protocol: str


def method(
    *,
    ways: int,
    model: Section,
    learner: Section,
    transform: Section,
    optimiser: Section,
    training: Section,
) -> Method:
    """Build what needs no data set: the learner and how it is trained."""
    schedule = call(Schedule, training, "training")
    norm = _norm(model.get("norm", {}))
    steps, agent = _learner(learner, transform, _network(model, norm, ways))
    if schedule.multi_step_epochs and not steps:
        raise ValueError("`training.multi_step_epochs` needs `learner.steps` above 0")
    outer = call(_optimiser, optimiser, "optimiser", schedule=schedule)
    return Method(agent, steps, schedule, outer, PROTOCOLS[norm.mode])


def objective(built: Method, program: Program) -> Objective:
    """Build the loss of one task in a program of the schedule."""
    steps, schedule = built.steps, built.schedule
    common: dict[str, Any] = {
        "steps": steps,
        "first_order": program.first_order,
        "scores": {"accuracy": accuracy},
    }
    if not program.multi_step:
        return query_loss(built.learner, cross_entropy, **common)

    def weights(step: jax.Array) -> jax.Array:
        epoch = step // schedule.iterations_per_epoch
        return multi_step_weights(epoch, steps, schedule.multi_step_epochs)

    return multi_step_loss(built.learner, cross_entropy, weights=weights, **common)


def normalising(
    mean: Sequence[float],
    std: Sequence[float],
    provenance: Mapping[str, Any],
    augment: Sequence[str] = (),
) -> Preprocess:
    """Build the conversion of images to inputs; mean and std () are the bank's own."""
    mean, std = (
        tuple(given) or tuple(provenance[name])
        for name, given in (("mean", mean), ("std", std))
    )
    return preprocessing(mean, std, augmentation(*augment))


def _feed(
    *,
    bank: str,
    icons_split: str,
    mean: Sequence[float],
    std: Sequence[float],
    augment: Sequence[str],
    placement: str,
    spec: EpisodeSpec,
    mesh,
) -> tuple[ImageBank, Callable[[str], Feed]]:
    """Return the bank, and split -> Feed, opened when first asked for."""
    images = embedded_icons(icons_split) if bank == "icons" else load_bank(bank)
    preprocess = normalising(mean, std, images.provenance, augment)

    @functools.cache
    def feed(split: str) -> Feed:
        return Feed(images, split, spec, preprocess, placement=placement, mesh=mesh)

    return images, feed


def _norm(section: Section) -> Norm:
    options = dict(section)
    options["per_step"] = options.get("per_step") or None  # 0: shared by all steps
    return call(Norm, options, "model.norm")


def _network(section: Section, norm: Norm, ways: int) -> Model:
    models = {"conv4": conv4, "resnet12": resnet12}
    return select({**section, "norm": norm}, "model", models, outputs=ways)


def _learner(section: Section, transform: Section, model: Model) -> tuple[int, Learner]:
    """Return the number of inner steps and the learner."""
    options = dict(section)
    steps = options.pop("steps", None)
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"`learner.steps` ({steps}) must be an integer of at least 0")
    adapted = everything if options.get("adapt_norm") else is_not_norm
    starts = {"identity": identity, "attenuate": attenuate}
    context = {"select": adapted} if transform.get("name") == "attenuate" else {}
    start = select(transform, "transform", starts, **context)
    learners = {
        "maml": recipes.maml,
        "meta_sgd": recipes.meta_sgd,
        "mamlpp": recipes.mamlpp,
        "anil": recipes.anil,
        "boil": recipes.boil,
    }
    context = {"steps": steps} if options.get("name") == "mamlpp" else {}
    loss = supervised(model, cross_entropy)
    agent = select(
        options, "learner", learners, model=model, loss=loss, transform=start, **context
    )
    return steps, agent


def _optimiser(
    *, name: str, lr: float, min_lr: float, clip: float, schedule: Schedule
) -> optax.GradientTransformation:
    """Build the outer optimiser; `clip` 0 does not clip."""
    if not 0 <= min_lr <= lr:
        raise ValueError(f"`optimiser.min_lr` ({min_lr}) must lie in 0 .. lr ({lr})")
    rate = cosine_by_epoch(lr, min_lr, schedule.epochs, schedule.iterations_per_epoch)
    return meta_optimiser(rate, clip=clip or None, name=name)


def _scores(predictions: Predictions) -> dict[str, np.ndarray]:
    return {
        "accuracy": task_accuracies(predictions),
        "loss": task_cross_entropies(predictions),
    }


def _facts(bank: ImageBank) -> dict[str, Any]:
    counts = {split: bank.splits.count(split) for split in sorted(set(bank.splits))}
    return {
        "images": len(bank.images),
        "shape": list(bank.images.shape[1:]),
        "classes": counts,
        "provenance": bank.provenance,
    }
