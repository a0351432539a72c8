"""Readers of data sets: name -> read(path, *, split, seed) -> Source."""

from functools import partial
from pathlib import Path

from l2f_jax.data.sources import (
    cifar,
    folders,
    miniimagenet,
    omniglot,
    tfds_sets,
    tieredimagenet,
)
from l2f_jax.data.sources.source import Reader, Source

TFDS = "tfds:"

READERS: dict[str, Reader] = {
    "omniglot": omniglot.read,
    "cifar_fs": cifar.read_cifar_fs,
    "fc100": cifar.read_fc100,
    "miniimagenet": miniimagenet.read,
    "tieredimagenet": tieredimagenet.read,
    "folders": folders.read,
    f"{TFDS}omniglot": tfds_sets.read_omniglot,
}


def source_names() -> list[str]:
    """Return the names that `open_source` knows."""
    known = [f"{TFDS}{name}" for name in tfds_sets.SETS if name != "omniglot"]
    return [*READERS, *known, f"{TFDS}NAME of another"]


def open_source(
    name: str, path: str | Path, *, split: str | None = None, seed: int = 0
) -> Source:
    """Open a data set with the reader `name`; ValueError if there is none."""
    reader = READERS.get(name)
    if reader is None and name.startswith(TFDS):
        reader = partial(tfds_sets.read, name=name.removeprefix(TFDS))
    if reader is None:
        choices = ", ".join(source_names())
        raise ValueError(f"`source` ({name!r}) must be one of {choices}")
    return reader(Path(path), split=split, seed=seed)
