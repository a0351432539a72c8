"""The gradient learner on a model without a network, and the loss d * sum(params)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2f_jax.inner import constant, recorded, sgd
from l2f_jax.learners.gradient import gradient_learner
from l2f_jax.transforms import identity
from l2f_jax.types import InitTransform, Model


def times(params, stats, d, *, phase, step, key):
    return d * sum(params.values()), stats


def add_loss(phi, params, view):
    """A start that shows what the transform saw."""
    return {path: x + view.loss(params) for path, x in params.items()}


ADD_LOSS = InitTransform(lambda key, params: (), add_loss)


def learner_of(loss=times, apply=None, transform=None, fast=lambda path: path == "a"):
    params = {"a": jnp.array(1.0), "b": jnp.array(2.0)}
    model = Model(lambda key, inputs: (params, {}), apply)
    start = transform or identity()
    learner = gradient_learner(model, loss, fast=fast, transform=start, rule=sgd(1.0))
    meta, _ = learner.init(jax.random.key(0), None)
    return learner, meta


def test_fast_parameters_move_and_shared_ones_stay():
    learner, meta = learner_of()
    adapted = learner.adapt(meta, {}, constant(jnp.array(3.0)), 2)
    assert adapted.path["a"].tolist() == [1.0, -2.0, -5.0]
    assert adapted.shared == {"b": 2.0}


@pytest.mark.parametrize("t", [-1, 3, np.int64(3)])
def test_point_outside_the_path_is_refused(t):
    learner, meta = learner_of(apply=times)
    adapted = learner.adapt(meta, {}, constant(jnp.array(3.0)), 2)
    with pytest.raises(ValueError, match=rf"`t` \({t}\) must lie in 0 .. 2, the inner"):
        learner.predict(adapted, t, jnp.array(3.0), phase="test")


def test_phase_that_is_none_is_refused():
    learner, meta = learner_of(apply=times)
    adapted = learner.adapt(meta, {}, constant(jnp.array(3.0)), 1)
    with pytest.raises(ValueError, match=r"`phase` \('tset'\) must be one of support,"):
        learner.predict(adapted, 1, jnp.array(3.0), phase="tset")


@pytest.mark.parametrize("steps", [-1, 2.0])
def test_number_of_steps_that_is_none_is_refused(steps):
    learner, meta = learner_of()
    with pytest.raises(ValueError, match=r"`steps` \(.*\) must be an integer of"):
        learner.adapt(meta, {}, constant(jnp.array(3.0)), steps)


def test_transform_sees_index_0_of_the_data_and_inner_steps_the_others():
    learner, meta = learner_of(transform=ADD_LOSS)
    adapted = learner.adapt(meta, {}, recorded(jnp.array([10.0, 3.0, 4.0])), 2)
    # the loss of data 0 is 10 * (1 + 2); then the gradients are 3 and 4
    assert adapted.path["a"].tolist() == [31.0, 28.0, 24.0]
    assert adapted.shared == {"b": 32.0}


def test_loss_is_told_phase_step_and_a_key_for_each_step(key):
    def noisy(params, stats, d, *, phase, step, key):
        assert phase == "support"
        factor = jnp.asarray(step).astype(float) + jax.random.uniform(key)
        return factor * params["a"], stats

    learner, meta = learner_of(noisy)
    path = learner.adapt(meta, {}, constant(None), 3, key=key).path["a"]
    noise = -np.diff(path) - np.arange(3)
    assert ((noise > 0) & (noise < 1)).all() and len(set(noise)) == 3


def test_no_key_stays_no_key():
    def loss(params, stats, d, *, phase, step, key):
        assert key is None
        return params["a"], stats

    learner, meta = learner_of(loss)
    learner.adapt(meta, {}, constant(None), 1)


@pytest.mark.parametrize(("t", "last_step"), [(0, 0), (1, 0), (3, 2)])
def test_prediction_uses_its_point_and_the_last_step_taken(t, last_step):
    def apply(params, stats, inputs, *, phase, step, key):
        return (inputs, params["a"], params["b"], stats["passes"], phase, step), stats

    def counting(params, stats, d, **_):
        return params["a"], {"passes": stats["passes"] + 1}

    learner, meta = learner_of(counting, apply)
    stats = {"passes": jnp.array(0)}
    adapted = learner.adapt(meta, stats, constant(None), 3)
    outputs, _ = learner.predict(adapted, t, "x", phase="query")
    assert outputs == ("x", 1.0 - t, 2.0, t + 1, "query", last_step)


def test_no_fast_parameter_is_refused():
    with pytest.raises(ValueError, match="`fast` selects none of a, b"):
        learner_of(fast=lambda path: path == "c")
