"""Few-shot image classification: the sections of a config -> Experiment."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2f_jax.data.augment import augment as augmentation
from l2f_jax.data.bank import SPLITS, ImageBank, embedded_icons, load_bank
from l2f_jax.data.episodes import EpisodeSpec, Preprocess, check_spec, preprocessing
from l2f_jax.evaluation import Predictions, task_accuracies, task_cross_entropies
from l2f_jax.parallel import mesh_for
from l2f_jax.problems import classifier
from l2f_jax.problems.episodic import Feed
from l2f_jax.problems.experiment import Experiment, Score
from l2f_jax.problems.running import run
from l2f_jax.problems.schedule import Evaluation
from l2f_jax.problems.sections import Section, call


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
    built = classifier.method(
        ways=spec.ways,
        model=model,
        learner=learner,
        transform=transform,
        optimiser=optimiser,
        training=training,
    )
    mesh = mesh_for(built.schedule.tasks)
    bank, feed = call(_feed, data, "data", spec=spec, mesh=mesh)
    example = jax.ShapeDtypeStruct((1, *bank.images.shape[1:]), jnp.float32)
    points = tuple(range(built.steps + 1))
    held = call(Evaluation, evaluation, "evaluation")
    runs = run(built, feed, example, points, fixed=held.seed)
    feed("train")  # a data set without it is refused here
    facts = bank.facts()
    if protonet := transform.get("prototypes"):
        classifier.check_prototypes(Path(protonet), data, facts)
        facts["prototypes"] = classifier.prototypes_digest(protonet, spec.ways)
    return Experiment(
        **runs._asdict(),
        scores=_scores,
        score=Score("accuracy", rank=np.mean, percent=True),
        schedule=built.schedule,
        evaluation=held,
        steps=built.steps,
        points=points,
        learner=built.learner,
        protocol=classifier.protocol(model),
        facts=facts,
    )


def open_bank(bank: str, icons_split: str) -> ImageBank:
    """Return the data set of `data.bank` and `data.icons_split`."""
    return embedded_icons(icons_split) if bank == "icons" else load_bank(bank)


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
    images = open_bank(bank, icons_split)
    _check_splits(images, spec)
    preprocess = normalising(mean, std, images.provenance, augment)
    _check_images(preprocess, spec, images.images.shape[1:])

    @functools.cache
    def feed(split: str) -> Feed:
        return Feed(images, split, spec, preprocess, placement=placement, mesh=mesh)

    return images, feed


def _check_splits(bank: ImageBank, spec: EpisodeSpec) -> None:
    """Raise ValueError if a split of the bank cannot fill an episode."""
    # A split whose classes are not neighbours is copied; of no pixels, that is nothing.
    without_pixels = replace(bank, images=bank.images[:, :0])
    for split in (name for name in SPLITS if name in bank.splits):
        check_spec(without_pixels, split, spec)


def _check_images(
    preprocess: Preprocess, spec: EpisodeSpec, shape: tuple[int, ...]
) -> None:
    """Raise ValueError for images [*shape] that an episode could not be made of.

    A compiled step would say the same, but only once the run has its directory.
    """
    raw = jax.ShapeDtypeStruct((spec.ways, spec.images, *shape), jnp.uint8)
    jax.eval_shape(lambda raw: preprocess(raw, jax.random.key(0)), raw)


def _scores(predictions: Predictions) -> dict[str, np.ndarray]:
    return {
        "accuracy": task_accuracies(predictions),
        "loss": task_cross_entropies(predictions),
    }
