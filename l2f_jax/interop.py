"""Read and write the checkpoints of the official L2F code (baiksung/L2F, PyTorch).

The official state dict names tensors by module, keeps kernels OIHW, flattens the last
feature map C, H, W and lists the adapted tensors, one "layer" each, in the order their
modules were registered. Here paths name tensors, kernels are HWIO, the map is flattened
H, W, C and adapted tensors are sorted by path. Translating permutes axes, rows and
columns and computes nothing, so it is exact in both directions.
"""

import importlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from l2f_jax.types import MetaParams

RATES = "task_learning_rate"
PREFIX = "classifier.layer_dict."
ATTENUATOR = {
    "attenuator.0.weight": "layer_0/kernel",
    "attenuator.0.bias": "layer_0/bias",
    "attenuator.2.weight": "layer_1/kernel",
    "attenuator.2.bias": "layer_1/bias",
}
# Statistics that the official code stores and never normalises with.
_UNUSED = re.compile(r"\.(running_mean|running_var|num_batches_tracked|backup_\w+)$")

Arrays = dict[str, Any]  # official name or path -> np.ndarray
FeatureMap = tuple[int, int] | None


class OfficialModel(NamedTuple):
    """What an official checkpoint holds, as NumPy arrays in the dtypes it has.

    `jax.tree.map(jnp.asarray, model.meta)` puts it on a device, in float32 unless
    64-bit types are enabled.

    meta: `transform` is () for MAML, the attenuator for L2F; `rule` is () if the rates
      are fixed.
    network: "conv4" or "resnet12".
    attenuate: whether there is an attenuator (L2F).
    per_step: number of inner steps with a norm scale and shift of their own, or None.
    adapts_norm: whether norm scales and shifts are adapted (and attenuated) too.
    rates: {path of each adapted tensor: [steps]}, fixed or learned.
    """

    meta: MetaParams
    network: str
    attenuate: bool
    per_step: int | None
    adapts_norm: bool
    rates: Arrays


def read_official(path: str | Path, **options) -> OfficialModel:
    """Read a file of the official code (`train_model_<epoch>`); needs PyTorch.

    Nothing in the file is executed: beside tensors only NumPy scalars and arrays, which
    these files hold as statistics, are let through.

    Args:
      path: the file.
      options: those of `from_official`.
    Raises:
      ValueError: if the file has no key "network", or as `from_official` does.
      pickle.UnpicklingError: if the file holds objects of another kind.
    """
    torch = _torch()
    with torch.serialization.safe_globals(_numpy_globals()):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping) or "network" not in content:
        raise ValueError(
            f"`path` ('{path}') is no official checkpoint: no key 'network'"
        )
    return from_official(content["network"], **options)


def write_official(
    path: str | Path,
    meta: MetaParams,
    rates: Mapping[str, Any] | None = None,
    *,
    feature_map: FeatureMap = None,
    bookkeeping: Mapping[str, Any] | None = None,
) -> None:
    """Write a file that the official code can load; needs PyTorch.

    Args:
      path: the file; replaced if it exists.
      meta, rates, feature_map: see `to_official`.
      bookkeeping: what lies beside the network, such as current_iter, best_val_acc.
    """
    torch = _torch()
    state = to_official(meta, rates, feature_map=feature_map)
    network = {name: torch.tensor(x) for name, x in state.items()}
    torch.save({**(bookkeeping or {}), "network": network}, path)


def from_official(
    state: Mapping[str, Any],
    *,
    learned_rates: bool = False,
    feature_map: FeatureMap = None,
) -> OfficialModel:
    """Translate an official state dict.

    Args:
      state: {name: array or tensor}. A leading "module." or a missing "classifier." is
        accepted; running statistics are ignored.
      learned_rates: whether the inner rates were learned, which the file does not say;
        if so they become `meta.rule`.
      feature_map: (height, width) of the map that the head sees; None: it is square.
    Raises:
      ValueError: naming every tensor that is missing, left over or of a wrong shape.
    """
    named = {_full_name(name): x for name, x in state.items()}
    tensors = {k: _array(x) for k, x in named.items() if not _UNUSED.search(k)}
    form = _form_of_state(tensors)
    _check_state(form, tensors)

    params: Arrays = {path: tensors[name] for name, path in form.names.items()}
    params = {path: _channels_last(path, x) for path, x in sorted(params.items())}
    rows = _head_rows(form, params, feature_map)
    params["head/kernel"] = params["head/kernel"][rows]
    rates = dict(sorted(zip(form.adapted, tensors[RATES].T.copy(), strict=True)))
    phi = ()
    if form.attenuate:
        phi = {path: tensors[name].T for name, path in ATTENUATOR.items()}
        phi = _reorder(phi, np.argsort(form.adapted))
    scale = next(x for path, x in params.items() if path.endswith("/scale"))
    return OfficialModel(
        meta=MetaParams(params, phi, rates if learned_rates else ()),
        network=form.network,
        attenuate=form.attenuate,
        per_step=len(scale) if scale.ndim == 2 else None,
        adapts_norm=form.adapts_norm,
        rates=rates,
    )


def to_official(
    meta: MetaParams,
    rates: Mapping[str, Any] | None = None,
    *,
    feature_map: FeatureMap = None,
) -> Arrays:
    """Translate meta-parameters to an official state dict: `from_official` undone.

    Args:
      meta: `params` of `conv4` or `resnet12` with batch norm; `transform` () or that of
        `attenuate()`, layer-wise with two layers; `rule` () or rates per step.
      rates: {path of each adapted tensor: [steps]}; None takes the learned `meta.rule`.
      feature_map: (height, width) of the map that the head sees; None: it is square.
    Returns:
      {official name: array}, with the zero running statistics that the official code
      looks for.
    Raises:
      ValueError: if the official code has no such network, attenuator or rates.
    """
    params = {path: _array(x) for path, x in meta.params.items()}
    rates = {path: _array(x) for path, x in dict(rates or meta.rule).items()}
    form = _form_of_params(params, rates)
    phi = _attenuator(meta.transform, len(form.adapted))

    rows = _head_rows(form, params, feature_map)
    params["head/kernel"] = params["head/kernel"][np.argsort(rows)]
    state = {RATES: np.stack([rates[path] for path in form.adapted], axis=1)}
    for name, path in form.names.items():
        state[name] = _channels_first(path, params[path])
        if path.endswith("/scale"):
            for unused in ("running_mean", "running_var"):
                zeros = np.zeros_like(params[path])
                state[name.removesuffix("weight") + unused] = zeros
    if phi:
        # argsort leads to sorted order; the argsort of that leads back.
        phi = _reorder(phi, np.argsort(np.argsort(form.adapted)))
        state |= {name: phi[path].T.copy() for name, path in ATTENUATOR.items()}
    return state


class _Layer(NamedTuple):
    """A convolution and its norm: our path, the official name, whose output it sees."""

    conv: str
    norm: str
    official_conv: str
    official_norm: str
    source: str


class _Form(NamedTuple):
    """Which of the official networks a set of tensors belongs to."""

    network: str
    conv_bias: bool
    attenuate: bool
    adapts_norm: bool

    @property
    def layers(self) -> list[_Layer]:
        """The convolutions in registration order."""
        blocks = _conv4_stage if self.network == "conv4" else _resnet12_block
        return [layer for b in range(4) for layer in blocks(b)]

    @property
    def names(self) -> dict[str, str]:
        """{official name: path} in registration order: shift before scale."""
        names = {}
        for layer in self.layers:
            names[f"{layer.official_conv}.weight"] = f"{layer.conv}/kernel"
            if self.conv_bias:
                names[f"{layer.official_conv}.bias"] = f"{layer.conv}/bias"
            names[f"{layer.official_norm}.bias"] = f"{layer.norm}/shift"
            names[f"{layer.official_norm}.weight"] = f"{layer.norm}/scale"
        names |= {"linear.weights": "head/kernel", "linear.bias": "head/bias"}
        return {PREFIX + name: path for name, path in names.items()}

    @property
    def adapted(self) -> list[str]:
        """Paths of the adapted tensors in registration order."""
        paths = self.names.values()
        return [path for path in paths if self.adapts_norm or "norm" not in path]


def _conv4_stage(b: int) -> list[_Layer]:
    conv, norm = f"conv{b}.conv", f"conv{b}.norm_layer"
    return [_Layer(f"conv_{b}", f"norm_{b}", conv, norm, f"conv_{b - 1}")]


def _resnet12_block(b: int) -> list[_Layer]:
    before, rows = f"block_{b - 1}/conv_2", []
    for conv, norm, official_conv, official_norm, source in (
        ("conv_0", "norm_0", "conv1.conv", "conv1.norm_layer", before),
        ("conv_1", "norm_1", "conv2.conv", "conv2.norm_layer", f"block_{b}/conv_0"),
        ("conv_2", "norm_2", "conv3", "norm_layer", f"block_{b}/conv_1"),
        ("shortcut", "shortcut_norm", "shortcut_conv", "shortcut_norm_layer", before),
    ):
        ours = f"block_{b}/{conv}", f"block_{b}/{norm}"
        theirs = f"layer{b}.{official_conv}", f"layer{b}.{official_norm}"
        rows.append(_Layer(*ours, *theirs, source))
    return rows


def _form_of_state(tensors: Arrays) -> _Form:
    """Guess from telling names; whether all the others are there is checked later."""
    resnet12 = any(name.startswith(f"{PREFIX}layer") for name in tensors)
    form = _Form(
        network="resnet12" if resnet12 else "conv4",
        conv_bias=f"{PREFIX}conv0.conv.bias" in tensors,
        attenuate=any(name.startswith("attenuator.") for name in tensors),
        adapts_norm=True,
    )
    rates = tensors.get(RATES, np.zeros((0, 0)))
    return form._replace(adapts_norm=rates.shape[1:] == (len(form.adapted),))


def _form_of_params(params: Arrays, rates: Arrays) -> _Form:
    forms = [
        _Form(network, conv_bias, attenuate=False, adapts_norm=adapts_norm)
        for network in ("conv4", "resnet12")
        for conv_bias in (False, True)
        for adapts_norm in (False, True)
    ]
    forms = [form for form in forms if set(form.names.values()) == set(params)]
    if not forms:
        raise ValueError(
            f"`meta.params` ({', '.join(params)}) must have the paths of conv4 (four "
            "stages) or resnet12, with batch norm"
        )
    forms = [form for form in forms if set(form.adapted) == set(rates)]
    shapes = {x.shape for x in rates.values()}
    if not forms or len(shapes) != 1 or len(*shapes) != 1:
        raise ValueError(
            f"`rates` (of {', '.join(rates) or 'nothing'}) must be [steps] for every "
            "tensor of `meta.params`, or for every one outside the norm layers"
        )
    return forms[0]


def _attenuator(transform: Any, n: int) -> Arrays:
    """Return the attenuator of n tensors, {} for MAML."""
    wanted = dict(zip(ATTENUATOR.values(), [(n, n), (n,)] * 2, strict=True))
    phi = dict(transform) if isinstance(transform, Mapping) else {}
    found = {path: np.shape(x) for path, x in phi.items()}
    nothing = isinstance(transform, tuple) and not transform
    if not nothing and found != wanted:
        raise ValueError(
            f"`meta.transform` ({found or transform}) must be () or have {wanted}"
        )
    return {path: _array(x) for path, x in phi.items()}


def _check_state(form: _Form, tensors: Arrays) -> None:
    expected = [RATES, *form.names, *(ATTENUATOR if form.attenuate else ())]
    faults = [f"'{name}' is missing" for name in expected if name not in tensors]
    faults += [f"'{name}' is left over" for name in tensors if name not in expected]
    for name, shape in {} if faults else _shapes(form, tensors).items():
        found = tensors[name].shape
        pairs = zip(found, shape, strict=False)
        if len(found) != len(shape) or any(b not in (a, None) for a, b in pairs):
            sides = ", ".join("any" if side is None else str(side) for side in shape)
            faults.append(f"'{name}' has shape {found}, expected ({sides})")
    if faults:
        raise ValueError(
            f"`state` is no official {form.network} checkpoint: {'; '.join(faults)}"
        )


def _shapes(form: _Form, tensors: Arrays) -> dict[str, tuple[int | None, ...]]:
    """Return {official name: shape} as implied by the widths; None: any."""
    found = {path: tensors[name].shape for name, path in form.names.items()}
    first = form.layers[0]
    # A tensor of too few axes has no width; it is refused below for its own shape.
    width = {path: (*shape, None)[0] for path, shape in found.items()}
    image = (*found[f"{first.conv}/kernel"], None, None)[1]
    steps = found[f"{first.norm}/scale"][:-1]
    n, ways = len(form.adapted), width["head/kernel"]
    shapes = {"head/kernel": (ways, None), "head/bias": (ways,)}
    for layer in form.layers:
        # The shortcut is added to the block's last convolution.
        out = width[f"{layer.conv.replace('shortcut', 'conv_2')}/kernel"]
        size = 1 if "shortcut" in layer.conv else 3
        inputs = width.get(f"{layer.source}/kernel", image)
        shapes[f"{layer.conv}/kernel"] = (out, inputs, size, size)
        shapes[f"{layer.conv}/bias"] = (out,)
        shapes[f"{layer.norm}/scale"] = shapes[f"{layer.norm}/shift"] = (*steps, out)
    expected = {name: shapes[path] for name, path in form.names.items()}
    if form.attenuate:
        expected |= dict(zip(ATTENUATOR, [(n, n), (n,)] * 2, strict=True))
    return {RATES: (None, n), **expected}


def _head_rows(form: _Form, params: Arrays, feature_map: FeatureMap) -> np.ndarray:
    """Return the official (C, H, W) position of each of our (H, W, C) features."""
    features = len(params["head/kernel"])
    channels = params[f"{form.layers[-1].conv}/kernel"].shape[-1]
    side = math.isqrt(features // channels)
    height, width = feature_map or (side, side)
    if height * width * channels != features:
        raise ValueError(
            f"`feature_map` ({feature_map}) must be (height, width) of a map with "
            f"{channels} channels and {features} features"
            + ("" if feature_map else "; it cannot be square")
        )
    positions = np.arange(features).reshape(channels, height, width)
    return positions.transpose(1, 2, 0).ravel()


def _reorder(phi: Arrays, order: np.ndarray) -> Arrays:
    """Permute inputs and outputs of the attenuator; its hidden units stay."""
    return {
        "layer_0/kernel": phi["layer_0/kernel"][order],
        "layer_0/bias": phi["layer_0/bias"],
        "layer_1/kernel": phi["layer_1/kernel"][:, order],
        "layer_1/bias": phi["layer_1/bias"][order],
    }


def _channels_last(path: str, x: np.ndarray) -> np.ndarray:
    """Turn OIHW into HWIO and [out, in] into [in, out]."""
    x = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x
    return np.ascontiguousarray(x.T if path == "head/kernel" else x)


def _channels_first(path: str, x: np.ndarray) -> np.ndarray:
    """Turn HWIO into OIHW and [in, out] into [out, in]."""
    x = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x
    return np.ascontiguousarray(x.T if path == "head/kernel" else x)


def _full_name(name: str) -> str:
    name = name.removeprefix("module.")
    return f"classifier.{name}" if name.startswith("layer_dict.") else name


def _array(x: Any) -> np.ndarray:
    """Copy an array or a PyTorch tensor."""
    return np.array(x.detach().cpu().numpy() if hasattr(x, "detach") else x)


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise ImportError("official checkpoint files need PyTorch (torch)") from error


def _numpy_globals() -> list:
    """List what pickled NumPy scalars and arrays refer to, by NumPy 1 and 2."""
    scalar, reconstruct = (x.__reduce__()[0] for x in (np.float64(0), np.zeros(1)))
    functions = [
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for function, name in ((scalar, "scalar"), (reconstruct, "_reconstruct"))
    ]
    dtypes = [type(np.dtype(c)) for c in "?bhilBHILefd"]
    return [*functions, np.ndarray, np.dtype, *dtypes]
