"""Helpers for flat parameter dictionaries, path -> array, and their paths."""

from collections.abc import Callable

import jax

from l2f_jax.types import Params


def split(params: Params, predicate: Callable[[str], bool]) -> tuple[Params, Params]:
    """Split into (paths where the predicate holds, the others)."""
    chosen = {path: x for path, x in params.items() if predicate(path)}
    return chosen, {path: x for path, x in params.items() if path not in chosen}


def merge(*parts: Params) -> Params:
    """Join dictionaries with disjoint paths, in sorted path order."""
    joined = {path: x for part in parts for path, x in part.items()}
    if len(joined) != sum(map(len, parts)):
        raise ValueError("`parts` share a path; they must be disjoint")
    return dict(sorted(joined.items()))


def is_not_norm(path: str) -> bool:
    """Say whether a path is of a tensor outside norm layers (the official choice).

    A norm layer is one with "norm" in its path, capital letters or not.
    """
    return "norm" not in path.lower()


def everything(path: str) -> bool:
    """Say yes to every path."""
    return True


def at(tree, index):
    """Take entry `index` of the leading axis of every leaf."""
    return jax.tree.map(lambda x: x[index], tree)
