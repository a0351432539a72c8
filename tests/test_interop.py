"""Official checkpoints: exact translation in both directions, clear refusals."""

import pickle
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import oracle
import pytest

from l2f_jax import interop
from l2f_jax.interop import from_official, read_official, to_official, write_official
from l2f_jax.models.conv4 import conv4
from l2f_jax.models.norm import Norm
from l2f_jax.models.resnet12 import resnet12
from l2f_jax.transforms import mlp
from l2f_jax.types import MetaParams

VARIANTS = [
    {},
    {"image": (2, 32, 32)},
    {"conv_bias": True},
    {"per_step_norm": True},
    {"adapt_norm": True},
    {"adapt_norm": True, "conv_bias": True, "per_step_norm": True},
    {"network": "resnet12"},
    {"network": "resnet12", "adapt_norm": True, "per_step_norm": True},
    {"layer_norm": True, "image": (2, 32, 32)},
    {"widths": (3, 4), "image": (2, 4, 4)},
]
LAYER_0 = {"conv4": "conv0.", "resnet12": "layer0.conv1."}


def official(seed=0, *, attenuate=True, **variant):
    """Random tensors under the official names, no two numbers equal."""
    variant = {"image": (2, 16, 16), "widths": (3, 4, 5, 6), **variant}
    state = oracle.initial_params(np.random.default_rng(seed), **variant)
    drop = () if attenuate else oracle.ATTENUATOR
    return {name: x for name, x in state.items() if name not in drop}


def assert_same(got, want):
    assert sorted(got) == sorted(want)
    for name, x in want.items():
        assert (name, got[name].dtype, got[name].shape) == (name, x.dtype, x.shape)
        np.testing.assert_array_equal(got[name], x, err_msg=name)


def norm_of(variant):
    if "layer_norm" in variant:
        return Norm("layer")
    return Norm(per_step=2 if "per_step_norm" in variant else None)


def used(state):
    return {name: x for name, x in state.items() if "running" not in name}


@pytest.mark.parametrize("learned_rates", [False, True])
@pytest.mark.parametrize("attenuate", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_there_and_back_is_the_identity(variant, attenuate, learned_rates):
    state = official(attenuate=attenuate, **variant)
    model = from_official(state, learned_rates=learned_rates)
    assert model.attenuate == attenuate == bool(model.meta.transform)
    assert model.network == variant.get("network", "conv4")
    assert model.norm == norm_of(variant)
    assert model.adapts_norm == variant.get("adapt_norm", False)
    rates = None if learned_rates else model.rates
    again = to_official(model.meta, rates)
    assert_same(used(again), state)
    back = from_official(again, learned_rates=learned_rates)
    jax.tree.map(np.testing.assert_array_equal, model, back)


@pytest.mark.parametrize(
    ("variant", "learned", "adapted"),
    [
        ({}, "neither", 6),
        ({}, "scale", 6),
        ({"network": "resnet12"}, "shift", 18),
        ({"adapt_norm": True, "per_step_norm": True}, "shift", 10),
    ],
)
def test_a_scale_or_shift_that_was_not_learned_is_left_out(variant, learned, adapted):
    state = official(attenuate=False, **variant)
    constants = {"scale": ("norm_layer.weight", 1.0), "shift": ("norm_layer.bias", 0.0)}
    constants.pop(learned, None)
    for ending, value in constants.values():
        for name in (name for name in state if name.endswith(ending)):
            state[name][...] = value
    state[oracle.RATES] = state[oracle.RATES][:, :adapted]
    options = {f"learned_{kind}": kind not in constants for kind in ("scale", "shift")}
    model = from_official(state, **options)
    kinds = {path.rpartition("/")[2] for path in (*model.meta.params, *model.rates)}
    assert not kinds & constants.keys() and len(model.rates) == adapted
    assert_same(used(to_official(model.meta, model.rates)), state)


def test_a_layer_norm_keeps_its_shift_of_each_pixel_and_no_statistics():
    state = official(layer_norm=True, image=(2, 16, 48))
    bias = state[oracle.NETWORK + "conv1.norm_layer.bias"]
    model = from_official(state, feature_map=(1, 3))
    shift = model.meta.params["norm_1/shift"]
    assert (bias.shape, shift.shape) == ((4, 8, 24), (8, 24, 4))
    assert shift[7, 20, 2] == bias[2, 7, 20]
    again = to_official(model.meta, model.rates, feature_map=(1, 3))
    assert not any("running" in name for name in again)
    name = oracle.NETWORK + "conv0.norm_layer.weight"
    with pytest.raises(ValueError, match=f"{name}' is learned, not constant 1"):
        from_official(state | {name: 2 * state[name]})


def test_a_learned_scale_or_shift_is_not_left_out():
    with pytest.raises(
        ValueError, match="conv3.norm_layer.bias' is learned, not const"
    ):
        from_official(official(), learned_shift=False)


def test_float32_stays_float32():
    state = {k: x.astype(np.float32) for k, x in official().items()}
    model = from_official(state)
    assert {x.dtype for x in jax.tree.leaves(model.meta)} == {np.dtype(np.float32)}
    assert_same(used(to_official(model.meta, model.rates)), state)


@pytest.mark.parametrize("variant", [VARIANTS[i] for i in (5, 7, 8)])
def test_logits_are_those_of_the_official_network(variant):
    state = official(**variant)
    network = variant.get("network", "conv4")
    norm = norm_of(variant)
    if network == "conv4":  # its `filters` matter to `init` alone
        model = conv4(3, conv_bias="conv_bias" in variant, norm=norm)
    else:
        model = resnet12(3, norm=norm)
    channels, side, _ = variant.get("image", (2, 16, 16))
    x = np.random.default_rng(1).normal(size=(4, channels, side, side))
    with jax.enable_x64(True):
        forward = jax.jit(getattr(oracle, network), static_argnums=3)
        want = forward(state, x, 1, "max")
        params = from_official(state).meta.params
        got = jax.jit(model.apply)(params, {}, x.transpose(0, 2, 3, 1), step=1)[0]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def official_gamma(state, embedding):
    w1, b1, w2, b2 = (state[name] for name in oracle.ATTENUATOR)
    return 1 / (1 + np.exp(-(w2 @ np.maximum(w1 @ embedding + b1, 0) + b2)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gamma_of_each_tensor_is_that_of_the_official_attenuator(variant):
    state = official(**variant)
    names = oracle.inner_names(
        state, variant.get("network", "conv4"), "adapt_norm" in variant
    )
    # Each tensor is known by its sum, which no translation changes.
    embedding = np.array([state[name].sum() for name in names])
    want = dict(zip(embedding.round(9), official_gamma(state, embedding), strict=True))
    model = from_official(state)
    sums = np.array([model.meta.params[path].sum() for path in sorted(model.rates)])
    with jax.enable_x64(True):
        gamma = jax.nn.sigmoid(mlp(2).apply(model.meta.transform, sums))
    want = [want[total] for total in sums.round(9)]
    np.testing.assert_allclose(gamma, want, rtol=1e-12)


def test_rates_belong_to_their_tensors():
    # Registration: conv0 .. conv3, head weight, head bias; sorted: bias before kernel.
    state = official()
    state[oracle.RATES] = np.arange(12.0).reshape(2, 6)
    rates = from_official(state, learned_rates=True).meta.rule
    assert list(rates) == [*(f"conv_{b}/kernel" for b in range(4))] + [
        "head/bias",
        "head/kernel",
    ]
    np.testing.assert_array_equal(rates["conv_1/kernel"], [1.0, 7.0])
    np.testing.assert_array_equal(rates["head/kernel"], [4.0, 10.0])
    np.testing.assert_array_equal(rates["head/bias"], [5.0, 11.0])


def test_head_follows_a_map_that_is_not_square():
    state = official(image=(2, 16, 48))
    weights = state[oracle.HEAD[0]]  # [3 ways, 6 channels x 1 row x 3 columns]
    model = from_official(state, feature_map=(1, 3))
    # Row 7 is column 1, channel 1; officially channel 1 comes first: 1 * 3 + 1.
    np.testing.assert_array_equal(model.meta.params["head/kernel"][7], weights[:, 4])
    again = to_official(model.meta, model.rates, feature_map=(1, 3))
    np.testing.assert_array_equal(again[oracle.HEAD[0]], weights)
    with pytest.raises(ValueError, match="18 features; it cannot be square"):
        from_official(state)
    with pytest.raises(ValueError, match=r"`feature_map` \(\(2, 3\)\) must be"):
        to_official(model.meta, model.rates, feature_map=(2, 3))


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: name.removeprefix("classifier."),
        lambda name: "module." + name.removeprefix("classifier."),
    ],
)
def test_prefixes_and_unused_statistics_do_not_matter(rename):
    state = official()
    norm = f"{oracle.NETWORK}conv0.norm_layer."
    unused = (
        "running_mean",
        "running_var",
        "num_batches_tracked",
        "backup_running_var",
    )
    varied = state | {norm + name: np.zeros(3) for name in unused}
    model = from_official({rename(name): x for name, x in varied.items()})
    assert_same(used(to_official(model.meta, model.rates)), state)


def test_running_statistics_are_written_for_every_norm_layer():
    model = from_official(official(network="resnet12", per_step_norm=True))
    state = to_official(model.meta, model.rates)
    for kind in ("running_mean", "running_var"):
        statistics = {k: x for k, x in state.items() if k.endswith(kind)}
        assert len(statistics) == 16
        name = f"{oracle.NETWORK}layer1.shortcut_norm_layer.{kind}"
        np.testing.assert_array_equal(statistics[name], np.zeros((2, 4)))


def test_all_missing_and_left_over_tensors_are_named():
    state = official()
    del state["attenuator.2.bias"], state[oracle.RATES]
    state["classifier.layer_dict.conv3.conv.scale"] = np.zeros(1)
    with pytest.raises(ValueError) as error:
        from_official(state)
    assert str(error.value) == (
        "`state` is no official conv4 checkpoint: 'task_learning_rate' is missing; "
        "'attenuator.2.bias' is missing; "
        "'classifier.layer_dict.conv3.conv.scale' is left over"
    )


@pytest.mark.parametrize(
    ("network", "name", "shape", "expected"),
    [
        ("conv4", "conv1.conv.weight", (4, 2, 3, 3), r"\(4, 3, 3, 3\)"),
        ("conv4", "conv2.norm_layer.weight", (4,), r"\(5\)"),
        ("conv4", "conv2.norm_layer.weight", (2, 5), r"\(5\)"),
        ("conv4", "linear.bias", (4,), r"\(3\)"),
        ("conv4", "linear.weights", (18,), r"\(18, any\)"),
        ("layer norm", "conv2.norm_layer.bias", (5, 4), r"\(5, 4, any\)"),
        ("layer norm", "conv2.norm_layer.weight", (5, 2, 2), r"\(5, 4, 4\)"),
        ("resnet12", "layer0.conv1.norm_layer.bias", (3, 8, 8), r"\(3\)"),
        ("resnet12", "layer2.conv3.weight", (5, 5, 1, 1), r"\(5, 5, 3, 3\)"),
        ("resnet12", "layer1.shortcut_conv.weight", (3, 3, 1, 1), r"\(4, 3, 1, 1\)"),
    ],
)
def test_wrong_shape_is_named_with_both_shapes(network, name, shape, expected):
    layer_norm = network == "layer norm"
    variant = {"layer_norm": True} if layer_norm else {"network": network}
    state = official(**variant)
    state[oracle.NETWORK + name] = np.zeros(shape)
    found = str(shape).replace("(", r"\(").replace(")", r"\)")
    message = f"'{oracle.NETWORK}{name}' has shape {found}, expected {expected}"
    with pytest.raises(ValueError, match=message):
        from_official(state)


def test_attenuator_must_fit_the_adapted_tensors():
    state = official()
    state["attenuator.0.weight"] = np.zeros((5, 5))
    state[oracle.RATES] = np.zeros(6)
    with pytest.raises(ValueError) as error:
        from_official(state)
    assert "'task_learning_rate' has shape (6,), expected (any, 6)" in str(error.value)
    assert "'attenuator.0.weight' has shape (5, 5), expected (6, 6)" in str(error.value)


def test_meta_parameters_without_an_official_form_are_refused():
    meta, rates = (model := from_official(official())).meta, model.rates
    with pytest.raises(ValueError, match=r"`rates` \(of nothing\) must be \[steps\]"):
        to_official(meta)
    with pytest.raises(ValueError, match=r"`rates` \(of conv_0/kernel, "):
        to_official(meta._replace(rule=meta.params))
    with pytest.raises(ValueError, match=r"`meta.transform` \(\{'layer_0/kernel': "):
        to_official(
            meta._replace(transform={"layer_0/kernel": np.zeros((6, 6))}), rates
        )
    with pytest.raises(ValueError, match=r"`meta.params` \(w\) must have the paths"):
        to_official(MetaParams({"w": np.zeros(3)}, (), ()))
    model = from_official(official(layer_norm=True))
    steps = {"norm_0/shift": np.zeros((2, 16, 16, 3))}
    with pytest.raises(ValueError, match="must have the paths of conv4"):
        to_official(model.meta._replace(params=model.meta.params | steps), rates)


def test_files_with_numpy_scalars_beside_the_tensors_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    state = official()
    tensors = {k: torch.nn.Parameter(torch.tensor(x)) for k, x in state.items()}
    content = {
        "network": tensors,
        "current_iter": 500,
        "best_val_acc": np.float64(0.5),
        "per_epoch_statistics": {"val_accuracy_mean": [np.float32(0.4), np.int64(3)]},
        "array": np.zeros(2),
    }
    torch.save(content, tmp_path / "train_model_1")
    model = read_official(tmp_path / "train_model_1", learned_rates=True)
    assert_same(used(to_official(model.meta)), state)


def test_written_file_is_read_back(tmp_path):
    torch = pytest.importorskip("torch")
    model = from_official(official(network="resnet12"))
    path = tmp_path / "train_model_latest"
    write_official(path, model.meta, model.rates, bookkeeping={"current_iter": 7})
    jax.tree.map(np.testing.assert_array_equal, read_official(path), model)
    assert torch.load(path)["current_iter"] == 7


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    def saves(content, path):
        Path(path).write_bytes(b"whole")

    def fails(content, path):
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    model = from_official(official())
    for save in (saves, fails):
        torch = SimpleNamespace(tensor=np.asarray, save=save)
        monkeypatch.setattr(interop, "_torch", lambda torch=torch: torch)
        with pytest.raises(OSError) if save is fails else nullcontext():
            write_official(tmp_path / "model", model.meta, model.rates)
        assert (tmp_path / "model").read_bytes() == b"whole"


def test_files_that_are_not_official_checkpoints_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"model": {}}, tmp_path / "other")
    with pytest.raises(ValueError, match="other'.* is no official checkpoint"):
        read_official(tmp_path / "other")
    torch.save({"network": pytest.raises}, tmp_path / "code")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        read_official(tmp_path / "code")
