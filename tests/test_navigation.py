"""2D navigation by hand, and what simple policies get in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2f_jax.envs.env import with_goal
from l2f_jax.envs.navigation import navigation
from l2f_jax.models.policy import Gaussian
from l2f_jax.rl.rollout import Sampling, rollouts, total_return
from l2f_jax.types import Model


def walk(env, goal, *actions):
    goal, key = jnp.asarray(goal), jax.random.key(0)
    state, _ = env.reset(goal, key)
    for action in actions:
        state, seen, reward, done = env.step(goal, state, jnp.asarray(action), key)
    return np.asarray(seen), float(reward), bool(done)


def test_a_step_moves_by_the_clipped_action_and_is_judged_after_it():
    # (0.05, -0.1): 0.3 and 0.4 away from (0.35, 0.3).
    seen, reward, done = walk(navigation(), [0.35, 0.3], [0.5, -9.0])
    np.testing.assert_allclose(seen, [0.05, -0.1], atol=1e-7)
    assert reward == pytest.approx(-0.5, abs=1e-6) and not done
    _, squared, _ = walk(navigation(squared=True), [0.35, 0.3], [0.5, -9.0])
    assert squared == pytest.approx(-0.25, abs=1e-6)


@pytest.mark.parametrize(
    ("goal", "ends"), [([0.105, 0.095], True), ([0.115, 0.1], False)]
)
def test_an_episode_ends_when_both_coordinates_are_near(goal, ends):
    assert walk(navigation(), goal, [1.0, 1.0])[2] == ends


def acting(act, std=0.0):
    """A policy that does act(observations)."""

    def apply(params, stats, inputs, **_):
        log_std = jnp.full(2, np.log(max(std, 1e-6)), inputs.dtype)
        return Gaussian(act(inputs), log_std), stats

    return Model(lambda key, inputs: ({}, {}), apply)


def mean_return(env, policy, tasks=400, trajectories=2):
    def one(key):
        task_key, key = jax.random.split(key)
        task = env.sample_task(task_key)
        data = rollouts(env, policy, Sampling(trajectories), task)({}, key)
        return total_return(data), data.mask.sum(-1).mean()

    keys = jax.random.split(jax.random.key(1), tasks)
    returns, lengths = jax.jit(jax.vmap(one))(keys)
    return float(returns.mean()), float(returns.std() / tasks**0.5), lengths.mean()


def test_standing_still():
    # The mean distance of a uniform point of the square from its centre is 0.382598.
    mean, error, _ = mean_return(navigation(), acting(jnp.zeros_like))
    assert abs(mean + 38.2598) < 4 * error


def test_walking_straight_to_an_observed_goal():
    env = with_goal(navigation())
    assert env.observations == 4
    policy = acting(lambda o: 10 * (o[:, 2:] - o[:, :2]))
    mean, error, length = mean_return(env, policy)
    assert abs(mean + 0.506) < 4 * error + 0.01 and 3.3 < length < 4.2


def test_random_steps():
    mean, error, _ = mean_return(navigation(), acting(jnp.zeros_like, std=1.0))
    assert abs(mean + 71.1) < 4 * error + 1.0


@pytest.mark.parametrize("bad", [{"horizon": 0}, {"gain": 0.0}])
def test_bad_options_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        navigation(**bad)
