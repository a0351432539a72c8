"""Losses on trajectories: the policy gradient inside, the surrogate outside."""

import jax.numpy as jnp

from l2f_jax.models.policy import Gaussian, log_probability
from l2f_jax.rl.returns import masked_mean
from l2f_jax.types import Array, Model, Params, Stats, TaskLoss, Trajectories


def act(policy: Model, params: Params, data: Trajectories) -> Gaussian:
    """Return the policy's distributions at all observations, mean [B, H, a]."""
    flat = data.observations.reshape(-1, data.observations.shape[-1])
    outputs, _ = policy.apply(params, {}, flat)
    mean, log_std = outputs  # a Gaussian
    return Gaussian(mean.reshape(*data.observations.shape[:-1], -1), log_std)


def reinforce(policy: Model) -> TaskLoss:
    """Return the inner loss -mean(log pi(a | o) A), whose gradient is the policy's.

    Reference: Finn et al., Model-Agnostic Meta-Learning, ICML 2017, Eq. (4).
    """

    def loss(
        params: Params, stats: Stats, data: Trajectories, *, phase, step, key
    ) -> tuple[Array, Stats]:
        del phase, step, key
        log_pi = log_probability(act(policy, params, data), data.actions)
        return -masked_mean(log_pi * data.advantages, data.mask), stats

    return loss


def surrogate(old: Gaussian, new: Gaussian, data: Trajectories) -> Array:
    """Return -mean(pi_new(a | o) / pi_old(a | o) A), of one task."""
    log_ratio = log_probability(new, data.actions) - log_probability(old, data.actions)
    return -masked_mean(jnp.exp(log_ratio) * data.advantages, data.mask)
