"""Data sets that TensorFlow Datasets has prepared, read without TensorFlow.

Only data prepared as `array_record` can be read so. What TFDS calls train and test is
merged: few-shot splits are splits of classes.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from l2f_jax.data.sources.class_split import (
    by_ratio,
    class_to_split,
    in_bank_order,
    to_ratios,
)
from l2f_jax.data.sources.omniglot import split_characters
from l2f_jax.data.sources.source import Expected, Item, Source, SourceClass


class TfdsSet(NamedTuple):
    """What is known of a data set in TFDS.

    parts: the TFDS splits that make it up; () stands for those of `USUAL` that it has.
    split: the published class split that it gets by default; None cuts by ratio.
    size: usual side in pixels, None as TFDS has it where all are equal squares, else
      84.
    images: of every class, None if they differ.
    """

    parts: tuple[str, ...] = ()
    split: str | None = None
    size: int | None = None
    images: int | None = None


# Others of TFDS's may overlap with these, and the same image be in both.
USUAL = ("train", "validation", "test")

SETS = {  # and what any other is taken for is TfdsSet()
    "omniglot": TfdsSet(("train", "test"), "background", 28, 20),
    "cifar100": TfdsSet(("train", "test"), "cifar_fs", 32, 600),
    "caltech_birds2011": TfdsSet(("train", "test"), "cub", 84),
    # The published split of Cars is one of the official training images.
    "cars196": TfdsSet(("train",), "cars", 84),
    "oxford_flowers102": TfdsSet(
        ("train", "test", "validation"), "vgg_flower_metadataset", 84
    ),
    "dtd": TfdsSet(("train", "test", "validation"), "dtd_metadataset", 84, 120),
}


def read(path: Path, *, name: str, split: str | None = None, seed: int = 0) -> Source:
    """Open a prepared data set of labelled images; those with label -1 are left out.

    Args:
      path: TFDS's data_dir, the folder that holds <name>/<version>/.
      name: of a data set with an image and a class label, as TFDS writes it.
      split: the name of a published class split, a split.json, or three ratios
        "0.7,0.1,0.2"; None is the set's own in `SETS`, else 64 : 16 : 20.
      seed: of the shuffle before a cut by ratios.
    """
    known = SETS.get(name, TfdsSet())
    split = split or known.split
    parts, features = _open(name, path)
    names, expected = features["label"].names, None
    published = split if split and "," not in split else known.split
    if published is not None:
        names = _label_names(names, class_to_split(published))
    items: dict[str, list[Item]] = defaultdict(list)
    for part, examples in parts.items():
        for number in range(len(examples)):
            label = int(examples[number]["label"])
            if label >= 0:  # a test split may come with -1 for all
                where = f"tfds {name} {part}, example {number}"
                items[names[label]].append(_item(where, examples, number))
    choice: dict[str, str | int] = {"parts": ", ".join(parts)}
    if split is None or "," in split:
        ratios = to_ratios(split)
        class_split = by_ratio(items, ratios, seed)  # not of labels without an image
        choice |= {"split": ",".join(map(str, ratios)), "seed": seed}
    else:
        class_split = class_to_split(split)
        expected = Expected(dict(Counter(class_split.values())), known.images)
        choice |= {"split": split}
    side = known.size or _side(features["image"].shape)
    return _source(name, items, class_split, expected, choice, side)


def read_omniglot(path: Path, *, split: str | None = None, seed: int = 0) -> Source:
    """Open Omniglot as TFDS has it; `split` and `seed` as in `omniglot.read`.

    Classes are called as in the author's tree, "Alphabet/character01".
    """
    parts, features = _open("omniglot", path)
    alphabets = features["alphabet"].names
    items: dict[str, list[Item]] = defaultdict(list)
    background = set()
    for part, examples in parts.items():
        for number in range(len(examples)):
            example = examples[number]
            alphabet = alphabets[int(example["alphabet"])]
            character = (
                f"{alphabet}/character{int(example['alphabet_char_id']) + 1:02d}"
            )
            where = f"tfds omniglot {part}, example {number}"
            items[character].append(_item(where, examples, number))
            if part == "train":
                background.add(character)
    class_split, expected = split_characters(items, background, split, seed)
    choice = {"split": split or "background", "seed": seed}
    return _source("omniglot", items, class_split, expected, choice, 28)


def _source(
    name: str,
    items: dict[str, list[Item]],
    class_split: dict[str, str],
    expected: Expected | None,
    choice: Mapping[str, str | int],
    size: int,
) -> Source:
    classes = tuple(
        SourceClass(found, part, items[found])
        for found, part in in_bank_order(class_split)
        if found in items
    )
    return Source(
        classes=classes,
        total=len(classes),
        size=size,
        ink=name == "omniglot",
        expected=expected,
        provenance={"source": f"tfds {name}", **choice},
    )


def _open(name: str, path: Path) -> tuple[dict[str, Sequence[Any]], Any]:
    """Return TFDS split -> examples, and the features of the data set."""
    import tensorflow_datasets as tfds  # takes seconds, and few runs need it

    try:
        builder: Any = tfds.builder(name, data_dir=path)
    except (ValueError, ImportError, AssertionError, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"`source` ('tfds:{name}') cannot be read: {first}") from None
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    features = dict(builder.info.features or {})
    if not all(isinstance(features.get(k), kind) for k, kind in kinds.items()):
        held = ", ".join(f"{k}: {type(x).__name__}" for k, x in features.items())
        raise ValueError(
            f"`source` ('tfds:{name}') must have image: Image and label: ClassLabel; "
            f"it has {held}"
        )
    # Image files as they are stored: `decode` reads them, and finding the labels first
    # does not decode them all.
    decoders = {"image": tfds.decode.SkipDecoding()}
    splits = builder.info.splits
    wanted = SETS[name].parts if name in SETS else [s for s in USUAL if s in splits]
    try:
        parts = {
            part: builder.as_data_source(split=part, decoders=decoders)
            for part in wanted
        }
        if not parts:
            raise ValueError("TFDS knows no splits of what is not prepared")
    except (NotImplementedError, AssertionError, OSError, ValueError) as error:
        raise ValueError(
            f"`{path}` holds no {name} prepared as array_record. To prepare it, "
            "install the extra tfds (pip install 'l2f_jax[tfds]') and run: tfds build "
            f"{name} --data_dir={path} --file_format=array_record"
        ) from error
    return parts, features


def _label_names(names: Sequence[str], class_split: dict[str, str]) -> list[str]:
    """Return the class names of a split in the order of TFDS's labels.

    Published lists number some names ("090.canna lily"), and TFDS falls back on bare
    label numbers where it lacks the names; both orders are the sorted one.
    """
    if all(name in class_split for name in names):
        return list(names)
    if all(name.isdigit() for name in names) and len(names) == len(class_split):
        return sorted(class_split)
    plain = {re.sub(r"^\d+\.", "", name): name for name in class_split}
    return [name if name in class_split else plain.get(name, name) for name in names]


def _side(shape: Sequence[int | None]) -> int:
    """Return the side of images [H, W, C] that are all equal squares, else 84."""
    height, width = shape[:2]
    return height if height is not None and height == width else 84


def _item(where: str, examples: Sequence[Any], number: int) -> Item:
    return Item(where, lambda: examples[number]["image"])
