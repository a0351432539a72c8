import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2f_jax.objectives import multi_step_loss, multi_step_weights, query_loss
from l2f_jax.types import Batch, Episode
from tests import toys

# Predictions of `counting` from w = 0 are t * inputs after t steps.
EPISODE = Episode(
    support=None, query=Batch(jnp.array([1.0, 3.0]), jnp.array([0.0, 1.0]))
)


def mean_output(outputs, targets):
    return jnp.mean(outputs)


def judge(objective, step=0):
    meta, stats = toys.counting().init(None, None)
    return objective.value(meta, stats, EPISODE, jnp.asarray(step), None)


def test_query_loss_is_that_of_the_last_step():
    value, _ = judge(query_loss(toys.counting(), mean_output, steps=3))
    assert value == 6.0  # 3 * mean(1, 3)


def test_query_loss_reports_scores_and_stats():
    scores = {"sum": lambda outputs, targets: jnp.sum(outputs - targets)}
    objective = query_loss(toys.counting(), mean_output, steps=1, scores=scores)
    _, (stats, metrics) = judge(objective)
    assert metrics == {"outer/loss": 2.0, "outer/sum": 3.0}
    assert stats == {"seen": 1.0}


def test_multi_step_loss_weighs_every_step():
    objective = multi_step_loss(
        toys.counting(),
        mean_output,
        steps=3,
        weights=lambda step: jnp.array([0.5, 0.25, 1.0]) + step,
    )
    # step 10: 10.5 * 2 + 10.25 * 4 + 11 * 6
    assert judge(objective, step=10)[0] == 128.0


def test_multi_step_loss_reports_the_last_step():
    objective = multi_step_loss(
        toys.counting(), mean_output, steps=3, weights=lambda step: jnp.ones(3)
    )
    _, (stats, metrics) = judge(objective)
    assert metrics == {"outer/loss": 6.0}
    assert stats == {"seen": 3.0}


def test_multi_step_loss_needs_a_step():
    with pytest.raises(ValueError, match=r"`steps` \(0\) must be at least 1"):
        multi_step_loss(toys.counting(), mean_output, steps=0, weights=jnp.ones)


def test_adaptation_and_prediction_have_keys_of_their_own(key):
    seen = []
    learner = toys.counting()

    def adapt(*args, key, **options):
        seen.append(key)
        return learner.adapt(*args, **options)

    def predict(*args, key, **options):
        seen.append(key)
        return learner.predict(*args, **options)

    spy = learner._replace(adapt=adapt, predict=predict)
    meta, stats = learner.init(None, None)
    value = query_loss(spy, mean_output, steps=1).value
    value(meta, stats, EPISODE, 0, key)
    value(meta, stats, EPISODE, 0, None)
    assert len({tuple(jax.random.key_data(k).tolist()) for k in [key, *seen[:2]]}) == 3
    assert seen[2:] == [None, None]


@pytest.mark.parametrize(
    ("epoch", "early", "last"),
    [
        (0, 0.2, 0.2),
        (1, 0.2 - 1 / 75, 0.2 + 4 / 75),  # 0.18667 and 0.25333
        (7, 0.2 - 7 / 75, 0.2 + 28 / 75),  # 0.10667 and 0.57333
        (14, 0.2 - 14 / 75, 0.2 + 56 / 75),  # 0.01333 and 0.94667
        (15, 0.006, 0.976),  # the floor of 0.03 / 5
        (99, 0.006, 0.976),
    ],
)
def test_multi_step_weights_of_5_steps_and_15_epochs(epoch, early, last):
    weights = multi_step_weights(epoch, steps=5, epochs=15)
    np.testing.assert_allclose(weights, [early] * 4 + [last], rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_multi_step_weights_sum_to_1(steps):
    sums = [multi_step_weights(epoch, steps, epochs=7).sum() for epoch in range(10)]
    np.testing.assert_allclose(sums, np.ones(10), rtol=1e-6)
