"""Every config builds, checked without compiling; every mistake is named."""

import functools
import importlib
import inspect
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.classification import omniglot
from configs.classification.base import VARIANTS, get_config
from l2f_jax import backend
from l2f_jax.data.writer import write_bank
from l2f_jax.models.conv4 import conv4
from l2f_jax.models.norm import Norm
from l2f_jax.problems import build
from l2f_jax.transforms import attenuate

pytestmark = pytest.mark.mixed_dtypes

FOLDER = Path(__file__).parent.parent / "configs" / "classification"
NAMES = sorted({path.stem for path in FOLDER.glob("*.py")} - {"__init__", "base"})
CHOICES = [",".join(chosen) for chosen in itertools.product(*VARIANTS)]
SHAPES = {"omniglot": (28, 28, 1), "icons": (28, 28, 1)}  # others: 32 x 32 RGB


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Return shape -> a bank with just enough for 5 ways, 5 shots and 15 queries."""
    folder = tmp_path_factory.mktemp("banks")

    def path_of(shape):
        path = folder / str(shape[0])
        if not path.exists():
            with write_bank(path, {"source": "test"}) as add:
                for split, i in itertools.product(("train", "val", "test"), range(5)):
                    images = np.full((20, *shape), 50 * i, np.uint8)
                    add(f"{split} {i}", split, images)
        return str(path)

    return path_of


@pytest.fixture
def config(bank):
    config = get_config("l2f")
    config.data.bank = bank((28, 28, 1))
    return config.unlock()


def config_of(name, variant, bank):
    module = importlib.import_module(f"configs.classification.{name}")
    config = module.get_config(variant)
    if config.data.bank != "icons":
        config.data.bank = bank(SHAPES.get(name, (32, 32, 3)))
    return config


def put(config, key, value):
    """Set `section.key`."""
    *sections, last = key.split(".")
    for section in sections:
        config = config[section]
    config[last] = value


def get(config, key):
    """Return `section.key`."""
    return functools.reduce(ConfigDict.__getitem__, key.split("."), config)


def initial(experiment):
    return jax.eval_shape(lambda: experiment.init(0))


# What works ------------------------------------------------------------------


@pytest.mark.parametrize("variant", CHOICES)
@pytest.mark.parametrize("name", NAMES)
def test_every_config_builds(name, variant, bank):
    experiment = build(config_of(name, variant, bank))
    meta = initial(experiment).meta
    assert bool(meta.transform) == ("l2f" in variant)
    assert ("block_0/conv_0/kernel" in meta.params) == ("resnet12" in variant)
    if "protonet" in variant:
        assert not any("head" in path for path in meta.params)
    else:
        assert meta.params["head/kernel"].shape[-1] == 5


@pytest.mark.parametrize(
    ("name", "variant"),
    [("icons", "maml"), ("omniglot", ""), ("miniimagenet", "resnet12")],
)
def test_update_keeps_the_shape_of_the_state(name, variant, bank):
    experiment = build(config_of(name, variant, bank))
    state = initial(experiment)
    after, metrics = jax.eval_shape(lambda s: experiment.update(s, 0, 2), state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert {"outer/loss", "outer/accuracy"} < set(metrics)
    assert {x.shape for x in metrics.values()} == {(2,)}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("model.pooling", ["max", "stride"]),
        ("model.padding", [2]),
        ("model.conv", backend.CONVOLUTIONS),
        ("model.norm.mode", ["batch", "support", "running", "layer"]),
        ("model.norm.per_step", [5]),
        ("model.norm.momentum", [0.0, 1.0]),
        ("model.norm.epsilon", [1e-3]),
        ("model.norm.learn_scale", [False]),
        ("model.norm.learn_shift", [False]),
        ("learner.name", ["maml", "fomaml", "meta_sgd", "mamlpp", "anil", "boil"]),
        ("learner.adapt_norm", [True]),
        ("learner.rates", [ConfigDict({"conv_0/kernel": 0.1})]),
        ("transform.scope", ["parameter", "filter", "layer", "module", "network"]),
        ("transform.conditioned", [False]),
        ("transform.squash", ["sigmoid", "none"]),
        ("transform.affine", [True]),
        ("transform.layers", [1, 3]),
        ("transform.bias", [None, 4.0]),
        ("transform.embedding_scope", ["module", "network"]),
        ("transform.embedding_scale", [100.0]),
        ("optimiser.name", ["adam", "sgd"]),
        ("data.augment", [("rotate_classes", "crop", "flip")]),
        ("data.placement", ["device", "stream"]),
        ("training.task_map", ["map", "vmap"]),
        ("training.reduction", ["sum", "mean"]),
    ],
)
def test_every_documented_value_builds(config, key, values):
    for value in values:
        put(config, key, value)
        initial(build(config))


@pytest.mark.parametrize("key", ["norm", "filters", "pooling"])
def test_keys_with_a_default_may_be_left_out(config, key):
    del config.model[key]
    initial(build(config))


YOUNGER = {  # keys that older runs were recorded without
    "model": (conv4, ("padding",)),
    "model.norm": (Norm, ("momentum", "epsilon", "learn_scale", "learn_shift")),
    "transform": (attenuate, ("bias", "embedding_scope", "embedding_scale")),
}


def test_runs_recorded_before_a_key_was_there_still_build(config):
    record = json.loads(config.to_json())
    for name, (_, keys) in YOUNGER.items():
        section = functools.reduce(dict.__getitem__, name.split("."), record)
        for key in keys:
            del section[key]
    assert initial(build(ConfigDict(record))) == initial(build(config))


def test_younger_keys_stand_at_what_older_runs_were_trained_with(config):
    for name, (component, keys) in YOUNGER.items():
        section = get(config, name)
        defaults = inspect.signature(component).parameters
        assert [section[k] for k in keys] == [defaults[k].default for k in keys]


def test_an_attenuation_may_start_near_one(config):
    config.model.stages, config.model.filters, config.transform.bias = 1, 2, 4.0
    phi = build(config).init(0).meta.transform
    np.testing.assert_array_equal(phi["layer_1/bias"], 4)


# What the official code runs --------------------------------------------------------

OFFICIAL = {  # in all of its 13 config files
    "data.ways": 5,
    "data.queries": 15,
    "data.augment": (),
    "model.norm.mode": "batch",
    "model.norm.per_step": 0,
    "model.norm.epsilon": 1e-5,
    "model.norm.learn_scale": True,
    "model.norm.learn_shift": True,
    "learner.name": "maml",
    "learner.steps": 5,
    "learner.lr": 0.01,
    "learner.rates": ConfigDict(),
    "learner.adapt_norm": False,
    "optimiser.name": "adam",
    "optimiser.lr": 1e-3,
    "optimiser.min_lr": 1e-3,
    "training.iterations_per_epoch": 500,
    "training.reduction": "sum",
    "training.order": 2,
    "training.first_order_epochs": 11,
    "training.multi_step_epochs": 0,
    "evaluation.validation_tasks": 600,
    "evaluation.test_tasks": 600,
    "evaluation.ensemble": 3,
}
NETWORKS = {
    "conv4": {
        "model.name": "conv4",
        "model.stages": 4,
        "model.filters": 48,
        "model.conv_bias": False,
        "model.padding": 1,
        "model.pooling": "max",
    },
    "resnet12": {"model.name": "resnet12", "model.widths": (64, 128, 256, 512)},
}
METHODS = {
    "l2f": {
        "training.iterations": 60 * 500,
        "transform.name": "attenuate",
        "transform.scope": "layer",
        "transform.conditioned": True,
        "transform.squash": "sigmoid",
        "transform.affine": False,
        "transform.layers": 2,
        "transform.bias": None,
        "transform.embedding_scale": 1.0,
        "transform.through": False,
        "transform.prototypes": "",
    },
    "maml": {"training.iterations": 100 * 500, "transform.name": "identity"},
}
TASKS = {"conv4,1shot": 4, "conv4,5shot": 2, "resnet12,1shot": 1, "resnet12,5shot": 1}
IMAGENET = {
    "data.mean": (0.485, 0.456, 0.406),
    "data.std": (0.229, 0.224, 0.225),
    "optimiser.clip": 10.0,
}
CIFAR = {
    "data.mean": (0.5071, 0.4847, 0.4408),
    "data.std": (0.2675, 0.2565, 0.2761),
    "optimiser.clip": 0.0,
}
DATA_SETS = {
    "miniimagenet": IMAGENET,
    "tieredimagenet": IMAGENET,
    "cifar_fs": CIFAR,
    "fc100": CIFAR,
}


@pytest.mark.parametrize("name", DATA_SETS)
def test_defaults_are_the_official_values(name):
    module = importlib.import_module(f"configs.classification.{name}")
    for method, (setting, tasks) in itertools.product(METHODS, TASKS.items()):
        network, shots = setting.split(",")
        config = module.get_config(f"{method},{setting}")
        expected = OFFICIAL | NETWORKS[network] | METHODS[method] | DATA_SETS[name]
        expected |= {"training.tasks": tasks, "data.shots": int(shots[0])}
        assert {key: get(config, key) for key in expected} == expected


# What is refused ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("problem", "ranking"),
        ("data.bank", "nowhere"),
        ("data.ways", 6),
        ("data.shots", 0),
        ("data.queries", 20),
        ("data.std", (0.0,)),
        ("data.augment", ("blur",)),
        ("data.placement", "disk"),
        ("model.name", "vgg"),
        ("model.pooling", "mean"),
        ("model.padding", -1),
        ("model.conv", "fft"),
        ("model.norm.mode", "group"),
        ("model.norm.per_step", -1),
        ("model.norm.momentum", 2.0),
        ("model.norm.epsilon", 0.0),
        ("learner.name", "reptile"),
        ("learner.steps", -1),
        ("learner.lr", -1.0),
        ("model.filters", 0),
        ("model.stages", 0),
        ("transform.name", "amplify"),
        ("transform.scope", "layr"),
        ("transform.squash", "tanh"),
        ("transform.embedding_scope", "layr"),
        ("transform.layers", 0),
        ("optimiser.name", "adamw"),
        ("optimiser.min_lr", 2.0),
        ("optimiser.clip", -1.0),
        ("training.tasks", 0),
        ("training.order", 3),
        ("training.reduction", "max"),
        ("training.task_map", "scan"),
        ("training.cpu_devices", -1),
        ("training.keep_every", -1),
        ("training.seed", -1),
        ("training.iterations", 0),
        ("training.iterations_per_epoch", 0),
        ("training.first_order_epochs", -1),
        ("evaluation.ensemble", 0),
    ],
)
def test_wrong_value_is_named(config, key, value):
    put(config, key, value)
    shown = value[0] if isinstance(value, tuple) else value
    with pytest.raises(ValueError) as refusal:
        build(config)
    assert key.split(".")[-1] in str(refusal.value)
    assert str(shown) in str(refusal.value)


SECTIONS = [
    "data",
    "model",
    "model.norm",
    "learner",
    "transform",
    "optimiser",
    "training",
    "evaluation",
]


@pytest.mark.parametrize("section", ["", *(f"{name}." for name in SECTIONS)])
def test_unknown_key_is_named(config, section):
    put(config, f"{section}stray", 1)
    with pytest.raises(ValueError, match=f"`{section}stray` is no option here"):
        build(config)


@pytest.mark.parametrize(
    "key",
    [
        *(name for name in SECTIONS if "." not in name),
        "data.ways",
        "data.bank",
        "model.name",
        "learner.name",
        "learner.steps",
        "transform.name",
        "optimiser.lr",
        "training.tasks",
        "evaluation.ensemble",
    ],
)
def test_missing_key_is_named(config, key):
    section, _, last = key.rpartition(".")
    part = config
    for name in filter(None, section.split(".")):
        part = part[name]
    del part[last]
    with pytest.raises(ValueError, match=f"`{key}`"):
        build(config)


def test_per_step_norm_with_the_support_statistics_is_refused(config):
    config.model.norm.mode, config.model.norm.per_step = "support", 5
    with pytest.raises(
        ValueError, match=r"`model.norm.per_step` \(5\) must be None with"
    ):
        build(config)


def test_rates_of_a_learner_that_has_its_own_are_refused(config):
    config.learner.rates = ConfigDict({"head/kernel": 0.1})
    config.learner.name = "mamlpp"
    with pytest.raises(
        ValueError, match="`learner.rates` .*with `learner.name` 'mamlpp', which learns"
    ):
        build(config)


def test_multi_step_loss_without_steps_is_refused(config):
    config.learner.steps, config.training.multi_step_epochs = 0, 3
    with pytest.raises(ValueError, match="multi_step_epochs` needs `learner.steps`"):
        build(config)


@pytest.mark.parametrize(("arg", "ways"), [("maml", 5), ("20way,maml,5shot", 20)])
def test_omniglot_has_five_or_twenty_ways(arg, ways):
    config = omniglot.get_config(arg)
    assert config.data.ways == ways and config.transform.name == "identity"
    assert config.data.shots == (5 if "5shot" in arg else 1)


@pytest.mark.parametrize("arg", ["5way,20way", "20way,10way"])
def test_ways_of_omniglot_are_checked_as_other_variants(arg):
    with pytest.raises(ValueError, match="variants? .*5way.*20way"):
        omniglot.get_config(arg)


def test_unknown_variant_is_named():
    with pytest.raises(ValueError, match="variant '3shot' must be one of l2f, maml"):
        get_config("l2f,3shot")


@pytest.mark.parametrize(
    ("arg", "both"), [("maml,l2f", "'l2f' and 'maml'"), ("5shot,1shot", "'1shot' and")]
)
def test_two_variants_of_one_group_are_refused(arg, both):
    with pytest.raises(ValueError, match=f"variants {both} .*exclude each other"):
        get_config(arg)


def test_configs_do_not_share_state():
    get_config().learner.steps = 7
    assert get_config().learner.steps == 5
