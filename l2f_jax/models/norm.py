"""Normalisation as pure functions, with an explicit choice of statistics.

Images are channels last, [n, H, W, C]; every function works under `grad`, `vmap` and
`scan` in any nesting.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from l2f_jax.models.layers import largest, max_pool, take, windows_of
from l2f_jax.types import Array, Params, Phase, Stats


@dataclasses.dataclass(frozen=True)
class Norm:
    """Which statistics a normalisation uses. The choice is part of the experiment.

    mode:
      "batch": always those of the images at hand, so that the query images are judged
        together (transductive). The published results of MAML and L2F use it.
      "support": those of the support images, recorded in `stats` and used for the query
        images, each of which is then judged alone (inductive).
      "running": those of the images at hand in meta-training and for support images,
        which also move running averages; the running averages for query images in
        evaluation (phase "test"). The support passes of the task have moved them, S + 1
        times with S inner steps: with `momentum` 0.1 and S = 5, nearly half of them is
        the task's own.
      "layer": those of each image over height, width and channels; no scale, and one
        shift per pixel and channel.
    per_step: number of inner steps that have a scale and shift (and running averages)
      of their own, as in MAML++; None shares them. Later steps use the last. Not with
      "support": what the pass of step t + 1 records goes with the scales of that step,
      while the query images after t steps take those of step t.
    momentum: weight of the new statistics in a running average, in [0, 1].
    epsilon: added to the variance, above 0.
    learn_scale, learn_shift: whether there is a scale and a shift; one that is not
      learned is no parameter, but constant 1 or 0.
    """

    mode: Literal["batch", "support", "running", "layer"] = "batch"
    per_step: int | None = None
    momentum: float = 0.1
    epsilon: float = 1e-5
    learn_scale: bool = True
    learn_shift: bool = True

    def __post_init__(self):
        choices = ("batch", "support", "running", "layer")
        if self.mode not in choices:
            raise ValueError(f"`mode` ({self.mode!r}) must be one of {choices}")
        if self.per_step is not None and self.per_step < 1:
            raise ValueError(f"`per_step` ({self.per_step}) must be None or at least 1")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"`momentum` ({self.momentum}) must lie in 0 .. 1")
        if self.epsilon <= 0:
            raise ValueError(f"`epsilon` ({self.epsilon}) must be above 0")
        if self.per_step is not None and self.mode == "support":
            raise ValueError(
                f"`per_step` ({self.per_step}) must be None with `mode` 'support': its "
                "statistics are recorded with the scales of another step than the "
                "query images take; 'running' has statistics of every step"
            )


BATCH = Norm("batch")


def init_norm(norm: Norm, path: str, x: jax.ShapeDtypeStruct) -> tuple[Params, Stats]:
    """Return scale 1, shift 0 where they are learned, and mean 0, variance 1 where
    statistics are recorded.

    Args:
      norm: which statistics.
      path: the layer's path, such as "norm_0".
      x: shape [n, H, W, C] and dtype of the images that the layer will see.
    """
    steps = () if norm.per_step is None else (norm.per_step,)
    shape = x.shape[1:] if norm.mode == "layer" else x.shape[-1:]
    zeros = jnp.zeros((*steps, *shape), x.dtype)
    params = {}
    if norm.learn_scale and norm.mode != "layer":
        params[f"{path}/scale"] = zeros + 1
    if norm.learn_shift:
        params[f"{path}/shift"] = zeros
    if norm.mode in ("batch", "layer"):
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
    if norm.mode == "layer":
        mean, variance = _moments(x, axes=(1, 2, 3))
        standard = (x - mean) * lax.rsqrt(variance + norm.epsilon)
        if not norm.learn_shift:
            return standard, stats
        shift = _at_step(norm, params, f"{path}/shift", step, x.shape[1:])
        return standard + lax.broadcast_to_rank(shift, x.ndim), stats
    gain, offset, stats = _affine(norm, params, stats, path, x, phase, step)
    return x * gain + offset, stats


def normalise_and_pool(
    norm: Norm, params: Params, stats: Stats, path: str, x: Array, **when
) -> tuple[Array, Stats]:
    """Compute `max_pool(normalise(x))` and all statistics, faster and in less memory.

    A normalisation is increasing or, where its scale is negative, decreasing, so the
    largest or smallest value can be taken first; the rest, and most of every
    derivative, then works on a quarter of the numbers. Arguments: as `normalise`.
    """
    if norm.mode == "layer":  # its shift differs between the pixels of a window
        x, stats = normalise(norm, params, stats, path, x, **when)
        return max_pool(x), stats
    gain, offset, stats = _affine(norm, params, stats, path, x, **when)
    windows = windows_of(x)
    falling = lax.broadcast_to_rank(gain < 0, windows.ndim)
    extreme = take(largest(jnp.where(falling, -windows, windows)), windows)
    return extreme * gain + offset, stats


def _affine(
    norm: Norm,
    params: Params,
    stats: Stats,
    path: str,
    x: Array,
    phase: Phase,
    step: Array | int,
) -> tuple[Array, Array, Stats]:
    """Return (gain, offset) of each channel, and statistics: x * gain + offset."""
    channels = x.shape[-1:]
    if (norm.mode, phase) in (("support", "query"), ("support", "test")):
        mean, variance = stats[f"{path}/mean"], stats[f"{path}/variance"]
    elif (norm.mode, phase) == ("running", "test"):
        mean = _at_step(norm, stats, f"{path}/mean", step, channels)
        variance = _at_step(norm, stats, f"{path}/variance", step, channels)
    else:
        mean, variance = (m.reshape(-1) for m in _moments(x, axes=(0, 1, 2)))
        stats = stats | _recorded(norm, stats, path, x, (mean, variance), step)
    gain = lax.rsqrt(variance + norm.epsilon)
    if norm.learn_scale:
        gain = _at_step(norm, params, f"{path}/scale", step, channels) * gain
    offset = mean * gain
    if norm.learn_shift:
        offset = _at_step(norm, params, f"{path}/shift", step, channels) - offset
    else:
        offset = -offset
    gain, offset = (lax.broadcast_to_rank(v, x.ndim) for v in (gain, offset))
    return gain, offset, stats


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
        return {k: _move(norm, stats, k, v, step) for k, v in seen.items()}
    return {}


def _move(norm: Norm, stats: Stats, path: str, new: Array, step: Array | int) -> Array:
    """Move a running average (that of the inner step) towards the new statistic."""
    moved = (1 - norm.momentum) * _at_step(norm, stats, path, step, new.shape)
    moved = moved + norm.momentum * lax.stop_gradient(new)
    if norm.per_step is None:
        return moved
    return lax.dynamic_update_index_in_dim(stats[path], moved, step, axis=0)


def _at_step(
    norm: Norm,
    tensors: dict[str, Array],
    path: str,
    step: Array | int,
    shape: tuple[int, ...],
) -> Array:
    """Select the entry, [*shape], of an inner step; steps beyond the last use the last.

    Raises:
      ValueError: the tensor is not [*shape], or [per_step, *shape].
    """
    x = tensors[path]
    expected = shape if norm.per_step is None else (norm.per_step, *shape)
    if x.shape != expected:  # it would be broadcast to something else without a word
        raise ValueError(
            f"`{path}` has shape {x.shape}; with `per_step` ({norm.per_step}) it must "
            f"be {expected}"
        )
    if norm.per_step is None:
        return x
    return lax.dynamic_index_in_dim(x, step, keepdims=False)


def _moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Return mean and biased variance over the axes, which stay with length one.

    Both in one pass over x, from the mean d and the mean square of x - c: the mean is
    c + d, the variance the mean square less d^2. Any constant c is exact; one near the
    mean, here that of the first image or row, keeps the difference from losing digits.
    """
    first = lax.slice_in_dim(x, 0, 1, axis=axes[0])
    centre = lax.stop_gradient(first.mean(axes, keepdims=True))
    x = x - centre
    mean = x.mean(axes, keepdims=True)
    variance = jnp.square(x).mean(axes, keepdims=True) - jnp.square(mean)
    return mean + centre, jnp.maximum(variance, 0)
