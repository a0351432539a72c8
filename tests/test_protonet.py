"""Prototypical networks: distances by hand, runs of them, gammas from prototypes."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.train import train
from l2f_jax.analysis import gammas
from l2f_jax.checkpoint import Checkpoints
from l2f_jax.inner import constant
from l2f_jax.learners.protonet import protonet
from l2f_jax.losses import cross_entropy
from l2f_jax.models.conv4 import conv4
from l2f_jax.models.resnet12 import resnet12
from l2f_jax.objectives import query_loss
from l2f_jax.problems import build
from l2f_jax.problems.predictor import load_predictor
from l2f_jax.types import Batch, Episode, Model
from tests import tiny

pytestmark = pytest.mark.mixed_dtypes  # Adam


def scaling() -> Model:
    """f(x) = w x, for inputs that are features."""
    return Model(
        lambda key, inputs: ({"w": jnp.asarray(2.0)}, {}),
        lambda params, stats, inputs, **_: (params["w"] * inputs, stats),
    )


SUPPORT = Batch(jnp.asarray([[0.0, 0], [2, 0], [0, 3]]), jnp.asarray([0, 0, 1]))


def test_logits_are_minus_squared_distances_to_the_class_means(key):
    learner = protonet(scaling(), ways=2)
    meta, stats = learner.init(key, SUPPORT.inputs)
    adapted = learner.adapt(meta, stats, constant(SUPPORT), 0)
    logits, _ = learner.predict(adapted, 0, jnp.asarray([[1.0, 0]]), phase="test")
    # Means, doubled by the network: (2, 0) and (0, 6); the query is at (2, 0).
    assert logits.tolist() == [[0.0, -40.0]]


def test_a_class_without_images_has_no_probability(key):
    def loss(meta):
        adapted = learner.adapt(meta, stats, constant(SUPPORT), 0)
        logits, _ = learner.predict(adapted, 0, SUPPORT.inputs, phase="test")
        return cross_entropy(logits, SUPPORT.targets), jax.nn.softmax(logits)

    learner = protonet(scaling(), ways=3)
    meta, stats = learner.init(key, SUPPORT.inputs)
    slope, probabilities = jax.grad(loss, has_aux=True)(meta)
    assert (probabilities[:, 2] == 0).all() and np.isfinite(probabilities).all()
    assert np.isfinite(slope.params["w"])


def test_any_number_of_steps_changes_nothing(key):
    learner = protonet(scaling(), ways=2)
    meta, stats = learner.init(key, SUPPORT.inputs)
    adapted = learner.adapt(meta, stats, constant(SUPPORT), 3)
    for t in range(4):
        logits, _ = learner.predict(adapted, t, SUPPORT.inputs, phase="test")
        assert logits.argmax(-1).tolist() == SUPPORT.targets.tolist()


@pytest.mark.parametrize(
    "network",
    [conv4(None, filters=3, stages=2), resnet12(None, widths=(2, 3, 4, 5))],
    ids=["conv4", "resnet12"],
)
def test_networks_without_head_learn_a_space(key, network):
    images = jax.random.normal(key, (4, 16, 16, 1))
    batch = Batch(images, jnp.asarray([0, 1, 0, 1]))
    learner = protonet(network, ways=2)
    meta, stats = learner.init(key, images)
    assert not any(path.startswith("head") for path in meta.params)
    objective = query_loss(learner, cross_entropy, steps=0)

    @jax.jit
    @jax.grad
    def slope(meta):
        return objective.value(meta, stats, Episode(batch, batch), 0, key)[0]

    for path, x in slope(meta).params.items():
        assert np.isfinite(x).all(), path
    assert any(jnp.abs(x).max() > 0 for x in slope(meta).params.values())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A complete run of a tiny ProtoNet."""
    run = tmp_path_factory.mktemp("runs") / "protonet"
    assert train(short("protonet"), run)
    return run


def short(method: str):
    config = tiny.get_config(method)
    config.training.update({"iterations": 3, "iterations_per_epoch": 3})
    if method == "protonet":
        config.learner.steps = 0
    return config


def test_a_protonet_trains_and_predicts_as_any_run(trained):
    experiment = build(short("protonet"))
    assert experiment.points == (0,)
    state = experiment.init(0)
    with Checkpoints(trained / "checkpoints", read_only=True) as saved:
        last, _ = saved.restore_latest(state)
    first = {k: np.asarray(x) for k, x in state.meta.params.items()}
    assert any((first[k] != x).any() for k, x in last.meta.params.items())
    predictor = load_predictor(trained)
    images = np.random.default_rng(0).integers(0, 256, (4, *predictor.shape), np.uint8)
    found = predictor(images[:2], np.array([0, 1]), images)
    assert found.shape == (4, 2) and np.isfinite(found).all()
    assert found[:2].argmax(-1).tolist() == [0, 1]


def test_gammas_come_from_the_prototypes_of_a_trained_network(trained):
    config = short("l2f")
    config.transform.prototypes = str(trained)
    experiment = build(config)
    state = experiment.init(0)
    features = 4 * 14 * 14  # filters of the map that one stage leaves of 28 x 28
    assert state.meta.transform["layer_0/kernel"].shape == (features, features)
    state, metrics = experiment.update(state, 0, 3)
    assert np.isfinite(metrics["outer/loss"]).all()
    found = experiment.measure(
        state.meta, state.stats, "test", 3, gammas(experiment.learner)
    )
    # Tasks have prototypes, and so gammas, of their own.
    assert len(np.unique(found["conv_0/kernel"])) == 3


def test_a_run_goes_on_only_with_the_prototypes_that_it_began_with(trained, tmp_path):
    network, run = tmp_path / "protonet", tmp_path / "l2f"
    shutil.copytree(trained, network)
    config, longer = short("l2f"), short("l2f")
    config.transform.prototypes = longer.transform.prototypes = str(network)
    longer.training.iterations = 6
    assert train(config, run)
    shutil.rmtree(network)
    other = short("protonet")
    other.seed = 1
    assert train(other, network)
    with pytest.raises(ValueError, match="not the network that .*l2f was trained with"):
        train(longer, run)
    with pytest.raises(ValueError, match="not the network that .*l2f was trained with"):
        load_predictor(run)
    shutil.rmtree(network)
    shutil.copytree(trained, network)
    assert train(longer, run) and load_predictor(run).iteration


@pytest.mark.parametrize(
    ("method", "section", "key", "value", "message"),
    [
        ("protonet", "learner", "steps", 2, "`learner.steps` .2. must be 0"),
        ("protonet", "transform", "name", "attenuate", "`transform.name` .'attenuate'"),
        ("l2f", "transform", "prototypes", "/nowhere", "not a run directory"),
    ],
)
def test_mistakes_are_named(method, section, key, value, message):
    config = short(method)
    config[section][key] = value
    with pytest.raises(ValueError, match=message):
        build(config)


def test_prototypes_of_an_unfinished_run_are_refused(trained, tmp_path):
    record = json.loads((trained / "run.json").read_text())
    record["config"]["training"]["iterations"] = 9
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "checkpoints").symlink_to(trained / "checkpoints")
    config = short("l2f")
    config.transform.prototypes = str(tmp_path)
    with pytest.raises(ValueError, match="is unfinished: step 3 of 9"):
        build(config)


def test_prototypes_of_another_learner_are_refused(trained, tmp_path):
    record = json.loads((trained / "run.json").read_text())
    record["config"]["learner"]["name"] = "maml"
    (tmp_path / "run.json").write_text(json.dumps(record))
    config = short("l2f")
    config.transform.prototypes = str(tmp_path)
    with pytest.raises(
        ValueError, match="run of `learner.name` 'protonet', not 'maml'"
    ):
        build(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("icons_split", "random", "not what .* was trained on: classes of 'test' 59"),
        ("mean", (0.5,), r"with `data.mean` \[\], which must be the same here, not"),
    ],
)
def test_prototypes_of_other_images_are_refused(trained, key, value, message):
    config = short("l2f")
    config.transform.prototypes = str(trained)
    config.data[key] = value
    if key == "mean":
        config.data.std = (0.5,)
    with pytest.raises(ValueError, match=message):
        build(config)
