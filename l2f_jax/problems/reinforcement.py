"""Meta reinforcement learning: the sections of a config -> Experiment."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2f_jax import recipes
from l2f_jax.data.episodes import episode_keys
from l2f_jax.envs.env import Env, with_goal
from l2f_jax.envs.locomotion import half_cheetah
from l2f_jax.envs.navigation import navigation
from l2f_jax.evaluation import Predictions, make_measure
from l2f_jax.inner import from_optax
from l2f_jax.models.policy import gaussian_policy
from l2f_jax.outer import TrainState, initial_state
from l2f_jax.parallel import mesh_for
from l2f_jax.problems.experiment import Experiment, Score
from l2f_jax.problems.schedule import (
    INSIDE,
    POSITIVE,
    SHARE,
    Evaluation,
    Schedule,
    check_least,
    check_ranges,
    points_to_test,
)
from l2f_jax.problems.sections import call, select
from l2f_jax.problems.supervised import Section
from l2f_jax.rl.losses import reinforce
from l2f_jax.rl.rollout import Sampling, experience, rollouts, total_return
from l2f_jax.rl.search import make_update
from l2f_jax.rl.trpo import TrustRegion
from l2f_jax.transforms import attenuate, identity
from l2f_jax.types import Array, InnerRule, Learner, MetaParams, Model

ENVIRONMENTS = {"navigation": navigation, "half_cheetah": half_cheetah}
LEAST = {"trajectories": 1, "surplus": 0}
FIRST_TASK = {"test": 0, "val": 2**20}  # numbers of fixed tasks; none is in both
RETURN = Score("return", rank=np.mean)


class Search(NamedTuple):
    """How a policy is searched for: all that a config describes but its evaluation.

    steps: inner steps trained with.  fresh: see `rollout.experience`.
    """

    env: Env
    policy: Model
    learner: Learner
    steps: int
    sampling: Sampling
    fresh: bool
    region: TrustRegion
    schedule: Schedule

    @property
    def environment_steps(self) -> int:
        """Steps of the environment in a meta-iteration, if no episode ends early.

        With a surplus of trajectories about as many if some do.
        """
        # Where the transform and the first inner step share trajectories, one set less.
        sets = self.steps + 1 + (self.fresh or not self.steps)
        tasks, trajectories = self.schedule.tasks, self.sampling.trajectories
        return tasks * trajectories * sets * self.env.horizon


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


def method(
    *,
    env: Section,
    model: Section,
    learner: Section,
    transform: Section,
    sampling: Section,
    optimiser: Section,
    training: Section,
) -> Search:
    """Build how a policy is searched for.

    Raises:
      ValueError: one sentence naming the key, for anything wrong in a section.
    """
    world = _environment(**env)
    schedule = _schedule(training)
    region = _region(optimiser)
    policy = select(
        model, "model", {"gaussian": gaussian_policy}, actions=world.actions
    )
    steps, rule = call(_inner, learner, "learner")
    starts = {"identity": identity, "attenuate": attenuate}
    start = select(transform, "transform", starts)
    agent = recipes.maml(policy, reinforce(policy), rule=rule, transform=start)
    options = dict(sampling)
    fresh = bool(options.pop("fresh", False))
    how = call(Sampling, options, "sampling")
    check_least("sampling", how._asdict(), LEAST)
    check_ranges("sampling", how._asdict(), {"discount": SHARE, "decay": SHARE})
    return Search(world, policy, agent, steps, how, fresh, region, schedule)


def as_judged(search: Search, evaluation: Section) -> Search:
    """Return a search that samples as the evaluation's section says, where it does."""
    own = {name: evaluation[name] for name in LEAST if name in evaluation}
    sampling = search.sampling._replace(**own)
    check_least("evaluation", sampling._asdict(), LEAST)
    return search._replace(sampling=sampling)


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
        "seed": None,  # trajectories are drawn by the run's own
    }
    return call(Schedule, section, "training", **fixed)


def _region(section: Section) -> TrustRegion:
    region = call(TrustRegion, section, "optimiser")
    # A bound of 0 lets nothing move: the random baseline.
    least = {"max_kl": 0, "damping": 0, "conjugate_steps": 1, "backtracks": 0}
    check_least("optimiser", region._asdict(), least)
    check_ranges("optimiser", region._asdict(), {"shrink": INSIDE})
    return region


def _inner(*, steps: int, lr: float, later: float = 0.5) -> tuple[int, InnerRule]:
    """Build gradient descent at rate lr, then lr * later from the second step on."""
    found = {"steps": steps, "lr": lr, "later": later}
    check_least("learner", found, {"steps": 0})
    check_ranges("learner", found, {"lr": POSITIVE, "later": POSITIVE})

    def rate(count: Any) -> Array:
        return jnp.where(count == 0, lr, lr * later)

    return steps, from_optax(optax.sgd(rate))


def _protocol(search: Search) -> str:
    """Say how the policies of an evaluation are sampled."""
    sampling, horizon = search.sampling, search.env.horizon
    taken = f"{sampling.trajectories} trajectories of up to {horizon} steps"
    if sampling.surplus:
        budget = sampling.trajectories * horizon
        taken = f"whole trajectories until {budget} steps, at most {sampling.sampled},"
    # The transform's set is of theta, the other one of what the transform makes of it.
    first = ", two such sets for the first, one of them for the transform"
    return (
        "mean undiscounted return of new trajectories after each update; "
        f"{taken} for an update{first if search.fresh else ''}"
    )


def _evaluation(section: Section) -> Evaluation:
    if section.get("ensemble") != 1:
        raise ValueError(
            f"`evaluation.ensemble` ({section.get('ensemble')}) must be 1: returns of "
            "several policies have no average policy"
        )
    return call(Evaluation, section, "evaluation")
