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

    trajectories: B, at each point of the adaptation path.
    discount, decay: see `returns.advantages`.
    """

    trajectories: int
    discount: float = 0.99
    decay: float = 1.0


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
        keys = jax.random.split(key, sampling.trajectories)
        seen, actions, rewards, mask = jax.vmap(one, (None, 0))(params, keys)
        targets = returns_to_go(rewards, sampling.discount)
        values = linear_baseline(seen, targets, mask)
        gains = advantages(rewards, values, mask, sampling.discount, sampling.decay)
        return Trajectories(seen, actions, rewards, mask, standardised(gains, mask))

    return collect


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
    """Return the mean undiscounted return of the trajectories [..., B, H]: [...]."""
    return data.rewards.sum(-1).mean(-1)
