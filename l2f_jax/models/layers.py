"""Layers as pure functions: pooling and the linear head.

Images are channels last, [n, H, W, C]. Every layer works under `grad`, `vmap` and
`scan` in any nesting, which is what second-order adaptation asks of it. Pooling has its
own rule for reverse-mode derivatives, and none for forward mode (`jvp`).
"""

from collections.abc import Sequence
from numbers import Integral

import jax
import jax.numpy as jnp
from jax import lax

from l2f_jax.types import Array, Params

glorot = jax.nn.initializers.glorot_uniform()


def check_sizes(**sizes: int | Sequence[int] | None) -> None:
    """Raise ValueError for what is no integer, or no integers, above 0; by its name."""
    for name, size in sizes.items():
        if size is None:  # there is none
            continue
        one = isinstance(size, str) or not isinstance(size, Sequence)
        each: Sequence = [size] if one else size  # pyright: ignore  (of a union)
        if not all(isinstance(x, Integral) and int(x) > 0 for x in each):
            wanted = "an integer" if one else "integers"
            raise ValueError(f"`{name}` ({size!r}) must be {wanted} of at least 1")


def max_pool(x: Array, padding: int = 0) -> Array:
    """Take the maximum of 2x2 windows, stride 2; an odd last row or column is dropped.

    Of equal values the first has the gradient.

    Args:
      x: images [n, H, W, C].
      padding: rows and columns added on every side, which count as minus infinity.
    Returns:
      [n, (H + 2 padding) // 2, (W + 2 padding) // 2, C].
    """
    if padding:
        sides = (padding, padding)
        x = jnp.pad(x, ((0, 0), sides, sides, (0, 0)), constant_values=-jnp.inf)
    x = windows_of(x)
    return take(largest(x), x)


def windows_of(x: Array) -> Array:
    """Divide images into 2x2 windows: [n, H, W, C] -> [n, H // 2, 2, W // 2, 2, C]."""
    images, height, width, channels = x.shape
    height, width = height // 2, width // 2
    x = x[:, : 2 * height, : 2 * width]
    return x.reshape(images, height, 2, width, 2, channels)


# Not `x.max`: its gradient asks which x equal the maximum, and where XLA computes x
# twice, with other rounding, none does: the gradient is then wrong or not a number.
# Here the place of the maximum is an integer. `take` and `put` are each other's
# transposes, so that every derivative, of any order, is one of them: a single loop.


def largest(windows: Array) -> Array:
    """Return the place of each window's first maximum: 0 1 / 2 3."""
    a, b = windows[:, :, 0, :, 0], windows[:, :, 0, :, 1]
    c, d = windows[:, :, 1, :, 0], windows[:, :, 1, :, 1]
    upper, lower = jnp.maximum(a, b), jnp.maximum(c, d)
    above, below = jnp.where(a >= b, 0, 1), jnp.where(c >= d, 2, 3)
    return jnp.where(upper >= lower, above, below).astype(jnp.int8)


@jax.custom_vjp
def take(place: Array, windows: Array) -> Array:
    """Take one value out of each window: [n, h, 2, w, 2, C] -> [n, h, w, C]."""
    upper = jnp.where(place == 0, windows[:, :, 0, :, 0], windows[:, :, 0, :, 1])
    lower = jnp.where(place == 2, windows[:, :, 1, :, 0], windows[:, :, 1, :, 1])
    return jnp.where(place < 2, upper, lower)


@jax.custom_vjp
def put(place: Array, x: Array) -> Array:
    """Put one value into each window of zeros: [n, h, w, C] -> [n, h, 2, w, 2, C]."""
    places = jnp.arange(4, dtype=place.dtype).reshape(1, 1, 2, 1, 2, 1)
    here = place[:, :, None, :, None] == places
    return jnp.where(here, x[:, :, None, :, None], jnp.zeros((), x.dtype))


take.defvjp(
    lambda place, windows: (take(place, windows), place),
    lambda place, g: (None, put(place, g)),
)
put.defvjp(
    lambda place, x: (put(place, x), place),
    lambda place, g: (None, take(place, g)),
)


def init_head(
    key: Array, features: int, outputs: int | None, dtype: jnp.dtype
) -> Params:
    """Return head/kernel [features, outputs], Glorot uniform, and head/bias, 0.

    Without outputs there is no head: {}.
    """
    if outputs is None:
        return {}
    return {
        "head/kernel": glorot(key, (features, outputs), dtype),
        "head/bias": jnp.zeros(outputs, dtype),
    }


def linear(params: Params, path: str, x: Array) -> Array:
    """Apply `path`/kernel [features, outputs] and `path`/bias to x [..., features]."""
    bias = lax.broadcast_to_rank(params[f"{path}/bias"], x.ndim)
    return x @ params[f"{path}/kernel"] + bias
