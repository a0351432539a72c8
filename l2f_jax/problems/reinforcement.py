"""Meta reinforcement learning: the sections of a config -> Experiment."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2f_jax.data.episodes import FIRST_TASK, episode_keys
from l2f_jax.evaluation import Predictions, make_measure
from l2f_jax.outer import TrainState, initial_state
from l2f_jax.parallel import mesh_for
from l2f_jax.problems.experiment import Experiment, Score
from l2f_jax.problems.policy_search import LEAST, Search, as_judged, method
from l2f_jax.problems.schedule import Evaluation, points_to_test
from l2f_jax.problems.sections import Section, call
from l2f_jax.rl.rollout import experience, rollouts, total_return
from l2f_jax.rl.search import make_update
from l2f_jax.types import Array, MetaParams

RETURN = Score("return", rank=np.mean)


def reinforcement(
    *,
    env: Section,
    model: Section,
    learner: Section,
    transform: Section,
    sampling: Section,
    optimiser: Section,
    training: Section,
    evaluation: Section,
) -> Experiment:
    """Build meta reinforcement learning; `configs/rl/navigation.py` has all keys.

    Scores are "return" and, with `sampling.fresh`, "return_start", of the transformed
    policy before any update: the same after each number of updates.

    Raises:
      ValueError: one sentence naming the key, for anything wrong in a section; or
        several processes, whose devices do not divide the tasks.
    """
    search = method(
        env=env,
        model=model,
        learner=learner,
        transform=transform,
        sampling=sampling,
        optimiser=optimiser,
        training=training,
    )
    rest = {key: x for key, x in evaluation.items() if key not in LEAST}
    points = points_to_test(rest.pop("points", range(search.steps + 1)), search.steps)
    judged = as_judged(search, evaluation)
    held = _evaluation(rest)
    mesh = mesh_for(search.schedule.tasks)
    compiled = make_update(
        search.env,
        search.learner,
        search.policy,
        tasks=search.schedule.tasks,
        steps=search.steps,
        sampling=search.sampling,
        region=search.region,
        mesh=mesh,
        fresh=search.fresh,
        first_order=search.schedule.order == 1,
    )

    @functools.cache
    def judge(last: int, at_once: int):
        def measure(meta: MetaParams, _, key: Array):
            return returns(judged, meta, key, last)

        return make_measure(measure, lambda _, key: key, mesh=mesh, at_once=at_once)

    def init(seed: int) -> TrainState:
        example = jnp.zeros((1, search.env.observations))
        return initial_state(search.learner, optax.identity(), example, seed, mesh)

    def update(state: TrainState, step: int, iterations: int):
        return compiled(state, iterations=iterations)

    def predict(meta, stats, split: str, tasks: int, points=points):
        keys = episode_keys(held.seed, FIRST_TASK[split], tasks)
        # All at once: how long a pass takes hardly depends on how many there are.
        judged_by = judge(max(*points, 1), -(-tasks // mesh.size))
        found, start, goals = judged_by(meta, {}, (), keys)
        after = found[:, list(points)]
        start = np.broadcast_to(start[:, None], after.shape)
        return Predictions(np.stack([after, start], -1), goals)

    def scores(predictions: Predictions) -> dict[str, np.ndarray]:
        after, start = np.moveaxis(predictions.outputs, -1, 0)
        # Without trajectories of its own, the start's would be those of theta.
        return {"return": after} | ({"return_start": start} if search.fresh else {})

    return Experiment(
        init=init,
        update=update,
        predict=predict,
        scores=scores,
        score=RETURN,
        schedule=search.schedule,
        evaluation=held,
        steps=search.steps,
        points=points,
        learner=search.learner,
        protocol=_protocol(judged),
        facts={
            "horizon": search.env.horizon,
            "environment_steps": search.environment_steps,
        },
    )


def returns(
    search: Search, meta: MetaParams, key: Array, last: int
) -> tuple[Array, Array, Array]:
    """Return a task's mean returns, and the task.

    Returns:
      (returns [last + 1], start [], task): after 0 .. last >= 1 updates, 0 being theta;
      with `search.fresh`, of the transformed policy before any; what was sampled.
    """
    task_key, key = jax.random.split(key)
    task = search.env.sample_task(task_key)
    collect = rollouts(search.env, search.policy, search.sampling, task)
    data = experience(
        search.learner, meta, collect, key, steps=last, fresh=search.fresh
    )
    found = total_return(data)
    # Entry 1 is what the first update learns from: of the start, not of theta.
    return jnp.concatenate([found[:1], found[2:]]), found[1], task


def _protocol(search: Search) -> str:
    """Say how the policies of an evaluation are sampled."""
    sampling, horizon = search.sampling, search.env.horizon
    taken = f"{sampling.trajectories} trajectories of up to {horizon} steps"
    if sampling.surplus:
        budget = sampling.trajectories * horizon
        taken = f"whole trajectories until {budget} steps, at most {sampling.sampled}"
    first = "; the transform sees such a set of its own, before the first update"
    return (
        "mean undiscounted return of new trajectories after each update; each update "
        f"learns from {taken}{first if search.fresh else ''}"
    )


def _evaluation(section: Section) -> Evaluation:
    if section.get("ensemble") != 1:
        raise ValueError(
            f"`evaluation.ensemble` ({section.get('ensemble')}) must be 1: returns of "
            "several policies have no average policy"
        )
    return call(Evaluation, section, "evaluation")
