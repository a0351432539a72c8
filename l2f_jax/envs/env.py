"""The type of an environment: pure functions of one trajectory of one task."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2f_jax.types import Array


class Env(NamedTuple):
    """A family of tasks, each a Markov decision process with a fixed horizon.

    sample_task(key) -> task [n]: such as a goal; the policy does not see it.
    reset(task, key) -> state, observation [observations].
    step(task, state, action [actions], key) -> (state, observation, reward, done):
      the reward of the action, and whether the episode ends with it; what follows an
      end is masked, so a step after it may return anything finite.
    observations, actions: how many numbers each has.
    horizon: most steps of an episode.

    All functions work under nested `vmap` (tasks, trajectories) inside `scan`. No
    derivative is taken through `step`. Tasks, observations and rewards have one dtype.
    """

    sample_task: Callable[[Array], Array]
    reset: Callable[[Array, Array], tuple[Any, Array]]
    step: Callable[[Array, Any, Array, Array], tuple[Any, Array, Array, Array]]
    observations: int
    actions: int
    horizon: int


def with_goal(env: Env) -> Env:
    """Append the task to every observation: the oracle, which needs no adaptation."""

    def reset(task: Array, key: Array) -> tuple[Any, Array]:
        state, observation = env.reset(task, key)
        return state, jnp.concatenate([observation, task])

    def step(task: Array, state: Any, action: Array, key: Array):
        state, observation, reward, done = env.step(task, state, action, key)
        return state, jnp.concatenate([observation, task]), reward, done

    goal = jax.eval_shape(env.sample_task, jax.random.key(0))
    observations = env.observations + goal.shape[0]
    return env._replace(reset=reset, step=step, observations=observations)
