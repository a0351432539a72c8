"""Half-cheetah: a robot that moves in a plane runs forward, backward or at a speed.

Needs the extra rl: pip install 'l2f_jax[rl]', that is MuJoCo, and Gymnasium for the
file of the robot's model; or the extra mjx, which has MJX besides.

Reference: Finn et al., Model-Agnostic Meta-Learning, ICML 2017, Sec. 5.3, and its
public code, which are the variant "maml"; "gym" has the times, resets and velocity of
later codes (tristandeleu/pytorch-maml-rl).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2f_jax.envs.env import Env
from l2f_jax.envs.physics import TIMESTEP, State, physics
from l2f_jax.types import Array

GOALS = ("direction", "velocity")
VARIANTS = ("maml", "gym")


def half_cheetah(
    *,
    goal: str,
    variant: str = "maml",
    horizon: int | None = None,
    gain: float = 1.0,
    engine: str = "mujoco",
) -> Env:
    """Build the environment; no episode ends before the horizon.

    An action [6] is multiplied by `gain`, clipped to [-1, 1] and scaled to the motors'
    torques (30 to 120 N m); its cost is that of the clipped action. See `reward` for
    the two goals.

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
      gain: of the action; 1 is MAML's code, 0.1 that of the later codes.
      engine: of the physics; "mujoco" on the host's cores, or "mjx" on JAX's device.
    Raises:
      ValueError: unknown `goal`, `variant` or `engine`, `horizon` < 1, `gain` <= 0, or
        the extra missing; from `step` by "mujoco", if it is differentiated.
    """
    _check(goal, variant, horizon, gain)
    maml = variant == "maml"
    skip = 1 if maml else 5
    model, advance = physics(engine)
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
        action = jnp.clip(gain * action, -1, 1)
        after = advance(state, action, skip)
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


def _check(goal: str, variant: str, horizon: int | None, gain: float) -> None:
    if goal not in GOALS:
        raise ValueError(f"`goal` ({goal!r}) must be one of {', '.join(GOALS)}")
    if variant not in VARIANTS:
        choices = ", ".join(VARIANTS)
        raise ValueError(f"`variant` ({variant!r}) must be one of {choices}")
    if horizon is not None and horizon < 1:
        raise ValueError(f"`horizon` ({horizon}) must be at least 1")
    if gain <= 0:
        raise ValueError(f"`gain` ({gain}) must be positive")
