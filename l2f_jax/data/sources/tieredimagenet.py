"""tieredImageNet: 608 classes, 351 / 97 / 160 split by category, of unequal sizes.

Layouts: the pickles `<split>_images_png.pkl` (a list of PNG files as arrays) with
`<split>_labels.pkl`; split class folders; or the class folders of ImageNet itself, that
is of its training images.

Reference: Ren et al., Meta-learning for semi-supervised few-shot classification,
ICLR 2018.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from l2f_jax.data.bank import SPLITS
from l2f_jax.data.sources import entries, folders
from l2f_jax.data.sources.class_split import refuse_wrong_split, shipped
from l2f_jax.data.sources.source import Expected, Item, Source, SourceClass
from l2f_jax.data.sources.tree import open_tree
from l2f_jax.data.sources.unpickle import load, load_entries

IMAGES, LABELS = "{}_images_png.pkl", "{}_labels.pkl"


def read(path: Path, *, split: str | None = None, seed: int = 0) -> Source:
    """Open tieredImageNet in whichever layout it is; `split` and `seed` are unused.

    PNG files are read as they are; whoever wrote the pickles may have exchanged red and
    blue, which no file tells.
    """
    if split not in (None, "tieredimagenet"):
        raise ValueError(f"`split` ({split!r}) must be tieredimagenet, the only one")
    if (path / IMAGES.format("train")).is_file():
        layout, classes, notes = "pickles", _pickles(path), ()
    else:
        tops = set(open_tree(path).tops())
        part = None if set(SPLITS) <= tops else "tieredimagenet"
        layout = "ImageNet folders" if part else "split folders"
        found = folders.read(path, split=part, seed=seed)
        classes, notes = (
            refuse_wrong_split(found.classes, "tieredimagenet"),
            found.notes,
        )
    return Source(
        classes=classes,
        total=608,
        size=84,
        ink=False,
        expected=Expected(shipped("tieredimagenet")["num_classes"], None),
        provenance={"source": "tieredImageNet", "layout": layout},
        notes=notes,
    )


def _pickles(path: Path) -> Iterator[SourceClass]:
    """Read one split at a time: the whole data set is about 12 GB."""
    for split in SPLITS:
        images_file, labels_file = (
            path / name.format(split) for name in (IMAGES, LABELS)
        )
        labels, names = _labels(labels_file)
        with open(images_file, "rb") as file:
            images = load(file, str(images_file))
        if not isinstance(images, list) or len(images) != len(labels):
            raise ValueError(
                f"{images_file}: is no list of {len(labels)} images, as many as labels"
            )
        order = sorted(range(len(names)), key=names.__getitem__)
        for label in order:
            items = [
                Item(f"{images_file}, image {row}", _png(images[row]))
                for row in np.flatnonzero(labels == label)
            ]
            yield SourceClass(names[label], split, items)


def _labels(file: Path) -> tuple[np.ndarray, list[str]]:
    """Return the class number of every image and the unique names of the classes."""
    with open(file, "rb") as opened:
        labels, named = load_entries(
            opened, str(file), "label_specific", "label_specific_str"
        )
    names = entries.names(named, f"{file}: 'label_specific_str'")
    labels = entries.numbers(labels, f"{file}: 'label_specific'", len(names))
    # ImageNet has two classes called crane and two called maillot.
    twice = {name for name, count in Counter(names).items() if count > 1}
    return labels, [
        f"{name} ({number})" if name in twice else name
        for number, name in enumerate(names)
    ]


def _png(array: Any) -> Callable[[], bytes]:
    return lambda: np.asarray(array, np.uint8).tobytes()
