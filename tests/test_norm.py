"""The norm layer: each statistics mode by hand, and what a query image depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2f_jax.models.conv4 import conv4
from l2f_jax.models.layers import max_pool
from l2f_jax.models.norm import Norm, init_norm, normalise, normalise_and_pool
from l2f_jax.models.resnet12 import resnet12
from l2f_jax.problems.classifier import PROTOCOLS


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


@pytest.mark.parametrize(
    ("norm", "kind", "shape", "expected"),
    [
        (Norm(per_step=3), "scale", (1,), r"\(3\) it must be \(3, 1\)"),
        (Norm(per_step=3), "shift", (2, 1), r"\(3\) it must be \(3, 1\)"),
        (Norm(), "scale", (1, 1), r"\(None\) it must be \(1,\)"),
        (Norm("layer", per_step=3), "shift", (1, 1, 1), r"must be \(3, 1, 1, 1\)"),
    ],
)
def test_tensors_for_another_number_of_steps_are_refused(norm, kind, shape, expected):
    shown = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(
        ValueError, match=f"`norm/{kind}` has shape {shown}; .*{expected}"
    ):
        run(norm, column(1, 3), **{kind: np.ones(shape)})


def test_running_averages_for_another_number_of_steps_are_refused():
    _, stats = init_norm(Norm("running"), "norm", column(1, 3))
    for phase in ("support", "test"):
        with pytest.raises(ValueError, match="`norm/mean` has shape"):
            run(Norm("running", per_step=2), column(1, 3), stats, phase=phase)


def test_per_step_running_statistics_move_one_step_only():
    norm = Norm("running", per_step=2)
    _, stats = run(norm, column(1, 3), step=1)
    np.testing.assert_allclose(stats["norm/mean"], [[0.0], [0.2]], rtol=1e-6)


@pytest.mark.parametrize("network", ["conv4", "resnet12"])
@pytest.mark.parametrize("mode", PROTOCOLS)
def test_prediction_of_one_query_and_the_other_queries(mode, network, key):
    """What the report of an evaluation calls inductive does not depend on them."""
    sizes = {"conv4": {"filters": 3, "stages": 2}, "resnet12": {"widths": (2,) * 4}}
    models = {"conv4": conv4, "resnet12": resnet12}
    model = models[network](2, norm=Norm(mode), **sizes[network])
    support, query, other = jax.random.normal(key, (3, 4, 8, 8, 1))
    params, stats = model.init(key, support)
    _, stats = model.apply(params, stats, support, phase="support")

    def first(batch):
        return model.apply(params, stats, batch, phase="test")[0][0]

    changed = query.at[1:].set(other[1:])
    same = np.array_equal(first(query), first(changed))
    assert same == PROTOCOLS[mode].startswith("inductive")


@pytest.mark.parametrize("layer", [normalise, normalise_and_pool])
@pytest.mark.parametrize("mode", ["batch", "layer"])
def test_scale_and_shift_that_are_not_learned_are_one_and_zero(mode, layer, key):
    x = jax.random.normal(key, (3, 2, 2, 4))
    norm = Norm(mode, learn_scale=False, learn_shift=False)
    assert init_norm(norm, "norm", x) == ({}, {})
    neutral, _ = run_images(layer, Norm(mode), x)
    np.testing.assert_array_equal(run_images(layer, norm, x)[0], neutral)


@pytest.mark.parametrize("kind", ["scale", "shift"])
def test_one_of_scale_and_shift_may_be_learned(kind, key):
    x, value = jax.random.normal(key, (3, 2, 2, 4)), jnp.full(4, 2.0)
    norm = Norm(**{f"learn_{other}": other == kind for other in ("scale", "shift")})
    alone, _ = run_images(normalise, norm, x, **{kind: value})
    both, _ = run_images(normalise, Norm(), x, **{kind: value})
    np.testing.assert_array_equal(alone, both)


@pytest.mark.parametrize(
    "bad", [{"mode": "group"}, {"per_step": 0}, {"momentum": 1.1}, {"epsilon": 0.0}]
)
def test_bad_options_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Norm(**bad)


def test_support_statistics_of_another_step_than_the_query_are_refused():
    # After t steps, scales of step t, but statistics of a pass with those of t + 1.
    with pytest.raises(ValueError, match=r"`per_step` \(2\) must be None with .*'supp"):
        Norm("support", per_step=2)


def test_max_pool_drops_an_odd_last_row_and_column():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)  # 0 1 2 / 3 4 5 / 6 7 8
    np.testing.assert_array_equal(max_pool(x).reshape(-1), [4])


def test_max_pool_pads_with_minus_infinity():
    x = -1 - jnp.arange(9.0).reshape(1, 3, 3, 1)
    # Windows {0}, {1, 2}, {3, 6}, {4, 5, 7, 8} of the pixels -1 ... -9.
    pooled = max_pool(x, padding=1).reshape(-1)
    np.testing.assert_array_equal(pooled, [-1, -2, -4, -5])


def test_gradient_of_a_pool_goes_to_the_first_maximum_of_each_window():
    x = jnp.asarray([[1.0, 5, 2, 2], [5, 3, 0, 2]]).reshape(1, 2, 4, 1)
    g = jax.grad(lambda x: jnp.vdot(max_pool(x), jnp.asarray([10.0, 20])))(x)
    np.testing.assert_array_equal(g.reshape(2, 4), [[0, 10, 20, 0], [0, 0, 0, 0]])


def test_gradient_of_a_pool_where_the_images_are_computed_twice(key):
    # Without optimisation XLA rounds the two computations of x differently.
    def loss(x):
        y, _ = run_images(normalise, Norm(), x)
        return jnp.sum(max_pool(y) ** 2)

    x = jax.random.normal(key, (6, 8, 8, 5))
    slow = {"xla_backend_optimization_level": 0}
    plain = jax.jit(jax.grad(loss), compiler_options=slow)(x)
    np.testing.assert_allclose(plain, jax.jit(jax.grad(loss))(x), atol=1e-5)
    assert np.isfinite(plain).all() and np.any(plain)


def run_images(layer, norm, x, **params):
    """Apply a layer to images; scales and shifts as given, by channel."""
    start, stats = init_norm(norm, "norm", x)
    params = start | {f"norm/{k}": v for k, v in params.items() if f"norm/{k}" in start}
    return layer(norm, params, stats, "norm", x, phase="support", step=0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mode", ["batch", "support", "running", "layer"])
@pytest.mark.parametrize("size", [6, 7])
def test_normalising_and_pooling_in_one_go(mode, size):
    keys = jax.random.split(jax.random.key(0), 3)
    x = 3 + jax.random.normal(keys[0], (4, size, size, 5))
    scale = jnp.asarray([1.0, -2, 0.5, -0.1, 3])  # falling channels too
    shift = jax.random.normal(keys[1], x.shape[1:] if mode == "layer" else (5,))
    weight = jax.random.normal(keys[2], (4, 3, 3, 5))

    def both(norm, params, stats, path, x, **when):
        y, stats = normalise(norm, params, stats, path, x, **when)
        return max_pool(y), stats

    def results(layer):
        def loss(x, scale, shift):
            y, stats = run_images(layer, Norm(mode), x, scale=scale, shift=shift)
            return jnp.sum(jnp.sin(y) * weight), (y, stats)

        gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)

        def size(*inputs):
            gradients, outputs = gradient(*inputs)
            return sum(jnp.sum(g**2) for g in gradients), (gradients, outputs)

        return jax.jit(jax.grad(size, argnums=(0, 1, 2), has_aux=True))(x, scale, shift)

    ours, expected = results(normalise_and_pool), results(both)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(np.abs(b).max(), 1))


def test_variance_far_from_zero_keeps_its_digits(key):
    # Mean 1000 and variance 1 in float32: a mean square less a squared mean has none.
    x = 1000 + jax.random.normal(key, (8, 5, 5, 2))
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean((0, 1, 2))) / exact.std((0, 1, 2))
    y, _ = run_images(normalise, Norm(), x)
    np.testing.assert_allclose(y, exact, atol=1e-3)
