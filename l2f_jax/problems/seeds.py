"""Several runs of one config side by side in one program: seeds by `vmap`.

They share the number of the step; all else has a leading axis of seeds, and each is the
run that its seed would make alone.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from l2f_jax.outer import TrainState
from l2f_jax.tree import at

AXES = TrainState(step=None, key=0, meta=0, opt_state=0, stats=0)  # pyright: ignore


def init_side_by_side(init: Callable[[int], TrainState], seeds: int) -> Callable:
    """Return seed -> the states of runs seed .. seed + seeds - 1, as one."""

    def states(seed: int) -> TrainState:
        runs = [init(seed + i) for i in range(seeds)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)
        return stacked._replace(step=runs[0].step)

    return states


def update_side_by_side(update: Callable) -> Callable:
    """Return an `outer.make_update` step for all seeds; metrics are means over them."""

    @partial(jax.jit, static_argnames="iterations")
    def step(state: TrainState, shared, items=(), *, iterations: int = 1):
        def one(state: TrainState):
            return update(state, shared, items, iterations=iterations)

        state, metrics = jax.vmap(one, in_axes=(AXES,), out_axes=(AXES, 0))(state)
        return state, jax.tree.map(lambda x: x.mean(0), metrics)

    return step


def judge_side_by_side(judge: Callable, seeds: int) -> Callable:
    """Return what `judge` finds of seed after seed, each on the same tasks."""

    def judged(meta, stats, *arguments, **options):
        found = [
            judge(*at((meta, stats), i), *arguments, **options) for i in range(seeds)
        ]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

    return judged
