"""Meta reinforcement learning: the sections of a config -> Experiment."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2f_jax import recipes
from l2f_jax.data.episodes import episode_keys
from l2f_jax.envs.env import Env, with_goal
from l2f_jax.envs.locomotion import half_cheetah
from l2f_jax.envs.navigation import navigation
from l2f_jax.evaluation import Predictions
from l2f_jax.inner import from_optax
from l2f_jax.models.policy import gaussian_policy
from l2f_jax.outer import TrainState
from l2f_jax.problems.experiment import Experiment, Score
from l2f_jax.problems.schedule import (
    Evaluation,
    Schedule,
    check_least,
    points_to_test,
)
from l2f_jax.problems.sections import call, select
from l2f_jax.problems.supervised import Section
from l2f_jax.rl.losses import reinforce
from l2f_jax.rl.rollout import Sampling, experience, rollouts, total_return
from l2f_jax.rl.trpo import TrustRegion, make_update
from l2f_jax.transforms import attenuate, identity
from l2f_jax.types import Array, InnerRule, MetaParams

ENVIRONMENTS = {"navigation": navigation, "half_cheetah": half_cheetah}
FIRST_TASK = {"test": 0, "val": 2**20}  # numbers of fixed tasks; none is in both


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
    """Build meta reinforcement learning; `configs/rl/navigation.py` has all keys."""
    world = _environment(**env)
    schedule = _schedule(training)
    region = call(TrustRegion, optimiser, "optimiser")
    network = select(
        model, "model", {"gaussian": gaussian_policy}, actions=world.actions
    )
    steps, rule = call(_inner, learner, "learner")
    start = select(
        transform, "transform", {"identity": identity, "attenuate": attenuate}
    )
    agent = recipes.maml(network, reinforce(network), rule=rule, transform=start)
    rest, options = dict(evaluation), dict(sampling)
    points = points_to_test(rest.pop("points", range(steps + 1)), steps)
    fresh = bool(options.pop("fresh", False))
    how = call(Sampling, options, "sampling")
    check_least("sampling", how._asdict(), {"trajectories": 1})

    def init(seed: int) -> TrainState:
        key, run_key = jax.random.split(jax.random.key(seed))
        example = jnp.zeros((1, world.observations))
        meta, stats = agent.init(key, example)
        return TrainState(jnp.zeros((), jnp.int32), run_key, meta, (), stats)

    compiled = make_update(
        world,
        agent,
        network,
        tasks=schedule.tasks,
        steps=steps,
        sampling=how,
        region=region,
        fresh=fresh,
        first_order=schedule.order == 1,
    )

    def update(state: TrainState, step: int, iterations: int):
        return compiled(state, iterations=iterations)

    def returns(meta: MetaParams, key: Array, last: int) -> tuple[Array, Array]:
        """Return one task's mean return after 0 .. last updates, and the task."""
        task_key, key = jax.random.split(key)
        task = world.sample_task(task_key)
        collect = rollouts(world, network, how, task)
        data = experience(agent, meta, collect, key, steps=last, fresh=fresh)
        found = total_return(data)
        # Entry 1 is what the first update learns from: of the start, not of theta.
        return jnp.concatenate([found[:1], found[2:]]), task

    judge = jax.jit(jax.vmap(returns, (None, 0, None)), static_argnums=2)

    def predict(meta, stats, split: str, tasks: int, points=points, seed: int = 0):
        last = max(*points, 1)
        keys = episode_keys(seed, FIRST_TASK[split], tasks)
        found, goals = judge(meta, keys, last)
        return Predictions(np.asarray(found)[:, list(points)], np.asarray(goals))

    return Experiment(
        init=init,
        update=update,
        predict=predict,
        scores=lambda predictions: {"return": predictions.outputs},
        score=Score("return", rank=np.mean),
        schedule=schedule,
        evaluation=_evaluation(rest),
        steps=steps,
        points=points,
        learner=agent,
        protocol=f"mean undiscounted return of {how.trajectories} new trajectories",
        facts={"horizon": world.horizon},
    )


def _environment(*, observe_goal: bool = False, **section: Any) -> Env:
    world = select(section, "env", ENVIRONMENTS)
    return with_goal(world) if observe_goal else world


def _schedule(section: Section) -> Schedule:
    """Build the schedule; all tasks adapt at once, and their mean counts."""
    fixed = {
        "reduction": "mean",
        "first_order_epochs": 0,
        "multi_step_epochs": 0,
        "task_map": "vmap",
    }
    return call(Schedule, section, "training", **fixed)


def _inner(*, steps: int, lr: float, later: float = 0.5) -> tuple[int, InnerRule]:
    """Build gradient descent at rate lr, then lr * later from the second step on."""
    check_least("learner", {"steps": steps}, {"steps": 0})

    def rate(count: Any) -> Array:
        return jnp.where(count == 0, lr, lr * later)

    return steps, from_optax(optax.sgd(rate))


def _evaluation(section: Section) -> Evaluation:
    if section.get("ensemble") != 1:
        raise ValueError(
            f"`evaluation.ensemble` ({section.get('ensemble')}) must be 1: returns of "
            "several policies have no average policy"
        )
    return call(Evaluation, section, "evaluation")
