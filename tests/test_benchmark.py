"""The benchmark: its count of operations, and that it measures what it says."""

import json
import math
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from configs.regression import sinusoid
from configs.rl import navigation
from experiments import measure, overheads
from experiments.benchmark import (
    benchmark,
    check,
    orders,
    own_turn,
    run_json,
    sweep,
    synthesise,
)
from experiments.flops import flops
from l2f_jax.data.bank import load_bank
from l2f_jax.problems import build
from tests import tiny

pytestmark = pytest.mark.mixed_dtypes  # Adam
ROOT = Path(__file__).parent.parent
PEER = """echo working; echo '{"median_s": 0.5, "peak_mib": 100}'; echo done"""


def count(fn, *shapes: tuple[int, ...]) -> int:
    return flops(jax.make_jaxpr(fn)(*(jnp.zeros(shape) for shape in shapes)))


def test_product_counts_two_per_multiplication():
    assert count(lambda a, b: a @ b, (2, 3), (3, 5)) == 2 * 2 * 3 * 5


def test_batched_product_counts_every_batch():
    assert count(jax.vmap(jnp.dot), (7, 2, 3), (7, 3, 5)) == 7 * 2 * 2 * 3 * 5


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_counts_its_kernel_for_every_output(groups):
    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    # 3 images, 4 x 4 outputs, 8 filters; each sees 3 x 3 pixels of 4 / groups channels.
    expected = 2 * (3 * 4 * 4 * 8) * (3 * 3 * 4 // groups)
    assert count(conv, (3, 6, 6, 4), (3, 3, 4 // groups, 8)) == expected


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_a_convolution_count_no_zeros(stride):
    shapes = (3, 6, 6, 4), (3, 3, 4, 8)

    def conv(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=layout
        )

    def second(x, kernel):
        gradient = jax.grad(lambda x, kernel: jnp.square(conv(x, kernel)).sum())
        return jnp.square(gradient(x, kernel)).sum()

    # Of the taps of 6 outputs in a row 2 meet padding; of 3 outputs, 1.
    row = 3 * 6 - 2 if stride == 1 else 3 * 3 - 1
    once = count(conv, *shapes)
    assert once == 2 * 3 * 4 * 8 * row**2
    for argument in (0, 1):
        # A derivative pairs the same numbers as the convolution that it is of.
        of_sum = jax.grad(lambda *both: jnp.square(conv(*both)).sum(), argument)
        assert count(of_sum, *shapes) == 2 * once
        # y = x * K, g = y * K'; back from g to y and on to x; K is in both: one more.
        assert count(jax.grad(second, argument), *shapes) == (4, 5)[argument] * once


def test_loops_count_every_pass():
    def power(x):
        def squares(i, y):
            return jax.lax.map(lambda matrix: matrix @ matrix, y)

        return jax.lax.fori_loop(0, 3, squares, x)

    # 3 passes over 5 products of 2 x 2 matrices.
    assert count(jax.jit(power), (5, 2, 2)) == 3 * 5 * 2 * 2 * 2 * 2


def test_gradient_of_a_checkpointed_product_counts_the_recomputation():
    def loss(w, x):
        return jnp.sum(jnp.square(x @ w))

    plain = count(jax.grad(loss), (3, 5), (2, 3))
    assert plain == 2 * (2 * 2 * 3 * 5)  # x @ w, and x^T times its cotangent
    assert count(jax.grad(jax.checkpoint(loss)), (3, 5), (2, 3)) == plain + 60


def test_branches_count_the_dearest():
    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert count(either, (2, 2)) == 2 * 16


def test_products_in_a_loop_of_unknown_length_are_refused():
    def until(x):
        return jax.lax.while_loop(lambda y: y[0, 0] < 1, lambda y: y @ y, x)

    with pytest.raises(ValueError, match="while"):
        count(until, (2, 2))


@pytest.fixture(scope="module")
def experiment():
    return build(tiny.get_config())


def test_measured_is_the_last_epoch(experiment):
    # 12 iterations in epochs of 6; a first-order epoch, then second order.
    state, step, iterations = measure.last_epoch(experiment)
    assert (int(state.step), step, iterations) == (6, 6, 3)


def test_arithmetic_grows_with_iterations_and_not_with_sampling(experiment):
    state, step, _ = measure.last_epoch(experiment)
    count = jax.make_jaxpr(experiment.update, static_argnums=(1, 2))
    once = flops(count(state, step, 1))
    assert flops(count(state, step, 3)) == 3 * once > 0
    ready = overheads.presampled(tiny.get_config(), experiment, 3)
    assert flops(jax.make_jaxpr(ready)(state)) == 3 * once


def test_row_of_a_config_and_a_peer():
    row = benchmark(tiny.get_config(), repeats=2, peer=PEER)
    assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
    assert math.isclose(row["tasks_per_s"], 4 / row["median_s"])
    assert math.isclose(row["gflop_per_s"], row["gflop"] / row["median_s"])
    assert math.isclose(row["time_ratio"], row["median_s"] / 0.5)
    assert math.isclose(row["memory_ratio"], row["peak_mib"] / 100)
    # The images of the training classes are an argument: 227 x 20 x 28 x 28 bytes.
    assert 3.4 < row["program_mib"] < row["peak_mib"]


TIMES = {"compile_s", "median_s", "min_s", "max_s", "tasks_per_s"}
MEMORY = {"program_mib", "peak_mib"}
PRODUCTS = {"gflop", "gflop_per_s", "matmul_gflop_per_s", "matmul_share"}
EXPERIENCE = {"trained_steps_per_s", "env_steps_per_s"}


def test_virtual_devices_share_the_products_of_a_cpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(jax, "local_devices", lambda: 2 * jax.devices()[:1])
    run, gflop = measure.matrix_product()
    (last,) = run()  # on the first device, which uses all cores
    assert last.shape == (2048, 2048) and jnp.allclose(last, 1 / 2048)
    assert gflop == measure.IN_A_ROW * 2 * 2048**3 / 1e9


def tiny_navigation():
    config = navigation.get_config("maml")
    config.env.horizon, config.sampling.trajectories = 3, 2
    config.model.hidden, config.training.tasks = (4,), 2
    return config


def tiny_sinusoid():
    config = sinusoid.get_config()
    config.model.hidden = (4,)
    config.training.update({"tasks": 2, "seeds": 2, "iterations_per_dispatch": 2})
    return config


@pytest.mark.parametrize(
    ("config", "own"), [(tiny_navigation, EXPERIENCE), (tiny_sinusoid, PRODUCTS)]
)
def test_row_of_another_domain(config, own):
    row = benchmark(config(), repeats=2)
    assert row.keys() - {"device_mib"} == TIMES | MEMORY | own
    assert all(value > 0 for value in row.values())
    if own == EXPERIENCE:
        # 2 tasks x a budget of 2 x 3 steps, before and after one inner step.
        assert math.isclose(row["trained_steps_per_s"], 2 * 12 / row["median_s"])


def test_collected_are_whole_trajectories_of_different_tasks():
    config = tiny_navigation()
    run, steps = measure.collection(config, build(config))
    observations, actions, rewards, mask = run()
    # Twice as many trajectories as count: nobody gets to a goal in 3 steps.
    assert steps == mask.size == 2 * 4 * 3 and mask.sum() == steps / 2
    assert observations.shape == actions.shape == (2, 4, 3, 2)
    assert len(set(rewards[mask > 0].tolist())) == steps / 2


def test_first_order_needs_less():
    first, second = orders(tiny.get_config())
    assert (first["order"], second["order"]) == (1, 2)
    for name in ("gflop", "temporary_mib"):
        assert 0 < first[name] < second[name]


def test_calls_take_turns():
    turns = []
    results = measure.alternate(
        2, a=lambda: turns.append("a"), b=lambda: turns.append("b") or len(turns)
    )
    assert turns == ["a", "b", "a", "b"]
    assert results == {"a": [None, None], "b": [2, 4]}


def test_the_clock_of_one_process_runs_at_a_time(tmp_path):
    running, most = 0, 0

    def take_turn():
        nonlocal running, most
        with own_turn(str(tmp_path / "turns")):
            running += 1
            most = max(most, running)
            time.sleep(0.01)
            running -= 1

    threads = [threading.Thread(target=take_turn) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_ratio_is_taken_pair_by_pair():
    # Ratios 2, 1, 3; of the medians it would be 4 / 3.
    assert measure.median_ratio([2.0, 4.0, 9.0], [1.0, 4.0, 3.0]) == 2.0


@pytest.mark.skipif(sys.platform != "linux", reason="Linux inherits peaks")
def test_peer_does_not_inherit_our_peak_of_memory():
    code = (
        "import json, resource; peak = resource.getrusage(resource.RUSAGE_SELF); "
        "print(json.dumps({'peak_mib': peak.ru_maxrss / 1024}))"
    )
    command = shlex.join([sys.executable, "-c", code])
    assert run_json(command)[-1]["peak_mib"] < measure.memory_peaks()["peak_mib"] / 2


@pytest.mark.parametrize("command", ["exit 3", "echo 1.5", "echo '{}'; false"])
def test_peer_that_fails_or_reports_nothing_is_refused(command):
    with pytest.raises(ValueError, match="exit code"):
        run_json(command)


def test_synthetic_bank_has_the_size_asked_for(tmp_path):
    config = tiny.get_config()
    synthesise("6x5x3", config, tmp_path / "bank")
    assert load_bank(config.data.bank).images.shape[1:] == (6, 5, 3)


@pytest.mark.parametrize("size", ["84", "84x84", "axbxc"])
def test_size_that_is_none_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match="HxWxC"):
        synthesise(size, tiny.get_config(), tmp_path / "bank")


def test_sweep_without_values_is_refused():
    with pytest.raises(ValueError, match="KEY:VALUE"):
        next(sweep("training.tasks", []))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"repeats": 0}, "--repeats .0. must be at least 1"),
        ({"parts": True, "peer": "x"}, "--parts and --peer do not go together"),
        ({"orders": True, "parts": True}, "--orders and --parts do not go together"),
        ({"synthetic": "8x8x1"}, "--synthetic is for classification, not reinf"),
        ({"parts": True}, "--parts is for classification, not reinforcement"),
        ({"orders": True}, "--orders .* not for reinforcement; set --config.training"),
    ],
)
def test_options_that_are_wrong_or_would_be_ignored_are_refused(given, message):
    names = dict.fromkeys(("orders", "parts", "peer", "turns", "synthetic"), "")
    options = SimpleNamespace(**{"repeats": 1, **names} | given)
    with pytest.raises(ValueError, match=message):
        check(options, navigation.get_config("maml"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["--parts", "--repeats=2"])
def test_command_sweeps_over_a_key(mode):
    program = [sys.executable, "experiments/benchmark.py", "--config=tests/tiny.py"]
    swept = "--sweep=training.tasks:1,2"
    done = subprocess.run(
        [*program, swept, "--json", mode], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["training.tasks"] for row in rows] == ["1", "2"]
    assert all(row["environment"]["command"] for row in rows)
