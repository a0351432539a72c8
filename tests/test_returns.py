"""Returns, advantages and the baseline, against loops and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2f_jax.rl.returns import (
    advantages,
    linear_baseline,
    returns_to_go,
    ridge_solution,
    standardised,
)

pytestmark = pytest.mark.usefixtures("x64")


def episodes(key, lengths=(4, 2), horizon=4):
    keys = jax.random.split(key, 2)
    taken = jnp.arange(horizon)[None] < jnp.asarray(lengths)[:, None]
    mask = taken.astype(float)
    rewards = mask * jax.random.normal(keys[0], mask.shape)
    return rewards, jax.random.normal(keys[1], mask.shape), mask


def test_returns_by_hand():
    # 1 + 0.5 (2 + 0.5 * 4) = 3, 2 + 0.5 * 4 = 4, 4
    found = returns_to_go(jnp.asarray([[1.0, 2.0, 4.0]]), 0.5)
    np.testing.assert_allclose(found, [[3, 4, 4]])


def test_advantages_are_the_sum_of_later_surprises(key):
    rewards, values, mask = episodes(key)
    discount, decay = 0.9, 0.7
    found = advantages(rewards, values, mask, discount, decay)
    for b, length in enumerate((4, 2)):
        surprise = [
            rewards[b, t]
            + (discount * values[b, t + 1] if t + 1 < length else 0)
            - values[b, t]
            for t in range(length)
        ]
        for t in range(length):
            later = range(t, length)
            expected = sum((discount * decay) ** (i - t) * surprise[i] for i in later)
            np.testing.assert_allclose(found[b, t], expected, rtol=1e-12)
        np.testing.assert_array_equal(found[b, length:], 0)


def test_advantages_with_decay_one_are_returns_minus_values(key):
    rewards, values, mask = episodes(key)
    found = advantages(rewards, values, mask, 0.9, 1.0)
    expected = mask * (returns_to_go(rewards, 0.9) - values)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_standardised_over_the_steps_that_were_taken():
    x, mask = jnp.asarray([[1.0, 3.0, 100.0]]), jnp.asarray([[1.0, 1.0, 0.0]])
    np.testing.assert_allclose(standardised(x, mask), [[-1, 1, 0]], atol=1e-7)


def test_baseline_finds_a_function_of_its_features(key):
    keys = jax.random.split(key, 2)
    observations = jax.random.normal(keys[0], (6, 30, 2))
    _, _, mask = episodes(keys[1], lengths=(30, 5, 17, 1, 30, 8), horizon=30)
    time = jnp.arange(30.0)[None] / 100
    targets = 3 + 2 * observations[..., 0] - observations[..., 1] ** 2 + 5 * time**3
    # The ridge of 1e-5 holds back a little of the nearly collinear powers of time.
    found = linear_baseline(observations, jnp.where(mask > 0, targets, 1e6), mask)
    np.testing.assert_allclose(mask * found, mask * targets, atol=2e-3)


def test_baseline_clips_observations():
    observations = jnp.full((2, 3, 1), 50.0).at[0].set(10.0)
    found = linear_baseline(observations, jnp.ones((2, 3)), jnp.ones((2, 3)))
    np.testing.assert_allclose(found[0], found[1], atol=1e-9)


def test_baseline_of_collinear_features_in_single_precision(key):
    # Six copies of one coordinate, their squares, and a constant beside the 1.
    one = jax.random.normal(key, (20, 100, 1))
    observations = jnp.concatenate([one] * 6 + [0 * one + 3], -1).astype(jnp.float32)
    targets, mask = observations[..., 0] - 2, jnp.ones((20, 100), jnp.float32)
    found = jax.jit(linear_baseline)(observations, targets, mask)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, targets, atol=1e-2)


def test_the_ridge_grows_until_a_system_is_solved():
    # -5e-5 + 1e-5 is no Gram matrix; -5e-5 + 1e-4 = 5e-5, so x = 1 / 5e-5.
    found = jax.jit(ridge_solution)(jnp.asarray([[-5e-5]]), jnp.ones((1, 1)))
    np.testing.assert_allclose(found, [[2e4]], rtol=1e-9)


def test_a_system_that_no_ridge_helps_has_no_solution():
    # The fifth and last ridge is 1e-5 * 10^4 = 0.1.
    solve = jax.jit(ridge_solution)
    assert np.isnan(solve(-0.2 * jnp.ones((1, 1)), jnp.ones((1, 1))))
    np.testing.assert_allclose(solve(-0.09 * jnp.ones((1, 1)), jnp.ones((1, 1))), 100)


def test_a_singular_system_leaves_the_others_of_a_batch_alone(key):
    root = jax.random.normal(key, (3, 3))
    regular, moment = root @ root.T, jnp.ones((3, 1))
    batch = jnp.stack([regular, -5e-5 * jnp.eye(3)])
    found = jax.jit(jax.vmap(ridge_solution, (0, None)))(batch, moment)
    alone = np.linalg.solve(regular + 1e-5 * np.eye(3), moment)
    np.testing.assert_allclose(found[0], alone, rtol=1e-9)
    np.testing.assert_allclose(found[1], 2e4, rtol=1e-9)
