"""Meta-gradients against central differences in random directions, in float64."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from l2f_jax.embeddings import Embedding, gradients
from l2f_jax.losses import cross_entropy
from l2f_jax.objectives import multi_step_loss, query_loss
from l2f_jax.recipes import anil, boil, l2f, maml, mamlpp, meta_sgd
from l2f_jax.transforms import attenuate
from l2f_jax.types import MetaParams, TaskView
from tests import toys

pytestmark = pytest.mark.usefixtures("x64")

STEPS, WIDTH = 2, 1e-5
MODEL = toys.classifier()
LOSS = toys.task_loss(MODEL)
L2F = l2f(MODEL, LOSS, lr=0.5)
EVERYTHING = MetaParams(1.0, 1.0, 1.0)
ATTENUATOR = MetaParams(0.0, 1.0, 0.0)


def random_meta(learner):
    inputs = jnp.zeros((1, toys.FEATURES), float)
    shapes, _ = jax.eval_shape(learner.init, jax.random.key(0), inputs)
    meta = toys.like(0, shapes)
    return meta._replace(rule=jax.tree.map(lambda x: 0.1 * x, meta.rule))


def direction(seed, meta, along):
    """Return random numbers for the groups of MetaParams that `along` is 1 for."""
    groups = zip(along, toys.like(seed, meta), strict=True)
    return MetaParams(*(jax.tree.map(lambda x, on=on: on * x, g) for on, g in groups))


def assert_is_slope(slope, loss, meta, along=EVERYTHING):
    """Compare a gradient at `meta` with differences of a loss."""
    for seed in range(100, 103):
        d = direction(seed, meta, along)
        ahead, behind = (
            loss(jax.tree.map(lambda x, d, w=w: x + w * d, meta, d))
            for w in (WIDTH, -WIDTH)
        )
        numeric = (ahead - behind) / (2 * WIDTH)
        assert optax.tree.vdot(slope, d) == pytest.approx(float(numeric), rel=1e-6)


def loss_and_slope(learner, meta, weights=None):
    """Return the compiled query loss (or multi-step loss) and its gradient at meta."""
    objective = query_loss(learner, cross_entropy, steps=STEPS)
    if weights is not None:
        objective = multi_step_loss(
            learner, cross_entropy, steps=STEPS, weights=lambda step: weights
        )
    loss = toys.meta_loss(objective, toys.episode())
    return jax.jit(loss), jax.jit(jax.grad(loss))(meta)


@pytest.mark.parametrize(
    "learner",
    [
        maml(MODEL, LOSS, lr=0.5),
        meta_sgd(MODEL, LOSS),
        anil(MODEL, LOSS, lr=0.5),
        boil(MODEL, LOSS, lr=0.5),
    ],
    ids=["maml", "meta_sgd", "anil", "boil"],
)
def test_query_loss(learner):
    meta = random_meta(learner)
    loss, slope = loss_and_slope(learner, meta)
    assert_is_slope(slope, loss, meta)


def test_multi_step_loss_of_mamlpp():
    learner = mamlpp(MODEL, LOSS, steps=STEPS)
    meta = random_meta(learner)
    loss, slope = loss_and_slope(learner, meta, weights=jnp.array([0.3, 0.7]))
    assert_is_slope(slope, loss, meta)


def test_l2f_over_the_attenuator():
    meta = random_meta(L2F)
    loss, slope = loss_and_slope(L2F, meta)
    assert_is_slope(slope, loss, meta, along=ATTENUATOR)


def test_l2f_through_the_embedding():
    learner = maml(MODEL, LOSS, lr=0.5, transform=attenuate(through=True))
    meta = random_meta(learner)
    loss, slope = loss_and_slope(learner, meta)
    assert_is_slope(slope, loss, meta)


def test_l2f_treats_the_embedding_as_a_constant():
    meta = random_meta(L2F)
    _, slope = loss_and_slope(L2F, meta)
    frozen = attenuate(embedding=frozen_at(meta))
    loss, _ = loss_and_slope(maml(MODEL, LOSS, lr=0.5, transform=frozen), meta)
    assert_is_slope(slope, loss, meta)


def test_only_theta_has_a_gradient_through_the_embedding():
    through = maml(MODEL, LOSS, lr=0.5, transform=attenuate(through=True))
    meta = random_meta(L2F)
    (_, without), (_, whole) = (loss_and_slope(x, meta) for x in (L2F, through))
    chex.assert_trees_all_close(without.transform, whole.transform, rtol=1e-12)
    for path, x in whole.params.items():
        assert abs(x - without.params[path]).max() > 1e-4, path


def frozen_at(meta):
    """Return the gradient embedding with its value at meta for every meta."""
    batch = toys.episode().support

    def loss(params):
        return LOSS(params, {}, batch, phase="support", step=0, key=None)[0]

    value = gradients().apply(meta.params, TaskView(loss, batch))
    return Embedding(gradients().size, lambda params, view: value)
