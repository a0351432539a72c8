"""The oracle against the official numbers, and its small parts by hand."""

from pathlib import Path

import numpy as np
import oracle
import pytest

GOLDEN = Path(__file__).parent / "golden" / "l2f_conv4_f64.npz"
HEAD_BIAS = "classifier.layer_dict.linear.bias"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def ours(golden):
    """Run the official iteration; return its numbers under the fixture's keys."""
    params = {
        key.removeprefix("init/"): np.float64(value)
        for key, value in golden.items()
        if key.startswith("init/")
    }
    names = ("support_x", "support_y", "query_x", "query_y")
    result = oracle.iteration(params, *(golden["batch/" + name] for name in names))
    updated, _ = oracle.adam(params, result["grads"], lr=1e-3, clamp=10.0)
    tensors = {"adapted": result.pop("adapted"), "grad": result.pop("grads")}
    tensors["adam1"] = {name: updated[name] for name in tensors["grad"]}
    for group, arrays in tensors.items():
        result |= {f"{group}/{name}": array for name, array in arrays.items()}
    return result


def expected_keys(golden):
    inputs_and_checks = ("init/", "batch/", "mean/", "max_abs/")
    return {key for key in golden if not key.startswith(inputs_and_checks)}


@pytest.mark.parametrize("group", ["adapted/", "grad/", "adam1/", ""])
def test_matches_the_official_numbers(golden, ours, group):
    keys = {key for key in expected_keys(golden) if key.startswith(group)}
    assert keys == {key for key in ours if key.startswith(group)}
    for key in keys:
        size = golden.get("max_abs/" + key, np.abs(golden[key]).max())
        for part, value in oracle.reduced(key, ours[key]).items():
            np.testing.assert_allclose(
                value, golden[part], rtol=0, atol=1e-10 * size, err_msg=part
            )


@pytest.mark.parametrize(
    ("epoch", "others", "last"),
    [
        (0, 0.2, 0.2),
        (1, 0.2 - 1 / 75, 0.2 + 4 / 75),
        (7, 0.2 - 7 / 75, 0.2 + 28 / 75),
        (14, 0.2 - 14 / 75, 0.2 + 56 / 75),
        (15, 0.006, 0.976),
        (40, 0.006, 0.976),
    ],
)
def test_multi_step_loss_weights(epoch, others, last):
    weights = oracle.msl_weights(epoch, steps=5, epochs=15)
    np.testing.assert_allclose(weights, [others] * 4 + [last], rtol=1e-6)
    assert weights.sum() == pytest.approx(1.0, abs=1e-6)


def test_first_adam_step_is_the_rate_times_the_sign():
    params, grads = {"a": np.zeros(3)}, {"a": np.array([5.0, -0.01, 0.0])}
    new, _ = oracle.adam(params, grads, lr=0.1)
    np.testing.assert_allclose(new["a"], [-0.1, 0.1, 0.0], rtol=1e-5)


def test_second_adam_step():
    # Gradients 1, then -1: m = (0.09 - 0.1) / (1 - 0.81) = -1 / 19, v = 1.
    params, state = oracle.adam({"a": np.zeros(1)}, {"a": np.ones(1)}, lr=1.0)
    new, _ = oracle.adam(params, {"a": -np.ones(1)}, state, lr=1.0)
    np.testing.assert_allclose(new["a"] - params["a"], 1 / 19, rtol=1e-6)


def test_adam_clamps_the_network_alone():
    # After gradients 20 (clamped to 10) and 10 the network's steps are both one rate.
    names = (HEAD_BIAS, "attenuator.0.bias")
    params, state = {name: np.zeros(1) for name in names}, None
    for size in (20.0, 10.0):
        grads = {name: np.full(1, size) for name in names}
        params, state = oracle.adam(params, grads, state, lr=1.0, clamp=10.0)
    assert params[HEAD_BIAS] == pytest.approx(-2.0)
    assert params["attenuator.0.bias"] != pytest.approx(-2.0, abs=0.01)


def test_max_pool_with_padding_keeps_eleven_of_twenty_one():
    x = -1.0 - np.arange(21.0 * 21.0, dtype=np.float32).reshape(1, 1, 21, 21)
    pooled = oracle.max_pool(x, padding=1)
    # Windows start at -1, 1, 3, ...; the first pixel inside each is the largest.
    first = [0, *range(1, 20, 2)]
    np.testing.assert_array_equal(pooled[0, 0], x[0, 0][np.ix_(first, first)])


@pytest.mark.parametrize(
    ("network", "adapt_norm", "count"),
    [("conv4", False, 6), ("conv4", True, 14), ("resnet12", False, 18)]
    + [("resnet12", True, 50)],
)
def test_number_of_inner_tensors(network, adapt_norm, count):
    params = oracle.initial_params(np.random.default_rng(0), network)
    names = oracle.inner_names(params, network, adapt_norm)
    assert len(names) == len(set(names)) == count
