"""What a task looks like to an initialisation transform: embeddings of its support set.

Reference: Baik et al., Learning to Forget for Meta-Learning, CVPR 2020, Sec. 3.4.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2f_jax.losses import present
from l2f_jax.scopes import check_kind, pool, scope_of
from l2f_jax.tree import is_not_norm, split
from l2f_jax.types import Array, Params, TaskView


class Embedding(NamedTuple):
    """What a task looks like: size(params) -> int;  apply(params, view) -> [size]."""

    size: Callable[[Params], int]
    apply: Callable[[Params, TaskView], Array]


def gradients(
    scope: str = "layer",
    *,
    through: bool = False,
    scale: float = 1.0,
    select: Callable[[str], bool] = is_not_norm,
) -> Embedding:
    """Embed a task as the mean of its support gradient over each part of a scope.

    e^j = scale * mean over j of grad_theta L(f_theta; support), signed.

    Args:
      scope: what is averaged over; the official code averages over each tensor.
      through: let meta-gradients flow through e. The official code does not.
      scale: of the embedding; the official code has 1. Policy gradients are so small
        that g_phi hardly sees them without one of about 100.
      select: the tensors whose gradients count.
    Raises:
      ValueError: unknown `scope`.
    """
    check_kind("scope", scope)

    def size(params: Params) -> int:
        return scope_of(split(params, select)[0], scope).size

    def apply(params: Params, view: TaskView) -> Array:
        params = params if through else jax.lax.stop_gradient(params)
        chosen, others = split(params, select)
        slope = jax.grad(lambda x: view.loss({**x, **others}))(chosen)
        mean = scale * pool(scope_of(chosen, scope), slope)
        return mean if through else jax.lax.stop_gradient(mean)

    return Embedding(size, apply)


def prototypes(
    features: Callable[[Params, Array], Array], size: int, ways: int
) -> Embedding:
    """Embed a task as the mean of its class prototypes (Table 5).

    e = mean over classes of the mean feature of the class's support examples; classes
    without any do not count.

    Args:
      features: (params, inputs [n, ...]) -> [n, size]; close over a frozen network's
        weights to use a pre-trained one.
      size: the feature dimension.  ways: the number of classes of an episode.
    """

    def apply(params: Params, view: TaskView) -> Array:
        x = features(params, view.data.inputs)
        labels = view.data.targets
        counted = present(labels, ways)[:, None]
        return jnp.mean(class_means(x, labels, ways), axis=0, where=counted)

    return Embedding(lambda params: size, apply)


def class_means(features: Array, labels: Array, ways: int) -> Array:
    """Average features [n, d] over each class of labels [n]: prototypes [ways, d].

    That of a class without examples is 0; `losses.present` tells which have some.
    """
    members = jax.nn.one_hot(labels, ways, dtype=features.dtype)
    return (members.T @ features) / jnp.maximum(jnp.sum(members, axis=0), 1)[:, None]


def nothing() -> Embedding:
    """Embed every task as the empty vector: for free coefficients."""
    return Embedding(
        lambda params: 0,
        lambda params, view: jnp.zeros(0, jnp.result_type(*params.values())),
    )
