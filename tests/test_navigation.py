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


def seeker():
    """Act pull * (goal - position) + N(0, std^2), the goal being observed."""

    def apply(params, stats, inputs, **_):
        mean = params["pull"] * (inputs[:, 2:] - inputs[:, :2])
        log_std = jnp.log(jnp.maximum(params["std"], 1e-6))
        return Gaussian(mean, jnp.broadcast_to(log_std, (2,))), stats

    return Model(lambda key, inputs: ({}, {}), apply)


# Mean and deviation of an episode's return and the mean of its steps, by a NumPy
# simulation of the public codes. Who stands still gets -100 times the mean distance of
# a point of the square from its centre, 0.382598, or of its square, 1 / 6.
STILL, NOISE, STRAIGHT, BOTH = (0.0, 0.0), (0.0, 1.0), (10.0, 0.0), (10.0, 1.0)
CODES = {
    (False, 0.1): {
        STILL: (-38.26, 14.25, 99.95),
        NOISE: (-71.1, 29.9, 98.7),
        STRAIGHT: (-0.506, 0.336, 3.72),
        BOTH: (-5.8, 3.2, 61),
    },
    (True, 0.1): {
        STILL: (-16.67, 10.53, 99.95),
        NOISE: (-68.1, 55.4, 98.7),
        STRAIGHT: (-0.133, 0.118, 3.72),
        BOTH: (-0.74, 0.39, 61),
    },
    (False, 1.0): {NOISE: (-90.4, 37.3, 99.2)},
    (True, 1.0): {NOISE: (-112.0, 91.5, 99.2)},
}


@pytest.mark.parametrize(("squared", "gain"), CODES)
def test_returns_of_simple_policies(squared, gain):
    env = with_goal(navigation(squared=squared, gain=gain))

    def episode(pull, std, key):
        task_key, key = jax.random.split(key)
        collect = rollouts(env, seeker(), Sampling(1), env.sample_task(task_key))
        data = collect({"pull": pull, "std": std}, key)
        return total_return(data), data.mask.sum()

    expected = CODES[squared, gain]
    pull, std = np.transpose(list(expected)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 400)
    policies = jax.jit(jax.vmap(jax.vmap(episode, (None, None, 0)), (0, 0, None)))
    returns, steps = map(np.asarray, policies(pull, std, keys))
    mean, deviation, length = np.transpose(list(expected.values()))
    # Four standard errors of a mean of 400.
    np.testing.assert_array_less(abs(returns.mean(1) - mean), 4 * deviation / 20)
    np.testing.assert_allclose(returns.std(1), deviation, rtol=0.2)
    np.testing.assert_allclose(steps.mean(1), length, rtol=0.1)


def test_an_observed_goal_follows_the_position(key):
    env = with_goal(navigation())
    goal = jnp.asarray([0.3, -0.2])
    state, seen = env.reset(goal, key)
    assert env.observations == len(seen) == 4
    _, after, _, _ = env.step(goal, state, jnp.ones(2), key)
    np.testing.assert_allclose([seen, after], [[0, 0, *goal], [0.1, 0.1, *goal]])


@pytest.mark.parametrize("bad", [{"horizon": 0}, {"gain": 0.0}])
def test_bad_options_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        navigation(**bad)
