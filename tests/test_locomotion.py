"""Half-cheetah against MuJoCo used directly, rewards by hand, and its batches."""

import importlib.util
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2f_jax.envs import locomotion, physics
from l2f_jax.envs.locomotion import GOALS, State, half_cheetah, reward
from l2f_jax.models.policy import gaussian_policy
from l2f_jax.rl.rollout import Sampling, rollouts

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("gymnasium")

SKIPS = {"maml": 1, "gym": 5}


@pytest.fixture(scope="module")
def model():
    """The file as MuJoCo reads it, deprecated attribute and all."""
    package = Path(importlib.util.find_spec("gymnasium").origin).parent
    path = package / "envs" / "mujoco" / "assets" / "half_cheetah.xml"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mujoco.MjSpec.from_file(str(path)).compile()


def measured(data):
    """Position and velocity of the centre of mass as MuJoCo has them."""
    mujoco.mj_forward(data.model, data)
    mujoco.mj_subtreeVel(data.model, data)
    return data.subtree_com[1].copy(), data.subtree_linvel[1].copy()


@pytest.mark.parametrize(
    ("goal", "task", "expected"),
    [
        # Cost 0.05 * (1 + 0.25 + 0.25) = 0.075.
        ("velocity", 2.0, -0.5 - 0.075),  # -|1.5 - 2|
        ("velocity", 0.5, -1.0 - 0.075),  # -|1.5 - 0.5|
        ("direction", 1.0, 1.5 - 0.075),
        ("direction", -1.0, -1.5 - 0.075),
    ],
)
def test_reward_by_hand(goal, task, expected):
    action = jnp.asarray([1.0, -0.5, 0.5, 0, 0, 0])
    value = reward(goal, jnp.asarray([task]), jnp.asarray(1.5), action)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_model_is_that_of_the_file(model):
    ours = physics.body(mujoco)
    assert ours.opt.timestep == 0.01
    for name in ("body_mass", "body_inertia", "body_invweight0", "dof_invweight0"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(model, name))


def centres(model, dtype):
    """Centre of mass and its velocity at random states: ours, MuJoCo's."""
    centre = jax.jit(locomotion.centre_of_mass(model))
    random = np.random.default_rng(0)
    data = mujoco.MjData(model)
    ours, theirs = [], []
    for qpos, qvel in random.normal(size=(5, 2, 9)):
        data.qpos, data.qvel = qpos, qvel
        theirs.append(measured(data))
        ours.append(jax.jvp(centre, (dtype(qpos),), (dtype(qvel),)))
    return np.asarray(ours), np.asarray(theirs)


def test_centre_of_mass_in_float32(model):
    np.testing.assert_allclose(*centres(model, jnp.float32), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("x64")
def test_centre_of_mass_in_float64(model):
    np.testing.assert_allclose(*centres(model, jnp.float64), rtol=0, atol=1e-12)


def plain(model, variant, state, actions):
    """Observations and velocities of a trajectory, in a loop of `mj_step`."""
    data = mujoco.MjData(model)
    data.qpos, data.qvel = state
    for action in actions:
        before = data.qpos[0]
        data.ctrl = np.clip(action, -1, 1)
        mujoco.mj_step(model, data, SKIPS[variant])
        centre, velocity = measured(data)
        seen = [data.qpos[1:], data.qvel]
        if variant == "maml":
            yield np.concatenate([*seen, centre]), velocity[0]
        else:
            yield np.concatenate(seen), (data.qpos[0] - before) / 0.05


@pytest.mark.parametrize(
    ("variant", "gain"), [("maml", 1.0), ("gym", 1.0), ("gym", 0.5)]
)
def test_trajectory_is_that_of_mj_step(variant, gain, model, key):
    env = half_cheetah(goal="direction", variant=variant, gain=gain)
    task = jnp.asarray([-1.0])
    state, actions = inputs(steps=5)
    actions *= 2  # some beyond the clip
    step = jax.jit(env.step)
    expected = plain(model, variant, state, gain * actions)
    for action, (seen, velocity) in zip(actions, expected, strict=True):
        state, observation, value, done = step(task, state, action, key)
        cost = 0.05 * np.sum(np.clip(gain * action, -1, 1) ** 2)
        assert observation.shape == (env.observations,)
        # Velocities reach 10 rad/s; the contact solver starts anew in each step.
        np.testing.assert_allclose(observation, seen, atol=1e-4)
        np.testing.assert_allclose(value, -velocity - cost, atol=1e-4)
        assert not done


def episode(env, task, state, actions):
    """Rewards [steps] and the last observation under given actions [steps, 6]."""

    def body(state, action):
        state, observation, value, _ = env.step(task, state, action, None)
        return state, (observation, value)

    _, (observations, values) = jax.lax.scan(body, state, actions)
    return values, observations[-1]


def inputs(*batch, steps):
    """States and actions, leading axes `batch`."""
    random = np.random.default_rng(0)
    qpos, qvel = 0.1 * random.normal(size=(2, *batch, 9))
    actions = random.normal(size=(*batch, steps, 6))
    qpos, qvel, actions = (x.astype(np.float32) for x in (qpos, qvel, actions))
    return State(qpos, qvel), actions


@pytest.mark.parametrize("variant", SKIPS)
def test_tasks_and_trajectories_in_one_call_are_those_one_by_one(variant):
    env = half_cheetah(goal="velocity", variant=variant)
    tasks = np.asarray([[0.5], [1.5]], np.float32)
    given = inputs(2, 3, steps=4)

    def run(task, state, actions):
        return episode(env, task, state, actions)

    trajectories = jax.vmap(run, (None, 0, 0))
    many = jax.jit(jax.vmap(trajectories))(tasks, *given)
    one = jax.jit(run)
    for index in np.ndindex(2, 3):
        expected = one(tasks[index[0]], *jax.tree.map(lambda x, i=index: x[i], given))
        for ours, single in zip(many, expected, strict=True):
            np.testing.assert_allclose(ours[index], single, atol=1e-4)


def test_a_step_calls_mujoco_once_for_the_whole_batch(monkeypatch):
    model, simulate = physics.threaded(mujoco)
    shapes = []

    def spy(qpos, qvel, action, *, skip):
        shapes.append(action.shape)
        return simulate(qpos, qvel, action, skip=skip)

    monkeypatch.setattr(physics, "threaded", lambda _: (model, spy))
    env = half_cheetah(goal="direction")
    run = jax.vmap(jax.vmap(lambda *given: episode(env, np.ones(1, "f"), *given)[0]))
    jax.block_until_ready(jax.jit(run)(*inputs(2, 3, steps=4)))
    assert shapes == [(2, 3, 6)] * 4


def test_calls_from_two_threads_do_not_disturb_each_other():
    _, simulate = physics.threaded(mujoco)
    (qpos, qvel), actions = inputs(4, 50, steps=1)

    def run(i):
        return np.stack(simulate(qpos[i], qvel[i], actions[i, :, 0], skip=20))

    expected = [run(i) for i in range(4)]
    with ThreadPoolExecutor(2) as pool:
        np.testing.assert_array_equal(list(pool.map(run, range(4))), expected)


def sampled(env, key):
    """500 tasks and starts."""
    keys = jax.random.split(key, 500)
    tasks = jax.jit(jax.vmap(env.sample_task))(keys)
    return tasks, *jax.jit(jax.vmap(env.reset))(tasks, keys)


@pytest.mark.parametrize(("variant", "spread"), [("maml", 0.01), ("gym", 0.1 / 3**0.5)])
def test_an_episode_starts_near_rest(variant, spread, key):
    env = half_cheetah(goal="direction", variant=variant)
    _, state, observation = sampled(env, key)
    np.testing.assert_allclose(np.std(state.qpos, 0), spread, rtol=0.2)
    np.testing.assert_allclose(np.std(state.qvel, 0), 0.1, rtol=0.2)
    np.testing.assert_allclose(np.mean(state.qpos, 0), 0, atol=5 * spread / 500**0.5)
    if variant == "gym":
        assert np.max(np.abs(state.qpos)) <= 0.1
    observed = np.concatenate([state.qpos[:, 1:], state.qvel], 1)
    np.testing.assert_allclose(observation[:, :17], observed, rtol=1e-6, atol=1e-8)


def test_tasks_come_from_their_ranges(key):
    directions, velocities = (sampled(half_cheetah(goal=g), key)[0] for g in GOALS)
    assert directions.shape == velocities.shape == (500, 1)
    assert set(directions.ravel().tolist()) == {-1.0, 1.0}
    assert abs(directions.mean()) < 0.15
    assert 0 <= velocities.min() < 0.05 < 1.95 < velocities.max() <= 2


# Mean and deviation of an episode's return by MuJoCo used directly, of 200 to 400
# episodes: no action, actions uniform in [-1, 1] and N(0, 1).
@pytest.mark.parametrize(
    ("variant", "goal", "still", "uniform", "normal"),
    [
        ("maml", "direction", (-0.2, 2.7), (-21, 29), (-35.1, 42)),
        ("maml", "velocity", (-204, 119), (-243, 122), (-256, 120)),
        ("gym", "direction", (0.0, 0.7), (-10, 23), (-15, 32)),
        ("gym", "velocity", (-103, 56), (-127, 50), (-136, 50)),
    ],
)
def test_returns_of_simple_policies(variant, goal, still, uniform, normal, key):
    env, episodes = half_cheetah(goal=goal, variant=variant), 100
    assert env.horizon == {"maml": 200, "gym": 100}[variant]
    tasks, start, _ = jax.tree.map(lambda x: x[:episodes], sampled(env, key))
    random, shape = np.random.default_rng(0), (episodes, env.horizon, 6)
    drawn = [np.zeros(shape), random.uniform(-1, 1, shape), random.normal(size=shape)]

    def run(task, state, actions):
        return episode(env, task, state, actions)[0].sum()

    policies = jax.jit(jax.vmap(jax.vmap(run), (None, None, 0)))
    returns = np.asarray(policies(tasks, start, np.asarray(drawn, np.float32)))
    mean, deviation = np.transpose([still, uniform, normal])
    error = 4 * deviation / episodes**0.5
    np.testing.assert_array_less(abs(returns.mean(1) - mean), error)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"goal": "speed"}, "`goal` .'speed'. must be one of direction, velocity"),
        ({"variant": "dmc"}, "`variant` .'dmc'. must be one of maml, gym"),
        ({"horizon": 0}, "`horizon` .0. must be at least 1"),
        ({"gain": 0.0}, "`gain` .0.0. must be positive"),
        ({"engine": "brax"}, "`engine` .'brax'. must be one of mujoco, mjx"),
    ],
)
def test_bad_options_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        half_cheetah(**{"goal": "direction", **bad})


@pytest.mark.parametrize(
    ("package", "engine"),
    [("mujoco", "mujoco"), ("gymnasium", "mujoco"), ("mujoco.mjx", "mjx")],
)
def test_missing_extra_is_named(package, engine, monkeypatch):
    monkeypatch.setattr(physics, "threaded", physics.threaded.__wrapped__)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"pip install 'l2f_jax\[rl\]' or .*mjx"):
        half_cheetah(goal="direction", engine=engine)


@pytest.fixture
def promotion():
    """MJX needs what our own code does without."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def x64_in_all_threads():
    """As `x64`; a callback may run in a thread of XLA's, which a context leaves out."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.usefixtures("x64_in_all_threads", "promotion")
def test_mjx_moves_as_the_c_engine():
    """In trajectories of a policy, under the same scan in the same two vmaps."""
    pytest.importorskip("mujoco.mjx")
    policy = gaussian_policy(6, hidden=(4,))
    params, _ = policy.init(jax.random.key(0), jnp.zeros((1, 17), float))
    keys = jax.random.split(jax.random.key(1), 2)

    def seen(engine):
        # 0.5 s: the robot falls, and its feet push it off the floor.
        env = half_cheetah(goal="direction", variant="gym", horizon=10, engine=engine)

        def collect(task, key):
            found = rollouts(env, policy, Sampling(trajectories=2), task)(params, key)
            return found.observations, found.actions, found.rewards

        return jax.jit(jax.vmap(collect))(jnp.asarray([[1.0], [-1.0]]), keys)

    for ours, theirs in zip(seen("mjx"), seen("mujoco"), strict=True):
        assert ours.shape[:3] == (2, 2, 10) and ours.dtype == float
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
