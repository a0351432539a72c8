"""The outer step on L(w; x) = sum(w x), whose gradient is x, and g and r likewise."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2f_jax.outer import (
    TrainState,
    cosine_by_epoch,
    initial_state,
    make_update,
    meta_optimiser,
)
from l2f_jax.parallel import task_mesh
from l2f_jax.recipes import maml
from l2f_jax.types import MetaParams, Objective
from tests import toys

pytestmark = pytest.mark.mixed_dtypes

ITEMS = jnp.array([[1.0, 2.0, 3.0, 6.0]])  # one iteration, four tasks


def linear(meta, stats, x, step, key):
    loss = sum(jnp.sum(w * x) for w in jax.tree.leaves(meta))
    return loss, ({"seen": x}, {"outer/loss": loss, "x": x})


def start(optimiser):
    meta = MetaParams({"w": jnp.zeros(())}, {"g": jnp.zeros(())}, {"r": jnp.zeros(())})
    step, stats = jnp.zeros((), jnp.int32), {"seen": jnp.zeros(())}
    return TrainState(step, jax.random.key(0), meta, optimiser.init(meta), stats)


def update_of(optimiser, episode=None, tasks=4, value=linear, **options):
    episode = episode or (lambda shared, item, key: item)
    mesh = task_mesh(1)
    return make_update(
        Objective(value), optimiser, episode, tasks=tasks, mesh=mesh, **options
    )


def after(optimiser, items=ITEMS, iterations=1, **options):
    """Return (state, metrics) after the first iterations."""
    update = update_of(optimiser, **options)
    return update(start(optimiser), (), items, iterations=iterations)


def noisy(shared, item, key):
    """An episode that is a random number."""
    return jax.random.normal(key)


@pytest.mark.parametrize(("reduction", "w"), [("sum", -12.0), ("mean", -3.0)])
def test_losses_of_the_tasks_are_reduced(reduction, w):
    state, _ = after(optax.sgd(1.0), reduction=reduction)
    assert state.meta.params["w"] == w


def test_metrics_are_means_over_tasks_and_the_norm_of_the_sum():
    _, metrics = after(optax.sgd(1.0))
    assert metrics["x"].tolist() == [3.0]
    # w, g and r each have the gradient 12
    assert metrics["outer/gradient_norm"] == pytest.approx([12 * 3**0.5])


def test_stats_are_means_over_tasks():
    state, _ = after(optax.sgd(1.0))
    assert state.stats == {"seen": 3.0}


def test_step_counts_iterations():
    state, metrics = after(optax.sgd(1.0), jnp.ones((3, 4)), iterations=3)
    assert state.step == 3 and state.step.dtype == jnp.int32
    assert metrics["outer/loss"].shape == (3,)


@pytest.mark.parametrize("at_once", [2, 4])
def test_tasks_at_once_change_nothing(at_once):
    items = jnp.arange(8.0).reshape(2, 4)
    one, _ = after(optax.sgd(0.1), items, 2, at_once=1)
    many, _ = after(optax.sgd(0.1), items, 2, at_once=at_once)
    np.testing.assert_allclose(one.meta.params["w"], many.meta.params["w"], rtol=1e-6)


def test_order_of_the_tasks_does_not_matter():
    shuffled, _ = after(optax.sgd(0.1), ITEMS[:, jnp.array([2, 0, 3, 1])])
    state, _ = after(optax.sgd(0.1))
    np.testing.assert_allclose(
        shuffled.meta.params["w"], state.meta.params["w"], rtol=1e-6
    )


def test_iterations_of_one_dispatch_are_those_of_many_bit_for_bit():
    optimiser = meta_optimiser(cosine_by_epoch(1e-2, 1e-3, 3, 2), clip=0.5)
    update = update_of(optimiser, noisy)
    together, metrics = update(start(optimiser), (), iterations=4)
    alone, losses = start(optimiser), []
    for _ in range(4):
        alone, each = update(alone, ())
        losses.append(each["outer/loss"][0])
    chex.assert_trees_all_equal(together, alone)
    assert metrics["outer/loss"].tolist() == [float(x) for x in losses]


def test_task_number_alone_decides_what_is_sampled():
    _, four = after(optax.sgd(0.0), (), 1, episode=noisy, tasks=4)
    _, two = after(optax.sgd(0.0), (), 2, episode=noisy, tasks=2)
    np.testing.assert_allclose(four["x"][0], two["x"].mean(), rtol=1e-6)
    assert two["x"][0] != two["x"][1]


def test_objective_has_a_key_of_its_own():
    def value(meta, stats, x, step, key):
        loss, (stats, _) = linear(meta, stats, x, step, key)
        return loss, (stats, {"sampled": x, "drawn": jax.random.normal(key)})

    _, metrics = after(optax.sgd(0.0), (), episode=noisy, value=value)
    assert metrics["sampled"] != metrics["drawn"]


def test_later_calls_do_not_trace_again():
    traces = []

    def value(*args):
        traces.append(args)
        return linear(*args)

    optimiser = meta_optimiser(1e-3)
    update = update_of(optimiser, value=value)
    state = initial_state(toys.counting(), optimiser, jnp.zeros(1), 0, task_mesh(1))
    counts = []
    for _ in range(3):
        state, _ = update(state, (), ITEMS)
        counts.append(len(traces))
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_task_is_traced_once(at_once):
    traced = []

    def value(*arguments):
        traced.append(arguments)
        return linear(*arguments)

    after(optax.sgd(1.0), value=value, at_once=at_once)
    assert len(traced) == 1


def test_initial_state_is_that_of_its_seed():
    optimiser, inputs = meta_optimiser(1e-3), jnp.zeros((1, toys.FEATURES))
    learner = maml(toys.classifier(), None)
    a, b, c = (
        initial_state(learner, optimiser, inputs, seed, task_mesh(1))
        for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(a, b)
    assert a.step == 0 and a.step.dtype == jnp.int32
    kernels = [s.meta.params["head/kernel"] for s in (a, c)]
    assert not np.array_equal(*kernels)


def test_episodes_may_have_a_seed_of_their_own():
    optimiser, inputs = meta_optimiser(1e-3), jnp.zeros((1, toys.FEATURES))
    learner = maml(toys.classifier(), None)

    def state(seed, **options):
        return initial_state(learner, optimiser, inputs, seed, task_mesh(1), **options)

    zero, one, mixed = state(0), state(1), state(0, episodes=1)
    chex.assert_trees_all_equal(mixed, zero._replace(key=one.key))
    assert not np.array_equal(*(jax.random.key_data(s.key) for s in (zero, one)))


def test_shared_data_reach_every_task():
    optimiser = optax.sgd(1.0)
    update = update_of(optimiser, lambda shared, item, key: shared * item)
    state, _ = update(start(optimiser), jnp.array(10.0), ITEMS)
    assert state.meta.params["w"] == -120.0


def test_first_step_of_adam_is_the_rate_in_the_gradients_direction():
    # m / (sqrt(v) + eps) = 12 / (12 + 1e-8)
    state, _ = after(meta_optimiser(1e-3))
    for moved in jax.tree.leaves(state.meta):
        assert moved == pytest.approx(-1e-3, rel=1e-5)


def test_clip_is_of_theta_only():
    state, _ = after(meta_optimiser(1.0, clip=5.0, name="sgd"))
    assert state.meta.params["w"] == -5.0
    assert state.meta.transform["g"] == state.meta.rule["r"] == -12.0


def test_clip_is_elementwise_and_two_sided():
    meta = MetaParams({"w": jnp.zeros(3)}, (), ())
    grads = MetaParams({"w": jnp.array([-20.0, 3.0, 20.0])}, (), ())
    optimiser = meta_optimiser(1.0, clip=10.0, name="sgd")
    updates, _ = optimiser.update(grads, optimiser.init(meta), meta)
    assert updates.params["w"].tolist() == [10.0, -3.0, -10.0]


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 1.0),
        (9, 1.0),  # the last iteration of epoch 0
        (10, 0.2 + 0.8 * (1 + 0.5**0.5) / 2),  # cos(pi / 4)
        (20, 0.6),  # half way from 1 to 0.2
        (40, 0.2),
        (99, 0.2),  # beyond the last epoch
    ],
)
def test_cosine_by_epoch(step, rate):
    schedule = cosine_by_epoch(1.0, 0.2, epochs=4, iterations_per_epoch=10)
    assert schedule(jnp.asarray(step)) == pytest.approx(rate, rel=1e-6)


def test_rate_follows_the_schedule():
    optimiser = meta_optimiser(lambda step: 10.0**-step, name="sgd")
    state, _ = after(optimiser, jnp.ones((2, 4)), 2)
    assert state.meta.params["w"] == pytest.approx(-4.4)  # 4 * (1 + 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "max"}, r"`reduction` \('max'\) must be one of sum, mean"),
        ({"tasks": 0}, r"`tasks` \(0\) must be a positive multiple of the 1"),
        ({"at_once": 3}, r"`at_once` \(3\) must divide the 4 task"),
    ],
)
def test_wrong_argument_of_the_update_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        update_of(optax.sgd(1.0), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0.0}, r"`clip` \(0.0\) must be positive"),
        ({"name": "adamw"}, r"name` \('adamw'\) must be one of adam, sgd"),
    ],
)
def test_wrong_argument_of_the_optimiser_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        meta_optimiser(1e-3, **options)
