"""2D navigation: a point walks to a goal that only its rewards tell of.

Reference: Finn et al., Model-Agnostic Meta-Learning, ICML 2017, Sec. 5.3, and its
public code, which differ in the reward: option `squared`.
"""

import jax
import jax.numpy as jnp

from l2f_jax.envs.env import Env
from l2f_jax.types import Array

STEP = 0.1  # the farthest that a coordinate moves in a step
NEAR = 0.01  # an episode ends when both coordinates are nearer to the goal


def navigation(*, squared: bool = False, horizon: int = 100, gain: float = STEP) -> Env:
    """Build the environment; positions are in the plane's own unit of length.

    The start is (0, 0) and the goal uniform in [-0.5, 0.5]^2. An action a moves the
    position by clip(gain * a, -0.1, 0.1) in each coordinate. Observed is the position,
    rewarded minus its distance to the goal after the step.

    Args:
      squared: reward minus the squared distance, as the papers' texts say; their code
        takes the distance itself.
      horizon: most steps of an episode; it ends earlier when both coordinates are
        within 0.01 of the goal.
      gain: of the action; 0.1 is MAML's code, 1 that of other codes.
    Raises:
      ValueError: `horizon` < 1 or `gain` <= 0.
    """
    if horizon < 1:
        raise ValueError(f"`horizon` ({horizon}) must be at least 1")
    if gain <= 0:
        raise ValueError(f"`gain` ({gain}) must be positive")

    def sample_task(key: Array) -> Array:
        return jax.random.uniform(key, (2,), minval=-0.5, maxval=0.5)

    def reset(task: Array, key: Array) -> tuple[Array, Array]:
        del key
        start = jnp.zeros_like(task)
        return start, start

    def step(task: Array, state: Array, action: Array, key: Array):
        del key
        state = state + jnp.clip(gain * action, -STEP, STEP)
        away = state - task
        distance = jnp.sum(away**2)
        reward = -distance if squared else -jnp.sqrt(distance)
        return state, state, reward, jnp.all(jnp.abs(away) < NEAR)

    return Env(sample_task, reset, step, observations=2, actions=2, horizon=horizon)
