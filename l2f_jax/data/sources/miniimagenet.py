"""mini-ImageNet: 100 classes of 600 images, 64 / 16 / 20, in its circulating layouts.

(a) folders `{train,val,test}/<wnid>/`; (b) pickles `mini-imagenet-cache-<split>.pkl`
with `image_data` and `class_dict`; (c) the lists `{train,val,test}.csv` beside a folder
`images/`; (d) class folders of ImageNet itself, of which `splits/` names the images.

References: Vinyals et al., NeurIPS 2016; the split is that of Ravi and Larochelle,
ICLR 2017.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from l2f_jax.data.bank import SPLITS
from l2f_jax.data.sources import entries
from l2f_jax.data.sources.class_split import (
    class_to_split,
    in_bank_order,
    refuse_wrong_split,
    shipped,
)
from l2f_jax.data.sources.source import Expected, Item, Source, SourceClass, array_item
from l2f_jax.data.sources.tree import Tree, open_tree
from l2f_jax.data.sources.unpickle import text

PICKLE = "mini-imagenet-cache-{}.pkl"


def read(path: Path, *, split: str | None = None, seed: int = 0) -> Source:
    """Open mini-ImageNet in whichever layout it is; `split` and `seed` are unused."""
    if split not in (None, "miniimagenet"):
        raise ValueError(f"`split` ({split!r}) must be miniimagenet, the only one")
    tree = open_tree(path)
    official = class_to_split("miniimagenet")
    if (root := tree.root_of(PICKLE.format("train"))) is not None:
        layout, classes = "pickles", _pickles(tree.under(root))
    elif (root := tree.root_of("train.csv")) is not None:
        layout, classes = "csv lists", _lists(tree.under(root))
    elif (root := _root_of_splits(tree)) is not None:
        layout, classes = "split folders", _split_folders(tree.under(root))
    elif (root := tree.root_of(min(official))) is not None:
        layout, classes = "ImageNet folders", _imagenet(tree.under(root))
    else:
        raise ValueError(
            f"`{path}` is no known layout of mini-ImageNet: train, val and test "
            f"folders, {PICKLE.format('train')}, train.csv beside images, or the "
            "class folders of ImageNet"
        )
    classes = refuse_wrong_split(classes, "miniimagenet")
    return Source(
        # Pickles are read one at a time; files are listed, so counts are known at once.
        classes=classes if layout == "pickles" else tuple(classes),
        total=100,
        size=84,
        ink=False,
        expected=Expected(shipped("miniimagenet")["num_classes"], 600),
        provenance={"source": "mini-ImageNet", "layout": layout, "split": "Ravi"},
    )


def _root_of_splits(tree: Tree) -> str | None:
    """Return the folder whose train, val and test hold folders, if there is one."""
    root = tree.root_of("train")
    if root is None:
        return None
    inside = tree.under(root)
    held = [inside.under(split).tops() for split in SPLITS]
    return root if all(held) else None


def _split_folders(tree: Tree) -> Iterator[SourceClass]:
    for split in SPLITS:
        part = tree.under(split)
        for name, files in part.images().items():
            yield SourceClass(name, split, [part.item(file) for file in files])


def _pickles(tree: Tree) -> Iterator[SourceClass]:
    for split in SPLITS:
        file = PICKLE.format(split)
        where = f"{tree.where}/{file}"
        images, classes = tree.pickle(file, "image_data", "class_dict")
        images = entries.images(images, f"{where}: 'image_data'", None, None, 3)
        if not isinstance(classes, dict):
            kind = type(classes).__name__
            raise ValueError(f"{where}: 'class_dict' ({kind}) must be a dictionary")
        rows = {text(name): rows for name, rows in classes.items()}
        for name in sorted(rows):
            class_rows = entries.numbers(
                rows[name], f"{where}: 'class_dict' of {name}", len(images)
            )
            items = [array_item(where, images, row) for row in class_rows]
            yield SourceClass(name, split, items)


def _lists(tree: Tree) -> Iterator[SourceClass]:
    for split in SPLITS:
        file = f"{split}.csv"
        items: dict[str, list[Item]] = defaultdict(list)
        for row in csv.DictReader(tree.lines(file)):
            if row.keys() != {"filename", "label"}:
                raise ValueError(f"{tree.where}/{file}: columns are not filename,label")
            items[row["label"]].append(tree.item(f"images/{row['filename']}"))
        for name in sorted(items):
            yield SourceClass(name, split, items[name])


def _imagenet(tree: Tree) -> Iterator[SourceClass]:
    """Pick the listed images by their one-based rank in the sorted class folder."""
    ranks = shipped("miniimagenet_images")["images"]
    folders = tree.images()
    for name, split in in_bank_order(class_to_split("miniimagenet")):
        files = sorted(folders.get(name, []), key=_image_number)
        if len(files) < max(ranks[name]):
            raise ValueError(
                f"{tree.where}/{name}: holds {len(files)} images, but image "
                f"{max(ranks[name])} of ImageNet's training images is needed"
            )
        yield SourceClass(
            name, split, [tree.item(files[rank - 1]) for rank in ranks[name]]
        )


def _image_number(file: str) -> int:
    """Return the integer after the underscore: n01532829_17.JPEG is 17."""
    match = re.search(r"_(\d+)\.", file)
    if match is None:
        raise ValueError(
            f"{file}: not named like an image of ImageNet, <wnid>_<number>"
        )
    return int(match[1])
