"""The inner loop on L(w; a) = a w^2 / 2, whose gradient is a w."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2f_jax.inner import (
    adam,
    constant,
    first_order,
    fixed_rates,
    from_optax,
    meta_sgd,
    per_step_rates,
    recorded,
    sgd,
    unroll,
)

START = {"w": jnp.array([1.0, -2.0])}
TWO = constant(jnp.array(2.0))
HALVING = sgd(0.25)  # of a = 2


def quadratic(fast, stats, a, step):
    return a * jnp.sum(fast["w"] ** 2) / 2, stats


def path(rule, steps, fast=START, source=TWO, alpha=None, **options):
    """Return the path of w, [steps + 1, 2]."""
    alpha = rule.init(fast) if alpha is None else alpha
    optimiser = rule.optimiser(alpha)
    return unroll(quadratic, optimiser, fast, {}, source, steps, **options)[0]["w"]


def end_loss(fast, source=TWO, rule=HALVING, **options):
    """The loss with a = 2 after two steps of rate 0.25, each halving w."""
    w = path(rule, 2, fast, source, **options)[-1]
    return jnp.sum(w**2)


def test_path_by_hand():
    # w - 0.25 * 2 w = w / 2
    assert path(sgd(0.25), 2).tolist() == [[1.0, -2.0], [0.5, -1.0], [0.25, -0.5]]


def test_no_steps_return_the_start():
    assert path(sgd(0.25), 0).tolist() == [[1.0, -2.0]]


def test_second_order_derivative_by_hand():
    # d/dw of (w / 4)^2 = w / 8
    assert jax.grad(end_loss)(START)["w"].tolist() == [0.125, -0.25]


def test_first_order_derivative_by_hand():
    # gradients are constants, so dw'/dw = 1: 2 w' = 2 (w / 4) = w / 2
    slope = jax.grad(lambda fast: end_loss(fast, rule=first_order(HALVING)))(START)
    assert slope["w"].tolist() == [0.5, -1.0]


def test_recomputing_steps_changes_nothing():
    def outcome(remat):
        return jax.value_and_grad(lambda fast: end_loss(fast, remat=remat))(START)

    chex.assert_trees_all_equal(outcome(True), outcome(False))


def test_recorded_data_is_read_from_index_1_on():
    # a = 9 is the transform's; then w (1 - 0.25 * 2) and w (1 - 0.25 * 4)
    source = recorded(jnp.array([9.0, 2.0, 4.0]))
    assert path(sgd(0.25), 2, source=source).tolist()[1:] == [[0.5, -1.0], [0.0, 0.0]]


def test_source_sees_the_parameters_of_its_step():
    # a = w_0: 1 - 0.5 * 1 * 1 = 0.5; 0.5 - 0.5 * 0.5 * 0.5 = 0.375
    moves = path(sgd(0.5), 2, source=lambda fast, t: fast["w"][0])
    assert moves[:, 0].tolist() == [1.0, 0.5, 0.375]


def test_meta_sgd_has_one_rate_per_number():
    alpha = {"w": jnp.array([0.5, 0.25])}
    assert path(meta_sgd(0.1), 1, alpha=alpha)[1].tolist() == [0.0, -1.0]


def test_meta_sgd_starts_at_its_rate():
    assert meta_sgd(0.1).init(START)["w"].tolist() == pytest.approx([0.1, 0.1])


def test_meta_gradient_of_a_rate_by_hand():
    # L(w - alpha 2 w) at a = 2: dL/dalpha = -4 w^2 (1 - 2 alpha) = -2 w^2
    def loss(alpha):
        return jnp.sum(path(meta_sgd(0.1), 1, alpha=alpha)[-1] ** 2)

    slope = jax.grad(loss)({"w": jnp.array([0.25, 0.25])})
    assert slope["w"].tolist() == [-2.0, -8.0]


def test_per_step_rates_follow_the_step_and_then_keep_the_last():
    # a = 2: factors 1 - 2 * 0 = 1, 1 - 2 * 0.25 = 0.5, then 0.5 again
    alpha = {"w": jnp.array([0.0, 0.25])}
    moves = path(per_step_rates(0.1, steps=2), 3, alpha=alpha)
    assert moves[:, 0].tolist() == [1.0, 1.0, 0.5, 0.25]


def test_per_step_rates_have_one_number_per_tensor_and_step():
    alpha = per_step_rates(0.1, steps=3).init({"w": jnp.ones((2, 2)), "b": jnp.ones(2)})
    assert {name: x.shape for name, x in alpha.items()} == {"w": (3,), "b": (3,)}


def test_per_step_rates_need_a_step():
    with pytest.raises(ValueError, match=r"`steps` \(0\) must be at least 1"):
        per_step_rates(0.1, steps=0)


@pytest.mark.parametrize(
    "rule", [sgd, adam, meta_sgd, partial(per_step_rates, steps=1)]
)
@pytest.mark.parametrize("lr", [-0.1, np.float64("inf"), float("nan")])
def test_a_rate_below_zero_is_refused(rule, lr):
    with pytest.raises(ValueError, match=rf"`lr` \({lr}\) must be a finite"):
        rule(lr)


def test_fixed_rates_are_of_a_tensor_or_of_its_steps():
    # a = 2: factors 1 - 2 * 0.25 = 0.5 twice; 1 - 2 * 0 = 1, then 0.5 for good
    assert path(fixed_rates({"w": 0.25}), 2)[:, 0].tolist() == [1.0, 0.5, 0.25]
    table = {"w": jnp.array([0.0, 0.25])}
    assert path(fixed_rates(table), 3)[:, 0].tolist() == [1.0, 1.0, 0.5, 0.25]


def test_tensors_without_a_fixed_rate_take_the_common_one():
    fast = {"v": jnp.ones(()), "w": jnp.ones(())}
    rule = fixed_rates({"v": 0.25}, 0.5)
    optimiser = rule.optimiser(rule.init(fast))
    updates, _ = optimiser.update(fast, optimiser.init(fast))
    assert updates == {"v": -0.25, "w": -0.5}


def test_fixed_rates_of_what_does_not_move_are_refused():
    with pytest.raises(ValueError, match="`rates` names 'u'; what moves is w"):
        fixed_rates({"u": 0.1}, 0.1).init(START)
    with pytest.raises(ValueError, match="names nothing; without `lr` it must name w"):
        fixed_rates({}).init(START)


def test_momentum_is_kept_between_steps():
    # a = 2: 1 - 0.25 * 2 = 0.5; velocity 0.5 * 2 + 2 * 0.5 = 2: 0.5 - 0.25 * 2 = 0
    momentum = from_optax(optax.sgd(0.25, momentum=0.5))
    assert path(momentum, 2)[:, 0].tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("options", "finite"), [({}, True), ({"eps_root": 0.0}, False)]
)
def test_adam_has_a_meta_gradient_where_a_gradient_is_zero(options, finite):
    def loss(fast):
        return jnp.sum(path(adam(0.1, **options), 2, fast)[-1] ** 2)

    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam: float ** integer
        slope = jax.grad(loss)({"w": jnp.array([1.0, 0.0])})["w"]
    assert np.isfinite(slope).all() == finite


def test_stats_belong_to_their_point_of_the_path():
    def seeing(fast, stats, a, step):
        return quadratic(fast, stats, a, step)[0], {"seen": fast["w"]}

    stats = {"seen": jnp.zeros(2)}
    moves, seen = unroll(seeing, optax.sgd(0.25), START, stats, TWO, 2)
    np.testing.assert_array_equal(seen["seen"], moves["w"])


def test_stats_with_no_steps_are_those_of_the_start():
    def counting(fast, stats, a, step):
        return quadratic(fast, stats, a, step)[0], {"passes": stats["passes"] + 1}

    stats = {"passes": jnp.zeros((), jnp.int32)}
    _, seen = unroll(counting, optax.sgd(0.25), START, stats, TWO, 0)
    assert seen["passes"].tolist() == [1]


@pytest.mark.parametrize("steps", [1, 3])
def test_loss_gets_the_step_counted_from_0(steps):
    def weighing(fast, stats, a, step):
        return step.astype(fast["w"].dtype) * jnp.sum(fast["w"]), stats

    # gradients 0, 1, 2, ...: w - (0 + 1 + .. + steps - 1)
    moves, _ = unroll(weighing, optax.sgd(1.0), START, {}, TWO, steps)
    assert moves["w"][-1, 0] == 1.0 - steps * (steps - 1) / 2
