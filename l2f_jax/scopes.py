"""Which numbers of a parameter dictionary share one coefficient.

A scope cuts a coefficient vector v into one block per tensor; the block broadcasts to
the tensor. This one idea is all of "network-, layer-, filter- and parameter-wise
attenuation" (L2F, Table 4) and of the layer-wise mean of gradients (Sec. 3.4).
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from l2f_jax.types import Array, Params

KINDS = ("parameter", "filter", "layer", "module", "network")


class Block(NamedTuple):
    """The coefficients of one tensor: v[offset : offset + prod(shape)], reshaped."""

    offset: int
    shape: tuple[int, ...]

    @property
    def slice(self) -> slice:
        return slice(self.offset, self.offset + math.prod(self.shape))


class Scope(NamedTuple):
    """blocks: path -> Block;  counts [size]: how many numbers share a coefficient."""

    blocks: dict[str, Block]
    counts: np.ndarray

    @property
    def size(self) -> int:
        return len(self.counts)


def scope_of(params: Params, kind: str) -> Scope:
    """Assign a coefficient to every number of `params`.

    Args:
      params: {path: [...]}; only shapes are read.
      kind: "parameter" (one coefficient per number), "filter" (per output channel, the
        last axis, of each tensor), "layer" (per tensor, as the official code counts
        layers), "module" (a kernel and its bias together) or "network" (one for all).
    Raises:
      ValueError: `kind` is none of these, or `params` is empty.
    """
    check_kind("scope", kind)
    if not params:
        raise ValueError("`params` is empty: a scope needs at least one tensor")
    offsets, blocks, size = {}, {}, 0
    for path, x in sorted(params.items()):
        shape = _block_shape(kind, x.shape)
        group = _group(kind, path)
        if group not in offsets:
            offsets[group] = size
            size += math.prod(shape)
        blocks[path] = Block(offsets[group], shape)
    counts = np.zeros(size, np.int64)
    for path, block in blocks.items():
        counts[block.slice] += math.prod(params[path].shape) // math.prod(block.shape)
    return Scope(blocks, counts)


def check_kind(name: str, kind: str) -> None:
    """Raise ValueError naming an option `name` that is none of KINDS."""
    if kind not in KINDS:
        raise ValueError(f"`{name}` ({kind!r}) must be one of {', '.join(KINDS)}")


def spread(scope: Scope, v: Array) -> Params:
    """Broadcast coefficients v [size] to {path: block}, broadcastable to the tensors.

    `spread(scope, v)[path] * params[path]` multiplies each number by its coefficient.
    """
    return {path: v[b.slice].reshape(b.shape) for path, b in scope.blocks.items()}


def pool(scope: Scope, tree: Params) -> Array:
    """Average all numbers that share a coefficient: {path: [...]} -> [size].

    pool(scope, spread(scope, v)) = v once spread is broadcast to the tensors.
    """
    dtype = jnp.result_type(*tree.values())
    sums = jnp.zeros(scope.size, dtype)
    for path, block in scope.blocks.items():
        axes = tuple(i for i, n in enumerate(block.shape) if n == 1)
        block_sum = jnp.sum(tree[path], axis=axes).reshape(-1)
        sums = sums.at[block.slice].add(block_sum)
    return sums / scope.counts.astype(dtype)


def _block_shape(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if kind == "parameter":
        return shape
    ones = (1,) * len(shape)
    return (*ones[:-1], *shape[-1:]) if kind == "filter" else ones


def _group(kind: str, path: str) -> str:
    if kind == "network":
        return ""
    return path.rpartition("/")[0] if kind == "module" else path
