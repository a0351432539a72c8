"""The leaves of a saved state: what is recorded of them, compared and restored."""

from pathlib import Path
from typing import Any

import jax


def describe(state: Any) -> dict[str, str]:
    """Return {path of the leaf: dtype[shape]}."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{leaf.dtype}{list(leaf.shape)}"
            if hasattr(leaf, "dtype")
            else type(leaf).__name__
        )
        for path, leaf in leaves
    }


def check(saved: dict[str, str], wanted: dict[str, str], where: Path) -> None:
    """Compare leaf by leaf: Orbax itself would cast a differing dtype silently."""
    paths = sorted(saved.keys() | wanted.keys())
    wrong = [path for path in paths if saved.get(path) != wanted.get(path)]
    if wrong:
        path, more = wrong[0], len(wrong) - 1
        raise ValueError(
            f"'{where}' does not fit: leaf '{path}' is {saved.get(path, 'missing')} "
            f"there, {wanted.get(path, 'missing')} here"
            + (f" (and {more} other leaves differ)" if more else "")
        )


def target(leaf: Any) -> Any:
    """Give an abstract leaf without sharding a device that exists here.

    Orbax would look for the device that the leaf was saved from.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
    return leaf
