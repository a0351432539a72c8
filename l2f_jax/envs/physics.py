"""The half-cheetah's body and the engines that move it, all trajectories at once.

"mujoco" is the C engine on all cores of the host, by a callback from JAX; "mjx" is the
same physics in JAX, on whatever device the program runs: on a CPU it takes tens of
times longer. Both solve contacts alike, so that in float64 they agree to rounding.
"""

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from l2f_jax.types import Array

TIMESTEP = 0.01  # of the physics, in s
MASS = 14.0  # of the whole robot, in kg


class State(NamedTuple):
    """Positions [9] and velocities [9] of rootx, rootz (m), rooty, six joints (rad).

    Between steps in JAX's precision, float32 rounds x to 1e-6 m after 10 m; a step of
    the C engine computes in float64. Its solver of contacts starts anew in each step.
    """

    qpos: Array
    qvel: Array


# (state, action [6], steps that it is held for) -> state; under any `vmap`s.
Advance = Callable[[State, Array, int], State]


def physics(engine: str) -> tuple[Any, Advance]:
    """Return MuJoCo's model of the robot and what moves it.

    Args:
      engine: one of `ENGINES`.
    Raises:
      ValueError: unknown `engine`, or the extra missing that has it; from `advance`,
        if it is differentiated with "mujoco".
    """
    if engine not in ENGINES:
        raise ValueError(f"`engine` ({engine!r}) must be one of {', '.join(ENGINES)}")
    try:
        mujoco = importlib.import_module("mujoco")
        return ENGINES[engine](mujoco)
    except ImportError as error:
        raise ValueError(
            "the half-cheetah needs MuJoCo and Gymnasium, and for `engine` 'mjx' MJX: "
            f"pip install 'l2f_jax[rl]' or 'l2f_jax[mjx]' ({error})"
        ) from error


def _on_host(mujoco: Any) -> tuple[Any, Advance]:
    model, simulate = threaded(mujoco)

    def advance(state: State, action: Array, skip: int) -> State:
        after = jax.pure_callback(
            functools.partial(simulate, skip=skip),
            [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in state],
            *state,
            action,
            vmap_method="broadcast_all",  # one call a step, for the whole batch
        )
        return State(*after)

    return model, advance


def _in_jax(mujoco: Any) -> tuple[Any, Advance]:
    # At import, it prints which of its own engines are not installed.
    with contextlib.redirect_stdout(io.StringIO()):
        mjx = importlib.import_module("mujoco.mjx")
    model = body(mujoco)
    moved = mjx.put_model(model)

    def advance(state: State, action: Array, skip: int) -> State:
        data = mjx.make_data(moved).replace(**state._asdict(), ctrl=action)
        data = jax.lax.fori_loop(0, skip, lambda _, x: mjx.step(moved, x), data)
        return State(data.qpos, data.qvel)

    return model, advance


ENGINES = {"mujoco": _on_host, "mjx": _in_jax}


@functools.cache
def threaded(mujoco: Any) -> tuple[Any, Callable[..., list[np.ndarray]]]:
    """Return the model, and `simulate`: (qpos, qvel, action, skip) -> [qpos, qvel].

    Only NumPy inside; all have the same leading axes. One pool of threads serves all
    environments, and who calls while it is busy waits: its `data` are written to.
    """
    rollout = importlib.import_module("mujoco.rollout")
    model = body(mujoco)
    threads = os.cpu_count() or 1
    pool = rollout.Rollout(nthread=threads)
    data = [mujoco.MjData(model) for _ in range(threads)]
    turn = threading.Lock()

    def simulate(qpos: Any, qvel: Any, action: Any, *, skip: int) -> list[np.ndarray]:
        qpos, qvel, action = (np.asarray(x) for x in (qpos, qvel, action))
        time = np.zeros_like(qpos[..., :1])
        start = np.concatenate([time, qpos, qvel], -1, dtype=np.float64)
        start, action = (x.reshape(-1, x.shape[-1]) for x in (start, action))
        with turn:
            states, _ = pool.rollout(model, data, start, action[:, None], nstep=skip)
        after = states[:, -1, 1:].astype(qpos.dtype)
        return [x.reshape(qpos.shape) for x in np.split(after, 2, axis=-1)]

    return model, simulate


def body(mujoco: Any) -> Any:
    """Compile Gymnasium's half_cheetah.xml, without importing Gymnasium."""
    gymnasium = importlib.util.find_spec("gymnasium")
    if gymnasium is None or gymnasium.origin is None:
        raise ImportError("gymnasium")
    assets = Path(gymnasium.origin).parent / "envs" / "mujoco" / "assets"
    spec = mujoco.MjSpec.from_file(str(assets / "half_cheetah.xml"))
    spec.option.timestep = TIMESTEP
    # The file says this mass in an attribute that MuJoCo warns of.
    spec.compiler.settotalmass = -1
    model = spec.compile()
    mujoco.mj_setTotalmass(model, MASS)
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model
