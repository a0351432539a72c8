"""Prototypical networks: distances by hand, no adaptation, a class that is far away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2f_jax.inner import constant
from l2f_jax.learners.protonet import protonet
from l2f_jax.losses import cross_entropy
from l2f_jax.models.conv4 import conv4
from l2f_jax.models.resnet12 import resnet12
from l2f_jax.objectives import query_loss
from l2f_jax.types import Batch, Episode, Model


def scaling() -> Model:
    """f(x) = w x, for inputs that are features."""
    return Model(
        lambda key, inputs: ({"w": jnp.asarray(2.0)}, {}),
        lambda params, stats, inputs, **_: (params["w"] * inputs, stats),
    )


SUPPORT = Batch(jnp.asarray([[0.0, 0], [2, 0], [0, 3]]), jnp.asarray([0, 0, 1]))


def test_logits_are_minus_squared_distances_to_the_class_means(key):
    learner = protonet(scaling(), ways=2)
    meta, stats = learner.init(key, SUPPORT.inputs)
    adapted = learner.adapt(meta, stats, constant(SUPPORT), 0)
    logits, _ = learner.predict(adapted, 0, jnp.asarray([[1.0, 0]]), phase="test")
    # Means, doubled by the network: (2, 0) and (0, 6); the query is at (2, 0).
    assert logits.tolist() == [[0.0, -40.0]]


def test_any_number_of_steps_changes_nothing(key):
    learner = protonet(scaling(), ways=2)
    meta, stats = learner.init(key, SUPPORT.inputs)
    adapted = learner.adapt(meta, stats, constant(SUPPORT), 3)
    for t in range(4):
        logits, _ = learner.predict(adapted, t, SUPPORT.inputs, phase="test")
        assert logits.argmax(-1).tolist() == SUPPORT.targets.tolist()


@pytest.mark.parametrize(
    "network",
    [conv4(None, filters=3, stages=2), resnet12(None, widths=(2, 3, 4, 5))],
    ids=["conv4", "resnet12"],
)
def test_networks_without_head_learn_a_space(key, network):
    images = jax.random.normal(key, (4, 16, 16, 1))
    batch = Batch(images, jnp.asarray([0, 1, 0, 1]))
    learner = protonet(network, ways=2)
    meta, stats = learner.init(key, images)
    assert not any(path.startswith("head") for path in meta.params)
    objective = query_loss(learner, cross_entropy, steps=0)

    @jax.jit
    @jax.grad
    def slope(meta):
        return objective.value(meta, stats, Episode(batch, batch), 0, key)[0]

    for path, x in slope(meta).params.items():
        assert np.isfinite(x).all(), path
    assert any(jnp.abs(x).max() > 0 for x in slope(meta).params.values())
