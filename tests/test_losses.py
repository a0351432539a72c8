import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2f_jax.losses import (
    accuracy,
    cross_entropy,
    present_cross_entropy,
    squared_error,
    supervised,
)
from l2f_jax.types import Batch, Model


def test_cross_entropy_by_hand():
    # p = 3/4 and 1/4 in both rows; labels 0 and 1: -(log 3/4 + log 1/4) / 2
    logits = jnp.array([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])
    expected = -(math.log(0.75) + math.log(0.25)) / 2
    assert cross_entropy(logits, jnp.array([0, 1])) == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_of_huge_logits_is_finite():
    # log p = -1000 for the wrong class, 0 for the right one
    logits = jnp.array([[1000.0, 0.0], [1000.0, 0.0]])
    assert cross_entropy(logits, jnp.array([0, 1])) == 500.0


LOGITS = jnp.array([[3.0, -1.0, 9.0], [0.5, 2.0, -4.0]])


def test_cross_entropy_is_the_same_where_all_classes_are_present():
    labels = jnp.array([2, 1, 0])
    logits = jnp.concatenate([LOGITS, LOGITS[:1]])
    found, expected = (
        jax.value_and_grad(loss)(logits, labels)
        for loss in (present_cross_entropy, cross_entropy)
    )
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])


def test_outputs_of_absent_classes_take_no_part():
    labels = jnp.array([1, 0])
    value, slope = jax.value_and_grad(present_cross_entropy)(LOGITS, labels)
    expected = jax.value_and_grad(cross_entropy)(LOGITS[:, :2], labels)
    assert value == expected[0]
    np.testing.assert_array_equal(slope, np.pad(expected[1], ((0, 0), (0, 1))))
    curvature = jax.hessian(present_cross_entropy)(LOGITS, labels)
    assert np.isfinite(curvature).all()


def test_squared_error_by_hand():
    # (1 + 0 + 4 + 9) / 4
    outputs, targets = (
        jnp.array([[1.0, 2.0], [3.0, 4.0]]),
        jnp.array([[0.0, 2.0], [1.0, 1.0]]),
    )
    assert squared_error(outputs, targets) == 3.5


def test_accuracy_is_the_share_of_hits():
    logits = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert accuracy(logits, jnp.array([0, 1, 1, 1])) == 0.75


def test_accuracy_has_the_dtype_of_the_logits(x64):
    logits = jnp.zeros((2, 2), jnp.float64)
    assert accuracy(logits, jnp.array([0, 0])).dtype == jnp.float64


def test_supervised_passes_everything_on_to_the_model():
    def apply(params, stats, inputs, *, phase, step, key):
        return params["w"] * inputs, {"seen": (phase, step, key)}

    loss = supervised(Model(lambda key, inputs: ({}, {}), apply), squared_error)
    batch = Batch(jnp.array([[1.0]]), jnp.array([[5.0]]))
    value, stats = loss({"w": 2.0}, {}, batch, phase="support", step=3, key="k")
    assert value == np.float32((2.0 - 5.0) ** 2)
    assert stats == {"seen": ("support", 3, "k")}


@pytest.mark.parametrize("label", [-1, 3])
def test_label_of_no_class_makes_loss_and_gradient_nan(label):
    labels = jnp.array([0, label])
    loss, grad = jax.value_and_grad(cross_entropy)(LOGITS, labels)
    assert jnp.isnan(loss) and jnp.isnan(grad[1]).all()


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [(squared_error, (5, 1), (5,)), (cross_entropy, (5, 5), (5, 1))]
    + [(accuracy, (5, 5), (5, 1)), (cross_entropy, (5, 5), (4,))],
)
def test_shapes_that_would_broadcast_are_refused(loss, outputs, targets):
    with pytest.raises(ValueError, match="have shape .* must be"):
        loss(jnp.zeros(outputs), jnp.zeros(targets, int))
