"""Convolution with per-task weights, for second-order gradients inside loops.

Images are channels last, [n, H, W, C]; kernels [size, size, C, F], size odd.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from l2f_jax.types import Array


def conv(
    x: Array,
    kernel: Array,
    *,
    stride: int = 1,
    padding: int | None = None,
    method: str,
) -> Array:
    """Convolve images.

    Args:
      x: images [n, H, W, C].
      kernel: [size, size, C, F], size odd.
      stride: step of the window, in pixels.
      padding: zeros on each side of the images, in pixels, at least 0; None is
        size // 2, with which stride 1 keeps the map's size.
      method: see `backend.convolution`. "forward" has its own rule for reverse-mode
        derivatives of any order, but none for forward mode; it is for stride 1, and a
        larger stride takes "im2col".
    Returns:
      [n, H', W', F], sides as of `side_after`.
    """
    half = kernel.shape[0] // 2
    padding = half if padding is None else padding
    if method == "xla":
        return _xla(x, kernel, stride, padding)
    if method == "forward" and stride == 1:
        # Its rule keeps the map's size: what is more is added before, less cut after.
        y = _convolve(_frame(x, max(padding - half, 0)), kernel)
        return _frame(y, min(padding - half, 0))
    return _im2col(x, kernel, stride, padding)


def side_after(side: int, size: int, stride: int, padding: int) -> int:
    """Return the height or width of what `conv` makes of images of one; least 0."""
    return max((side + 2 * padding - size) // stride + 1, 0)


def patches(x: Array, size: int, stride: int, padding: int) -> Array:
    """Gather each output pixel's window: [n, H, W, C] -> [n, H', W', size^2 C]."""
    x = _frame(x, padding)
    height, width = (side - size + 1 for side in x.shape[1:3])
    windows = [
        x[:, row : row + height : stride, column : column + width : stride]
        for row in range(size)
        for column in range(size)
    ]
    return jnp.concatenate(windows, axis=-1)


def _frame(x: Array, width: int) -> Array:
    """Put a frame of zeros around images; one of negative width is cut off."""
    if width == 0:
        return x
    sides = (width, width, 0)
    around = ((0, 0, 0), sides, sides, (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), around)


def _im2col(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    size, _, channels, filters = kernel.shape
    windows = patches(x, size, stride, padding)
    # As a product of two matrices: with the pixels left in three axes, XLA transposes
    # the gradients in memory and the whole meta-gradient takes 1.4 times as long.
    flat = windows.reshape(-1, size * size * channels)
    products = flat @ kernel.reshape(size * size * channels, filters)
    return products.reshape(*windows.shape[:-1], filters)


def _xla(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


# XLA's own gradients of a convolution are convolutions with other dimension orders,
# which on a CPU are about 20 times slower inside a loop than the forward one. The two
# functions below are each other's derivatives, so that every derivative, of any order,
# is a forward convolution or a sum of products of matrices over the images, and no more
# than one image's patches exist at a time.


@jax.custom_vjp
def _convolve(x: Array, kernel: Array) -> Array:
    """Convolve with stride 1 to a map of the same size: y = x * K."""
    return _xla(x, kernel, 1, kernel.shape[0] // 2)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _correlate(x: Array, y: Array, size: int) -> Array:
    """Sum window(x) y^T over images and pixels: the gradient of <x * K, y> in K.

    x [n, H, W, C], y [n, H, W, F] -> [size, size, C, F].
    """
    channels, filters = x.shape[-1], y.shape[-1]
    features = size * size * channels
    # The narrower factor is the one to transpose: XLA does so before it multiplies.
    tall = features > filters

    def add(total: Array, image: tuple[Array, Array]) -> tuple[Array, None]:
        windows = patches(image[0][None], size, 1, size // 2)
        rows = windows.reshape(-1, features)
        columns = image[1].reshape(-1, filters)
        return total + (columns.T @ rows if tall else rows.T @ columns), None

    # Image by image: the patches of one stay in the processor's cache.
    zeros = jnp.zeros((filters, features) if tall else (features, filters), x.dtype)
    total, _ = lax.scan(add, zeros, (x, y))
    return (total.T if tall else total).reshape(size, size, channels, filters)


def _mirror(kernel: Array) -> Array:
    """Return the kernel whose convolution is the transpose of this one's."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _convolve_backward(saved, g: Array):
    x, kernel = saved
    return _convolve(g, _mirror(kernel)), _correlate(x, g, kernel.shape[0])


def _correlate_backward(size: int, saved, g: Array):
    del size
    x, y = saved
    return _convolve(y, _mirror(g)), _convolve(x, g)


_convolve.defvjp(
    lambda x, kernel: (_convolve(x, kernel), (x, kernel)), _convolve_backward
)
_correlate.defvjp(
    lambda x, y, size: (_correlate(x, y, size), (x, y)), _correlate_backward
)
