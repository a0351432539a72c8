"""Configs of policy search build, and every mistake in them is named."""

import itertools

import pytest

from configs.rl import half_cheetah, navigation
from l2f_jax.problems import build

pytestmark = pytest.mark.mixed_dtypes


@pytest.mark.parametrize(
    "variant", list(itertools.product(*navigation.VARIANTS)), ids=str
)
def test_navigation_builds(variant):
    experiment = build(navigation.get_config(",".join(variant)))
    assert experiment.score.name == "return" and experiment.steps in experiment.points


@pytest.mark.parametrize("goal", half_cheetah.GOALS)
def test_half_cheetah_builds(goal):
    pytest.importorskip("mujoco")
    pytest.importorskip("gymnasium")
    config = half_cheetah.get_config(f"maml,{goal}")
    assert config.env.goal == goal and build(config).facts["horizon"] == 200


@pytest.mark.parametrize(
    ("section", "key", "bad", "message"),
    [
        ("env", "horizon", 0, "`horizon` .0. must be at least 1"),
        ("env", "name", "maze", "`env.name` .'maze'. must be one of navigation"),
        ("sampling", "trajectories", 0, "`sampling.trajectories` .0."),
        ("learner", "steps", -1, "`learner.steps` .-1."),
        ("training", "tasks", 0, "`training.tasks` .0."),
        ("model", "activation", "gelu", "`activation` .'gelu'. .* relu, tanh"),
        ("evaluation", "ensemble", 3, "`evaluation.ensemble` .3. must be 1"),
        ("evaluation", "points", (0, 2), "`evaluation.points` .* .1. among them"),
        ("optimiser", "lr", 0.1, "`optimiser.lr` is no option here"),
    ],
)
def test_mistakes_are_named(section, key, bad, message):
    config = navigation.get_config("maml").unlock()
    config[section][key] = bad
    with pytest.raises(ValueError, match=message):
        build(config)
