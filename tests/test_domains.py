"""The one training loop on the other domains: exact resume, evaluation, bad numbers."""

import numpy as np
import pytest

from configs.regression import sinusoid
from configs.rl import half_cheetah, navigation
from experiments.judging import evaluate
from experiments.recording import read_metrics
from experiments.train import train
from l2f_jax.problems import build
from tests.test_train import assert_identical, final_state, finish, two_processes

pytestmark = pytest.mark.mixed_dtypes  # Adam


def small(config):
    """Return the config with 4 iterations of 2 tasks, 2 an epoch."""
    config.model.hidden, config.training.tasks = (4,), 2
    config.training.iterations, config.training.iterations_per_epoch = 4, 2
    # Compilation is the cost: as many tasks in both, and points, share one program.
    config.evaluation.validation_tasks = config.evaluation.test_tasks = 3
    config.evaluation.points = (0, 1)
    return config


def small_search(config):
    config.env.horizon, config.sampling.trajectories = 3, 2
    config.evaluation.trajectories = 2
    return small(config)


def small_sinusoid():
    config = small(sinusoid.get_config("l2f,k5"))
    config.training.seeds = 2
    return config


DOMAINS = {
    "navigation": lambda: small_search(navigation.get_config("maml")),
    "sinusoid": small_sinusoid,
    "half_cheetah": lambda: small_search(
        half_cheetah.get_config("maml,first_order,gym")
    ),
}


@pytest.fixture(
    scope="module",
    params=[
        "navigation",
        "sinusoid",
        # Searched for as navigation is, in a world that other tests look at.
        pytest.param("half_cheetah", marks=pytest.mark.slow),
    ],
)
def domain(request):
    """Return what makes the config."""
    if request.param == "half_cheetah":
        pytest.importorskip("mujoco")
        pytest.importorskip("gymnasium")
    return DOMAINS[request.param]


@pytest.fixture(scope="module")
def uninterrupted(domain, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert train(domain(), run)
    return run


def test_run_in_two_parts_is_identical(domain, uninterrupted, tmp_path):
    run, config = tmp_path / "run", domain()
    config.training.iterations = 2
    assert train(config, run)
    assert train(domain(), run)
    whole, parts = final_state(uninterrupted, domain()), final_state(run, domain())
    assert int(whole.step) == 4
    assert_identical(whole, parts)
    assert read_metrics(uninterrupted) == read_metrics(run)


@pytest.mark.slow  # that devices find what one finds is seen in float64, and fast
@pytest.mark.parametrize("world", ["navigation.py:l2f", "half_cheetah.py:l2f"])
def test_two_processes_search_for_a_policy(world, tmp_path):
    if "cheetah" in world:
        pytest.importorskip("mujoco")
        pytest.importorskip("gymnasium")
    settings = {
        "env.horizon": 3,
        "model.hidden": (4,),
        "sampling.trajectories": 2,
        "training.tasks": 4,
        "training.iterations": 2,
        "training.iterations_per_epoch": 2,
        "evaluation.validation_tasks": 3,
        "evaluation.trajectories": 2,
    }
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    file, variant = world.split(":")
    module = {"navigation.py": navigation, "half_cheetah.py": half_cheetah}[file]
    config = module.get_config(variant)
    config.update_from_flattened_dict(settings)
    assert train(config, tmp_path / "one")
    with two_processes(
        tmp_path / "two", *flags, config=f"configs/rl/{world}", devices=2
    ) as processes:
        finish(processes)
    one, two = (read_metrics(tmp_path / run) for run in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two] == [1, 2, 2]
    # Before the first step: what six samples make of it in float32 is mostly rounding.
    for name in ("return_0", "return_start"):
        np.testing.assert_allclose(
            one[0][f"outer/{name}"], two[0][f"outer/{name}"], rtol=1e-4
        )
    assert np.isfinite(two[-1]["validation/return_start"])


def test_scores_are_of_every_seed_task_and_point(domain, uninterrupted):
    found, seeds = evaluate(uninterrupted), domain().training.get("seeds", 1)
    assert found.points == (0, 1) and found.checkpoints["last"] == [4]
    assert found.scores.keys() == {"last", "best"}
    for scores in found.scores.values():
        assert scores.shape == (seeds, 3, 2) and np.isfinite(scores).all()


def test_a_validation_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    config = small_sinusoid()
    whole = build(config)

    def scores(predictions):
        return {name: x * np.nan for name, x in whole.scores(predictions).items()}

    broken = whole._replace(scores=scores)
    monkeypatch.setattr("experiments.train.build", lambda _: broken)
    said = "validation/mse is not finite at step 2; the last good checkpoint is none"
    with pytest.raises(FloatingPointError, match=said):
        train(config, tmp_path / "run")


# The half-cheetah is searched for as navigation is, and MuJoCo logs such numbers.
@pytest.mark.parametrize(
    "name", [pytest.param("navigation", marks=pytest.mark.slow), "sinusoid"]
)
def test_numbers_that_are_none_stop_the_run_at_their_step(name, tmp_path):
    config = DOMAINS[name]()
    config.learner.lr = 1e38  # beyond what float32 can square
    with pytest.raises(FloatingPointError, match="not finite at step 1; .* is none"):
        train(config, tmp_path / "run")
