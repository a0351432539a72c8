"""Omniglot: 1,623 characters of 50 alphabets, each drawn by 20 people.

Layouts: the author's PNG tree `images_background`, `images_evaluation`, or a folder
above it; and his two zips of these names. A class is "Alphabet/character".

Reference: Lake et al., Human-level concept learning through probabilistic program
induction, Science 2015.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from l2f_jax.data.sources.class_split import by_ratio, in_bank_order
from l2f_jax.data.sources.source import Expected, Source, SourceClass
from l2f_jax.data.sources.tree import Tree, join, open_tree

BACKGROUND, EVALUATION = "images_background", "images_evaluation"
VALIDATION_STEP = 10
FRACTIONS = (1150 / 1623, 50 / 1623, 423 / 1623)


def read(path: Path, *, split: str | None = None, seed: int = 0) -> Source:
    """Open Omniglot.

    Args:
      path: the folder with the two parts as folders or as zips, or one above it.
      split: "background" or "fractions", see `split_characters`.
      seed: of "fractions".
    """
    tree = _open(path)
    characters = {}
    for folder, files in tree.images().items():
        part, _, name = folder.partition("/")
        if part in (BACKGROUND, EVALUATION) and "/" in name:
            characters[name] = (part, [tree.item(file) for file in files])
    if not characters:
        raise ValueError(f"`{path}` holds no characters of Omniglot")
    background = {name for name, (part, _) in characters.items() if part == BACKGROUND}
    class_split, expected = split_characters(characters, background, split, seed)
    return Source(
        classes=tuple(
            SourceClass(name, part, characters[name][1])
            for name, part in in_bank_order(class_split)
        ),
        total=len(characters),
        size=28,
        ink=True,
        expected=expected,
        provenance={"source": "Omniglot", "split": split or "background", "seed": seed},
    )


def split_characters(
    characters: Collection[str],
    background: Collection[str],
    split: str | None,
    seed: int,
) -> tuple[dict[str, str], Expected]:
    """Return character -> split, and the sizes that the whole data set has.

    "background" (default): the author's evaluation part is test; every tenth of the
    background alphabets in sorted order is val, so that validation asks for unseen
    alphabets as the test does. "fractions": all characters shuffled and cut as in
    MAML++, whose seed drives the seed of the shuffle.
    """
    if split == "fractions":
        shuffle_seed = int(np.random.RandomState(seed).randint(1, 999999))
        sizes = {"train": 1150, "val": 50, "test": 423}
        return by_ratio(characters, FRACTIONS, shuffle_seed), Expected(sizes, 20)
    if split not in (None, "background"):
        raise ValueError(f"`split` ({split!r}) must be one of background, fractions")
    alphabets = sorted({_alphabet(name) for name in background})
    held_out = alphabets[VALIDATION_STEP - 1 :: VALIDATION_STEP]
    class_split = {name: "test" for name in characters if name not in background}
    for name in background:
        class_split[name] = "val" if _alphabet(name) in held_out else "train"
    return class_split, Expected({"train": 828, "val": 136, "test": 659}, 20)


def _open(path: Path) -> Tree:
    """Return a tree with the two parts at its top."""
    zips = [path / f"{part}.zip" for part in (BACKGROUND, EVALUATION)]
    if all(file.is_file() for file in zips):
        return join(str(path), [open_tree(file) for file in zips])
    tree = open_tree(path)
    roots = {tree.root_of(part) for part in (BACKGROUND, EVALUATION)}
    root = roots.pop()
    if roots or root is None:
        raise ValueError(
            f"`{path}` must hold both {BACKGROUND} and {EVALUATION}, as folders or zips"
        )
    return tree.under(root)


def _alphabet(character: str) -> str:
    return character.partition("/")[0]
