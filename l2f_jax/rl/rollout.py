"""Trajectories of a policy in one task, and what adaptation sees of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2f_jax.envs.env import Env
from l2f_jax.inner import recorded
from l2f_jax.models.policy import sample
from l2f_jax.rl.returns import (
    advantages,
    linear_baseline,
    returns_to_go,
    standardised,
)
from l2f_jax.tree import at, merge
from l2f_jax.types import Array, Learner, MetaParams, Model, Params, Trajectories

Collect = Callable[[Params, Array], Trajectories]


class Sampling(NamedTuple):
    """How experience is gathered and judged.

    trajectories: at each point of the adaptation path, if none ends early.
    discount, decay: see `returns.advantages`.
    surplus: how many times as many are sampled besides, to take the steps that
      trajectories which end early leave of a budget of trajectories * horizon.
    """

    trajectories: int
    discount: float = 0.99
    decay: float = 1.0
    surplus: int = 0

    @property
    def sampled(self) -> int:
        """Return B, the trajectories that are sampled, whether they count or not."""
        return self.trajectories * (1 + self.surplus)


def rollouts(env: Env, policy: Model, sampling: Sampling, task: Array) -> Collect:
    """Return (params, key) -> trajectories of a policy in a task, with advantages."""

    def one(params: Params, key: Array):
        reset_key, key = jax.random.split(key)

        def step(carry, key: Array):
            state, observation, alive = carry
            action_key, step_key = jax.random.split(key)
            outputs, _ = policy.apply(params, {}, observation[None])
            action = sample(outputs, action_key)[0]  # pyright: ignore
            state, following, reward, done = env.step(task, state, action, step_key)
            record = observation, action, alive * reward, alive
            return (state, following, jnp.where(done, 0, alive)), record

        state, observation = env.reset(task, reset_key)
        alive = jnp.ones((), observation.dtype)
        keys = jax.random.split(key, env.horizon)
        return jax.lax.scan(step, (state, observation, alive), keys)[1]

    def collect(params: Params, key: Array) -> Trajectories:
        params = jax.lax.stop_gradient(params)  # nothing differentiates the world
        keys = jax.random.split(key, sampling.sampled)
        seen, actions, rewards, mask = jax.vmap(one, (None, 0))(params, keys)
        if sampling.surplus:
            counted = within(sampling.trajectories * env.horizon, mask)[:, None]
            rewards, mask = counted * rewards, counted * mask
        targets = returns_to_go(rewards, sampling.discount)
        values = linear_baseline(seen, targets, mask)
        gains = advantages(rewards, values, mask, sampling.discount, sampling.decay)
        return Trajectories(seen, actions, rewards, mask, standardised(gains, mask))

    return collect


def within(budget: int, mask: Array) -> Array:
    """Mark the trajectories, taken in order, that begin within a budget of steps.

    The one that exhausts it counts as a whole, as in MAML's code, so that up to a
    horizon more is taken; less only if all trajectories together are shorter.

    Args:
      mask: [B, H], 1 for each step that was taken, else 0.
    Returns:
      [B], 1 or 0.
    """
    taken = mask.sum(-1)
    before = jnp.cumsum(taken) - taken
    return (before < budget).astype(mask.dtype)


def experience(
    learner: Learner,
    meta: MetaParams,
    collect: Collect,
    key: Array,
    *,
    steps: int,
    fresh: bool,
) -> Trajectories:
    """Adapt to a task while collecting, and return all that was collected.

    Entry 0 of the leading axis [steps + 2] is collected by theta, for the transform;
    entry t by path[t - 1], for inner step t; the last by the adapted policy. Replayed
    through `inner.recorded`, they give the same path for the same meta-parameters.

    Args:
      fresh: collect entry 1 with the transformed policy; else it is entry 0 again,
        which for MAML is the same policy and for L2F another one (off-policy).
    """
    keys = jax.random.split(key, steps + 2)
    gathered = [collect(meta.params, keys[0])]
    for t in range(1, steps + 2):
        if t == 1 and not fresh and steps > 0:
            gathered.append(gathered[0])
            continue
        source = recorded(jax.tree.map(lambda *x: jnp.stack(x), *gathered))
        adapted = learner.adapt(meta, {}, source, t - 1, first_order=True)
        params = merge(at(adapted.path, t - 1), adapted.shared)
        gathered.append(collect(params, keys[t]))
    return jax.tree.map(lambda *x: jnp.stack(x), *gathered)


def total_return(data: Trajectories) -> Array:
    """Return the mean undiscounted return of the trajectories [..., B, H]: [...].

    Those that do not count, whose first step is masked, are left out.
    """
    counted = data.mask[..., 0].mean(-1)  # the share
    return data.rewards.sum(-1).mean(-1) / counted
