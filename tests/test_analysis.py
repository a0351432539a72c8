"""Conflict, attenuation by hand, gammas and landscapes, on cases known by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2f_jax import recipes
from l2f_jax.analysis import (
    angles,
    attenuate_tensor,
    conflict,
    embeddings,
    gammas,
    inner_landscape,
    landscape,
    update_direction,
)
from l2f_jax.inner import constant, sgd
from l2f_jax.learners.gradient import gradient_learner
from l2f_jax.losses import cross_entropy
from l2f_jax.objectives import query_loss
from l2f_jax.scopes import scope_of
from l2f_jax.transforms import attenuate, identity
from l2f_jax.tree import at, everything, is_not_norm
from l2f_jax.types import Batch, Episode, Model
from tests import toys

A = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[0.0, 1.0]])}


def between(a, b, kind="layer"):
    return angles(scope_of(A, kind), a, b)


# Angles and conflict -----------------------------------------------------------


def test_angles_of_each_tensor_by_hand():
    # (3, 0) and (1, 1): 45 degrees; (0, 1) and (0, -7): opposed
    b = {"a": jnp.array([1.0, 1.0]), "b": jnp.array([[0.0, -7.0]])}
    np.testing.assert_allclose(between(A, b), [np.pi / 4, np.pi], rtol=1e-6)


def test_angle_of_the_network_takes_all_numbers_together():
    # (3, 0, 0, 1) . (1, 1, 0, 3) = 6 of sqrt(10 * 11)
    b = {"a": jnp.array([1.0, 1.0]), "b": jnp.array([[0.0, 3.0]])}
    expected = [np.arccos(6 / np.sqrt(110))]
    np.testing.assert_allclose(between(A, b, "network"), expected, rtol=1e-6)


def test_identical_directions_have_angle_0_and_tiny_angles_keep_their_digits():
    assert between(A, A).tolist() == [0.0, 0.0]
    b = {**A, "a": jnp.array([3.0, 3e-5])}
    np.testing.assert_allclose(between(A, b)[0], 1e-5, rtol=1e-5)


def test_angle_does_not_depend_on_lengths(key):
    b = toys.like(1, A)
    scaled = {path: 1e-6 * x for path, x in b.items()}
    np.testing.assert_allclose(between(A, b), between(A, scaled), rtol=1e-5)


def test_angle_with_zero_is_no_number():
    b = {**A, "b": jnp.zeros((1, 2))}
    assert np.isnan(between(A, b)).tolist() == [False, True]


def test_scope_may_be_of_some_tensors_only():
    scope = scope_of({"b": A["b"]}, "network")
    assert angles(scope, A, {**A, "a": -A["a"]}).tolist() == [0.0]


def degrees(*tasks):
    """Conflicts of tasks, each a direction of one tensor."""
    directions = {"a": jnp.array(tasks)}
    scope = scope_of({"a": directions["a"][0]}, "layer")
    return conflict(scope, directions)[:, 0]


def test_tasks_that_agree_have_no_conflict():
    assert degrees([1.0, 2.0], [2.0, 4.0], [3.0, 6.0]).tolist() == [0.0] * 3


def test_orthogonal_tasks_conflict_by_their_number():
    np.testing.assert_allclose(degrees([2.0, 0.0], [0.0, 2.0]), np.pi / 4, rtol=1e-6)
    eight = degrees(*np.eye(8))
    np.testing.assert_allclose(eight, np.arccos(8**-0.5), rtol=1e-6)


def test_the_weaker_of_two_opposed_tasks_loses():
    # 3 - 1 = 2 points where the first does, opposite to the second
    found = degrees([3.0, 0.0], [-1.0, 0.0])
    np.testing.assert_allclose(found, [0.0, np.pi], atol=1e-6)


# A whole learner: L(w; d) = |w - d|^2 / 2, with w = (a, b) and inner rate 0.1 -----


def quadratic(params, stats, batch, *, phase, step, key):
    gaps = [params[path] - batch.targets for path in ("a", "b")]
    return sum(jnp.sum(gap**2) for gap in gaps) / 2, stats


def task(support, query=0.0):
    return Episode(*(Batch(jnp.zeros((1, 2)), jnp.array(d)) for d in (support, query)))


def learner_of(*, fast=everything, transform=None, loss=quadratic):
    start = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([4.0, 4.0])}
    model = Model(
        lambda key, inputs: (start, {}),
        lambda params, stats, x, **_: (params["a"], stats),
    )
    learner = gradient_learner(
        model, loss, fast=fast, transform=transform or identity(), rule=sgd(0.1)
    )
    return learner, learner.init(jax.random.key(0), None)[0]


def test_update_direction_is_the_meta_gradient_downhill():
    learner, meta = learner_of()

    def criterion(outputs, targets):
        return jnp.sum((outputs - targets) ** 2) / 2

    objective = query_loss(learner, criterion, steps=1)
    direction = update_direction(objective)(meta, {}, task(support=0.0, query=5.0))
    # a' = 0.9 a; -grad = -0.9 (0.9 a - 5), and the query loss does not see b
    np.testing.assert_allclose(direction["a"], [3.69, 2.88], rtol=1e-6)
    assert direction["b"].tolist() == [0.0, 0.0]


def test_attenuation_by_hand_touches_its_tensor_only():
    _, meta = learner_of(transform=attenuate())
    moved = attenuate_tensor(meta, "a", 0.5)
    assert moved.params["a"].tolist() == [0.5, 1.0]
    assert moved.params["b"] is meta.params["b"]
    assert moved[1:] == meta[1:] and meta.params["a"].tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"`path` \('c'\) must be one of a, b"):
        attenuate_tensor(meta, "c", 0.5)


@pytest.mark.parametrize("scope", ["layer", "filter", "network"])
def test_gammas_are_what_the_adaptation_starts_with(scope):
    model = toys.classifier()
    loss, episode = toys.task_loss(model), toys.episode()
    learner = recipes.maml(model, loss, transform=attenuate(scope))
    meta, stats = learner.init(jax.random.key(0), episode.support.inputs)
    meta = meta._replace(params=toys.like(0, meta.params))  # no zero biases
    found = gammas(learner)(meta, stats, episode)
    adapted = learner.adapt(meta, stats, constant(episode.support), 0)
    assert set(found) == {path for path in meta.params if is_not_norm(path)}
    for path, gamma in found.items():
        applied = adapted.path[path][0] / meta.params[path]
        np.testing.assert_allclose(
            jnp.broadcast_to(gamma, applied.shape), applied, rtol=1e-6
        )


def test_embeddings_are_the_means_of_the_support_gradient():
    model = toys.classifier()
    loss, episode = toys.task_loss(model), toys.episode()
    learner = recipes.maml(model, loss)
    meta, stats = learner.init(jax.random.key(0), episode.support.inputs)
    found = embeddings(learner)(meta, stats, episode)
    seen = partial(loss, phase="support", step=0, key=None)
    gradient = jax.grad(lambda x: seen(x, stats, episode.support)[0])(meta.params)
    assert set(found) == {path for path in meta.params if is_not_norm(path)}
    for path, value in found.items():
        np.testing.assert_allclose(value, gradient[path].mean(), rtol=1e-4, atol=1e-8)
    # A softmax's gradient sums to zero over the classes.
    head = [float(abs(value)) for path, value in found.items() if "head" in path]
    others = [float(abs(value)) for path, value in found.items() if "head" not in path]
    assert max(head) < 1e-7 < 1e-4 < min(others)


def test_maml_has_no_gammas():
    learner, meta = learner_of()
    assert gammas(learner)(meta, {}, task(0.0)) == {}


# Landscapes --------------------------------------------------------------------

RATES = jnp.array([0.5, 1.0, 2.0])


def test_landscape_of_a_round_bowl_by_hand():
    # L = 3/2 |x|^2: g = 3 x, at x - r g the loss is 3/2 (1 - 3 r)^2 |x|^2, the gradient
    # differs by 3 * 3 r |x|; beta = 3 everywhere. Here |x| = 5.
    x = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    found = landscape(
        lambda p: 1.5 * (jnp.sum(p["a"] ** 2) + jnp.sum(p["b"] ** 2)), x, RATES
    )
    np.testing.assert_allclose(found.loss, 37.5 * (1 - 3 * RATES) ** 2, rtol=1e-6)
    np.testing.assert_allclose(found.difference, 45 * RATES, rtol=1e-6)
    np.testing.assert_allclose(found.smoothness, 3, rtol=1e-6)


def test_smoothness_of_an_ellipse_lies_between_its_curvatures():
    # g = (2 * 1, 6 * 1), its change along itself r (4, 36): |(4, 36)| / |(2, 6)|
    curvature = jnp.array([2.0, 6.0])
    found = landscape(
        lambda p: jnp.sum(curvature * p["a"] ** 2) / 2, {"a": jnp.ones(2)}, RATES
    )
    expected = np.hypot(4, 36) / np.hypot(2, 6)
    np.testing.assert_allclose(found.smoothness, expected, rtol=1e-6)


def test_smoothness_is_the_largest_over_the_rates():
    # L = x^4 / 4 at 1: g = 1, at 1 - r the gradient is (1 - r)^3; |.| / r is largest,
    # (1 - (1 - r)^3) / r = 3 - 3 r + r^2, at the smallest r here, 0.5.
    found = landscape(lambda p: p["a"] ** 4 / 4, {"a": jnp.array(1.0)}, RATES)
    np.testing.assert_allclose(found.smoothness, 1.75, rtol=1e-6)


def test_a_straight_slope_is_perfectly_smooth():
    found = landscape(lambda p: 3 * p["a"], {"a": jnp.array(1.0)}, RATES)
    np.testing.assert_allclose(found.loss, 3 - 9 * RATES, rtol=1e-6)
    assert found.difference.tolist() == [0.0] * 3 and found.smoothness == 0


def test_inner_landscape_is_that_of_each_point_of_the_path():
    # a moves alone; a_t = 0.9^t (1, 2), L = |a|^2 / 2 + 16, g = a, beta = 1
    learner, meta = learner_of(fast=lambda path: path == "a")
    found = inner_landscape(learner, steps=3, rates=RATES)(meta, {}, task(0.0))
    squares, rates = 5 * 0.81 ** np.arange(3)[:, None], np.asarray(RATES)
    expected = squares * (1 - rates) ** 2 / 2 + 16
    np.testing.assert_allclose(found.loss, expected, rtol=1e-6)
    np.testing.assert_allclose(found.difference, np.sqrt(squares) * rates, rtol=1e-5)
    np.testing.assert_allclose(found.smoothness, np.ones(3), rtol=1e-5)


def test_inner_landscape_starts_where_the_transform_does():
    half = attenuate(conditioned=False)  # gamma = sigmoid(1)
    learner, meta = learner_of(transform=half)
    found = inner_landscape(learner, steps=1, rates=RATES)(meta, {}, task(0.0))
    squares = (5 + 32) / (1 + np.exp(-1)) ** 2
    expected = squares * (1 - RATES) ** 2 / 2
    np.testing.assert_allclose(found.loss[0], expected, rtol=1e-6)


def test_inner_landscape_tells_the_loss_which_step_it_is():
    def by_step(params, stats, batch, *, phase, step, key):
        assert phase == "support"
        slope = 1.0 + jnp.asarray(step).astype(float)
        return slope * jnp.sum(params["a"]), stats

    learner, meta = learner_of(loss=by_step)
    found = inner_landscape(learner, steps=2, rates=RATES)(meta, {}, task(0.0))
    # slopes 1, then 2; sum(a) is 3, then 3 - 0.1 * 2; each unit of rate costs 2 slope^2
    np.testing.assert_allclose(found.loss[0], 3 - 2 * RATES, rtol=1e-6)
    np.testing.assert_allclose(found.loss[1], 2 * (2.8 - 4 * RATES), rtol=1e-6)


def test_inner_landscape_needs_a_step():
    with pytest.raises(ValueError, match=r"`steps` \(0\) must be at least 1"):
        inner_landscape(learner_of()[0], steps=0, rates=RATES)


def test_learner_without_an_inner_loop_is_refused():
    for build in (gammas, partial(inner_landscape, steps=1, rates=RATES)):
        with pytest.raises(ValueError, match="`learner` has no inner loop"):
            build(toys.counting())


def test_every_measure_maps_over_tasks():
    model = toys.classifier()
    learner = recipes.l2f(model, toys.task_loss(model))
    many = toys.episode(tasks=(3,))
    meta, stats = learner.init(jax.random.key(0), many.support.inputs[0])
    objective = query_loss(learner, cross_entropy, steps=2)
    measures = (
        gammas(learner),
        update_direction(objective),
        inner_landscape(learner, steps=2, rates=RATES),
    )

    def measure(episode):
        return [of(meta, stats, episode) for of in measures]

    together = jax.jit(jax.vmap(measure))(many)
    second = jax.jit(measure)(at(many, 1))
    for a, b in zip(*map(jax.tree.leaves, (together, second)), strict=True):
        np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-6)
