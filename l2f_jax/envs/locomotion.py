"""Half-cheetah: a robot that moves in a plane runs forward, backward or at a speed.

MuJoCo's C engine moves all tasks and trajectories at once, by a callback from JAX.
Needs the extra rl: pip install 'l2f_jax[rl]', that is MuJoCo, and Gymnasium for the
file of the robot's model.

Reference: Finn et al., Model-Agnostic Meta-Learning, ICML 2017, Sec. 5.3, and its
public code, which are the variant "maml"; "gym" has the times, resets and velocity of
later codes (tristandeleu/pytorch-maml-rl).
"""

import functools
import importlib
import importlib.util
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2f_jax.envs.env import Env
from l2f_jax.types import Array

GOALS = ("direction", "velocity")
VARIANTS = ("maml", "gym")
TIMESTEP = 0.01  # of the physics, in s
MASS = 14.0  # of the whole robot, in kg


class State(NamedTuple):
    """Positions [9] and velocities [9] of rootx, rootz (m), rooty, six joints (rad).

    Between steps in JAX's precision, float32 rounds x to 1e-6 m after 10 m; a step
    computes in float64, and its solver of contacts starts anew.
    """

    qpos: Array
    qvel: Array


def half_cheetah(
    *, goal: str, variant: str = "maml", horizon: int | None = None
) -> Env:
    """Build the environment; no episode ends before the horizon.

    An action [6] is clipped to [-1, 1] and scaled to the motors' torques (30 to 120
    N m); its cost is that of the clipped action. See `reward` for the two goals.

    In the variant "maml" a step lasts 0.01 s; observed are qpos without x, qvel and the
    centre of mass [8 + 9 + 3]; the velocity is that of the centre of mass after the
    step; an episode starts from the model's qpos + 0.01 N(0, 1) and qvel 0.1 N(0, 1).

    In "gym" a step lasts 0.05 s, five of the physics under one action; the centre of
    mass is not observed [8 + 9]; the velocity is the torso's, mean over the step; qpos
    starts from + U(-0.1, 0.1).

    Args:
      goal: "direction" (task -1 or 1, equally likely) or "velocity" (task uniform in
        [0, 2] m/s); a task is an array [1].
      horizon: steps of an episode; None for 200 ("maml", 2 s) or 100 ("gym", 5 s).
    Raises:
      ValueError: unknown `goal` or `variant`, `horizon` < 1, or the extra rl missing;
        from `step`, if it is differentiated, since physics has no derivative here.
    """
    _check(goal, variant, horizon)
    maml = variant == "maml"
    skip = 1 if maml else 5
    model, simulate = _physics()
    centre = centre_of_mass(model)

    def sample_task(key: Array) -> Array:
        if goal == "velocity":
            return jax.random.uniform(key, (1,), maxval=2.0)
        return jax.random.rademacher(key, (1,), jnp.result_type(float))

    def observe(state: State) -> Array:
        seen = [state.qpos[1:], state.qvel]
        return jnp.concatenate([*seen, centre(state.qpos)] if maml else seen)

    def reset(task: Array, key: Array) -> tuple[State, Array]:
        del task
        key, other = jax.random.split(key)
        if maml:
            noise = 0.01 * jax.random.normal(key, (model.nv,))
        else:
            noise = jax.random.uniform(key, (model.nv,), minval=-0.1, maxval=0.1)
        start = jnp.asarray(model.qpos0, noise.dtype)
        state = State(start + noise, 0.1 * jax.random.normal(other, (model.nv,)))
        return state, observe(state)

    def step(task: Array, state: State, action: Array, key: Array):
        del key
        action = jnp.clip(action, -1, 1)
        after = _advance(simulate, state, action, skip)
        if maml:
            velocity = jax.jvp(centre, (after.qpos,), (after.qvel,))[1][0]
        else:
            velocity = (after.qpos[0] - state.qpos[0]) / (skip * TIMESTEP)
        value = reward(goal, task, velocity, action)
        return after, observe(after), value, jnp.zeros((), bool)

    horizon = horizon or (200 if maml else 100)
    return Env(sample_task, reset, step, 20 if maml else 17, model.nu, horizon)


def reward(goal: str, task: Array, velocity: Array, action: Array) -> Array:
    """Return task * velocity, or -|velocity - task|, less 0.05 |action|^2; in m/s.

    Args:
      goal: "direction" or "velocity", for the first or second formula.
      task: [1], the direction -1 or 1, or the velocity wanted in m/s.
      velocity: [], along x in m/s.
      action: [6] in [-1, 1].
    """
    wanted = task[0]
    cost = 0.05 * jnp.sum(action**2)
    if goal == "velocity":
        return -jnp.abs(velocity - wanted) - cost
    return wanted * velocity - cost


def centre_of_mass(model: Any) -> Callable[[Array], Array]:
    """Build qpos [9] -> centre of mass of the whole robot [3], (x, 0, z) in m.

    Each body turns by the sum of the angles on its way to the root, so the centre is
    (rootx, rootz) + sum over bodies of R(angle) lever, where R(angle) (x, z) =
    (x cos + z sin, -x sin + z cos) and a body's lever is its share of the mass times
    its own centre plus, for each child, the share of all that hangs there times where.

    Args:
      model: MuJoCo's model of the half-cheetah: first joints rootx and rootz, all
        others turn about y at the origins of their bodies.
    """
    turns = np.zeros((model.nbody, model.nv))
    turns[model.jnt_bodyid[2:], np.arange(2, model.nv)] = model.jnt_axis[2:, 1]
    levers = model.body_mass[:, None] * model.body_ipos
    for body in range(1, model.nbody):  # parents come before their children
        parent = model.body_parentid[body]
        turns[body] += turns[parent]
        levers[parent] += model.body_subtreemass[body] * model.body_pos[body]
    levers /= model.body_subtreemass[0]

    def centre(qpos: Array) -> Array:
        angle = jnp.dot(jnp.asarray(turns, qpos.dtype), qpos, precision="highest")
        lever_x, _, lever_z = jnp.asarray(levers.T, qpos.dtype)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        x = qpos[0] + jnp.sum(lever_x * cos + lever_z * sin)
        z = qpos[1] + jnp.sum(lever_z * cos - lever_x * sin)
        return jnp.stack([x, jnp.zeros_like(x), z])

    return centre


def _check(goal: str, variant: str, horizon: int | None) -> None:
    if goal not in GOALS:
        raise ValueError(f"`goal` ({goal!r}) must be one of {', '.join(GOALS)}")
    if variant not in VARIANTS:
        choices = ", ".join(VARIANTS)
        raise ValueError(f"`variant` ({variant!r}) must be one of {choices}")
    if horizon is not None and horizon < 1:
        raise ValueError(f"`horizon` ({horizon}) must be at least 1")


def _advance(simulate: Callable, state: State, action: Array, skip: int) -> State:
    """Hold one action for `skip` steps of the physics; one call under any `vmap`s."""
    after = jax.pure_callback(
        functools.partial(simulate, skip=skip),
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in state],
        *state,
        action,
        vmap_method="broadcast_all",
    )
    return State(*after)


@functools.cache
def _physics() -> tuple[Any, Callable]:
    """Return the model, and `simulate`: (qpos, qvel, action, skip) -> [qpos, qvel].

    Only NumPy inside; all have the same leading axes. One pool of threads serves all
    environments, and who calls while it is busy waits: its `data` are written to.
    """
    try:
        mujoco = importlib.import_module("mujoco")
        rollout = importlib.import_module("mujoco.rollout")
    except ImportError as error:
        raise _missing() from error
    model = _model(mujoco)
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


def _model(mujoco: Any) -> Any:
    """Compile Gymnasium's half_cheetah.xml, without importing Gymnasium."""
    gymnasium = importlib.util.find_spec("gymnasium")
    if gymnasium is None or gymnasium.origin is None:
        raise _missing()
    assets = Path(gymnasium.origin).parent / "envs" / "mujoco" / "assets"
    spec = mujoco.MjSpec.from_file(str(assets / "half_cheetah.xml"))
    spec.option.timestep = TIMESTEP
    # The file says this mass in an attribute that MuJoCo warns of.
    spec.compiler.settotalmass = -1
    model = spec.compile()
    mujoco.mj_setTotalmass(model, MASS)
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def _missing() -> ValueError:
    return ValueError(
        "the half-cheetah needs MuJoCo and Gymnasium: pip install 'l2f_jax[rl]'"
    )
