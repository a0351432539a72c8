"""Stochastic policies: a diagonal Gaussian whose mean a perceptron computes.

Reference: Finn et al., Model-Agnostic Meta-Learning, ICML 2017, Sec. 5.3, with the
public code's details: log deviations that do not depend on the state and start at 0.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2f_jax.models.layers import glorot
from l2f_jax.models.mlp import mlp
from l2f_jax.types import Array, Model, Params, Phase, Stats

FLOOR = math.log(1e-6)  # of the log deviation
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}


class Gaussian(NamedTuple):
    """Independent normal actions: mean [..., a], log_std [a]."""

    mean: Array
    log_std: Array


def gaussian_policy(
    actions: int, hidden: tuple[int, ...] = (100, 100), *, activation: str = "relu"
) -> Model:
    """Build a policy for observations [n, o]; its outputs are a `Gaussian`.

    Parameters: those of `mlp`, kernels Glorot uniform, and log_std [actions], 0.

    Args:
      actions: numbers of an action.
      hidden: widths of the hidden layers.
      activation: "relu" or "tanh".
    """
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"`activation` ({activation!r}) must be one of {', '.join(ACTIVATIONS)}"
        )
    act: Callable[[Array], Array] = ACTIVATIONS[activation]
    network = mlp(actions, tuple(hidden), activation=act, kernel_init=glorot)

    def init(key: Array, inputs: Array) -> tuple[Params, Stats]:
        params, stats = network.init(key, inputs)
        params["log_std"] = jnp.zeros(actions, inputs.dtype)
        return dict(sorted(params.items())), stats

    def apply(
        params: Params,
        stats: Stats,
        inputs: Array,
        *,
        phase: Phase = "support",
        step: Array | int = 0,
        key: Array | None = None,
    ) -> tuple[Gaussian, Stats]:
        mean, stats = network.apply(
            params, stats, inputs, phase=phase, step=step, key=key
        )
        return Gaussian(mean, jnp.maximum(params["log_std"], FLOOR)), stats

    return Model(init, apply)  # pyright: ignore  (its outputs are no single array)


def sample(policy: Gaussian, key: Array) -> Array:
    """Draw actions [..., a]."""
    noise = jax.random.normal(key, policy.mean.shape, policy.mean.dtype)
    return policy.mean + _like(jnp.exp(policy.log_std), noise) * noise


def log_probability(policy: Gaussian, actions: Array) -> Array:
    """Return the log density of actions [..., a], in nats: [...]."""
    log_std = _like(policy.log_std, actions)
    standard = (actions - policy.mean) * jnp.exp(-log_std)
    each = -0.5 * standard**2 - log_std - 0.5 * math.log(2 * math.pi)
    return each.sum(-1)


def divergence(old: Gaussian, new: Gaussian) -> Array:
    """Return KL(old || new) of the actions at each observation, in nats: [...]."""
    old_log, new_log = (_like(p.log_std, p.mean) for p in (old, new))
    spread = jnp.exp(2 * old_log) + (old.mean - new.mean) ** 2
    each = new_log - old_log + 0.5 * spread * jnp.exp(-2 * new_log) - 0.5
    return each.sum(-1)


def _like(per_action: Array, x: Array) -> Array:
    return jnp.broadcast_to(per_action, x.shape)
