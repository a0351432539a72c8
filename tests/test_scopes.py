import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2f_jax.models.mlp import mlp
from l2f_jax.scopes import KINDS, pool, scope_of, spread

SIZES = {"parameter": 61, "filter": 26, "layer": 6, "module": 3, "network": 1}


@pytest.fixture
def params(key):
    """The sinusoid network in small, [1, 6, 6, 1]: 12 + 42 + 7 = 61 numbers."""
    network = mlp(1, hidden=(6, 6), kernel_init=jax.nn.initializers.normal(1.0))
    return network.init(key, jnp.zeros((1, 1), float))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_size(params, kind):
    assert scope_of(params, kind).size == SIZES[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_counts_add_up_to_all_numbers(params, kind):
    assert scope_of(params, kind).counts.sum() == 61


@pytest.mark.parametrize("kind", KINDS)
def test_pool_undoes_spread(params, kind, key, x64):
    scope = scope_of(params, kind)
    v = jax.random.normal(key, (scope.size,), float)
    blocks = spread(scope, v)
    tree = {path: jnp.broadcast_to(blocks[path], x.shape) for path, x in params.items()}
    np.testing.assert_allclose(pool(scope, tree), v, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_spread_multiplies_without_rank_promotion(params, kind):
    scope = scope_of(params, kind)
    blocks = spread(scope, jnp.full(scope.size, 2.0))
    for path, x in params.items():
        np.testing.assert_array_equal(blocks[path] * x, 2 * x)


def test_layer_is_in_path_order():
    params = {"b/kernel": jnp.full((2, 2), 3.0), "a/kernel": jnp.array([1.0, 2.0])}
    assert pool(scope_of(params, "layer"), params).tolist() == [1.5, 3.0]


def test_filter_is_the_last_axis():
    kernel = jnp.array([[1.0, 2.0], [3.0, 6.0]])
    mean = pool(scope_of({"a/kernel": kernel}, "filter"), {"a/kernel": kernel})
    assert mean.tolist() == [2.0, 4.0]


def test_module_joins_kernel_and_bias():
    # module a: (4 * 1 + 2 * 4) / 6 = 2, every number counting once
    params = {
        "a/kernel": jnp.ones((2, 2)),
        "a/bias": jnp.full(2, 4.0),
        "b/bias": jnp.ones(1),
    }
    assert pool(scope_of(params, "module"), params).tolist() == [2.0, 1.0]


def test_network_is_the_mean_of_all_numbers():
    # (3 * 1 + 1 * 5) / 4
    params = {"a/kernel": jnp.ones((3, 1)), "a/bias": jnp.array([5.0])}
    assert pool(scope_of(params, "network"), params).tolist() == [2.0]


@pytest.mark.parametrize("kind", KINDS)
def test_scalar_and_single_channel_tensors(kind):
    params = {"a/gain": jnp.array(2.0), "a/kernel": jnp.full((3, 1), 2.0)}
    scope = scope_of(params, kind)
    np.testing.assert_array_equal(pool(scope, params), np.full(scope.size, 2.0))


def test_unknown_kind_is_named_with_the_choices(params):
    with pytest.raises(
        ValueError, match=r"`scope` \('layr'\) must be one of parameter"
    ):
        scope_of(params, "layr")


def test_no_tensor_is_refused():
    with pytest.raises(ValueError, match="`params` is empty"):
        scope_of({}, "layer")
