"""Tiny networks and tasks that several test files share."""

import jax
import jax.numpy as jnp
import numpy as np

from l2f_jax.losses import cross_entropy, supervised
from l2f_jax.models.mlp import mlp
from l2f_jax.types import (
    Adapted,
    Batch,
    Episode,
    Learner,
    MetaParams,
    Model,
    Objective,
)

WAYS, FEATURES = 3, 2


def classifier(hidden: tuple[int, ...] = (4,)) -> Model:
    """A smooth perceptron on FEATURES numbers, so that differences have no kinks."""
    kernels = jax.nn.initializers.normal(1.0)
    return mlp(WAYS, hidden, activation=jnp.tanh, kernel_init=kernels)


def counting() -> Learner:
    """A learner whose step adds 1 to w; it predicts w * inputs and records w."""

    def init(key, inputs):
        return MetaParams({"w": jnp.zeros(())}, (), ()), {"seen": jnp.zeros(())}

    def adapt(meta, stats, source, steps, *, first_order=False, key=None):
        w = meta.params["w"] + jnp.arange(steps + 1).astype(float)
        return Adapted({"w": w}, {}, {"seen": w})

    def predict(adapted, t, inputs, *, phase, key=None):
        w = adapted.path["w"][t]
        return w * inputs, {"seen": w}

    return Learner(init, adapt, predict)


def task_loss(model: Model):
    return supervised(model, cross_entropy)


def normal(seed: int, shape: tuple[int, ...]) -> jax.Array:
    """Normal numbers that need no compilation; float64 under x64."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def like(seed: int, tree):
    """Normal numbers in the shapes of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    numbers = [normal(seed + i, x.shape) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, numbers)


def episode(seed: int = 0, tasks: tuple[int, ...] = (), examples: int = 6) -> Episode:
    """Random inputs, the classes in turn; `tasks` are leading axes."""
    labels = jnp.arange(examples, dtype=jnp.int32) % WAYS
    labels = jnp.broadcast_to(labels, (*tasks, examples))
    support, query = normal(seed, (2, *tasks, examples, FEATURES))
    return Episode(Batch(support, labels), Batch(query, labels))


def meta_loss(objective: Objective, episode: Episode, step: int = 0):
    """The loss of one task as a function of MetaParams."""
    return lambda meta: objective.value(meta, {}, episode, jnp.asarray(step), None)[0]
