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
from l2f_jax.embeddings import Embedding, prototypes
from l2f_jax.evaluation import Predictions, task_accuracies, task_cross_entropies
from l2f_jax.learners.protonet import protonet
from l2f_jax.losses import accuracy, cross_entropy, present_cross_entropy
from l2f_jax.models.conv4 import conv4
from l2f_jax.models.norm import Norm
from l2f_jax.models.resnet12 import resnet12
from l2f_jax.outer import TrainState
from l2f_jax.parallel import mesh_for
from l2f_jax.problems import saved, supervised
from l2f_jax.problems.episodic import Feed
from l2f_jax.problems.experiment import Experiment, Score
from l2f_jax.problems.schedule import Evaluation
from l2f_jax.problems.sections import call, select
from l2f_jax.problems.supervised import Section
from l2f_jax.types import Array, Learner, Model, Params

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
    mesh = mesh_for(built.schedule.tasks)
    bank, feed = call(_feed, data, "data", spec=spec, mesh=mesh)
    example = jax.ShapeDtypeStruct((1, *bank.images.shape[1:]), jnp.float32)
    points = tuple(range(built.steps + 1))
    held = call(Evaluation, evaluation, "evaluation")
    runs = supervised.run(built, feed, example, points, fixed=held.seed)
    feed("train")  # a data set without it is refused here
    facts = bank.facts()
    if run := transform.get("prototypes"):
        _check_prototypes(Path(run), data, facts)
        facts["prototypes"] = prototypes_digest(run, spec.ways)
    return Experiment(
        **runs._asdict(),
        scores=_scores,
        score=Score("accuracy", rank=np.mean, percent=True),
        schedule=built.schedule,
        evaluation=held,
        steps=built.steps,
        points=points,
        learner=built.learner,
        protocol=protocol(model),
        facts=facts,
    )


def method(
    *,
    ways: int,
    model: Section,
    learner: Section,
    transform: Section,
    optimiser: Section,
    training: Section,
) -> supervised.Method:
    """Build what needs no data set.

    Raises:
      ValueError: one sentence naming the key, for anything wrong in a section.
    """
    if learner.get("name") == "protonet":
        agent, steps = _prototypical(ways, model, learner, transform), 0
    else:
        start = dict(transform)
        run = start.pop("prototypes", "")
        agent, steps = supervised.adapting(
            _network(model, ways),
            present_cross_entropy,
            learner=learner,
            transform=start,
            embedding=prototypes_of(run, ways) if run else None,
        )
    return supervised.method(
        agent,
        steps,
        cross_entropy,
        optimiser=optimiser,
        training=training,
        metrics={"accuracy": accuracy},
    )


def prototypes_of(run: str, ways: int) -> Embedding:
    """Embed tasks by the best checkpoint of a ProtoNet, which stays as it is (Table 5).

    Raises:
      ValueError: `run` is no complete run of a ProtoNet.
    """
    network, state, shape = _protonet(run, ways)

    def features(params: Params, inputs: Array) -> Array:
        del params  # those that are being trained
        outputs, _ = network.apply(state.meta.params, state.stats, inputs)
        return outputs

    example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    size = jax.eval_shape(features, {}, example).shape[-1]
    return prototypes(features, size, ways)


def prototypes_digest(run: str, ways: int) -> str:
    """Return what tells the network of `prototypes_of` from others."""
    return saved.digest(_protonet(run, ways)[1])


def _protonet(run: str, ways: int) -> tuple[Model, TrainState, tuple[int, ...]]:
    """Return a complete run's network, best checkpoint and shape of an image."""
    record = saved.read_classification(Path(run))
    config, shape = record["config"], tuple(record["data"]["shape"])
    if config["learner"]["name"] != "protonet":
        raise ValueError(
            f"`transform.prototypes` ({run}) must be a run of `learner.name` "
            f"'protonet', not {config['learner']['name']!r}"
        )
    names = ("model", "learner", "transform", "optimiser", "training")
    built = method(ways=ways, **{name: config[name] for name in names})
    step = int(saved.restore(Path(run), "latest", built, shape).step)
    if step < built.schedule.iterations:
        raise ValueError(
            f"`transform.prototypes` ({run}) is unfinished: step {step} of "
            f"{built.schedule.iterations}"
        )
    state = saved.restore(Path(run), "best", built, shape)
    return _network(config["model"], None), state, shape


def _prototypical(
    ways: int, model: Section, learner: Section, transform: Section
) -> Learner:
    options = {k: v for k, v in learner.items() if k != "name"}
    if options.pop("steps", 0) != 0:
        raise ValueError(
            f"`learner.steps` ({learner['steps']}) must be 0: a ProtoNet takes none"
        )
    if transform.get("name") != "identity":
        raise ValueError(
            f"`transform.name` ({transform.get('name')!r}) must be 'identity': a "
            "ProtoNet has no inner loop to start"
        )
    network = _network(model, None)
    return call(protonet, options, "learner", model=network, ways=ways)


def protocol(model: Section) -> str:
    """Say what the prediction of one query image may depend on."""
    return PROTOCOLS[_norm(model.get("norm", {})).mode]


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


def _norm(section: Section) -> Norm:
    options = dict(section)
    options["per_step"] = options.get("per_step") or None  # 0: shared by all steps
    return call(Norm, options, "model.norm")


def _network(section: Section, outputs: int | None) -> Model:
    models = {"conv4": conv4, "resnet12": resnet12}
    norm = _norm(section.get("norm", {}))
    return select({**section, "norm": norm}, "model", models, outputs=outputs)


def _scores(predictions: Predictions) -> dict[str, np.ndarray]:
    return {
        "accuracy": task_accuracies(predictions),
        "loss": task_cross_entropies(predictions),
    }


def _check_prototypes(run: Path, data: Section, facts: Mapping[str, Any]) -> None:
    """Raise ValueError unless a ProtoNet saw the same images in the same way."""
    seen = saved.read_record(run)["config"]["data"]
    for key in ("mean", "std"):
        then, now = list(seen.get(key, ())), list(data.get(key, ()))
        if then != now:
            raise ValueError(
                f"`transform.prototypes` ({run}) was trained with `data.{key}` {then}, "
                f"which must be the same here, not {now}"
            )
    saved.check_data(run, facts)
