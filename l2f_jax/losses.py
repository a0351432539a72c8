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
      labels: [n] int, in 0 .. ways - 1; any other makes the loss and its gradient NaN.
    Raises:
      ValueError: shapes that do not fit.
    """
    _check_labels(logits, labels)
    ways = logits.shape[-1]
    # Clipped, so that NaN reaches the row of a wrong label, and its gradient.
    log_probabilities = jax.nn.log_softmax(logits)
    index = jnp.clip(labels, 0, ways - 1)[:, None]
    chosen = jnp.take_along_axis(log_probabilities, index, axis=1)[:, 0]
    valid = jnp.where((labels >= 0) & (labels < ways), 1.0, jnp.nan)
    return -jnp.mean(chosen * valid.astype(chosen.dtype))


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
    """Average the squared error over [n, d]; ValueError if the shapes differ."""
    if outputs.shape != targets.shape:
        raise ValueError(
            f"`targets` have shape {targets.shape}, which must be that of the outputs, "
            f"{outputs.shape}"
        )
    return jnp.mean((outputs - targets) ** 2)


def accuracy(logits: Array, labels: Array) -> Array:
    """Return the share of labels [n] that are the argmax of logits [n, ways]."""
    _check_labels(logits, labels)
    hits = jnp.argmax(logits, axis=-1) == labels
    return jnp.mean(hits, dtype=logits.dtype)


def _check_labels(logits: Array, labels: Array) -> None:
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"`labels` have shape {labels.shape}, which must be {logits.shape[:-1]} "
            f"for logits of shape {logits.shape}"
        )


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
