"""Write a packed image bank class by class, so that it appears whole or not at all."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from l2f_jax.data.bank import FORMAT, SPLITS, VERSION

ABANDONED = 3600.0  # seconds without a write after which a partial bank is removed


@contextmanager
def write_bank(
    path: str | Path, provenance: dict[str, Any], *, overwrite: bool = False
) -> Iterator[Callable[[str, str, np.ndarray], None]]:
    """Write a bank: `with write_bank(path, {...}) as add: add(name, split, images)`.

    add appends one class, images uint8 [count, H, W, C]. All is written to a hidden
    folder beside `path` that is renamed when the block ends: `path` is a whole bank or
    not there. An exception inside the block removes what was written; what a killed
    process left is removed by a later write to the same path. Beside the images the
    bank holds split.json, split -> classes, by which a reader can split the same way.

    Args:
      path: folder to make.
      provenance: JSON values, e.g. source and resize method; mean, std and versions
        are added. Read when the block ends, so the block may still add to it.
      overwrite: replace a bank that is already there.
    Raises:
      ValueError: if `path` exists (with `overwrite`: and is no bank), if a class is
        given twice or has images of another shape, or if no class is given.
    """
    path = Path(path).absolute()
    check_target(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.partial-"
    _remove_abandoned(path.parent, prefix)
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    try:
        partial.chmod(0o755)  # mkdtemp's 0700 would lock other users out of the bank
        with open(partial / "images.npy", "wb") as file:
            bank = _OpenBank(file)
            yield bank.add
            bank.finish()
        meta = bank.describe(provenance)
        _write_json(partial / "bank.json", meta)
        _write_json(partial / "split.json", bank.class_split())
        _move_into_place(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclass
class _OpenBank:
    """What has been written so far, and the sums for the statistics."""

    file: BinaryIO
    shape: tuple[int, ...] = ()
    classes: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    moments: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, name: str, split: str, images: np.ndarray) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
            raise ValueError(f"images of class {name!r} are not uint8 [count, H, W, C]")
        if split not in SPLITS:
            raise ValueError(
                f"`split` ({split!r}) of class {name!r} must be one of "
                f"{', '.join(SPLITS)}"
            )
        if name in self.classes:
            raise ValueError(f"class {name!r} is given twice")
        if not self.classes:
            self.shape = images.shape[1:]
            self._write_header()
        if images.shape[1:] != self.shape:
            raise ValueError(
                f"images of class {name!r} are {images.shape[1:]}, those before it "
                f"{self.shape}"
            )
        self.file.write(np.ascontiguousarray(images).data)
        self.classes.append(name)
        self.counts.append(len(images))
        self.splits.append(split)
        self.moments[split] = self.moments.get(split, 0) + _moments(images)

    def finish(self) -> None:
        if not self.classes:
            raise ValueError("no class was added to the bank")
        self.file.seek(0)
        self._write_header()

    def describe(self, provenance: dict[str, Any]) -> dict[str, Any]:
        """Return the content of bank.json."""
        moments = self.moments.get("train", sum(self.moments.values()))
        count, total, squares = np.asarray(moments)
        mean = total / count / 255.0
        std = np.sqrt(np.maximum(squares / count / 255.0**2 - mean**2, 0.0))
        statistics = {"mean": mean.tolist(), "std": std.tolist()}
        versions = {"numpy": np.__version__} | provenance.get("versions", {})
        return {
            "format": FORMAT,
            "version": VERSION,
            "image": list(self.shape),
            "classes": self.classes,
            "counts": self.counts,
            "splits": self.splits,
            "provenance": provenance | statistics | {"versions": versions},
        }

    def class_split(self) -> dict[str, list[str]]:
        """Return split -> classes, a list that a reader's `split` takes again."""
        pairs = list(zip(self.classes, self.splits, strict=True))
        return {
            split: [name for name, part in pairs if part == split] for split in SPLITS
        }

    def _write_header(self) -> None:
        # NumPy pads the header so that it keeps its length while the first axis grows.
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)),
            "fortran_order": False,
            "shape": (sum(self.counts), *self.shape),
        }
        np.lib.format.write_array_header_1_0(self.file, header)


def _moments(images: np.ndarray) -> np.ndarray:
    """Return pixel count, sum and sum of squares per channel, [3, C], exactly."""
    channels = images.shape[-1]
    levels = np.arange(256.0)
    rows = []
    for channel in range(channels):
        histogram = np.bincount(images[..., channel].ravel(), minlength=256)
        rows.append([histogram.sum(), histogram @ levels, histogram @ levels**2])
    return np.asarray(rows, np.float64).T


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def check_target(path: Path, overwrite: bool) -> None:
    """Raise ValueError if a bank must not be written to `path`."""
    if not path.exists():
        return
    if not overwrite:
        raise ValueError(f"`{path}` exists already; --overwrite replaces a bank")
    if not (path / "bank.json").exists():
        raise ValueError(f"`{path}` is not a bank, so it is not overwritten")


def _move_into_place(partial: Path, path: Path) -> None:
    replaced = Path(f"{partial}-replaced")
    if path.exists():
        path.rename(replaced)
    partial.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove partial banks that nobody has written to for an hour."""
    for folder in parent.glob(f"{prefix}*"):
        written = max(entry.stat().st_mtime for entry in [folder, *folder.iterdir()])
        if time.time() - written > ABANDONED:
            shutil.rmtree(folder, ignore_errors=True)
