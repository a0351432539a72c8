"""Every learner, with and without L2F, through one smoke test."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from l2f_jax import recipes
from l2f_jax.inner import constant, sgd
from l2f_jax.losses import accuracy, cross_entropy
from l2f_jax.models.conv4 import conv4
from l2f_jax.models.linen import from_linen
from l2f_jax.objectives import query_loss
from l2f_jax.outer import TrainState, make_update, meta_optimiser
from l2f_jax.parallel import task_mesh
from l2f_jax.transforms import attenuate, identity
from l2f_jax.tree import is_not_norm
from l2f_jax.types import Batch, Episode, Model
from tests import toys

STEPS, TASKS = 2, 2


def is_head(path):
    return path.startswith("head/")


LEARNERS = {  # and which paths it adapts
    "maml": (recipes.maml, is_not_norm),
    "fomaml": (recipes.fomaml, is_not_norm),
    "meta_sgd": (recipes.meta_sgd, is_not_norm),
    "mamlpp": (functools.partial(recipes.mamlpp, steps=STEPS), is_not_norm),
    "anil": (recipes.anil, is_head),
    "boil": (recipes.boil, lambda path: is_not_norm(path) and not is_head(path)),
}
LEARNED_RATES = {"meta_sgd", "mamlpp"}
STARTS = {"identity": identity, "attenuate": attenuate}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", LEARNERS)
def test_learner(name, start):
    recipe, is_fast = LEARNERS[name]
    model = toys.classifier()
    learner = recipe(model, toys.task_loss(model), transform=STARTS[start]())
    meta = smoke(learner, toys.episode(tasks=(TASKS,)), is_fast)
    assert (meta.transform != ()) == (start == "attenuate")
    assert (meta.rule != ()) == (name in LEARNED_RATES)


def test_l2f_on_a_convolutional_network():
    model = conv4(toys.WAYS, filters=4, stages=1)
    learner = recipes.l2f(model, toys.task_loss(model))
    tasks = toys.episode(tasks=(TASKS,))
    images = toys.normal(0, (2, TASKS, 6, 16, 16, 1))
    tasks = Episode(*(Batch(x, b.targets) for x, b in zip(images, tasks, strict=True)))
    smoke(learner, tasks, is_not_norm)


def smoke(learner, tasks, is_fast):
    """Initialise, take two outer steps, check that all moves; return the first meta."""
    one = jax.tree.map(lambda x: x[0], tasks)
    key = jax.random.key(0)
    meta, stats = learner.init(key, one.support.inputs)
    check_shapes(learner, meta, stats, one, is_fast)
    optimiser = meta_optimiser(0.1, name="sgd")
    step = jnp.zeros((), jnp.int32)
    state = TrainState(step, key, meta, optimiser.init(meta), stats)
    update = make_update(
        query_loss(learner, cross_entropy, steps=STEPS, scores={"accuracy": accuracy}),
        optimiser,
        lambda shared, item, key: item,
        tasks=TASKS,
        mesh=task_mesh(1),
    )
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), tasks)
    state, metrics = update(state, (), twice, iterations=2)
    assert all(np.isfinite(x).all() for x in metrics.values())
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.meta, meta)
    assert all(jax.tree.leaves(moved)), moved
    return meta


def check_shapes(learner, meta, stats, episode, is_fast):
    """Check which tensors have a path, and the shape of predictions."""

    def run(meta, episode):
        adapted = learner.adapt(meta, stats, constant(episode.support), STEPS)
        query = episode.query.inputs
        return adapted, learner.predict(adapted, STEPS, query, phase="test")[0]

    adapted, outputs = jax.eval_shape(run, meta, episode)
    assert sorted(adapted.path) == [path for path in meta.params if is_fast(path)]
    assert sorted([*adapted.path, *adapted.shared]) == sorted(meta.params)
    assert {x.shape[0] for x in adapted.path.values()} == {STEPS + 1}
    assert outputs.shape == (len(episode.query.targets), toys.WAYS)


def one_number_each(*paths):
    """A model without a network, and a loss with the gradient 1 everywhere."""
    params = {path: jnp.ones(1) for path in paths}

    def loss(params, stats, data, **_):
        return sum(params.values())[0], stats

    return Model(lambda key, inputs: (params, {}), None), loss


@pytest.mark.parametrize("recipe", ["maml", "anil", "boil"])
def test_another_rule(recipe, key):
    model, loss = one_number_each("body", "head/bias")
    learner = getattr(recipes, recipe)(model, loss, rule=sgd(0.25))
    meta, _ = learner.init(key, None)
    path = learner.adapt(meta, {}, constant(None), 2).path
    moving = {"maml": ["body", "head/bias"], "anil": ["head/bias"], "boil": ["body"]}
    assert sorted(path) == moving[recipe]
    assert all(x.tolist() == [[1.0], [0.75], [0.5]] for x in path.values())


@pytest.mark.parametrize(("recipe", "slope"), [("maml", 0.5625), ("fomaml", 1.0)])
def test_only_fomaml_takes_inner_gradients_for_constants(recipe, slope, key):
    def square(params, stats, data, **_):
        return params["w"] ** 2 / 2, stats

    model = Model(lambda key, inputs: ({"w": jnp.array(4.0)}, {}), None)
    learner = getattr(recipes, recipe)(model, square, lr=0.25)
    meta, _ = learner.init(key, None)

    def end(meta):
        return learner.adapt(meta, {}, constant(None), 2).path["w"][-1]

    # Each step of rate 0.25 along w leaves 3/4 of it: 9/4 after two.
    assert end(meta) == 2.25 and jax.grad(end)(meta).params["w"] == slope


@pytest.mark.parametrize("start", STARTS)
def test_fomaml_is_maml_adapted_in_first_order(start):
    model = toys.classifier()
    loss, transform = toys.task_loss(model), STARTS[start]()
    objectives = [
        query_loss(recipe(model, loss, transform=transform), cross_entropy, **options)
        for recipe, options in (
            (recipes.fomaml, dict(steps=STEPS)),
            (recipes.maml, dict(steps=STEPS, first_order=True)),
        )
    ]
    learner = recipes.fomaml(model, loss, transform=transform)
    meta, _ = learner.init(jax.random.key(0), jnp.zeros((1, toys.FEATURES)))
    one, two = (jax.grad(toys.meta_loss(o, toys.episode()))(meta) for o in objectives)
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize(
    ("recipe", "moving"),
    [
        (recipes.maml, ["body", "head/bias"]),
        (recipes.fomaml, ["body", "head/bias"]),
        (recipes.l2f, ["body", "head/bias"]),
        (recipes.anil, ["head/bias"]),
        (recipes.boil, ["body"]),
    ],
)
@pytest.mark.parametrize("adapt_norm", [False, True])
def test_adapt_norm_adds_the_norm_layers(recipe, moving, adapt_norm, key):
    network = one_number_each("body", "head/bias", "norm/scale")
    learner = recipe(*network, adapt_norm=adapt_norm)
    meta, _ = learner.init(key, None)
    adapted = learner.adapt(meta, {}, constant(None), 1)
    assert list(adapted.path) == moving + ["norm/scale"] * adapt_norm


@pytest.mark.parametrize("adapt_norm", [False, True])
def test_l2f_attenuates_what_adapts(adapt_norm, key):
    network = one_number_each("body", "norm/scale")
    learner = recipes.l2f(*network, adapt_norm=adapt_norm)
    meta, _ = learner.init(key, None)
    adapted = learner.adapt(meta, {}, constant(None), 0)
    assert (adapted.path["body"] < 1.0).all()
    if adapt_norm:
        assert (adapted.path["norm/scale"] < 1.0).all()
    else:
        assert adapted.shared["norm/scale"].tolist() == [1.0]


def test_every_start_begins_with_the_same_network(key):
    model, inputs = toys.classifier(), jnp.zeros((1, toys.FEATURES))
    loss = toys.task_loss(model)
    one, _ = recipes.maml(model, loss).init(key, inputs)
    two, _ = recipes.mamlpp(model, loss, steps=2, transform=attenuate()).init(
        key, inputs
    )
    for path, x in one.params.items():
        np.testing.assert_array_equal(two.params[path], x)


class Small(nn.Module):
    """A network with norm layers, whose tensors have Flax's own names."""

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.BatchNorm(use_running_average=False)(nn.Dense(3)(x)))
        return nn.Dense(toys.WAYS)(x)


@pytest.mark.parametrize(
    ("recipe", "layers"),
    [
        (recipes.maml, {"Dense_0", "Dense_1"}),
        (recipes.l2f, {"Dense_0", "Dense_1"}),
        (functools.partial(recipes.anil, head="Dense_1/"), {"Dense_1"}),
        (functools.partial(recipes.boil, head="Dense_1/"), {"Dense_0"}),
    ],
)
def test_recipes_know_the_layers_of_a_flax_network(recipe, layers, key):
    model = from_linen(Small())
    learner = recipe(model, toys.task_loss(model))
    meta, stats = learner.init(key, jnp.zeros((4, toys.FEATURES)))
    support = toys.episode().support
    adapted = learner.adapt(meta, stats, constant(support), 1)
    assert {path.split("/")[0] for path in adapted.path} == layers


@pytest.mark.parametrize("recipe", [recipes.anil, recipes.boil])
def test_a_network_without_the_head_is_refused(recipe, key):
    model = from_linen(Small())
    learner = recipe(model, toys.task_loss(model))
    with pytest.raises(
        ValueError, match="`head` .'head/'. must begin some of .*Dense_0"
    ):
        learner.init(key, jnp.zeros((4, toys.FEATURES)))


def test_an_optimiser_that_is_no_rule_is_refused():
    model = from_linen(Small())
    with pytest.raises(
        ValueError, match=r"`rule` \(Gr.*\) must be .*`inner.from_optax`"
    ):
        recipes.maml(model, toys.task_loss(model), rule=optax.sgd(0.1))
