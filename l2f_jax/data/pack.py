"""Pack a source into a bank: decode, resize, check counts, refuse what is broken."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL

from l2f_jax.data.bank import SPLITS
from l2f_jax.data.sources.decode import UnreadableImage, decode, resize_method
from l2f_jax.data.sources.source import Expected, Item, Source, SourceClass
from l2f_jax.data.writer import write_bank

LISTED = 10  # differences from the known counts that are spelt out


def pack_bank(
    source: Source,
    output: Path,
    *,
    size: int | None = None,
    min_images: int = 2,
    allow_partial: bool = False,
    overwrite: bool = False,
    advance: Callable[[str], None] = lambda name: None,
) -> None:
    """Write the bank of a source.

    Args:
      source: from a reader.
      output: folder to make.
      size: side of the images in pixels; None is the source's usual one.
      min_images: refuse a class with fewer.
      allow_partial: accept other counts than the published ones, and missing splits.
      overwrite: replace a bank at `output`.
      advance: called with the name of each class that is done.
    Raises:
      ValueError: naming all unreadable images, or all classes of a wrong size; `size`
        or `min_images` < 1.
    """
    side = source.size if size is None else size
    if side < 1:
        raise ValueError(f"`size` ({side}) must be at least 1")
    if min_images < 1:
        raise ValueError(f"`min_images` ({min_images}) must be at least 1")
    provenance = source.provenance | {
        "resize": f"{resize_method(source.ink)}, antialiased, to {side} x {side}",
        "versions": {"pillow": PIL.__version__},
    }
    check = partial(
        check_counts,
        expected=None if allow_partial else source.expected,
        splits=() if allow_partial else SPLITS,
        min_images=min_images,
    )
    if isinstance(source.classes, tuple):  # listed already: refuse before the work
        check([_listed(found) for found in source.classes])
    listing: list[Listed] = []
    unreadable: list[str] = []
    sizes: Counter[tuple[int, int]] = Counter()
    with (
        write_bank(output, provenance, overwrite=overwrite) as add,
        ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool,
    ):
        for found in source.classes:
            images, bad = _decode_class(pool, found, side, source.ink, sizes)
            unreadable += bad
            if images and not unreadable:
                add(found.name, found.split, np.stack(images))
            listing.append(_listed(found))
            advance(found.name)
        if unreadable:
            raise ValueError(_lines("unreadable images", unreadable))
        check(listing)
        provenance["original_sizes"] = _described(sizes)


class Listed(NamedTuple):
    """A class as the counts see it."""

    name: str
    split: str
    count: int


def check_counts(
    classes: Sequence[Listed],
    *,
    expected: Expected | None,
    splits: Sequence[str],
    min_images: int,
) -> None:
    """Raise ValueError if classes are missing, too many, or of a wrong size.

    Args:
      classes: all classes of the source.
      expected: the published sizes, None if there are none to check.
      splits: the splits that must have a class.
      min_images: of every class.
    """
    if not classes:
        raise ValueError("no class was found")
    small = [
        f"class {name!r} has {count} images, fewer than --min-images {min_images}"
        for name, _, count in classes
        if count < min_images
    ]
    if small:
        raise ValueError(_lines("classes with too few images", small))
    there = Counter(found.split for found in classes)
    wrong = [f"split {split!r} has no class" for split in splits if not there[split]]
    if expected:
        wrong += [
            f"split {split!r} has {there[split]} classes, not {count}"
            for split, count in expected.classes.items()
            if there[split] not in (0, count)
        ]
        wrong += [
            f"class {name!r} has {count} images, not {expected.images}"
            for name, _, count in classes
            if expected.images not in (None, count)
        ]
    if wrong:
        more = [f"and {len(wrong) - LISTED} more"] if len(wrong) > LISTED else []
        found = _lines("wrong counts", wrong[:LISTED] + more)
        raise ValueError(f"{found}\n--allow-partial packs what is there")


def _decode_class(
    pool: Executor,
    found: SourceClass,
    size: int,
    ink: bool,
    sizes: Counter[tuple[int, int]],
) -> tuple[list[np.ndarray], list[str]]:
    """Decode the images of a class; return them and what could not be read."""

    def attempt(item: Item):
        try:
            return decode(item, size, ink)
        except UnreadableImage as error:
            return error

    results = list(pool.map(attempt, found.items))
    bad = [str(result) for result in results if isinstance(result, UnreadableImage)]
    good = [result for result in results if not isinstance(result, UnreadableImage)]
    sizes.update(original for _, original in good)
    return [image for image, _ in good], bad


def _listed(found: SourceClass) -> Listed:
    return Listed(found.name, found.split, len(found.items))


def _lines(title: str, entries: Sequence[str]) -> str:
    return "\n  ".join([f"{title}:", *entries])


def _described(sizes: Counter[tuple[int, int]]) -> str:
    """Tell the sizes of the images before resizing, in pixels."""
    (width, height), _ = sizes.most_common(1)[0]
    if len(sizes) == 1:
        return f"{width} x {height}"
    widths, heights = zip(*sizes, strict=True)
    return (
        f"width {min(widths)}-{max(widths)}, height {min(heights)}-{max(heights)}, "
        f"most often {width} x {height}"
    )
