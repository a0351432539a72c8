"""Configs of policy search build, and every mistake in them is named."""

import itertools

import numpy as np
import pytest

from configs.rl import half_cheetah, navigation
from l2f_jax.problems import build

pytestmark = pytest.mark.mixed_dtypes


METHODS, ORDERS, (ADAPTED, *BASELINES), _ = navigation.VARIANTS
PLAIN = list(itertools.product(METHODS, ORDERS, [ADAPTED]))
BASELINE = list(itertools.product(["maml"], ORDERS, BASELINES))


@pytest.mark.parametrize(
    "variant", [*PLAIN, *BASELINE, ("maml", "equal_steps")], ids=str
)
def test_navigation_builds(variant):
    experiment = build(navigation.get_config(",".join(variant)))
    assert experiment.score.name == "return" and experiment.steps in experiment.points


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_is_of_a_policy_without_attenuation(baseline):
    config = navigation.get_config(baseline)
    assert config == navigation.get_config(f"maml,{baseline}")
    assert config.transform.name == "identity" and not config.sampling.fresh
    with pytest.raises(ValueError, match=f"'{baseline}' .* 'maml', not with 'l2f'"):
        navigation.get_config(f"l2f,{baseline}")


def test_maml_can_have_as_many_environment_steps_as_l2f():
    variants = "l2f", "maml,equal_steps"
    both = [build(navigation.get_config(variant)) for variant in variants]
    # Three sets of 20 trajectories, or two of 30, of 100 steps, in 20 tasks.
    assert [e.facts["environment_steps"] for e in both] == [120_000, 120_000]
    assert len({e.protocol for e in both}) == 1


@pytest.mark.parametrize("other", ["", "l2f", "oracle", "maml,pretrained"])
def test_equal_steps_is_a_variant_of_maml_alone(other):
    with pytest.raises(ValueError, match="'equal_steps' goes with 'maml'"):
        navigation.get_config(f"{other},equal_steps")


@pytest.mark.parametrize("goal", half_cheetah.VARIANTS[0])
@pytest.mark.parametrize(("robot", "horizon"), [("original", 200), ("gym", 100)])
def test_half_cheetah_builds(goal, robot, horizon):
    pytest.importorskip("mujoco")
    pytest.importorskip("gymnasium")
    config = half_cheetah.get_config(f"maml,{goal},{robot}")
    assert config.env.goal == goal and build(config).facts["horizon"] == horizon


def test_half_cheetah_takes_the_variants_of_navigation():
    def trajectories(variant):
        return half_cheetah.get_config(variant).sampling.trajectories

    assert half_cheetah.get_config("maml,velocity").training.iterations == 475
    assert half_cheetah.get_config("random,velocity").training.iterations == 1
    assert trajectories("l2f,velocity") == 10
    assert trajectories("maml,velocity,equal_steps") == 15
    with pytest.raises(ValueError, match="variant 'sideways'"):
        half_cheetah.get_config("sideways")


@pytest.mark.parametrize(
    ("config", "trajectories"),
    [
        (navigation.get_config("maml,equal_steps"), 40),
        (half_cheetah.get_config("velocity"), 20),
        (half_cheetah.get_config("velocity,gym"), 40),
    ],
)
def test_evaluation_takes_4000_environment_steps_for_an_update(config, trajectories):
    assert config.evaluation.trajectories == trajectories
    assert config.env.horizon * trajectories == 4000


def small(trajectories=None):
    """A config of few numbers; evaluated by so many trajectories."""
    config = navigation.get_config("maml").unlock()
    config.model.hidden, config.env.horizon = (3,), 2
    config.sampling.trajectories, config.training.tasks = 2, 2
    config.evaluation.trajectories = trajectories
    if trajectories is None:
        del config.evaluation.trajectories
    return config


def test_a_run_that_says_no_number_is_judged_by_that_of_training():
    experiment = build(small())
    assert "return of 2 new trajectories" in experiment.protocol
    state = experiment.init(0)
    found = experiment.predict(state.meta, {}, "val", 3, points=(0,)).outputs
    same = build(small(2)).predict(state.meta, {}, "val", 3, points=(0,)).outputs
    np.testing.assert_array_equal(found, same)


def test_evaluation_has_trajectories_of_its_own():
    experiment = build(small(500))
    assert "return of 500 new trajectories" in experiment.protocol
    state = experiment.init(0)
    found, goals = experiment.predict(state.meta, {}, "val", 4, points=(0,))
    # Nothing is learned: a first step from (0, 0) of 0.1 N(0, 1), clipped, so that the
    # distance to a goal is about its own, and 500 times two steps average well.
    np.testing.assert_allclose(
        found[:, 0], -2 * np.linalg.norm(goals, axis=-1), atol=0.1
    )


@pytest.mark.parametrize(
    ("section", "key", "bad", "message"),
    [
        ("env", "horizon", 0, "`horizon` .0. must be at least 1"),
        ("env", "name", "maze", "`env.name` .'maze'. must be one of navigation"),
        ("sampling", "trajectories", 0, "`sampling.trajectories` .0."),
        ("learner", "steps", -1, "`learner.steps` .-1."),
        ("training", "tasks", 0, "`training.tasks` .0."),
        ("model", "activation", "gelu", "`activation` .'gelu'. .* relu, tanh"),
        ("evaluation", "trajectories", 0, "`evaluation.trajectories` .0. must be at"),
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
