"""Check the entries of a published pickle: images, class numbers and class names.

Each function takes what an entry holds and where it stands ("train.pkl: 'labels'"),
and raises ValueError that begins with it.
"""

from typing import Any

import numpy as np

from l2f_jax.data.sources.unpickle import text


def images(value: Any, where: str, *shape: int | None) -> np.ndarray:
    """Return uint8 [n, *shape]; None is any size."""
    array = _array(value, where)
    sizes = array.shape[1:]
    fits = len(sizes) == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(shape, sizes, strict=True)
    )
    if array.dtype != np.uint8 or not fits:
        wanted = ", ".join(["n", *("?" if n is None else str(n) for n in shape)])
        raise ValueError(
            f"{where} ({array.dtype} {array.shape}) must be uint8 [{wanted}]"
        )
    return array


def numbers(value: Any, where: str, below: int | None = None) -> np.ndarray:
    """Return integers [n] of at least 0 and, unless it is None, less than `below`."""
    array = _array(value, where)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{where} ({array.dtype} {array.shape}) must be integers [n]")
    outside = array[(array < 0) | (array >= (np.inf if below is None else below))]
    if outside.size:
        most = "" if below is None else f" and less than {below}"
        raise ValueError(f"{where}: holds {outside[0]}; must be at least 0{most}")
    return array


def names(value: Any, where: str) -> list[str]:
    """Return a list of text, decoded."""
    if not isinstance(value, list | tuple | np.ndarray) or not all(
        isinstance(name, str | bytes) for name in value
    ):
        raise ValueError(f"{where} ({type(value).__name__}) must be a list of text")
    return [text(name) for name in value]


def _array(value: Any, where: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of unequal length
        raise ValueError(f"{where}: is no array ({error})") from None
