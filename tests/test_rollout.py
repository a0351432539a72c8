"""Trajectories up to a budget of steps, in a world whose episodes end early."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2f_jax.envs.env import Env
from l2f_jax.models.policy import Gaussian
from l2f_jax.rl.losses import surrogate
from l2f_jax.rl.returns import (
    advantages,
    linear_baseline,
    returns_to_go,
    standardised,
)
from l2f_jax.rl.rollout import Sampling, rollouts, total_return, within
from l2f_jax.types import Model, Trajectories

HORIZON = 4


def of_lengths(*lengths):
    taken = np.arange(HORIZON) < np.array(lengths)[:, None]
    return jnp.asarray(taken.astype(float))


@pytest.mark.parametrize(
    ("budget", "lengths", "expected"),
    [
        # Before each trajectory 0, 2, 3, 6 steps are taken.
        (3, (2, 1, 3, 4), [1, 1, 0, 0]),
        (4, (2, 1, 3, 4), [1, 1, 1, 0]),
        (99, (2, 1, 3, 4), [1, 1, 1, 1]),
        (2 * HORIZON, (HORIZON,) * 4, [1, 1, 0, 0]),
    ],
)
def test_trajectories_count_that_begin_within_the_budget(budget, lengths, expected):
    assert within(budget, of_lengths(*lengths)).tolist() == expected


def collected(sampling, length):
    """Gather in a world that pays the action and ends after `length` of 4 steps."""

    def step(task, state, action, key):
        state = state + 1
        return state, state[None], action[0], state >= length

    def reset(task, key):
        return jnp.zeros(()), jnp.zeros(1)

    def act(params, stats, inputs, **_):
        return Gaussian(jnp.zeros_like(inputs), jnp.zeros(1)), stats

    world = Env(lambda key: jnp.ones(1), reset, step, 1, 1, HORIZON)
    policy = Model(lambda key, inputs: ({}, {}), act)
    collect = jax.jit(rollouts(world, policy, sampling, jnp.ones(1)))
    return collect({}, jax.random.key(0))


@pytest.mark.parametrize(
    ("surplus", "length", "counted"),
    [
        # A budget of 2 * 4 steps: what begins after 0, 2, 4 and 6 of them counts.
        (2, 2, 4),
        (1, 2, 4),
        (1, 3, 3),  # after 0, 3 and 6: the last one goes on to 9
        (2, 1, 6),  # 6 steps in all, which is less than the budget
        (1, HORIZON, 2),
        (0, 2, 2),
    ],
)
def test_what_does_not_count_is_as_if_it_was_not_sampled(surplus, length, counted):
    found = collected(Sampling(2, surplus=surplus), length)
    steps = [length] * counted + [0] * (2 + 2 * surplus - counted)
    assert found.mask.sum(-1).tolist() == steps
    assert not found.rewards[counted:].any() and not found.advantages[counted:].any()
    alone = collected(Sampling(counted), length)
    for part, expected in zip(found, alone, strict=True):
        np.testing.assert_allclose(part[:counted], expected, atol=1e-5)
    mean = np.asarray(alone.actions)[:, :length].sum() / counted
    np.testing.assert_allclose(total_return(found), mean, rtol=1e-5)


def test_advantages_are_those_of_the_discount_and_decay_asked_for(x64):
    # The features of so few steps are collinear: in float32 the baseline is rounding.
    found = collected(Sampling(3, discount=0.9, decay=0.5), HORIZON)
    rewards, mask = found.rewards, found.mask
    targets = returns_to_go(rewards, 0.9)
    values = linear_baseline(found.observations, targets, mask)
    expected = standardised(advantages(rewards, values, mask, 0.9, 0.5), mask)
    np.testing.assert_allclose(found.advantages, expected, atol=1e-8)
    # Each of the three matters here.
    for value, discount, decay in [(0, 0.9, 0.5), (1, 1.0, 0.5), (1, 0.9, 1.0)]:
        other = advantages(rewards, value * values, mask, discount, decay)
        gap = np.abs(standardised(other, mask) - found.advantages).max()
        assert gap > 0.01


def test_surrogate_by_hand():
    # N(0, 1) took a = 1 with advantage 2; under N(1, 1) it is e^(1/2) times as likely.
    old, new = (
        Gaussian(jnp.full((1, 1, 1), mean), jnp.zeros(1)) for mean in (0.0, 1.0)
    )
    one = jnp.ones((1, 1))
    data = Trajectories(jnp.zeros((1, 1, 1)), one[..., None], one, one, 2 * one)
    np.testing.assert_allclose(surrogate(old, new, data), -2 * np.exp(0.5), rtol=1e-6)
