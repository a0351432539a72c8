"""Configs of policy search build, and every mistake in them is named."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.rl import half_cheetah, navigation
from l2f_jax.data.episodes import episode_keys
from l2f_jax.envs.env import Env
from l2f_jax.evaluation import Predictions
from l2f_jax.models.policy import FLOOR, Gaussian
from l2f_jax.problems import build
from l2f_jax.problems.policy_search import Search, _inner, method
from l2f_jax.problems.reinforcement import FIRST_TASK, returns
from l2f_jax.rl.rollout import Sampling
from l2f_jax.rl.trpo import TrustRegion
from l2f_jax.types import Learner, MetaParams, Model
from tests.toys import counting

pytestmark = pytest.mark.mixed_dtypes


METHODS, ORDERS, (ADAPTED, *BASELINES), _ = navigation.VARIANTS
PLAIN = list(itertools.product(METHODS, ORDERS, [ADAPTED]))
BASELINE = list(itertools.product(["maml"], BASELINES))


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
    with pytest.raises(ValueError, match=f"'first_order' .* not with '{baseline}'"):
        navigation.get_config(f"first_order,{baseline}")


def test_maml_can_train_with_as_many_environment_steps_as_l2f_but_is_tested_with_less():
    variants = "l2f", "maml,equal_steps", "maml"
    l2f, equal, plain = (build(navigation.get_config(variant)) for variant in variants)
    # Three sets of 20 trajectories, two of 30 or of 20, of 100 steps, in 20 tasks.
    found = [e.facts["environment_steps"] for e in (l2f, equal, plain)]
    assert found == [120_000, 120_000, 80_000]
    assert equal.protocol == plain.protocol != l2f.protocol
    assert "sees such a set of its own" in l2f.protocol
    assert "sets" not in equal.protocol


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


def test_evaluation_takes_4000_environment_steps_for_an_update():
    whole = "learns from whole trajectories until 4000 steps, at most 80"
    assert whole in build(navigation.get_config("maml,equal_steps")).protocol


@pytest.mark.parametrize(("robot", "horizon"), [("original", 200), ("gym", 100)])
def test_a_robot_that_never_stops_takes_them_in_whole_trajectories(robot, horizon):
    pytest.importorskip("mujoco")
    pytest.importorskip("gymnasium")
    protocol = build(half_cheetah.get_config(f"velocity,{robot}")).protocol
    taken = f"{4000 // horizon} trajectories of up to {horizon} steps"
    assert taken in protocol


def test_a_run_that_says_no_number_is_judged_by_that_of_training():
    config = navigation.get_config("maml").unlock()
    del config.evaluation.trajectories
    assert "until 2000 steps, at most 40" in build(config).protocol
    # As of a run recorded before there was a surplus.
    del config.evaluation.surplus, config.sampling.surplus
    assert " 20 trajectories of up to 100 steps" in build(config).protocol


def test_evaluation_has_trajectories_of_its_own():
    config = navigation.get_config("maml")
    config.model.hidden, config.env.horizon = (3,), 2
    config.sampling.trajectories, config.sampling.fresh = 2, True
    config.evaluation.trajectories, config.evaluation.surplus = 5, 0
    experiment = build(config)
    meta = experiment.init(0).meta
    predictions = experiment.predict(meta, {}, "val", 2, points=(1, 0))

    sections = config.to_dict()
    for name in ("problem", "seed", "evaluation"):
        del sections[name]
    search = method(**sections)
    search = search._replace(
        sampling=search.sampling._replace(trajectories=5, surplus=0)
    )
    judge = jax.jit(jax.vmap(partial(returns, search, meta, last=1)))
    after, start, goals = judge(episode_keys(0, FIRST_TASK["val"], 2))
    scores = experiment.scores(predictions)
    np.testing.assert_allclose(scores["return"], after[:, ::-1], rtol=1e-6)
    np.testing.assert_allclose(scores["return_start"].T, [start, start], rtol=1e-6)
    np.testing.assert_array_equal(predictions.targets, goals)


def test_a_start_without_trajectories_of_its_own_has_no_return():
    predictions = Predictions(np.zeros((3, 1, 2)), np.zeros((3, 2)))
    scores = build(navigation.get_config("maml")).scores(predictions)
    assert list(scores) == ["return"]


def test_inner_rate_is_halved_from_the_second_update_on():
    steps, rule = _inner(steps=2, lr=0.5)
    params, gradient = {"w": jnp.ones(2)}, {"w": jnp.asarray([1.0, -4.0])}
    optimiser = rule.optimiser(rule.init(params))
    memory, moves = optimiser.init(params), []
    for _ in range(3):
        move, memory = optimiser.update(gradient, memory, params)
        moves.append(move["w"].tolist())
    # -0.5 g, -0.25 g, and for an update more than in training the same again
    assert steps == 2 and moves == [[-0.5, 2.0], [-0.25, 1.0], [-0.25, 1.0]]


def payer() -> Env:
    """Reward is the action, in episodes of two steps where nothing else happens."""

    def step(task, state, action, key):
        return state, jnp.zeros(1), action[0], jnp.asarray(False)

    def reset(task, key):
        return (), jnp.zeros(1)

    return Env(lambda key: jnp.ones(1), reset, step, 1, 1, horizon=2)


def constant_policy() -> Model:
    """Act w, to a millionth."""

    def apply(params, stats, inputs, **_):
        mean = jnp.full_like(inputs, params["w"])
        return Gaussian(mean, jnp.full(1, FLOOR, inputs.dtype)), stats

    return Model(lambda key, inputs: ({"w": jnp.asarray(10.0)}, {}), apply)


def forgetful() -> Learner:
    """Start an inner loop at w - 10; each update adds 1."""
    learner = counting()

    def adapt(meta, *rest, **options):
        start = meta._replace(params={"w": meta.params["w"] - 10})
        return learner.adapt(start, *rest, **options)

    return learner._replace(adapt=adapt)


@pytest.mark.parametrize("fresh", [True, False])
def test_returns_are_of_theta_and_after_each_update(fresh, key):
    # theta is w = 10, its start w = 0, and then w = 1, 2, 3: twice w in two steps.
    search = Search(
        payer(), constant_policy(), forgetful(), steps=1, sampling=Sampling(3),
        fresh=fresh, region=TrustRegion(), schedule=None,
    )  # fmt: skip
    meta = MetaParams({"w": jnp.asarray(10.0)}, (), ())
    found, start, task = jax.jit(partial(returns, search, meta, last=3))(key)
    np.testing.assert_allclose(found, [20, 2, 4, 6], atol=1e-4)
    np.testing.assert_allclose(start, 0 if fresh else 20, atol=1e-4)
    assert task.tolist() == [1.0]


@pytest.mark.parametrize(
    ("section", "key", "bad", "message"),
    [
        ("env", "horizon", 0, "`env.horizon` .0. must be at least 1"),
        ("env", "name", "maze", "`env.name` .'maze'. must be one of navigation"),
        ("sampling", "trajectories", 0, "`sampling.trajectories` .0."),
        ("sampling", "surplus", -1, "`sampling.surplus` .-1. must be at least 0"),
        ("sampling", "discount", 1.5, "`sampling.discount` .1.5. must be .* most 1"),
        ("sampling", "decay", -0.1, "`sampling.decay` .-0.1. must be at least 0"),
        ("learner", "steps", -1, "`learner.steps` .-1."),
        ("learner", "lr", 0.0, "`learner.lr` .0.0. must be above 0"),
        ("learner", "later", -1.0, "`learner.later` .-1.0. must be above 0"),
        ("optimiser", "max_kl", -0.01, "`optimiser.max_kl` .-0.01. .* at least 0"),
        ("optimiser", "max_kl", float("nan"), "`optimiser.max_kl` .nan."),
        ("optimiser", "damping", -1e-5, "`optimiser.damping` .-1e-05. .* least 0"),
        ("optimiser", "conjugate_steps", 0, "`optimiser.conjugate_steps` .0. .* 1"),
        ("optimiser", "backtracks", -1, "`optimiser.backtracks` .-1. must be .* 0"),
        ("optimiser", "shrink", 1.5, "`optimiser.shrink` .1.5. .* 0 and below 1"),
        ("training", "tasks", 0, "`training.tasks` .0."),
        ("model", "activation", "gelu", "`model.activation` .'gelu'. .* relu, tanh"),
        ("model", "hidden", (100, 0), "`model.hidden` .* integers of at least 1"),
        ("evaluation", "trajectories", 0, "`evaluation.trajectories` .0. must be at"),
        ("evaluation", "surplus", -1, "`evaluation.surplus` .-1. must be at least 0"),
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
