"""Policy search: the sections of a config -> how a policy is searched for."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from l2f_jax import recipes
from l2f_jax.envs.env import Env, with_goal
from l2f_jax.envs.locomotion import half_cheetah
from l2f_jax.envs.navigation import navigation
from l2f_jax.inner import from_optax
from l2f_jax.models.policy import gaussian_policy
from l2f_jax.problems.schedule import Schedule
from l2f_jax.problems.sections import (
    INSIDE,
    POSITIVE,
    SHARE,
    Section,
    call,
    check_least,
    check_ranges,
    select,
)
from l2f_jax.rl.losses import reinforce
from l2f_jax.rl.rollout import Sampling
from l2f_jax.rl.trpo import TrustRegion
from l2f_jax.transforms import attenuate, identity
from l2f_jax.types import Array, InnerRule, Learner, Model

ENVIRONMENTS = {"navigation": navigation, "half_cheetah": half_cheetah}
# What `sampling` and, for its own trajectories, `evaluation` say; and at least what.
LEAST = {"trajectories": 1, "surplus": 0}


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
