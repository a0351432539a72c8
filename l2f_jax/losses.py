"""Criteria (outputs, targets) -> scalar, and the task loss of supervised learning."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from l2f_jax.types import Array, Batch, Model, Params, Stats, TaskLoss

Criterion = Callable[[Array, Array], Array]


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Average the softmax cross-entropy, in nats.

    Args:
      logits: [n, ways].
      labels: [n] int, in 0 .. ways - 1.
    """
    log_probabilities = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)
    return -jnp.mean(chosen)


def present_cross_entropy(logits: Array, labels: Array) -> Array:
    """Average the softmax cross-entropy over the classes that occur among the labels.

    The loss of a support set, whose classes are the task's: outputs beyond them take no
    part and get no gradient. With every class present it is `cross_entropy`.

    Args:
      logits: [n, ways].
      labels: [n] int, in 0 .. ways - 1.
    """
    taking_part = present(labels, logits.shape[-1])[None]
    return cross_entropy(jnp.where(taking_part, logits, -jnp.inf), labels)


def present(labels: Array, ways: int) -> Array:
    """Tell which of the classes 0 .. ways - 1 occur among labels [n]: [ways] bool."""
    return jnp.any(jax.nn.one_hot(labels, ways, dtype=bool), axis=0)


def squared_error(outputs: Array, targets: Array) -> Array:
    """Average the squared error over all numbers of [n, d]."""
    return jnp.mean((outputs - targets) ** 2)


def accuracy(logits: Array, labels: Array) -> Array:
    """Return the share of labels [n] that are the argmax of logits [n, ways]."""
    hits = jnp.argmax(logits, axis=-1) == labels
    return jnp.mean(hits, dtype=logits.dtype)


def supervised(model: Model, criterion: Criterion) -> TaskLoss:
    """Return the task loss L(f_theta) of a model on a Batch."""

    def loss(
        params: Params, stats: Stats, batch: Batch, *, phase, step, key
    ) -> tuple[Array, Stats]:
        outputs, stats = model.apply(
            params, stats, batch.inputs, phase=phase, step=step, key=key
        )
        return criterion(outputs, batch.targets), stats

    return loss
