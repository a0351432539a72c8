"""What every reader returns: the classes of a data set, one at a time.

A reader is a function `read(path, *, split, seed) -> Source`. It opens nothing that it
does not need, yields classes split by split in sorted order, and leaves the decoding
to `decode`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Item(NamedTuple):
    """One image: `where` names it in messages, `read` returns it.

    read() -> the bytes of an image file, or a uint8 array [H, W, C].
    """

    where: str
    read: Callable[[], bytes | np.ndarray]


def array_item(where: str, images: np.ndarray, row: int) -> Item:
    """Return the item of image `row` of an array [n, H, W, C] read from `where`."""
    return Item(f"{where}, image {row}", lambda: images[row])


class SourceClass(NamedTuple):
    """One class: its name, its split and its images."""

    name: str
    split: str
    items: Sequence[Item]


class Expected(NamedTuple):
    """The known size of a published data set.

    classes: split -> number of classes.
    images: images of every class; None where classes differ in size.
    """

    classes: dict[str, int]
    images: int | None


class Source(NamedTuple):
    """A data set about to be packed.

    classes: the classes in bank order; lazy, read once.
    total: number of classes, as far as known before reading.
    size: side length in pixels to resize to unless another is asked for.
    ink: True for black drawings on white paper: one channel, ink 255 on 0.
    expected: what a complete data set has, None for one's own.
    provenance: JSON values that tell where the images come from.
    notes: sentences that the user should read.
    """

    classes: Iterable[SourceClass]
    total: int
    size: int
    ink: bool
    expected: Expected | None
    provenance: dict[str, str | int]
    notes: tuple[str, ...] = ()


Reader = Callable[..., Source]
"""read(path, *, split: str | None, seed: int) -> Source."""
