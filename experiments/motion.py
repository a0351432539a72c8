"""Policies at work, as Figure 5 shows them: paths in a plane, and a robot's poses."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.frames import frames
from experiments.plots import Numbers
from experiments.runs import Run, last_state
from l2f_jax.data.episodes import episode_keys
from l2f_jax.envs.physics import body
from l2f_jax.problems.policy_search import as_judged, method
from l2f_jax.problems.reinforcement import FIRST_TASK
from l2f_jax.rl.rollout import experience, rollouts

TASKS = 3  # that are drawn
PATHS = 5  # trajectories of each, in a plane
POSES = 9  # of one trajectory, evenly spaced in time


def motion(run: Run, tasks: int) -> dict[str, Any]:
    """Follow policies of the last checkpoint in the first `TASKS` test tasks.

    In navigation, tasks: the goal and `PATHS` trajectories of positions before and
    after the trained number of updates. Of a half-cheetah, tasks: the goal, and of one
    trajectory after them `POSES` positions [9] (m, rad), and as many poses: a list of
    its limbs' ends (x, z, x, z) in m.
    """
    del tasks
    sections = dict(run.config)
    for name in ("problem", "seed"):
        del sections[name]
    evaluation = sections.pop("evaluation")
    search, state = as_judged(method(**sections), evaluation), last_state(run)

    @jax.jit
    @jax.vmap
    def follow(key: jax.Array):
        task_key, key = jax.random.split(key)
        task = search.env.sample_task(task_key)
        collect = rollouts(search.env, search.policy, search.sampling, task)
        data = experience(
            search.learner,
            state.meta,
            collect,
            key,
            steps=search.steps,
            fresh=search.fresh,
        )
        # What follows the end of an episode is not drawn.
        seen = jnp.where(data.mask[..., None] > 0, data.observations, jnp.nan)
        return task, seen[0, :PATHS], seen[-1, :PATHS]

    keys = episode_keys(evaluation.get("seed", 0), FIRST_TASK["test"], TASKS)
    goals, before, after = map(np.asarray, follow(keys))
    env = run.config["env"]
    if env["name"] == "navigation":
        found = [
            {"before": _trimmed(b[..., :2]), "after": _trimmed(a[..., :2])}
            for b, a in zip(before, after, strict=True)
        ]
    else:
        found = [_poses(a[0], env["variant"]) for a in after]
    return {
        "tasks": [
            {"goal": goal.tolist(), **task}
            for goal, task in zip(goals, found, strict=True)
        ]
    }


def _trimmed(trajectories: np.ndarray) -> list[list]:
    kept = [x[np.isfinite(x).all(-1)].tolist() for x in trajectories]
    return [path for path in kept if path]  # those that count


def _poses(observations: np.ndarray, variant: str) -> dict[str, list]:
    """Return positions and limbs of a half-cheetah that saw observations [H, ...].

    It sees all of its position but x, which is the sum of its velocities here: exact
    where a step is one of the physics ("maml"), to centimetres where it is five.
    """
    seconds = {"maml": 0.01, "gym": 0.05}[variant]
    x = np.cumsum(observations[:, 8]) * seconds
    qpos = np.column_stack([x, observations[:, :8]])
    mujoco = importlib.import_module("mujoco")
    model = body(mujoco)
    data = mujoco.MjData(model)
    limbs = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_CAPSULE)

    def pose(position: np.ndarray) -> list[list[float]]:
        data.qpos[:] = position
        mujoco.mj_forward(model, data)
        along = data.geom_xmat[limbs].reshape(-1, 3, 3)[..., 2]  # a capsule's own z
        half = model.geom_size[limbs, 1:2] * along
        ends = [data.geom_xpos[limbs] + sign * half for sign in (-1, 1)]
        return np.concatenate([end[:, ::2] for end in ends], axis=1).tolist()

    chosen = qpos[np.linspace(0, len(qpos) - 1, POSES).round().astype(int)]
    return {"positions": chosen.tolist(), "poses": [pose(q) for q in chosen]}


def draw_motion(runs: Numbers, axes: plt.Axes) -> None:
    """Draw what each policy did, in the colour of its run.

    A robot as MuJoCo renders it, a strip for each task and run; else its limbs.
    """
    tasks = zip(*(n["tasks"] for n in runs.values()), strict=True)
    found = [
        (run, task) for each in tasks for run, task in zip(runs, each, strict=True)
    ]
    shown = [task["positions"][::2] for _, task in found if "poses" in task]
    pictures = frames(np.concatenate(shown)) if shown else None
    colours = {run: f"C{i}" for i, run in enumerate(runs)}
    if pictures is not None:
        strips = pictures.reshape(len(found), -1, *pictures.shape[1:])
        _draw_strips(found, strips, colours, axes)
        return
    for run, colour in colours.items():
        axes.plot([], [], "-", color=colour, label=run)
    for place, (run, task) in enumerate(found):
        if "poses" in task:
            _draw_poses(task, 2.5 * place, colours[run], axes)
        else:
            _draw_paths(task, colours[run], axes)
    axes.legend(frameon=False)


def _draw_strips(
    found: list[tuple[str, dict[str, Any]]],
    strips: np.ndarray,
    colours: dict[str, str],
    axes: plt.Axes,
) -> None:
    """Draw a row of pictures [n, h, w, 3] for each task, those of the first on top."""
    _, pictures, height, width, _ = strips.shape
    drawn = zip(found, strips, strict=True)
    for place, ((run, task), strip) in enumerate(drawn):
        top = 1.3 * height * place
        extent = (0, width * pictures, top + height, top)
        axes.imshow(np.concatenate(list(strip), axis=1), extent=extent)
        end = task["positions"][-1][0]
        text = f"{run}: goal {task['goal'][0]:.1f}, ends at {end:.1f} m"
        axes.annotate(text, (0, top - 0.05 * height), color=colours[run], size="small")
    limits = 1.3 * height * len(found) - 0.3 * height, -0.3 * height
    axes.set(xlim=(0, width * pictures), ylim=limits, xticks=[], yticks=[])


def _draw_paths(task: dict[str, Any], colour: str, axes: plt.Axes) -> None:
    """Draw trajectories from the start to a star, those before adaptation dotted."""
    for name, style in (("before", ":"), ("after", "-")):
        for path in task[name]:
            x, y = np.transpose(path)
            axes.plot(x, y, style, color=colour, lw=0.8, alpha=0.6)
    axes.plot(*task["goal"], "k*", markersize=10, zorder=3)
    axes.set(xlabel="x", ylabel="y", aspect="equal")


def _draw_poses(
    task: dict[str, Any], floor: float, colour: str, axes: plt.Axes
) -> None:
    """Draw the poses on a floor of their own, the later the darker."""
    shades = np.linspace(0.15, 1, len(task["poses"]))
    for pose, shade in zip(task["poses"], shades, strict=True):
        for x, z, to_x, to_z in pose:
            ends = (x, to_x), (floor + z, floor + to_z)
            axes.plot(*ends, color=colour, alpha=shade, solid_capstyle="round")
    axes.axhline(floor, color="grey", lw=0.8)
    axes.annotate(f"goal {task['goal'][0]:.1f}", (0, floor + 1.1), ha="center")
    axes.set(xlabel="x in m", yticks=[], aspect="equal")
