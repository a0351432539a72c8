"""Convolution with per-task weights, for second-order gradients inside loops.

Images are channels last, [n, H, W, C]; kernels [size, size, C, F], size odd.
"""

import jax.numpy as jnp
from jax import lax

from l2f_jax.types import Array


def conv(x: Array, kernel: Array, *, stride: int = 1, method: str) -> Array:
    """Convolve with zero padding size // 2, so that stride 1 keeps the map's size.

    Args:
      x: images [n, H, W, C].
      kernel: [size, size, C, F], size odd.
      stride: step of the window, in pixels.
      method: "im2col" or "xla", see `backend.convolution`.
    Returns:
      [n, ceil(H / stride), ceil(W / stride), F].
    """
    if method == "xla":
        return _xla(x, kernel, stride)
    return _im2col(x, kernel, stride)


def patches(x: Array, size: int, stride: int = 1) -> Array:
    """Gather each output pixel's window: [n, H, W, C] -> [n, H', W', size^2 C]."""
    pad = size // 2
    height, width = x.shape[1], x.shape[2]
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = [
        x[:, row : row + height : stride, column : column + width : stride]
        for row in range(size)
        for column in range(size)
    ]
    return jnp.concatenate(windows, axis=-1)


def _im2col(x: Array, kernel: Array, stride: int) -> Array:
    size, _, channels, filters = kernel.shape
    windows = patches(x, size, stride)
    # As a product of two matrices: with the pixels left in three axes, XLA transposes
    # the gradients in memory and the whole meta-gradient takes 1.4 times as long.
    flat = windows.reshape(-1, size * size * channels)
    products = flat @ kernel.reshape(size * size * channels, filters)
    return products.reshape(*windows.shape[:-1], filters)


def _xla(x: Array, kernel: Array, stride: int) -> Array:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
