"""Image classifiers: the sections of a config -> how a network learns to classify.

A ProtoNet that was trained before may condition the gammas of another run (Table 5).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from l2f_jax.embeddings import Embedding, prototypes
from l2f_jax.learners.protonet import protonet
from l2f_jax.losses import accuracy, cross_entropy, present_cross_entropy
from l2f_jax.models.conv4 import conv4
from l2f_jax.models.norm import Norm
from l2f_jax.models.resnet12 import resnet12
from l2f_jax.outer import TrainState
from l2f_jax.problems import saved, supervised
from l2f_jax.problems.sections import Section, call, select
from l2f_jax.types import Array, Learner, Model, Params

PROTOCOLS = {
    "batch": "transductive: the query images of a task are normalised together",
    "support": "inductive: query images are normalised by the support set's statistics",
    "running": "inductive: query images are normalised by running statistics",
    "layer": "inductive: every image is normalised by itself",
}


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


def method_of(config: Mapping[str, Any], ways: int) -> supervised.Method:
    """Build the method of a whole config, such as that of a run's record."""
    names = ("model", "learner", "transform", "optimiser", "training")
    return method(ways=ways, **{name: config[name] for name in names})


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


def _norm(section: Section) -> Norm:
    options = dict(section)
    options["per_step"] = options.get("per_step") or None  # 0: shared by all steps
    return call(Norm, options, "model.norm")


def _network(section: Section, outputs: int | None) -> Model:
    models = {"conv4": conv4, "resnet12": resnet12}
    norm = _norm(section.get("norm", {}))
    return select({**section, "norm": norm}, "model", models, outputs=outputs)


def protocol(model: Section) -> str:
    """Say what the prediction of one query image may depend on."""
    return PROTOCOLS[_norm(model.get("norm", {})).mode]


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
    built = method_of(config, ways)
    step = int(saved.restore(Path(run), "latest", built, shape).step)
    if step < built.schedule.iterations:
        raise ValueError(
            f"`transform.prototypes` ({run}) is unfinished: step {step} of "
            f"{built.schedule.iterations}"
        )
    state = saved.restore(Path(run), "best", built, shape)
    return _network(config["model"], None), state, shape


def check_prototypes(run: Path, data: Section, facts: Mapping[str, Any]) -> None:
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
