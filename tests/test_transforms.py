import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2f_jax.embeddings import Embedding, gradients, nothing, prototypes
from l2f_jax.losses import cross_entropy
from l2f_jax.scopes import KINDS
from l2f_jax.transforms import attenuate, chain, free, identity, mlp, modulate
from l2f_jax.tree import everything, is_not_norm
from l2f_jax.types import Batch, TaskView
from tests import toys

PAIR = {"a/kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "norm_0/scale": jnp.ones(2)}
NO_TASK = TaskView(lambda params: jnp.zeros(()), None)


def network(params, inputs):
    """A norm-like layer between two linear ones: 4 tensors to attenuate, 2 not."""
    x = features(params, inputs) * params["norm_0/scale"][None]
    x = x + params["norm_0/shift"][None]
    return x @ params["head/kernel"] + params["head/bias"][None]


def features(params, inputs):
    return jnp.tanh(inputs @ params["body/kernel"] + params["body/bias"][None])


@pytest.fixture
def params():
    shapes = {
        "body/bias": (4,),
        "body/kernel": (toys.FEATURES, 4),
        "head/bias": (toys.WAYS,),
        "head/kernel": (4, toys.WAYS),
        "norm_0/scale": (4,),
        "norm_0/shift": (4,),
    }
    return {p: toys.normal(i, shape) for i, (p, shape) in enumerate(shapes.items())}


@pytest.fixture
def episode():
    return toys.episode()


def loss_on(batch):
    return lambda params: cross_entropy(network(params, batch.inputs), batch.targets)


def view_of(episode):
    return TaskView(loss_on(episode.support), episode.support)


def phi_of(transform, params):
    """Random meta-parameters of a transform."""
    return toys.like(0, jax.eval_shape(transform.init, jax.random.key(0), params))


def constant(*v):
    """Coefficients that neither the task nor the meta-learner changes."""
    return free()._replace(apply=lambda phi, embedding: jnp.array(v))


def modulated(params, *v, **options):
    options = {"scope": "layer", "squash": "none", **options}
    transform = modulate(generator=constant(*v), embedding=nothing(), **options)
    return transform.apply((), params, NO_TASK)


# Every way to attenuate ------------------------------------------------------

CONDITIONS = {
    "gradients": {},
    "prototypes": {"embedding": prototypes(features, 4, toys.WAYS)},
    "free": {"conditioned": False},
}
FORMS = {"sigmoid": {}, "none": {"squash": "none"}, "affine": {"affine": True}}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("scope", KINDS)
def test_every_attenuation_learns(scope, condition, form, params, episode):
    transform = attenuate(scope, **CONDITIONS[condition], **FORMS[form])
    query, view = loss_on(episode.query), view_of(episode)
    phi = phi_of(transform, params)
    slope = jax.grad(lambda phi: query(transform.apply(phi, params, view)))
    for leaf in jax.tree.leaves(slope(phi)):
        assert np.isfinite(leaf).all() and (leaf != 0).any()


def test_a_module_s_gamma_may_be_generated_from_its_mean_gradient(params, episode):
    transform = attenuate("module", embedding_scope="module")
    kernel = phi_of(transform, params)["layer_0/kernel"]
    modules = {path.rsplit("/", 1)[0] for path in params if is_not_norm(path)}
    assert kernel.shape == (len(modules), len(modules)) and len(modules) < len(params)


@pytest.mark.parametrize("scope", KINDS)
def test_norm_tensors_are_not_attenuated(scope, params, episode):
    transform = attenuate(scope, affine=True)
    start = transform.apply(phi_of(transform, params), params, view_of(episode))
    assert list(start) == sorted(params)
    for path, x in params.items():
        same = np.array_equal(start[path], x)
        assert same if "norm" in path else not same, path


def test_select_everything_attenuates_norm_tensors(params, episode):
    transform = attenuate(select=everything)
    start = transform.apply(phi_of(transform, params), params, view_of(episode))
    assert not any(np.array_equal(start[path], x) for path, x in params.items())


@pytest.mark.parametrize("scope", KINDS)
def test_gamma_lies_between_0_and_1(scope, params, episode):
    ones = jax.tree.map(jnp.ones_like, params)
    transform = attenuate(scope, select=everything)
    gamma = transform.apply(phi_of(transform, ones), ones, view_of(episode))
    for x in gamma.values():
        assert ((x > 0) & (x < 1)).all()


def test_free_attenuation_starts_at_theta(params, key):
    transform = attenuate("filter", conditioned=False, squash="none", affine=True)
    start = transform.apply(transform.init(key, params), params, NO_TASK)
    for path, x in params.items():
        np.testing.assert_array_equal(start[path], x)


# By hand ---------------------------------------------------------------------


def test_gamma_scales_and_delta_shifts_by_hand():
    start = modulated(PAIR, 0.5, 10.0, affine=True)
    assert start["a/kernel"].tolist() == [[10.5, 11.0], [11.5, 12.0]]
    assert start["norm_0/scale"].tolist() == [1.0, 1.0]


def test_filter_scope_by_hand():
    start = modulated(PAIR, 1.0, 10.0, scope="filter")
    assert start["a/kernel"].tolist() == [[1.0, 20.0], [3.0, 40.0]]


def test_only_gamma_is_squashed():
    # sigmoid(0) = 1/2 scales, the shift stays 10
    start = modulated(PAIR, 0.0, 10.0, squash="sigmoid", affine=True)
    assert start["a/kernel"].tolist() == [[10.5, 11.0], [11.5, 12.0]]


def test_select_narrows_the_scope():
    start = modulated(PAIR, 3.0, select=lambda path: path == "norm_0/scale")
    assert start["a/kernel"].tolist() == PAIR["a/kernel"].tolist()
    assert start["norm_0/scale"].tolist() == [3.0, 3.0]


def test_mlp_by_hand():
    phi = {
        "layer_0/kernel": jnp.array([[1.0, 0.0], [0.0, 1.0]]),
        "layer_0/bias": jnp.array([0.0, -5.0]),
        "layer_1/kernel": jnp.array([[2.0], [3.0]]),
        "layer_1/bias": jnp.array([1.0]),
    }
    # hidden: relu(4, 3 - 5) = (4, 0); output: 2 * 4 + 3 * 0 + 1; no ReLU on it
    assert mlp(2).apply(phi, jnp.array([4.0, 3.0])).tolist() == [9.0]
    assert mlp(2).apply(phi, jnp.array([-4.0, 3.0])).tolist() == [1.0]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_mlp_starts_uniform_within_its_bound(layers, key):
    phi = mlp(layers).init(key, 16, 5, 2, jnp.float32)
    assert len(phi) == 2 * layers
    assert phi[f"layer_{layers - 1}/kernel"].shape == (16, 7)
    largest = max(abs(x).max() for x in phi.values())
    assert 0.23 < largest <= 16**-0.5  # of at least 119 uniform numbers


def test_chain_applies_in_order():
    double = modulate(
        scope="layer", squash="none", generator=constant(2.0), embedding=nothing()
    )
    shift = modulate(
        scope="layer",
        squash="none",
        affine=True,
        generator=constant(1.0, 3.0),
        embedding=nothing(),
    )
    start = chain(double, shift).apply(((), ()), {"a": jnp.ones(1)}, NO_TASK)
    assert start["a"].tolist() == [5.0]  # 2 * 1 + 3, not 2 * (1 + 3)


def test_chain_initialises_each_part_with_its_own_key(params, key):
    phi = chain(attenuate(), identity(), attenuate()).init(key, params)
    assert phi[1] == ()
    assert not np.array_equal(phi[0]["layer_0/bias"], phi[2]["layer_0/bias"])


def test_later_part_of_a_chain_sees_the_task_from_the_attenuated_start():
    seen = Embedding(lambda params: 1, lambda params, view: view.loss(params)[None])
    echo = free()._replace(apply=lambda phi, embedding: embedding)
    half = modulate(
        scope="layer", squash="none", generator=constant(0.5), embedding=nothing()
    )
    by_loss = modulate(scope="layer", squash="none", generator=echo, embedding=seen)
    view = TaskView(lambda params: params["a"][0], None)
    start = chain(half, by_loss).apply(((), ()), {"a": jnp.array([6.0])}, view)
    assert start["a"].tolist() == [9.0]  # half: 3; times the loss there: 3


# The coefficients themselves --------------------------------------------------


@pytest.mark.parametrize("scope", KINDS)
def test_gamma_is_what_theta_is_multiplied_by(scope, params, episode):
    transform, view = attenuate(scope), view_of(episode)
    phi = phi_of(transform, params)
    gamma, start = (f(phi, params, view) for f in (transform.gamma, transform.apply))
    assert sorted(gamma) == [path for path in sorted(params) if is_not_norm(path)]
    for path, factor in gamma.items():
        np.testing.assert_array_equal(factor * params[path], start[path])


def test_gamma_leaves_the_shift_out():
    transform = modulate(
        scope="layer",
        squash="none",
        affine=True,
        generator=constant(0.5, 10.0),
        embedding=nothing(),
    )
    gamma = transform.gamma((), PAIR, NO_TASK)
    assert {path: x.tolist() for path, x in gamma.items()} == {"a/kernel": [[0.5]]}


def test_gamma_of_a_chain_is_the_product_each_part_seeing_what_came_before():
    # The first halves a = 6; the second multiplies by what it sees, 3.
    seen = Embedding(lambda params: 1, lambda params, view: params["a"])
    echo = free()._replace(apply=lambda phi, embedding: embedding)
    half = modulate(
        scope="layer", squash="none", generator=constant(0.5), embedding=nothing()
    )
    by_value = modulate(scope="layer", squash="none", generator=echo, embedding=seen)
    together = chain(half, identity(), by_value)
    gamma = together.gamma(((), (), ()), {"a": jnp.array([6.0])}, NO_TASK)
    assert gamma["a"].tolist() == [1.5]
    assert identity().gamma((), PAIR, NO_TASK) == {}


# Embeddings ------------------------------------------------------------------


def test_gradients_embed_the_signed_mean_of_each_tensor():
    # d/dw of w0 - 3 w1 + b^2 / 2 at b = 4: mean(1, -3) = -1, and 4, in path order
    params = {"w": jnp.array([7.0, 7.0]), "b": jnp.array([4.0])}
    view = TaskView(lambda p: p["w"][0] - 3 * p["w"][1] + p["b"][0] ** 2 / 2, None)
    assert gradients().apply(params, view).tolist() == [4.0, -1.0]


def test_embedding_of_the_head_is_zero(params, episode):
    # The softmax gradient sums to zero over the classes.
    e = gradients().apply(params, view_of(episode))
    names = [path for path in sorted(params) if is_not_norm(path)]
    for path, value in zip(names, e, strict=True):
        assert (abs(value) < 1e-7) == path.startswith("head"), path


@pytest.mark.parametrize("through", [False, True])
def test_meta_gradients_flow_through_the_embedding_only_if_asked(
    through, params, episode
):
    embed = gradients(through=through).apply
    slope = jax.grad(lambda p: embed(p, view_of(episode)).sum())(params)
    assert any((x != 0).any() for x in slope.values()) == through


@pytest.mark.parametrize("ways", [2, 3])  # a class without images does not count
def test_prototypes_embed_the_mean_of_class_means(ways):
    # class 0: mean(1, 3) = 2; class 1: 8; mean of both: 5, though the images' is 4
    support = Batch(jnp.array([[1.0], [3.0], [8.0]]), jnp.array([0, 0, 1]))
    embedding = prototypes(lambda params, x: params["w"] * x, size=1, ways=ways)
    view = TaskView(lambda params: 0.0, support)
    assert embedding.size({}) == 1
    assert embedding.apply({"w": jnp.array(1.0)}, view).tolist() == [5.0]


@pytest.mark.parametrize("scope", KINDS)
def test_size_of_gradient_embedding_is_what_it_gives(scope, params, episode):
    embedding = gradients(scope)
    size = embedding.size(params)
    assert embedding.apply(params, view_of(episode)).shape == (size,)


# Refusals --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "layr"}, r"`scope` \('layr'\) must be one of parameter"),
        ({"squash": "tanh"}, r"`squash` \('tanh'\) must be one of sigmoid, none"),
        ({"layers": 0}, r"`layers` \(0\) must be at least 1"),
        (
            {"embedding": nothing(), "conditioned": False},
            "`embedding` .*no effect with",
        ),
        ({"embedding": nothing(), "through": True}, r"`through` \(True\).*beside an"),
        *(
            (
                {"conditioned": False, name: value},
                rf"`{name}` \({value}\) would have no",
            )
            for name, value in (
                ("bias", 4.0),
                ("layers", 3),
                ("through", True),
                ("embedding_scale", 100.0),
            )
        ),
    ],
)
def test_wrong_argument_is_refused_when_built(options, message):
    with pytest.raises(ValueError, match=message):
        attenuate(**options)


def test_an_attenuation_of_nothing_is_refused(params, key):
    nowhere = attenuate(select=lambda path: False)
    with pytest.raises(ValueError, match=r"`select` selects none of \w+"):
        nowhere.init(key, params)
