"""Layers as pure functions: normalisation, pooling, linear head.

Images are channels last, [n, H, W, C]. Every layer works under `grad`, `jvp`, `vmap`
and `scan` in any nesting, which is what second-order adaptation asks of it.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from l2f_jax.types import Array, Params, Phase, Stats

glorot = jax.nn.initializers.glorot_uniform()


def max_pool(x: Array, padding: int = 0) -> Array:
    """Take the maximum of 2x2 windows, stride 2; an odd last row or column is dropped.

    Args:
      x: images [n, H, W, C].
      padding: rows and columns added on every side, which count as minus infinity.
    Returns:
      [n, (H + 2 padding) // 2, (W + 2 padding) // 2, C].
    """
    if padding:
        sides = (padding, padding)
        x = jnp.pad(x, ((0, 0), sides, sides, (0, 0)), constant_values=-jnp.inf)
    images, height, width, channels = x.shape
    height, width = height // 2, width // 2
    x = x[:, : 2 * height, : 2 * width]
    x = x.reshape(images, height, 2, width, 2, channels)
    # Not `x.max`: its gradient asks which x equal the maximum, and where XLA computes x
    # twice, with other rounding, none does: the gradient is then wrong or not a number.
    x = _larger(x[:, :, 0], x[:, :, 1])
    return _larger(x[:, :, :, 0], x[:, :, :, 1])


def _larger(a: Array, b: Array) -> Array:
    """Take the elementwise maximum; of equals, the gradient goes to the first."""
    return jnp.where(a >= b, a, b)


def init_linear(
    key: Array, path: str, features: int, outputs: int, dtype: jnp.dtype
) -> Params:
    """Return a Glorot uniform kernel [features, outputs] and bias 0."""
    return {
        f"{path}/kernel": glorot(key, (features, outputs), dtype),
        f"{path}/bias": jnp.zeros(outputs, dtype),
    }


def linear(params: Params, path: str, x: Array) -> Array:
    """Apply `path`/kernel [features, outputs] and `path`/bias to x [..., features]."""
    bias = lax.broadcast_to_rank(params[f"{path}/bias"], x.ndim)
    return x @ params[f"{path}/kernel"] + bias


@dataclasses.dataclass(frozen=True)
class Norm:
    """Which statistics a normalisation uses. The choice is part of the experiment.

    mode:
      "batch": always those of the images at hand, so that the query images are judged
        together (transductive). The published results of MAML and L2F use it.
      "support": those of the support images, recorded in `stats` and used for the query
        images, each of which is then judged alone (inductive).
      "running": those of the images at hand in meta-training, which also move running
        averages; the running averages in evaluation (phase "test").
      "layer": those of each image over height, width and channels; no scale, and one
        shift per pixel and channel.
    per_step: number of inner steps that have a scale and shift (and running averages)
      of their own, as in MAML++; None shares them. Later steps use the last.
    momentum: weight of the new statistics in a running average, in [0, 1].
    epsilon: added to the variance.
    """

    mode: Literal["batch", "support", "running", "layer"] = "batch"
    per_step: int | None = None
    momentum: float = 0.1
    epsilon: float = 1e-5

    def __post_init__(self):
        choices = ("batch", "support", "running", "layer")
        if self.mode not in choices:
            raise ValueError(f"`mode` ({self.mode!r}) must be one of {choices}")
        if self.per_step is not None and self.per_step < 1:
            raise ValueError(f"`per_step` ({self.per_step}) must be None or at least 1")


BATCH = Norm("batch")


def init_norm(norm: Norm, path: str, x: jax.ShapeDtypeStruct) -> tuple[Params, Stats]:
    """Return scale 1, shift 0, and mean 0, variance 1 where statistics are recorded.

    Args:
      norm: which statistics.
      path: the layer's path, such as "norm_0".
      x: shape [n, H, W, C] and dtype of the images that the layer will see.
    """
    steps = () if norm.per_step is None else (norm.per_step,)
    if norm.mode == "layer":
        return {f"{path}/shift": jnp.zeros((*steps, *x.shape[1:]), x.dtype)}, {}
    zeros = jnp.zeros((*steps, x.shape[-1]), x.dtype)
    params = {f"{path}/scale": zeros + 1, f"{path}/shift": zeros}
    if norm.mode == "batch":
        return params, {}
    if norm.mode == "support":
        zeros = jnp.zeros(x.shape[-1], x.dtype)
    return params, {f"{path}/mean": zeros, f"{path}/variance": zeros + 1}


def normalise(
    norm: Norm,
    params: Params,
    stats: Stats,
    path: str,
    x: Array,
    *,
    phase: Phase,
    step: Array | int,
) -> tuple[Array, Stats]:
    """Normalise images [n, H, W, C]; return them and all statistics.

    The variance is the biased one (divided by the number of values), except in running
    averages, which record the unbiased one. Reference: Ioffe and Szegedy, Batch
    Normalization, ICML 2015; Antoniou et al., How to train your MAML, ICLR 2019.
    """
    shift = _at_step(norm, params[f"{path}/shift"], step)
    if norm.mode == "layer":
        mean, variance = _moments(x, axes=(1, 2, 3))
        standard = (x - mean) * lax.rsqrt(variance + norm.epsilon)
        return standard + lax.broadcast_to_rank(shift, x.ndim), stats
    if (norm.mode, phase) in (("support", "query"), ("support", "test")):
        mean, variance = stats[f"{path}/mean"], stats[f"{path}/variance"]
    elif (norm.mode, phase) == ("running", "test"):
        mean = _at_step(norm, stats[f"{path}/mean"], step)
        variance = _at_step(norm, stats[f"{path}/variance"], step)
    else:
        mean, variance = (m.reshape(-1) for m in _moments(x, axes=(0, 1, 2)))
        stats = stats | _recorded(norm, stats, path, x, (mean, variance), step)
    scale = _at_step(norm, params[f"{path}/scale"], step)
    gain = scale * lax.rsqrt(variance + norm.epsilon)
    offset = shift - mean * gain
    gain, offset = (lax.broadcast_to_rank(v, x.ndim) for v in (gain, offset))
    return x * gain + offset, stats


def _recorded(
    norm: Norm, stats: Stats, path: str, x: Array, moments, step: Array | int
) -> Stats:
    """Return what a pass over images x records of their moments, by path."""
    mean, variance = moments
    if norm.mode == "support":
        return {f"{path}/mean": mean, f"{path}/variance": variance}
    if norm.mode == "running":
        count = x.size // x.shape[-1]
        unbiased = variance * (count / max(count - 1, 1))
        seen = {f"{path}/mean": mean, f"{path}/variance": unbiased}
        return {k: _move(norm, stats[k], v, step) for k, v in seen.items()}
    return {}


def _move(norm: Norm, average: Array, new: Array, step: Array | int) -> Array:
    """Move a running average (that of the inner step) towards the new statistic."""
    moved = (1 - norm.momentum) * _at_step(norm, average, step)
    moved = moved + norm.momentum * lax.stop_gradient(new)
    if norm.per_step is None:
        return moved
    return lax.dynamic_update_index_in_dim(average, moved, step, axis=0)


def _at_step(norm: Norm, x: Array, step: Array | int) -> Array:
    """Select the entry of an inner step; steps beyond the last use the last."""
    if norm.per_step is None:
        return x
    return lax.dynamic_index_in_dim(x, step, keepdims=False)


def _moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Return mean and biased variance over the axes, which stay with length one."""
    mean = x.mean(axes, keepdims=True)
    return mean, jnp.square(x - mean).mean(axes, keepdims=True)
