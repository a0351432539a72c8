"""Any tree of class folders: one's own images, or a published data set kept that way.

Pre-split, `{train,val,test}/<class>/...`; or not, `<class>/...`, then split by a
published list, by a split.json, or by ratio and seed. A class is the path of the folder
that holds its images, so folders of folders ("alphabet/character") work too.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from l2f_jax.data.bank import SPLITS
from l2f_jax.data.sources.class_split import (
    by_ratio,
    class_to_split,
    in_bank_order,
    to_ratios,
)
from l2f_jax.data.sources.source import Expected, Source, SourceClass
from l2f_jax.data.sources.tree import Tree, open_tree

ALIASES = {split: split for split in SPLITS} | {"valid": "val", "validation": "val"}
"""Split of a folder's name, in whatever capital letters it is written."""


def read(path: Path, *, split: str | None = None, seed: int = 0) -> Source:
    """Open a tree of class folders, in a folder or an archive.

    Args:
      path: the folder whose sub-folders are the classes, or the splits.
      split: None takes the folders train, val and test if they are there, else cuts the
        classes 64 : 16 : 20. Three ratios "0.7,0.1,0.2", a .json file that maps splits
        to class names, or the name of a published split ("cub") say it otherwise.
      seed: of the shuffle before a cut by ratios.
    """
    tree = _below_single_folder(open_tree(path))
    tops = {name for name in tree.tops() if name.lower() in ALIASES}
    skipped = _skipped(tree)
    if split is None and tops:
        return _source(_pre_split(tree, tops), None, {"split": "folders"}, skipped)
    folders = tree.images()
    if not any(folders.values()):
        raise ValueError("; ".join([f"`{path}` holds no images", *skipped]))
    _refuse_loose(tree, folders)
    if split is None or "," in split:
        ratios = to_ratios(split)
        provenance = {"split": ",".join(map(str, ratios)), "seed": seed}
        class_split, expected, notes = by_ratio(folders, ratios, seed), None, ()
        place = {name: name for name in folders}
    else:
        class_split = class_to_split(split)
        provenance = {"split": Path(split).name}
        expected = Expected(dict(Counter(class_split.values())), None)
        place = _places(tree, folders, class_split)
        notes = _differences(class_split, place)
    classes = [
        SourceClass(name, part, [tree.item(file) for file in folders[place[name]]])
        for name, part in in_bank_order(class_split)
        if name in place
    ]
    return _source(classes, expected, provenance, notes + skipped)


def _places(
    tree: Tree, folders: Iterable[str], class_split: Mapping[str, str]
) -> dict[str, str]:
    """Return name -> folder. A list names a class by its folder or the path to it."""
    by_name = defaultdict(list)
    for folder in folders:
        by_name[folder.rpartition("/")[2]].append(folder)
    for name in class_split:
        if len(found := by_name[name]) > 1 and name not in found:
            raise ValueError(
                f"`{tree.where}` has class {name!r} of the split in several folders: "
                f"{', '.join(found)}; give the folder that holds one of them"
            )
    return {name: found[0] for name, found in by_name.items() if found} | {
        folder: folder for folder in folders
    }


def _source(
    classes: list[SourceClass],
    expected: Expected | None,
    provenance: Mapping[str, str | int],
    notes: tuple[str, ...],
) -> Source:
    return Source(
        classes=tuple(classes),
        total=len(classes),
        size=84,
        ink=False,
        expected=expected,
        provenance={"source": "class folders", **provenance},
        notes=notes,
    )


def _pre_split(tree: Tree, tops: set[str]) -> list[SourceClass]:
    """Read <split>/<class>; a folder that is no split beside them is refused."""
    strangers = sorted(set(tree.tops()) - tops)
    if strangers:
        raise ValueError(
            f"`{tree.where}` has split folders and beside them {', '.join(strangers)}; "
            "name folders train, val, test only, or give a split"
        )
    classes = []
    for top in sorted(tops, key=lambda top: SPLITS.index(ALIASES[top.lower()])):
        part, split = tree.under(top), ALIASES[top.lower()]
        folders = part.images()
        _refuse_loose(part, folders)
        for name, files in folders.items():
            items = [part.item(file) for file in files]
            classes.append(SourceClass(name, split, items))
    split_of: dict[str, str] = {}
    for found in classes:
        if found.name in split_of:
            raise ValueError(
                f"class {found.name!r} is in {split_of[found.name]} and in "
                f"{found.split}; a class belongs to one split"
            )
        split_of[found.name] = found.split
    return classes


def _refuse_loose(tree: Tree, folders: dict[str, list[str]]) -> None:
    if loose := folders.get(""):
        raise ValueError(
            f"`{tree.where}` holds images outside class folders: {', '.join(loose)}"
        )


def _skipped(tree: Tree) -> tuple[str, ...]:
    """Say how many files are left out because they do not look like images."""
    if not (others := tree.others()):
        return ()
    return (
        f"files that are no images by their names: {len(others)} left out, such as "
        f"{others[0]}",
    )


def _below_single_folder(tree: Tree) -> Tree:
    """Descend while a tree is one folder of folders, as unpacked archives are."""
    while len(tops := tree.tops()) == 1 and tree.under(tops[0]).tops():
        if tops[0].lower() in ALIASES:
            break
        tree = tree.under(tops[0])
    return tree


def _differences(class_split: dict[str, str], place: dict[str, str]) -> tuple[str, ...]:
    """Say which classes of a list are not there, and how many it does not name."""
    notes = []
    if missing := sorted(set(class_split) - set(place)):
        named = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        notes.append(f"{len(missing)} classes of the split are not there: {named}")
    used = {place[name] for name in class_split if name in place}
    if unnamed := len(set(place.values()) - used):
        notes.append(f"{unnamed} class folders that the split does not name: left out")
    return tuple(notes)
