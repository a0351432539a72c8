"""An algorithm at a neutral setting equals another, to 1e-12 in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2f_jax.inner import constant
from l2f_jax.losses import cross_entropy
from l2f_jax.objectives import multi_step_loss, query_loss
from l2f_jax.recipes import l2f, maml, mamlpp, meta_sgd
from l2f_jax.transforms import attenuate, chain, identity
from tests import toys

pytestmark = pytest.mark.usefixtures("x64")

LR, STEPS = 0.5, 2
MODEL = toys.classifier()
LOSS = toys.task_loss(MODEL)
MAML = maml(MODEL, LOSS, lr=LR)
assert_same = functools.partial(chex.assert_trees_all_close, rtol=1e-12, atol=1e-14)


def initial(learner):
    meta, _ = learner.init(jax.random.key(0), jnp.zeros((1, toys.FEATURES), float))
    return meta


def outcome(objective, meta):
    """Return the loss of a task and its gradient in theta."""
    loss = toys.meta_loss(objective, toys.episode())
    value, slope = jax.jit(jax.value_and_grad(loss))(meta)
    return value, slope.params


@functools.cache
def of_maml():
    return outcome(query_loss(MAML, cross_entropy, steps=STEPS), initial(MAML))


def assert_is_maml(objective, meta):
    assert_same(outcome(objective, meta), of_maml())


@pytest.mark.parametrize(
    "learner",
    [
        maml(MODEL, LOSS, lr=LR, transform=attenuate(conditioned=False, squash="none")),
        maml(MODEL, LOSS, lr=LR, transform=chain(identity(), identity())),
        meta_sgd(MODEL, LOSS, lr=LR),
        mamlpp(MODEL, LOSS, lr=LR, steps=STEPS),
    ],
    ids=["gamma 1", "chain of identities", "constant Meta-SGD", "constant MAML++"],
)
def test_neutral_setting_is_maml(learner):
    assert_is_maml(query_loss(learner, cross_entropy, steps=STEPS), initial(learner))


def test_l2f_with_saturated_attenuator_is_maml():
    learner = l2f(MODEL, LOSS, lr=LR)
    meta = initial(learner)
    # sigmoid(50) rounds to 1
    phi = jax.tree.map(jnp.zeros_like, meta.transform)
    phi["layer_1/bias"] = jnp.full_like(phi["layer_1/bias"], 50.0)
    meta = meta._replace(transform=phi)
    assert_is_maml(query_loss(learner, cross_entropy, steps=STEPS), meta)


def test_multi_step_loss_of_the_last_step_only_is_the_query_loss():
    objective = multi_step_loss(
        MAML, cross_entropy, steps=STEPS, weights=lambda step: jnp.array([0.0, 1.0])
    )
    assert_is_maml(objective, initial(MAML))


def test_first_order_changes_the_gradient_only():
    objective = query_loss(MAML, cross_entropy, steps=STEPS, first_order=True)
    value, slope = outcome(objective, initial(MAML))
    assert_same(value, of_maml()[0])
    difference = jax.tree.map(lambda a, b: abs(a - b).max(), slope, of_maml()[1])
    assert min(difference.values()) > 1e-3


def test_no_steps_are_no_adaptation():
    episode, meta = toys.episode(), initial(MAML)
    adapted = MAML.adapt(meta, {}, constant(episode.support), 0)
    outputs, _ = MAML.predict(adapted, 0, episode.query.inputs, phase="query")
    expected, _ = MODEL.apply(meta.params, {}, episode.query.inputs)
    np.testing.assert_array_equal(outputs, expected)


def test_maml_is_the_loop_written_out():
    episode = toys.episode()

    def loss(params, batch):
        x = batch.inputs @ params["dense_0/kernel"] + params["dense_0/bias"][None]
        logits = jnp.tanh(x) @ params["head/kernel"] + params["head/bias"][None]
        chosen = jax.nn.one_hot(batch.targets, toys.WAYS, dtype=logits.dtype)
        return -(chosen * jax.nn.log_softmax(logits)).sum() / len(logits)

    def two_steps(params):
        for _ in range(2):
            slope = jax.grad(loss)(params, episode.support)
            params = {path: x - LR * slope[path] for path, x in params.items()}
        return loss(params, episode.query)

    written = jax.jit(jax.value_and_grad(two_steps))(initial(MAML).params)
    assert_same(written, of_maml())


def test_vmap_over_tasks_is_the_loop_over_tasks():
    tasks = toys.episode(tasks=(3,))
    learner = l2f(MODEL, LOSS, lr=LR)
    meta = initial(learner)

    @jax.jit
    def logits(episode):
        adapted = learner.adapt(meta, {}, constant(episode.support), STEPS)
        return learner.predict(adapted, STEPS, episode.query.inputs, phase="query")[0]

    each = [logits(jax.tree.map(lambda x, i=i: x[i], tasks)) for i in range(3)]
    np.testing.assert_allclose(jax.vmap(logits)(tasks), np.stack(each), rtol=1e-12)
