"""The networks: sizes, shapes and initial values of the specification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from l2f_jax.models.conv4 import conv4
from l2f_jax.models.linen import from_linen
from l2f_jax.models.mlp import mlp
from l2f_jax.models.norm import Norm
from l2f_jax.models.resnet12 import resnet12


def shapes(model, *shape):
    inputs = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x)[0], inputs)


def count(params, norm):
    return sum(
        np.prod(x.shape) for path, x in params.items() if ("norm" in path) == norm
    )


@pytest.mark.parametrize(
    ("model", "adapted", "affine", "tensors"),
    [(conv4(5), 69_509, 384, 6), (resnet12(5), 7_991_685, 7_680, 18)],
    ids=["conv4", "resnet12"],
)
def test_parameter_counts(model, adapted, affine, tensors):
    params = shapes(model, 84, 84, 3)
    assert (count(params, norm=False), count(params, norm=True)) == (adapted, affine)
    assert sum("norm" not in path for path in params) == tensors


def test_conv4_features():
    assert shapes(conv4(5), 84, 84, 3)["head/kernel"].shape == (5 * 5 * 48, 5)
    assert shapes(conv4(5), 28, 28, 1)["head/kernel"].shape == (48, 5)
    strided = conv4(5, pooling="stride", conv_bias=True)
    assert shapes(strided, 84, 84, 3)["head/kernel"].shape == (48, 5)
    assert shapes(strided, 84, 84, 3)["conv_0/bias"].shape == (48,)


@pytest.mark.parametrize(
    ("pooling", "padding", "features"),
    # Of 20: 18, 9, 7, 3 and 22, 11, 13, 6; strided 9, 4 and 11, 7, then averaged.
    [("max", 0, 9), ("max", 2, 36), ("stride", 0, 1), ("stride", 2, 1)],
)
def test_conv4_with_any_padding(pooling, padding, features):
    # The shifts of this norm tell the size of every map.
    options = dict(stages=2, pooling=pooling, padding=padding, norm=Norm("layer"))
    model = conv4(3, filters=4, **options)
    params = shapes(model, 20, 20, 1)
    assert params["head/kernel"].shape == (4 * features, 3)
    images = jax.ShapeDtypeStruct((2, 20, 20, 1), jnp.float32)
    outputs, _ = jax.eval_shape(lambda p, x: model.apply(p, {}, x), params, images)
    assert outputs.shape == (2, 3)


def test_per_step_norm_has_a_leading_axis():
    params = shapes(conv4(5, norm=Norm(per_step=5)), 28, 28, 1)
    assert params["norm_0/scale"].shape == (5, 48)


@pytest.mark.parametrize(
    "model",
    [
        conv4(3, filters=4),
        conv4(3, filters=4, pooling="stride", conv_bias=True),
        resnet12(3, widths=(2, 3, 4, 5)),
    ],
    ids=["conv4", "strided", "resnet12"],
)
def test_outputs(model, key):
    images = jax.random.normal(key, (2, 20, 20, 3))
    params, stats = model.init(key, images)
    outputs, after = jax.jit(model.apply, static_argnames="phase")(
        params, stats, images, phase="test"
    )
    assert outputs.shape == (2, 3) and np.isfinite(outputs).all()
    assert stats == after == {}


def test_initial_values(key):
    params, _ = conv4(5, filters=8).init(key, jnp.zeros((1, 28, 28, 3)))
    bound = np.sqrt(6 / ((3 + 8) * 9))  # Glorot uniform
    kernel = np.abs(params["conv_0/kernel"])
    assert 0.9 * bound < kernel.max() <= bound
    assert (params["norm_0/scale"] == 1).all() and (params["norm_0/shift"] == 0).all()
    assert (params["head/bias"] == 0).all()


@pytest.mark.parametrize("model", [conv4, resnet12, mlp])
def test_a_head_without_outputs_is_refused(model):
    with pytest.raises(ValueError, match=r"`outputs` \(0\) must be an integer of at"):
        model(0)
    model(np.int64(1))


def test_images_too_small_for_the_pooling_are_refused(key):
    with pytest.raises(ValueError, match="too small"):
        conv4(5).init(key, jnp.zeros((1, 8, 8, 1)))
    with pytest.raises(ValueError, match=r"too small .* `padding` 0"):
        conv4(5, padding=0, pooling="stride").init(key, jnp.zeros((1, 20, 20, 1)))


def test_mlp_by_hand():
    model = mlp(1, hidden=(2,))
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 1)))
    assert {k: x.shape for k, x in params.items()} == {
        "head/bias": (1,),
        "head/kernel": (2, 1),
        "dense_0/bias": (2,),
        "dense_0/kernel": (1, 2),
    }
    params = {k: jnp.ones_like(x) for k, x in params.items()}
    params["dense_0/kernel"] = jnp.asarray([[1.0, -1.0]])
    # x = 3: relu(3 + 1) + relu(-3 + 1) + 1 = 5.
    outputs, _ = model.apply(params, {}, jnp.asarray([[3.0]]), phase="test")
    np.testing.assert_array_equal(outputs, [[5.0]])


def test_from_linen_under_grad_in_vmap(key):
    model = from_linen(nn.Dense(2))
    params, stats = model.init(key, jnp.zeros((1, 3)))
    x = jax.random.normal(key, (4, 5, 3))

    def loss(params, x):
        return jnp.sum(model.apply(params, stats, x, phase="support")[0] ** 2)

    grads = jax.vmap(jax.grad(loss), (None, 0))(params, x)
    assert {k: g.shape for k, g in grads.items()} == {
        k: (4, *p.shape) for k, p in params.items()
    }
