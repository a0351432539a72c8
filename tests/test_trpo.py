"""Policy search: densities, Fisher products, conjugate gradient, replay, learning."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from l2f_jax import recipes
from l2f_jax.envs.env import Env
from l2f_jax.envs.navigation import navigation
from l2f_jax.inner import recorded
from l2f_jax.models.policy import (
    Gaussian,
    divergence,
    gaussian_policy,
    log_probability,
    sample,
)
from l2f_jax.outer import TrainState
from l2f_jax.parallel import task_mesh
from l2f_jax.rl.losses import act, reinforce, surrogate
from l2f_jax.rl.rollout import Sampling, experience, rollouts
from l2f_jax.rl.search import adapted_policies, gamma_metrics, make_update
from l2f_jax.rl.trpo import (
    TrustRegion,
    conjugate_gradient,
    fisher_product,
    line_search,
    trust_region_step,
)
from l2f_jax.transforms import attenuate, identity
from l2f_jax.tree import at
from l2f_jax.types import MetaParams, Trajectories
from tests.toys import normal

SMALL = gaussian_policy(2, (3,), activation="tanh")
ENV = navigation(horizon=5)


def agent(transform=None, policy=SMALL, lr=0.1):
    return recipes.maml(policy, reinforce(policy), lr=lr, transform=transform)


def gather(learner, key, *, tasks=3, steps=1, fresh=False, trajectories=4):
    meta, _ = learner.init(key, jnp.zeros((1, 2)))

    def one(key):
        collect = rollouts(ENV, SMALL, Sampling(trajectories), ENV.sample_task(key))
        return experience(learner, meta, collect, key, steps=steps, fresh=fresh)

    return meta, jax.jit(jax.vmap(one))(jax.random.split(key, tasks))


def test_density_by_hand():
    # Two standard normals at 1 and 0, the second of deviation 2 at distance 2.
    policy = Gaussian(jnp.asarray([0.0, 2.0]), jnp.log(jnp.asarray([1.0, 2.0])))
    found = log_probability(policy, jnp.asarray([1.0, 0.0]))
    expected = -0.5 - 0.5 - np.log(2) - np.log(2 * np.pi)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_divergence_is_the_mean_difference_of_log_densities(key):
    old = Gaussian(jnp.asarray([0.3, -1.0]), jnp.asarray([0.2, -0.5]))
    new = Gaussian(jnp.asarray([0.0, -0.7]), jnp.asarray([0.0, 0.1]))
    wide, other = (
        Gaussian(jnp.broadcast_to(p.mean, (200_000, 2)), p.log_std) for p in (old, new)
    )
    actions = sample(wide, key)
    gaps = log_probability(wide, actions) - log_probability(other, actions)
    error = gaps.std() / len(gaps) ** 0.5
    assert abs(divergence(old, new) - gaps.mean()) < 4 * error
    np.testing.assert_allclose(divergence(old, old), 0, atol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("steps", [0, 1])
def test_fisher_product_is_the_hessian_of_the_divergence(key, steps):
    learner = agent()
    meta, data = gather(learner, key, steps=steps)
    flat, unravel = ravel_pytree(meta)
    last = jax.tree.map(lambda x: x[:, -1], data)

    def policies(flat):
        return adapted_policies(learner, SMALL, unravel(flat), data, steps=steps)

    old = jax.jit(policies)(flat)

    def kl(flat):
        each = jax.vmap(divergence)(old, policies(flat)) * last.mask
        return (each.sum((1, 2)) / last.mask.sum((1, 2))).mean()

    def every_column(flat):
        product = fisher_product(policies, flat, last.mask)
        return jax.lax.map(product, jnp.eye(len(flat)))

    explicit, found = jax.jit(jax.hessian(kl))(flat), jax.jit(every_column)(flat)
    scale = np.abs(explicit).max()
    np.testing.assert_allclose(found, explicit, rtol=0, atol=1e-8 * scale)


@pytest.mark.usefixtures("x64")
def test_conjugate_gradient_solves(key):
    root = jax.random.normal(key, (6, 6))
    matrix = root @ root.T + jnp.eye(6)
    b = jax.random.normal(jax.random.fold_in(key, 1), (6,))
    found = conjugate_gradient(lambda v: matrix @ v, b, 10)
    # It stops at a residual of 1e-5, and no eigenvalue here is below 1.
    np.testing.assert_allclose(found, np.linalg.solve(matrix, b), atol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("transform", [identity(), attenuate(embedding_scale=100.0)])
@pytest.mark.parametrize("fresh", [False, True])
def test_replay_passes_through_the_policies_that_collected(key, transform, fresh):
    learner = agent(transform)
    meta, _ = learner.init(key, jnp.zeros((1, 2)))
    adapt = jax.jit(
        lambda meta, data, steps: learner.adapt(meta, {}, recorded(data), steps),
        static_argnums=2,
    )
    collect = jax.jit(rollouts(ENV, SMALL, Sampling(4), ENV.sample_task(key)))
    collectors = []

    def spy(params, key):
        collectors.append(params)
        return collect(params, key)

    def online(meta, stats, source, steps, **_):
        seen = [source(meta.params, t) for t in range(steps + 1)]
        return adapt(meta, jax.tree.map(lambda *x: jnp.stack(x), *seen), steps)

    gathering = learner._replace(adapt=online)
    data = experience(gathering, meta, spy, key, steps=2, fresh=fresh)
    replayed = adapt(meta, data, 2)
    theta, *rest = collectors
    assert theta is meta.params
    for t, params in zip(range(0 if fresh else 1, 3), rest, strict=True):
        for path, x in params.items():
            np.testing.assert_allclose(x, replayed.path[path][t], atol=1e-12)


def test_entries_are_collected_by_the_point_before_them(key):
    """Sharp policies do exactly their mean, so actions tell who acted."""
    meta, _ = agent().init(key, jnp.zeros((1, 2)))
    sharp = {**meta.params, "log_std": jnp.full(2, -13.0)}
    # Their gradients are huge, and what makes them sharp is not attenuated.
    start = attenuate(embedding_scale=1e-6, select=lambda path: path != "log_std")
    learner = agent(start, lr=0.0)
    meta, _ = learner.init(key, jnp.zeros((1, 2)))
    meta = meta._replace(params=sharp)
    collect = rollouts(ENV, SMALL, Sampling(3), ENV.sample_task(key))

    @jax.jit
    def gathered(key):
        return experience(learner, meta, collect, key, steps=1, fresh=True)

    data = gathered(key)
    adapted = learner.adapt(meta, {}, recorded(data), 1)
    start = {**at(adapted.path, 0), **adapted.shared}
    for t, params in enumerate((meta.params, start, start)):
        entry = at(data, t)
        mean = act(SMALL, params, entry).mean
        log_std = jnp.exp(jnp.maximum(params["log_std"], -13.8))
        np.testing.assert_allclose(entry.actions, mean, atol=6 * log_std.max() + 1e-6)
    assert not np.allclose(start["head/kernel"], meta.params["head/kernel"])


def test_same_trajectories_serve_the_transform_and_the_first_step(key):
    _, data = gather(agent(attenuate()), key, fresh=False)
    np.testing.assert_array_equal(data.actions[:, 0], data.actions[:, 1])
    _, data = gather(agent(attenuate()), key, fresh=True)
    assert not np.allclose(data.actions[:, 0], data.actions[:, 1])


def test_first_order_changes_the_gradient_and_not_the_policies(key):
    learner = agent(lr=0.5)
    meta, _ = learner.init(key, jnp.zeros((1, 2)))
    # Two tasks, an inner step, two trajectories of three steps.
    of_pairs, of_numbers = (2, 3, 2, 3, 2), (2, 3, 2, 3)
    shapes = of_pairs, of_pairs, of_numbers, of_numbers, of_numbers
    data = Trajectories(*(normal(i, shape) for i, shape in enumerate(shapes)))
    data = data._replace(mask=jnp.ones(of_numbers))

    @partial(jax.jit, static_argnums=1)
    @partial(jax.value_and_grad, has_aux=True)
    def judged(meta, first_order):
        adapted = adapted_policies(
            learner, SMALL, meta, data, steps=1, first_order=first_order
        )
        return (adapted.mean**2).mean(), adapted

    (_, first), cheap = judged(meta, True)
    (_, second), full = judged(meta, False)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), first, second
    )
    cheap, full = (ravel_pytree(x)[0] for x in (cheap, full))
    assert np.linalg.norm(cheap - full) > 0.01 * np.linalg.norm(full) > 0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "transform", [None, attenuate(through=True)], ids=["maml", "l2f"]
)
def test_gradient_through_the_update_is_that_of_differences(key, transform):
    learner = agent(transform, lr=0.5)
    meta, data = gather(learner, key, fresh=transform is not None)
    flat, unravel = ravel_pytree(meta)
    last = jax.tree.map(lambda x: x[:, -1], data)

    def policies(flat):
        return adapted_policies(learner, SMALL, unravel(flat), data, steps=1)

    old = jax.jit(policies)(flat)

    @jax.jit
    def loss(flat):
        return jax.vmap(surrogate)(old, policies(flat), last).mean()

    h, unit = 1e-5, jnp.eye(len(flat))
    differences = [(loss(flat + h * e) - loss(flat - h * e)) / (2 * h) for e in unit]
    found = jax.jit(jax.grad(loss))(flat)
    scale = np.abs(found).max()
    assert scale > 1e-3
    np.testing.assert_allclose(found, differences, rtol=0, atol=1e-7 * scale)


@pytest.fixture(scope="module")
def stepping():
    """Return (meta, data, step), step(meta, data) being one in a region of 0.05."""
    learner = agent()
    meta, data = gather(learner, jax.random.key(0))

    @jax.jit
    def step(meta, data):
        def policies(meta):
            return adapted_policies(learner, SMALL, meta, data, steps=1)

        last = jax.tree.map(lambda x: x[:, -1], data)
        new, metrics = trust_region_step(policies, meta, last, TrustRegion(0.05))
        each = jax.vmap(divergence)(policies(meta), policies(new)) * last.mask
        distance = (each.sum((1, 2)) / last.mask.sum((1, 2))).mean()
        return new, metrics, distance

    return meta, data, step


def test_a_step_stays_within_its_bound_and_lowers_the_surrogate(stepping):
    meta, data, step = stepping
    _, metrics, distance = step(meta, data)
    assert distance <= 0.05 * 1.01
    assert metrics["outer/accepted"] == 1 and metrics["outer/backtracks"] > 0
    assert metrics["outer/improvement"] > 0
    np.testing.assert_allclose(metrics["outer/kl"], distance, rtol=1e-2)


def test_what_follows_the_end_of_an_episode_counts_nowhere(stepping):
    """Neither inside, nor in the surrogate, the divergence or the Fisher product."""
    meta, data, step = stepping
    data = data._replace(mask=data.mask.at[..., 3:].set(0.0))
    other = data._replace(
        observations=data.observations.at[..., 3:, :].add(5.0),
        actions=data.actions.at[..., 3:, :].add(0.5),
        advantages=data.advantages.at[..., 3:].add(-2.0),
    )
    (one, seen, _), (two, again, _) = step(meta, data), step(meta, other)
    assert seen["outer/accepted"] == 1
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, (one, seen), (two, again))


def test_a_step_that_is_no_number_is_not_taken(stepping):
    meta, data, step = stepping
    broken = data._replace(advantages=data.advantages.at[0, -1, 0, 0].set(jnp.nan))
    new, metrics, _ = step(meta, broken)
    jax.tree.map(np.testing.assert_array_equal, new, meta)
    nothing = {f"outer/{name}": 0.0 for name in ("improvement", "kl", "accepted")}
    assert {name: metrics[name] for name in nothing} == nothing


@pytest.mark.parametrize(
    ("loss", "max_kl", "backtracks", "accepted"),
    [
        (lambda x: (x - 1) ** 2, 9.0, 0, True),  # from 5 to 1
        (lambda x: (x - 3) ** 2, 9.0, 1, True),  # 1 is as bad as 5
        (lambda x: (x - 1) ** 2, 1.0, 2, True),  # no farther than 1
        (lambda x: -x, 9.0, 3, False),  # every step is worse
        (lambda x: x, 0.4, 3, False),  # and too long, the last by 0.1
        (lambda x: x * jnp.where(x < 5, jnp.nan, 1.0), 9.0, 3, False),
    ],
)
def test_a_step_is_shortened_until_it_is_good(loss, max_kl, backtracks, accepted):
    """From 5 by 4 or its halves, the distance being |x - 5|."""
    start = jnp.asarray([5.0])
    last, good = line_search(
        lambda x: (loss(x)[0], abs(x - start)[0]),
        start,
        jnp.asarray([4.0]),
        loss(start)[0],
        TrustRegion(max_kl, backtracks=3, shrink=0.5),
    )
    assert (last.backtracks, good) == (backtracks, accepted)
    assert last.params == 5 - 4 * 0.5**backtracks


def test_no_step_is_no_improvement():
    """As of a bound of 0, by which the policies are that nothing trains."""
    flat = jnp.asarray([5.0])
    region = TrustRegion(0.0, backtracks=3)
    _, good = line_search(
        lambda x: (x[0], jnp.zeros(())), flat, 0 * flat, flat[0], region
    )
    assert not good


def test_gammas_by_hand():
    """A tensor's gammas are 1 and 3 in two tasks, the two of another's 2 in both."""

    def gamma(phi, params, view):
        return {"a": view.data.rewards.sum(), "b": jnp.full((2, 1), 2.0)}

    learner = agent()
    learner = learner._replace(transform=learner.transform._replace(gamma=gamma))
    one = jnp.ones((2, 3, 1, 1))
    # Entry 0 is what the transform sees.
    rewards = one.at[:, 0].set(jnp.asarray([1.0, 3.0]).reshape(2, 1, 1))
    data = Trajectories(one, one, rewards, one, one)
    found = gamma_metrics(learner, MetaParams({}, (), ()), data)
    assert found == {"transform/gamma": 2.0, "transform/gamma_deviation": 0.5}


@pytest.mark.parametrize("transform", [identity(), attenuate()])
def test_training_reports_gammas_if_there_are_any(transform):
    learner = agent(transform)
    meta, _ = learner.init(jax.random.key(0), jnp.zeros((1, 2)))
    state = TrainState(jnp.zeros((), jnp.int32), jax.random.key(1), meta, (), {})
    update = make_update(
        ENV, learner, SMALL, tasks=2, steps=1, sampling=Sampling(2),
        region=TrustRegion(), mesh=task_mesh(1),
    )  # fmt: skip
    names = {name for name in jax.eval_shape(update, state)[1] if "gamma" in name}
    reported = {"transform/gamma", "transform/gamma_deviation"}
    assert names == (reported if meta.transform else set())


def bandit():
    """One step; the task is the rewarded side of a line, observed by nobody."""

    def step(task, state, action, key):
        reward = -((action[0] - task[0]) ** 2)
        return state, jnp.ones(1), reward, jnp.asarray(True)

    return Env(
        sample_task=lambda key: jnp.sign(jax.random.normal(key, (1,))) * 2.0,
        reset=lambda task, key: (jnp.zeros(()), jnp.ones(1)),
        step=step,
        observations=1,
        actions=1,
        horizon=1,
    )


@pytest.mark.parametrize(
    "transform",
    [
        None,
        pytest.param(
            attenuate(bias=4.0, embedding_scale=100.0), marks=pytest.mark.slow
        ),
    ],
)
def test_a_bandit_is_solved_by_adaptation(transform):
    """Whoever cannot adapt gets at most -4, the square of the way to either side."""
    policy = gaussian_policy(1, (8,), activation="tanh")
    learner = agent(transform, policy, lr=1.0)
    meta, stats = learner.init(jax.random.key(0), jnp.zeros((1, 1)))
    state = TrainState(jnp.zeros((), jnp.int32), jax.random.key(1), meta, (), stats)
    update = make_update(
        bandit(), learner, policy, tasks=20, steps=1, sampling=Sampling(20),
        region=TrustRegion(0.05), mesh=task_mesh(1), fresh=transform is not None,
    )  # fmt: skip
    _, metrics = update(state, iterations=60)
    assert metrics["outer/return_1"][-10:].mean() > -3.0
    assert metrics["outer/return_0"][-10:].mean() < -4.0
