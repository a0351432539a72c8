"""Which class belongs to which split: published lists, files of the user, ratios."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from l2f_jax.data.bank import SPLITS
from l2f_jax.data.sources.source import SourceClass

FOLDER = Path(__file__).parents[1] / "splits"
RATIOS = (0.64, 0.16, 0.2)  # train, val, test
NOT_SPLITS = ("cifar100_hierarchy", "miniimagenet_images")


def shipped_names() -> list[str]:
    """Return the names of the class splits in the package."""
    names = sorted(file.stem for file in FOLDER.glob("*.json"))
    return [name for name in names if name not in NOT_SPLITS]


def shipped(name: str) -> dict[str, Any]:
    """Return a file of `splits/`: its "splits" maps split -> class names."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def class_to_split(name: str | Path) -> dict[str, str]:
    """Return class -> split of a shipped split (by name) or a JSON file (by path).

    The file maps train, val and test to lists of class names, at its top or under
    "splits". Raises ValueError for an unknown name, another form, or a class in two
    splits.
    """
    if str(name) in shipped_names():
        return _inverted(str(name), shipped(str(name))["splits"])
    path = Path(name)
    if path.suffix != ".json":
        choices = ", ".join(shipped_names())
        raise ValueError(
            f"`split` ({str(name)!r}) must be a .json file or one of {choices}"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"`split` ({path}) cannot be read: {error}") from None
    content = content.get("splits", content) if isinstance(content, dict) else content
    return _inverted(str(path), content)


def to_ratios(split: str | None) -> tuple[float, float, float]:
    """Return three ratios from such as "0.7,0.1,0.2"; of None RATIOS.

    Raises ValueError for another form.
    """
    if split is None:
        return RATIOS
    try:
        train, val, test = map(float, split.split(","))
    except ValueError:
        raise ValueError(
            f"`split` ({split!r}) must be three ratios such as 0.64,0.16,0.2"
        ) from None
    return train, val, test


def by_ratio(
    classes: Iterable[str], ratios: tuple[float, float, float], seed: int
) -> dict[str, str]:
    """Cut shuffled classes into train, val and test by cumulative fractions.

    Every split with a positive ratio must receive a class (ValueError otherwise).
    """
    if not min(ratios) >= 0.0 or abs(sum(ratios) - 1.0) > 1e-6:
        raise ValueError(f"`split` ratios {ratios} must be at least 0 and add up to 1")
    if seed < 0:
        raise ValueError(f"`seed` ({seed}) must be at least 0")
    names = sorted(classes)
    np.random.RandomState(seed).shuffle(names)
    # The tolerance keeps 0.7 + 0.1 of ten classes at eight.
    cuts = [int(len(names) * total + 1e-9) for total in np.cumsum(ratios[:2])]
    parts = (names[: cuts[0]], names[cuts[0] : cuts[1]], names[cuts[1] :])
    for split, part, ratio in zip(SPLITS, parts, ratios, strict=True):
        if ratio > 0.0 and not part:
            raise ValueError(
                f"{len(names)} classes leave none for split {split!r}; give more of "
                "them, or other ratios as `split`"
            )
    return {
        name: split for split, part in zip(SPLITS, parts, strict=True) for name in part
    }


def in_bank_order(class_split: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (class, split), split by split, sorted by name within."""
    pairs = [(name, split) for name, split in class_split.items()]
    return sorted(pairs, key=lambda pair: (SPLITS.index(pair[1]), pair[0]))


def refuse_wrong_split(
    classes: Iterable[SourceClass], name: str
) -> Iterator[SourceClass]:
    """Pass classes on; ValueError for one that the published split puts elsewhere."""
    official = class_to_split(name)
    for found in classes:
        if official.get(found.name, found.split) != found.split:
            raise ValueError(
                f"wrong split: class {found.name} is in {found.split} here, but is a "
                f"{official[found.name]} class of {shipped(name)['name']}"
            )
        yield found


def _inverted(where: str, splits: Any) -> dict[str, str]:
    if (
        not isinstance(splits, dict)
        or not set(splits) <= set(SPLITS)
        or not all(isinstance(names, list) for names in splits.values())
    ):
        raise ValueError(f"{where}: must map {', '.join(SPLITS)} to lists of classes")
    found: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            if name in found:
                raise ValueError(
                    f"{where}: class {name!r} is in {found[name]} and in {split}"
                )
            found[name] = split
    return found
