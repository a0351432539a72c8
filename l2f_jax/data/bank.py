"""The packed image bank: one data set as one uint8 array, grouped by class.

A bank on disk is a folder with two files: `images.npy`, uint8 [N, H, W, C] with the
images of a class next to each other, read memory-mapped; and `bank.json`, the class
names, their counts and splits, and the provenance (source, resize method, statistics,
versions).
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2f_jax.types import Array

SPLITS = ("train", "val", "test")
FORMAT = "l2f_jax image bank"
VERSION = 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClassTable:
    """The classes of one split, as the episode sampler sees them.

    start: [classes] int32, number of the first image of each class in the bank.
    count: [classes] int32, images of each class; they follow each other.
    split: the split that the classes belong to (static).
    largest: the largest count (static: it is a shape inside the sampler).
    """

    start: Array
    count: Array
    split: str = field(metadata={"static": True})
    largest: int = field(metadata={"static": True})


@dataclass(frozen=True)
class ImageBank:
    """A data set: images grouped by class, in the order of `classes`.

    images: uint8 [N, H, W, C].
    classes, counts, splits: name, number of images and split of each class.
    provenance: where the images come from; JSON values. `mean` and `std` [C] are those
    of the train split (of all images if there is none) scaled to [0, 1].
    """

    images: np.ndarray
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    splits: tuple[str, ...]
    provenance: dict[str, Any]

    def table(self, split: str) -> ClassTable:
        """Return the class table of a split; ValueError if the bank has none."""
        chosen = self._rows(split)
        start = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        count = np.asarray(self.counts)[chosen]
        return ClassTable(
            start=jnp.asarray(start[chosen], jnp.int32),
            count=jnp.asarray(count, jnp.int32),
            split=split,
            largest=int(count.max()),
        )

    def only(self, split: str) -> "ImageBank":
        """Return the bank of one split's classes, to put only these on a device.

        Classes keep their order, so that an episode of a key holds the same images.
        A view if the classes are neighbours in the bank, else a copy.
        """
        chosen = self._rows(split)
        start = np.concatenate([[0], np.cumsum(self.counts)])
        first, last = chosen[0], chosen[-1] + 1
        images = self.images[start[first] : start[last]]
        if last - first != len(chosen):
            parts = [self.images[start[row] : start[row + 1]] for row in chosen]
            images = np.concatenate(parts)
        return ImageBank(
            images=images,
            classes=tuple(self.classes[row] for row in chosen),
            counts=tuple(self.counts[row] for row in chosen),
            splits=(split,) * len(chosen),
            provenance=self.provenance,
        )

    def facts(self) -> dict[str, Any]:
        """Return what a run's record says of it, as JSON values.

        digests: of each split, what tells its classes from others, by name and size.
        """
        classes, digests = {}, {}
        for split in sorted(set(self.splits)):
            rows = self._rows(split)
            named = [[self.classes[row], self.counts[row]] for row in rows]
            classes[split] = len(rows)
            digests[split] = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
        return {
            "images": len(self.images),
            "shape": list(self.images.shape[1:]),
            "classes": classes,
            "digests": digests,
            "provenance": self.provenance,
        }

    def _rows(self, split: str) -> list[int]:
        rows = [row for row, name in enumerate(self.splits) if name == split]
        if not rows:
            there = [name for name in SPLITS if name in self.splits]
            raise ValueError(f"`split` ({split!r}) must be one of {', '.join(there)}")
        return rows


def load_bank(path: str | Path) -> ImageBank:
    """Open the bank in a folder, its images memory-mapped and read-only.

    Raises ValueError, one sentence, if the folder is no complete bank.
    """
    path = Path(path)
    try:
        meta = json.loads((path / "bank.json").read_text(encoding="utf-8"))
        images = np.load(path / "images.npy", mmap_mode="r", allow_pickle=False)
        return _checked(images, meta)
    except FileNotFoundError as error:
        reason = f"{Path(error.filename).name} is missing"
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise ValueError(
        f"`{path}` is not a complete image bank ({reason}); "
        "experiments/prepare.py makes one"
    )


def embedded_icons(split: str = "semantic") -> ImageBank:
    """Return the data set shipped in the package: 337 icon names x 20 drawings.

    Images are 28 x 28 x 1, ink 255 on 0. `split` "semantic" holds whole groups of
    meaning out (227 / 51 / 59 classes), "random" single classes (218 / 51 / 68).
    """
    if split not in ("semantic", "random"):
        raise ValueError(f"`split` ({split!r}) must be one of semantic, random")
    with np.load(Path(__file__).parent / "icons" / "icons_28.npz") as packed:
        order = np.argsort(packed["label"], kind="stable")
        images = packed["images"][order][..., None]
        counts = np.bincount(packed["label"])
        classes, splits = packed["class_names"], packed[f"split_{split}"]
    training = images[np.repeat(splits == "train", counts)] / 255.0
    provenance = {
        "source": "icons_28.npz, embedded; authors and licences in its NOTICE",
        "split": split,
        "resize": "none",
        "mean": [float(training.mean())],
        "std": [float(training.std())],
    }
    return ImageBank(
        images=images,
        classes=tuple(map(str, classes)),
        counts=tuple(map(int, counts)),
        splits=tuple(map(str, splits)),
        provenance=provenance,
    )


def _checked(images: np.ndarray, meta: dict[str, Any]) -> ImageBank:
    """Return the bank, or raise ValueError if the two files do not fit together."""
    if meta["format"] != FORMAT or meta["version"] != VERSION:
        raise ValueError(f"bank.json is not of `{FORMAT}` version {VERSION}")
    bank = ImageBank(
        images=images,
        classes=tuple(meta["classes"]),
        counts=tuple(meta["counts"]),
        splits=tuple(meta["splits"]),
        provenance=dict(meta["provenance"]),
    )
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError("images.npy is not a uint8 array [N, H, W, C]")
    if not len(bank.classes) == len(bank.counts) == len(bank.splits) > 0:
        raise ValueError("bank.json lists classes, counts and splits of unequal length")
    if min(bank.counts) < 1 or sum(bank.counts) != len(images):
        raise ValueError("the counts in bank.json do not add up to the images")
    if not set(bank.splits) <= set(SPLITS):
        raise ValueError(f"bank.json names a split other than {', '.join(SPLITS)}")
    return bank
