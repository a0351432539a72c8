"""The type of an environment: pure functions of one trajectory of one task."""

from collections.abc import Callable
from typing import Any, NamedTuple

from l2f_jax.types import Array


class Env(NamedTuple):
    """A family of tasks, each a Markov decision process with a fixed horizon.

    sample_task(key) -> task: an array, such as a goal; the policy does not see it.
    reset(task, key) -> state, observation [observations].
    step(task, state, action [actions], key) -> (state, observation, reward [], done []):
      the reward of the action, and whether the episode ends with it; what follows an
      end is masked, so a step after it may return anything finite.
    observations, actions: how many numbers each has.
    horizon: most steps of an episode.

    All functions work under nested `vmap` (tasks, trajectories) inside `scan`.
    """

    sample_task: Callable[[Array], Array]
    reset: Callable[[Array, Array], tuple[Any, Array]]
    step: Callable[[Array, Any, Array, Array], tuple[Any, Array, Array, Array]]
    observations: int
    actions: int
    horizon: int
