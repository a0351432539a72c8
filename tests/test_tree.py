import jax.numpy as jnp
import pytest

from l2f_jax import tree

PARAMS = {"conv_0/kernel": jnp.ones((2, 3)), "head/bias": jnp.array([1.0, 2.0])}


def test_split_puts_every_path_on_one_side():
    head, body = tree.split(PARAMS, lambda path: path.startswith("head"))
    assert list(head) == ["head/bias"]
    assert list(body) == ["conv_0/kernel"]


def test_merge_undoes_split_and_sorts():
    head, body = tree.split(PARAMS, lambda path: path.startswith("head"))
    assert list(tree.merge(head, body)) == ["conv_0/kernel", "head/bias"]


def test_merge_refuses_a_shared_path():
    with pytest.raises(ValueError, match="disjoint"):
        tree.merge(PARAMS, {"head/bias": jnp.zeros(2)})


def test_at_indexes_every_leaf():
    first = tree.at(PARAMS, 1)
    assert first["conv_0/kernel"].shape == (3,)
    assert first["head/bias"] == 2.0
