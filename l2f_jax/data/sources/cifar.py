"""CIFAR-FS and FC100, from CIFAR-100 itself or from the files that circulate.

Layouts: the official `cifar-100-python` (archive or folder of pickles), split by the
lists in `splits/`; for CIFAR-FS the zip `cifar100/data/<class>/*.png` with
`splits/bertinetto/<split>.txt`; for FC100 the pickles `FC100_<split>.pickle`.

References: Krizhevsky, Learning multiple layers of features from tiny images, 2009;
Bertinetto et al., ICLR 2019 (CIFAR-FS); Oreshkin et al., NeurIPS 2018 (FC100).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from l2f_jax.data.bank import SPLITS
from l2f_jax.data.sources import entries
from l2f_jax.data.sources.class_split import class_to_split, in_bank_order, shipped
from l2f_jax.data.sources.source import Expected, Item, Source, SourceClass, array_item
from l2f_jax.data.sources.tree import Tree, open_tree

LISTS = "splits/bertinetto"


def read_cifar_fs(path: Path, *, split: str | None = None, seed: int = 0) -> Source:
    """Open CIFAR-FS: 64 / 16 / 20 classes of 600 images; `split` and `seed` unused."""
    _no_choice("cifar_fs", split)
    tree = open_tree(path)
    root = tree.root_of(f"{LISTS}/train.txt")
    if root is not None:
        classes = _listed_folders(tree.under(root))
        layout = "PNG folders with the lists of Bertinetto"
    else:
        classes = _official(tree, "cifar_fs")
        layout = "cifar-100-python"
    return _source("CIFAR-FS", "cifar_fs", layout, classes)


def read_fc100(path: Path, *, split: str | None = None, seed: int = 0) -> Source:
    """Open FC100: 60 / 20 / 20 classes of 600 images; `split` and `seed` unused.

    Classes are split by superclass, so that no superclass is in two splits.
    """
    _no_choice("fc100", split)
    tree = open_tree(path)
    root = tree.root_of("FC100_train.pickle")
    if root is not None:
        classes = _fc100_pickles(tree.under(root))
        layout = "FC100 pickles"
    else:
        classes = _official(tree, "fc100")
        layout = "cifar-100-python"
    return _source("FC100", "fc100", layout, classes)


def _source(
    title: str, split: str, layout: str, classes: Iterable[SourceClass]
) -> Source:
    sizes = shipped(split)["num_classes"]
    return Source(
        classes=classes,
        total=100,
        size=32,
        ink=False,
        expected=Expected(sizes, 600),
        provenance={"source": title, "layout": layout, "split": split},
    )


def _official(tree: Tree, split: str) -> tuple[SourceClass, ...]:
    """Group the official pickles by class, train before test images."""
    root = tree.root_of("meta")
    if root is None or not {"train", "test"} <= set(tree.under(root).files):
        raise ValueError(
            f"`{tree.where}` is no known layout of {split}: there is neither "
            "cifar-100-python (files train, test and meta) nor the data set's own files"
        )
    tree = tree.under(root)
    (names,) = tree.pickle("meta", "fine_label_names")
    names = entries.names(names, f"{tree.where}/meta: 'fine_label_names'")
    items: dict[str, list[Item]] = defaultdict(list)
    for part in ("train", "test"):
        data, labels = tree.pickle(part, "data", "fine_labels")
        where = f"{tree.where}/{part}"
        images = entries.images(data, f"{where}: 'data'", 3 * 32 * 32)
        images = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = entries.numbers(labels, f"{where}: 'fine_labels'", len(names))
        _check_as_many(where, images, labels)
        for row, label in enumerate(labels):
            items[names[label]].append(array_item(where, images, row))
    wanted = class_to_split(split)
    if set(wanted) - set(items):
        raise ValueError(
            f"`{tree.where}` lacks classes {sorted(set(wanted) - set(items))}"
        )
    return tuple(
        SourceClass(name, part, items[name]) for name, part in in_bank_order(wanted)
    )


def _listed_folders(tree: Tree) -> tuple[SourceClass, ...]:
    """Read the class folders that the three text files name."""
    folders = tree.under("data").images()
    official = class_to_split("cifar_fs")
    classes = []
    for split in SPLITS:
        for name in sorted(filter(None, tree.lines(f"{LISTS}/{split}.txt"))):
            if official.get(name, split) != split:
                raise ValueError(
                    f"{tree.where}/{LISTS}/{split}.txt: names {name!r}, which is a "
                    f"{official[name]} class of CIFAR-FS"
                )
            items = [tree.item(f"data/{file}") for file in folders.get(name, [])]
            classes.append(SourceClass(name, split, items))
    return tuple(classes)


def _fc100_pickles(tree: Tree) -> Iterator[SourceClass]:
    """Read the three pickles; a class is called by its name if its number tells it."""
    official = shipped("fc100")
    for split in SPLITS:
        file = f"FC100_{split}.pickle"
        where = f"{tree.where}/{file}"
        data, labels = tree.pickle(file, "data", "labels")
        data = entries.images(data, f"{where}: 'data'", 32, 32, 3)
        labels = entries.numbers(labels, f"{where}: 'labels'")
        _check_as_many(where, data, labels)
        numbers = np.unique(labels).tolist()
        names = [f"{split}/{number:03d}" for number in numbers]
        for owner, ids in official["tfds_label_ids"].items():
            if numbers == sorted(ids):
                if owner != split:
                    raise ValueError(f"{where}: holds the {owner} classes of FC100")
                names = sorted(official["splits"][split])
        for name, number in zip(names, numbers, strict=True):
            rows = np.flatnonzero(labels == number).tolist()
            items = [array_item(where, data, row) for row in rows]
            yield SourceClass(name, split, items)


def _check_as_many(where: str, images: np.ndarray, labels: np.ndarray) -> None:
    if len(images) != len(labels):
        raise ValueError(f"{where}: has {len(images)} images, {len(labels)} labels")


def _no_choice(split_name: str, split: str | None) -> None:
    if split not in (None, split_name):
        raise ValueError(f"`split` ({split!r}) must be {split_name}, the only one")
