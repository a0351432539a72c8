"""The norm layer: each statistics mode by hand, and what a query image depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2f_jax.models.conv4 import conv4
from l2f_jax.models.layers import Norm, init_norm, max_pool, normalise


def column(*values):
    """One-pixel, one-channel images."""
    return jnp.asarray(values, jnp.float32).reshape(-1, 1, 1, 1)


def run(norm, x, stats=None, *, phase="support", step=0, **params):
    start, recorded = init_norm(norm, "norm", x)
    given = {f"norm/{k}": jnp.asarray(v, jnp.float32) for k, v in params.items()}
    stats = recorded if stats is None else stats
    y, stats = normalise(norm, start | given, stats, "norm", x, phase=phase, step=step)
    return np.asarray(y).reshape(-1), stats


@pytest.mark.parametrize("phase", ["support", "query", "test"])
def test_batch_mode_uses_the_images_at_hand(phase):
    # Mean 2, biased variance 1: (1 - 2, 3 - 2) * 2 + 5 = 3, 7.
    y, stats = run(Norm(), column(1, 3), phase=phase, scale=[2.0], shift=[5.0])
    np.testing.assert_allclose(y, [3, 7], atol=1e-4)
    assert stats == {}


def test_support_mode_judges_queries_by_the_support_statistics():
    norm = Norm("support")
    _, stats = run(norm, column(1, 3))
    for phase in ("query", "test"):
        y, after = run(norm, column(2, 4, 6), stats, phase=phase)
        np.testing.assert_allclose(y, [0, 2, 4], atol=1e-4)
        assert after == stats


def test_running_mode_moves_by_momentum_and_is_used_in_the_test_phase():
    # Mean 2, unbiased variance 2: 0.9 * 0 + 0.1 * 2 = 0.2, 0.9 * 1 + 0.1 * 2 = 1.1.
    norm = Norm("running")
    y, stats = run(norm, column(1, 3))
    np.testing.assert_allclose(y, [-1, 1], atol=1e-4)
    np.testing.assert_allclose(stats["norm/mean"], [0.2], rtol=1e-6)
    np.testing.assert_allclose(stats["norm/variance"], [1.1], rtol=1e-6)
    y, _ = run(norm, column(0.2, 0.2 + 1.1**0.5), stats, phase="test")
    np.testing.assert_allclose(y, [0, 1], atol=1e-4)


def test_layer_mode_normalises_each_image_by_itself():
    # Pixels 1, 3 and 10, 30: both become -1, 1; the shift of each pixel is added.
    x = jnp.asarray([1.0, 3, 10, 30]).reshape(2, 2, 1, 1)
    y, _ = run(Norm("layer"), x, shift=np.array([[[0.0]], [[5.0]]]))
    np.testing.assert_allclose(y, [-1, 6, -1, 6], atol=1e-4)


@pytest.mark.parametrize(("step", "expected"), [(0, 10), (1, 20), (2, 20)])
def test_per_step_shift_is_indexed_and_the_last_is_kept(step, expected):
    norm = Norm(per_step=2)
    y, _ = run(norm, column(1, 3), step=jnp.asarray(step), shift=[[10.0], [20.0]])
    np.testing.assert_allclose(y.mean(), expected, rtol=1e-5)


def test_per_step_running_statistics_move_one_step_only():
    norm = Norm("running", per_step=2)
    _, stats = run(norm, column(1, 3), step=1)
    np.testing.assert_allclose(stats["norm/mean"], [[0.0], [0.2]], rtol=1e-6)


@pytest.mark.parametrize(("mode", "inductive"), [("support", True), ("batch", False)])
def test_prediction_of_one_query_and_the_other_queries(mode, inductive, key):
    model = conv4(2, filters=3, stages=2, norm=Norm(mode))
    support, query, other = jax.random.normal(key, (3, 4, 8, 8, 1))
    params, stats = model.init(key, support)
    _, stats = model.apply(params, stats, support, phase="support")

    def first(batch):
        return model.apply(params, stats, batch, phase="test")[0][0]

    changed = query.at[1:].set(other[1:])
    same = np.array_equal(first(query), first(changed))
    assert same == inductive


@pytest.mark.parametrize("bad", [{"mode": "group"}, {"per_step": 0}])
def test_bad_options_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Norm(**bad)


def test_max_pool_drops_an_odd_last_row_and_column():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)  # 0 1 2 / 3 4 5 / 6 7 8
    np.testing.assert_array_equal(max_pool(x).reshape(-1), [4])


def test_max_pool_pads_with_minus_infinity():
    x = -1 - jnp.arange(9.0).reshape(1, 3, 3, 1)
    # Windows {0}, {1, 2}, {3, 6}, {4, 5, 7, 8} of the pixels -1 ... -9.
    pooled = max_pool(x, padding=1).reshape(-1)
    np.testing.assert_array_equal(pooled, [-1, -2, -4, -5])
