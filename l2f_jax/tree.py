"""Helpers for flat parameter dictionaries, path -> array."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from l2f_jax.types import Array, Params


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


def matching(pattern: str) -> Callable[[str], bool]:
    """Return a predicate: does the regular expression match anywhere in the path?"""
    compiled = re.compile(pattern)
    return lambda path: compiled.search(path) is not None


def size(tree) -> int:
    """Count the numbers in a tree of arrays."""
    return sum(x.size for x in jax.tree.leaves(tree))


def inner_product(a, b) -> Array:
    """Sum the products of corresponding numbers of two trees."""
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda x, y: jnp.vdot(x, y), a, b))


def at(tree, index):
    """Take entry `index` of the leading axis of every leaf."""
    return jax.tree.map(lambda x: x[index], tree)
