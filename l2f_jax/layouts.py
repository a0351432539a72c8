"""The orders in which the official code's tensors and ours hold the same numbers."""

import math

import numpy as np

from l2f_jax.official import Arrays, Form

FeatureMap = tuple[int, int] | None  # (height, width) of the head's; None: square


def head_rows(form: Form, params: Arrays, feature_map: FeatureMap) -> np.ndarray:
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


def reorder(phi: Arrays, order: np.ndarray) -> Arrays:
    """Permute inputs and outputs of the attenuator; its hidden units stay."""
    return {
        "layer_0/kernel": phi["layer_0/kernel"][order],
        "layer_0/bias": phi["layer_0/bias"],
        "layer_1/kernel": phi["layer_1/kernel"][:, order],
        "layer_1/bias": phi["layer_1/bias"][order],
    }


def channels_last(path: str, x: np.ndarray) -> np.ndarray:
    """Turn OIHW into HWIO, CHW into HWC and [out, in] into [in, out]."""
    axes = {4: (2, 3, 1, 0), 3: (1, 2, 0)}
    x = x.transpose(axes[x.ndim]) if x.ndim in axes else x
    return np.ascontiguousarray(x.T if path == "head/kernel" else x)


def channels_first(path: str, x: np.ndarray) -> np.ndarray:
    """Turn HWIO into OIHW, HWC into CHW and [in, out] into [out, in]."""
    axes = {4: (3, 2, 0, 1), 3: (2, 0, 1)}
    x = x.transpose(axes[x.ndim]) if x.ndim in axes else x
    return np.ascontiguousarray(x.T if path == "head/kernel" else x)
