"""Read and write the checkpoints of the official L2F code (baiksung/L2F, PyTorch).

The official state dict names tensors by module, keeps kernels OIHW, flattens the last
feature map C, H, W and lists the adapted tensors, one "layer" each, in the order their
modules were registered. Here paths name tensors, kernels are HWIO, the map is flattened
H, W, C and adapted tensors are sorted by path. Translating permutes axes, rows and
columns and computes nothing, so it is exact in both directions.
"""

import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from l2f_jax.layouts import (
    FeatureMap,
    channels_first,
    channels_last,
    head_rows,
    reorder,
)
from l2f_jax.models.norm import Norm
from l2f_jax.official import (
    ATTENUATOR,
    PREFIX,
    RATES,
    Arrays,
    Form,
    Layer,
    check_state,
    form_of_params,
    form_of_state,
)
from l2f_jax.types import MetaParams

# Statistics that the official code stores and never normalises with.
_UNUSED = re.compile(r"\.(running_mean|running_var|num_batches_tracked|backup_\w+)$")


class OfficialModel(NamedTuple):
    """What an official checkpoint holds, as NumPy arrays in the dtypes it has.

    `jax.tree.map(jnp.asarray, model.meta)` puts it on a device, in float32 unless
    64-bit types are enabled.

    meta: `transform` is () for MAML, the attenuator for L2F; `rule` is () if the rates
      are fixed.
    network: "conv4" or "resnet12".
    attenuate: whether there is an attenuator (L2F).
    norm: what `conv4` or `resnet12` normalises by.
    adapts_norm: whether norm scales and shifts are adapted (and attenuated) too.
    rates: {path of each adapted tensor: [steps]}, fixed or learned.
    """

    meta: MetaParams
    network: str
    attenuate: bool
    norm: Norm
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
      path: the file; one that is there is replaced by the complete new one.
      meta, rates, feature_map: see `to_official`.
      bookkeeping: what lies beside the network, such as current_iter, best_val_acc.
    """
    torch = _torch()
    state = to_official(meta, rates, feature_map=feature_map)
    network = {name: torch.tensor(x) for name, x in state.items()}
    partial = Path(f"{path}.{os.getpid()}.partial")
    torch.save({**(bookkeeping or {}), "network": network}, partial)
    os.replace(partial, path)


def from_official(
    state: Mapping[str, Any],
    *,
    learned_rates: bool = False,
    learned_scale: bool = True,
    learned_shift: bool = True,
    feature_map: FeatureMap = None,
) -> OfficialModel:
    """Translate an official state dict.

    Args:
      state: {name: array or tensor}. A leading "module." or a missing "classifier." is
        accepted; running statistics are ignored.
      learned_rates: whether the inner rates were learned, which the file does not say;
        if so they become `meta.rule`.
      learned_scale, learned_shift: whether those of the norm layers were learned, which
        the file does not say either; if not they are left out.
      feature_map: (height, width) of the map that the head sees; None: it is square.
    Raises:
      ValueError: naming every tensor that is missing, left over or of a wrong shape,
        or said to be constant and is not.
    """
    named = {_full_name(name): x for name, x in state.items()}
    tensors = {k: _array(x) for k, x in named.items() if not _UNUSED.search(k)}
    learned = {"scale": learned_scale, "shift": learned_shift}
    form = form_of_state(tensors, tuple(k for k, is_so in learned.items() if not is_so))
    check_state(form, tensors)

    params: Arrays = {path: tensors[name] for name, path in form.names.items()}
    params = {path: channels_last(path, x) for path, x in sorted(params.items())}
    rows = head_rows(form, params, feature_map)
    params["head/kernel"] = params["head/kernel"][rows]
    rates = dict(sorted(zip(form.adapted, tensors[RATES].T.copy(), strict=True)))
    phi = ()
    if form.attenuate:
        phi = {path: tensors[name].T for name, path in ATTENUATOR.items()}
        phi = reorder(phi, np.argsort(form.adapted))
    return OfficialModel(
        meta=MetaParams(params, phi, rates if learned_rates else ()),
        network=form.network,
        attenuate=form.attenuate,
        norm=_norm(form, params),
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
      meta: `params` of `conv4` with batch or layer norm, or of `resnet12` with batch
        norm; `transform` () or that of `attenuate()`, layer-wise with two layers;
        `rule` () or rates per step.
      rates: {path of each adapted tensor: [steps]}; None takes the learned `meta.rule`.
      feature_map: (height, width) of the map that the head sees; None: it is square.
    Returns:
      {official name: array}, with the zero running statistics that the official code
      looks for. Without any norm parameters it is batch norm.
    Raises:
      ValueError: if the official code has no such network, attenuator or rates.
    """
    params = {path: _array(x) for path, x in meta.params.items()}
    rates = {path: _array(x) for path, x in dict(rates or meta.rule).items()}
    form = form_of_params(params, rates)
    phi = _attenuator(meta.transform, len(form.adapted))

    rows = head_rows(form, params, feature_map)
    params["head/kernel"] = params["head/kernel"][np.argsort(rows)]
    state = {RATES: np.stack([rates[path] for path in form.adapted], axis=1)}
    for name, path in form.names.items():
        state[name] = channels_first(path, params[path])
    for layer in form.layers:
        state |= _stored_norm(form, layer, state)
    if phi:
        # argsort leads to sorted order; the argsort of that leads back.
        phi = reorder(phi, np.argsort(np.argsort(form.adapted)))
        state |= {name: phi[path].T.copy() for name, path in ATTENUATOR.items()}
    return state


def _norm(form: Form, params: Arrays) -> Norm:
    """Return what the norm layers of these parameters do."""
    learn_shift = "shift" not in form.constant
    if form.norm == "layer":
        return Norm("layer", learn_shift=learn_shift)
    path = form.layers[0].norm
    affine = [params[k] for k in (f"{path}/scale", f"{path}/shift") if k in params]
    return Norm(
        per_step=len(affine[0]) if affine and affine[0].ndim == 2 else None,
        learn_scale="scale" not in form.constant,
        learn_shift=learn_shift,
    )


def _stored_norm(form: Form, layer: Layer, state: Arrays) -> Arrays:
    """Return all that the official code stores of a norm layer.

    What the state lacks of scale and shift is constant.
    """
    norm = f"{PREFIX}{layer.official_norm}."
    channels = state[f"{PREFIX}{layer.official_conv}.weight"][:, 0, 0, 0]
    like = state.get(f"{norm}weight", state.get(f"{norm}bias", channels))
    statistics = () if form.norm == "layer" else ("running_mean", "running_var")
    kinds = ("weight", "bias", *statistics)
    stored = {norm + kind: np.full_like(like, kind == "weight") for kind in kinds}
    return {name: state.get(name, x) for name, x in stored.items()}


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
        raise ImportError(
            "official checkpoint files need PyTorch: pip install 'l2f_jax[interop]'"
        ) from error


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
