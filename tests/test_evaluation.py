import math

import jax.numpy as jnp
import numpy as np
import pytest

from l2f_jax.evaluation import (
    Predictions,
    ensemble,
    interval,
    make_predict,
    over_seeds,
    paired,
    task_accuracies,
    task_cross_entropies,
)
from l2f_jax.parallel import task_mesh
from l2f_jax.types import Batch, Episode
from tests import toys


def predict(items, *, shared=1.0, steps=2, **options):
    """Return t * shared * item after t steps, for each of two queries of a task."""
    learner = toys.counting()

    def episode(shared, item):
        inputs = shared * item * jnp.ones(2)
        return Episode(support=None, query=Batch(inputs, item * jnp.ones(2)))

    run = make_predict(learner, episode, steps=steps, mesh=task_mesh(1), **options)
    return run(*learner.init(None, None), jnp.asarray(shared), np.asarray(items))


# One task, points 0 and 1, three queries of two classes.
LOGITS = np.array([[[[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]], [[2.0, 1.0]] * 3]])
ONE_TASK = Predictions(LOGITS, np.array([[1, 0, 0]]))


def test_predictions_after_every_step():
    outputs, targets = predict([1.0, 10.0])
    assert outputs.tolist() == [
        [[0, 0], [1, 1], [2, 2]],
        [[0, 0], [10, 10], [20, 20]],
    ]
    assert targets.tolist() == [[1, 1], [10, 10]]


def test_predictions_at_chosen_points():
    assert predict([1.0], points=(2, 0)).outputs[0, :, 0].tolist() == [2, 0]


def test_shared_data_reach_every_task():
    assert predict([1.0, 2.0], shared=5.0).outputs[:, 1, 0].tolist() == [5, 10]


@pytest.mark.parametrize("at_once", [1, 2, 3, 8])
def test_any_number_of_tasks_in_groups(at_once):
    outputs, targets = predict([1.0, 2.0, 3.0, 4.0, 5.0], at_once=at_once)
    assert outputs[:, 2, 1].tolist() == [2, 4, 6, 8, 10]
    assert targets[:, 0].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("points", [(3,), (-1, 0), ()])
def test_point_outside_the_path_is_refused(points):
    with pytest.raises(ValueError, match=r"`points` .* must lie in 0 .. 2"):
        predict([1.0], points=points)


def test_task_accuracies_by_hand():
    # point 0 says 1, 1, 0 and point 1 says 0, 0, 0; right is 1, 0, 0
    np.testing.assert_allclose(task_accuracies(ONE_TASK), [[2 / 3, 2 / 3]])


def test_task_cross_entropies_by_hand():
    # a gap of 1 for the right class costs log(1 + 1/e), for the wrong class log(1 + e)
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    expected = [(2 * right + wrong) / 3] * 2
    np.testing.assert_allclose(task_cross_entropies(ONE_TASK), [expected])


def test_scores_leave_predictions_as_they_are():
    for dtype in (np.float32, np.float64):
        outputs = LOGITS.astype(dtype)
        task_cross_entropies(Predictions(outputs, ONE_TASK.targets))
        np.testing.assert_array_equal(outputs, LOGITS)


def test_ensemble_averages_logits_not_votes():
    # two members say class 0 by 1, one says class 1 by 5: means 2/3 and 5/3
    targets = np.array([[1]])
    logits = ([1.0, 0.0], [1.0, 0.0], [0.0, 5.0])
    members = [Predictions(np.array([[[x]]]), targets) for x in logits]
    mean = ensemble(members)
    np.testing.assert_allclose(mean.outputs[0, 0, 0], [2 / 3, 5 / 3])
    assert task_accuracies(mean).tolist() == [[1.0]]


def test_ensemble_of_different_tasks_is_refused():
    other = ONE_TASK._replace(targets=1 - ONE_TASK.targets)
    with pytest.raises(ValueError, match="different tasks"):
        ensemble([ONE_TASK, other])


def test_interval_by_hand():
    # mean 2, s^2 = (4 + 0 + 4) / 2 = 4: 1.96 * 2 / sqrt(3)
    result = interval(np.array([0.0, 2.0, 4.0]))
    assert result == (2.0, pytest.approx(1.96 * 2 / 3**0.5), 3)


def test_interval_of_one_task_has_no_width():
    assert math.isnan(interval(np.array([0.5])).half)


def test_interval_over_seeds_is_students():
    mean, half = over_seeds(np.array([0.0, 2.0, 4.0]))
    # t = 4.303 of 2 degrees of freedom
    assert mean == 2 and half == pytest.approx(4.302653 * 2 / 3**0.5)
    assert math.isnan(over_seeds(np.array([0.5]))[1])


def test_paired_interval_is_of_the_differences():
    # the tasks vary by 100, the difference is 1 in every one of them
    b = np.array([0.0, 100.0, 200.0])
    assert paired(b + 1, b) == (1.0, 0.0, 3)


def test_pairs_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\), \(2,\)"):
        paired(np.zeros(3), np.zeros(2))
