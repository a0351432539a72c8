"""Augmentation of the raw images of one episode, on the device.

Every function maps (key, raw images uint8 [ways, k, H, W, C]) to the same shape, for
one task. Which of them a run uses is a property of its training split.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from l2f_jax.types import Array

Augmentation = Callable[[Array, Array], Array]


def augment(*names: str | Augmentation) -> Augmentation:
    """Chain augmentations, by name ("rotate_classes", "crop", "flip") or as functions.

    Without a name the images are left as they are. Raises ValueError for an unknown
    name.
    """
    steps = [_step(name) for name in names]

    def apply(key: Array, raw: Array) -> Array:
        for number, step in enumerate(steps):
            raw = step(jax.random.fold_in(key, number), raw)
        return raw

    return apply


def rotate_classes(key: Array, raw: Array) -> Array:
    """Rotate all images of a class by the same k * 90 degrees, k random per class.

    Omniglot's augmentation; images must be square.
    """
    ways, _, height, width, _ = raw.shape
    if height != width:
        raise ValueError(
            f"`augment` 'rotate_classes' needs square images, not {height} x {width}"
        )
    turns = jax.random.randint(key, (ways,), 0, 4)
    turned = jnp.stack([jnp.rot90(raw, k, axes=(2, 3)) for k in range(4)])
    return turned[turns, jnp.arange(ways)]


def random_crop(padding: int) -> Augmentation:
    """Shift each image by up to `padding` pixels; what comes in at the edge is 0.

    That is a crop of the original size out of the image padded on every side.
    """
    if padding < 1:
        raise ValueError(f"`padding` ({padding}) must be at least 1")

    def apply(key: Array, raw: Array) -> Array:
        corners = jax.random.randint(key, (*raw.shape[:2], 2), 0, 2 * padding + 1)
        border = (padding, padding)

        def crop(image: Array, corner: Array) -> Array:
            padded = jnp.pad(image, (border, border, (0, 0)))
            start = (corner[0], corner[1], jnp.zeros_like(corner[0]))
            return jax.lax.dynamic_slice(padded, start, image.shape)

        return jax.vmap(jax.vmap(crop))(raw, corners)

    return apply


def crop(key: Array, raw: Array) -> Array:
    """Apply `random_crop` with an eighth of the height: 4 pixels of 32, 10 of 84."""
    return random_crop(max(raw.shape[2] // 8, 1))(key, raw)


def flip(key: Array, raw: Array) -> Array:
    """Mirror each image left-right with probability 1/2."""
    mirror = jax.random.bernoulli(key, shape=(*raw.shape[:2], 1, 1, 1))
    return jnp.where(mirror, raw[:, :, :, ::-1], raw)


AUGMENTATIONS = {"rotate_classes": rotate_classes, "crop": crop, "flip": flip}


def _step(name: str | Augmentation) -> Augmentation:
    if callable(name):
        return name
    if name not in AUGMENTATIONS:
        raise ValueError(
            f"`augment` ({name!r}) must be one of {', '.join(AUGMENTATIONS)}"
        )
    return AUGMENTATIONS[name]
