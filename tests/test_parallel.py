"""One device against four virtual ones, of one process or two, in float64.

Run as a module, this file is such a process: it prints what the tests look at. Its
argument says which of two things it does.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.rl import navigation
from experiments.launch import processes
from l2f_jax.evaluation import make_predict
from l2f_jax.losses import cross_entropy
from l2f_jax.objectives import query_loss
from l2f_jax.outer import initial_state, make_update
from l2f_jax.parallel import (
    check_divisible,
    mesh_for,
    share,
    task_mesh,
    tasks_at_once,
)
from l2f_jax.problems import build
from l2f_jax.recipes import l2f
from tests import toys

ROOT = Path(__file__).parent.parent
TASKS, STEPS = 8, 1
MAPS = ("map", "vmap")


def start(devices: int, what: str, **environment: str) -> subprocess.Popen:
    """Start this file as a module, for "adaptation" or a policy "search"."""
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_ENABLE_X64": "1",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.test_parallel", what],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen) -> dict:
    try:
        output, message = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, message
    return json.loads(output.splitlines()[-1])  # gloo talks before it


@pytest.fixture(scope="module")
def found():
    with start(4, "adaptation") as process:
        return result(process)


@pytest.fixture(scope="module")
def found_by_search():
    with start(4, "search") as process:
        return result(process)


@pytest.fixture(scope="module")
def together():
    """Return what each of two processes of two devices finds."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        start(
            2,
            "adaptation",
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]
    try:
        return [result(process) for process in processes]
    finally:  # the second, if the first failed
        processes[1].kill()
        processes[1].wait()


def test_there_are_four_devices(found):
    assert found["devices"] == 4


@pytest.mark.parametrize("task_map", MAPS)
@pytest.mark.parametrize("what", ["meta", "metrics", "outputs"])
def test_four_devices_compute_what_one_does(found, what, task_map):
    assert found[task_map][what] < 1e-12


def test_two_processes_of_two_devices_compute_what_one_device_does(found, together):
    assert [of["devices"] for of in together] == [4, 4]
    for of in together:
        for task_map in MAPS:
            np.testing.assert_allclose(of[task_map], found["one"], rtol=0, atol=1e-12)


def test_meta_parameters_moved(found):
    assert found["moved"] > 1e-3


def test_tasks_that_devices_cannot_share_are_refused(found):
    expected = "`tasks` (6) must be a positive multiple of the 4 device(s)"
    assert found["refusal"].startswith(expected)


def test_as_many_devices_as_divide_the_tasks_share_them(found):
    assert found["sharing"] == {"8": 4, "6": 3, "5": 1, "1": 1}


def test_any_number_of_devices_predicts(found):
    assert found["three"] < 1e-12  # the 8 tasks, by the 3 devices of 6 tasks


@pytest.mark.slow  # compiles for long; .ci/run has it
@pytest.mark.parametrize("what", ["meta", "metrics", "returns"])
def test_policies_are_searched_for_by_four_devices_as_by_one(found_by_search, what):
    assert found_by_search["devices"] == 3  # fewer
    assert found_by_search[what] < 1e-12


def test_tasks_at_once():
    mesh = task_mesh(1)
    assert [tasks_at_once(how, 6, mesh) for how in MAPS] == [1, 6]


def toy_learner():
    model = toys.classifier(hidden=())
    return l2f(model, toys.task_loss(model), lr=0.5)


def results(devices, task_map):
    """Return (meta before, meta after, metrics, outputs) of one outer step."""
    mesh = task_mesh(devices)
    before, after, metrics = trained(mesh, task_map)
    made = outputs(after, mesh, tasks_at_once(task_map, TASKS, mesh))
    return before, after, metrics, made


def trained(mesh, task_map):
    """Return (meta before, meta after, metrics) of one outer step."""
    learner = toy_learner()
    at_once = tasks_at_once(task_map, TASKS, mesh)
    update = make_update(
        query_loss(learner, cross_entropy, steps=STEPS),
        optax.sgd(0.1),
        lambda shared, item, key: item,
        tasks=TASKS,
        mesh=mesh,
        at_once=at_once,
    )
    own = TASKS // jax.process_count()
    mine = slice(jax.process_index() * own, (jax.process_index() + 1) * own)
    episodes = toys.episode(tasks=(TASKS,))
    episodes = jax.tree.map(lambda x: np.asarray(x)[None, mine], episodes)
    inputs = jnp.zeros((1, toys.FEATURES), float)
    state = initial_state(learner, optax.sgd(0.1), inputs, 0, mesh)
    after, metrics = update(state, (), share(episodes, mesh, axis=1))
    return state.meta, after.meta, metrics


def outputs(meta, mesh, at_once=1):
    predict = make_predict(
        toy_learner(), lambda _, x: x, steps=STEPS, mesh=mesh, at_once=at_once
    )
    return predict(meta, {}, (), toys.episode(tasks=(TASKS,))).outputs


def searched(devices):
    """Return (devices used, meta, metrics, returns) of a step of policy search."""
    config = navigation.get_config("l2f")
    config.env.horizon, config.training.tasks = 4, 4
    # At the start, the origin, a ReLU without bias has a kink: its gradients jump.
    config.model.hidden, config.model.activation = (4,), "tanh"
    config.sampling.trajectories = config.evaluation.trajectories = 2
    # With the usual one conjugate gradient amplifies rounding without bound: so few
    # trajectories leave the Fisher matrix singular.
    config.optimiser.damping = 1.0
    with patch("jax.device_count", return_value=devices):
        experiment = build(config)
    after, metrics = experiment.update(experiment.init(0), 0, 1)
    assert metrics["outer/accepted"] == 1
    returns = experiment.predict(after.meta, after.stats, "val", 3).outputs
    shared = len(after.step.sharding.device_set)
    return shared, after.meta, metrics, returns


def gap(a, b):
    """Return the largest difference of two trees."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


def refusal():
    try:
        check_divisible(6, task_mesh())
    except ValueError as error:
        return str(error)


def numbers(tree) -> list[float]:
    """Return all numbers of a tree of arrays that every device holds."""
    leaves = [np.asarray(x).ravel() for x in jax.tree.leaves(tree)]
    return np.concatenate(leaves).tolist()


def alone():
    before, *one = results(1, "map")
    found = {
        "one": numbers(one[:2]),
        "devices": jax.device_count(),
        "refusal": refusal(),
    }
    found["moved"] = gap(before, one[0])
    found["sharing"] = {tasks: mesh_for(tasks).size for tasks in (8, 6, 5, 1)}
    found["three"] = gap(one[2], outputs(jax.tree.map(np.asarray, one[0]), mesh_for(6)))
    for task_map in MAPS:
        four = results(4, task_map)[1:]
        names = ("meta", "metrics", "outputs")
        found[task_map] = dict(zip(names, map(gap, one, four), strict=True))
    return found


def search():
    names = ("devices", "meta", "metrics", "returns")
    return dict(zip(names, map(gap, searched(1), searched(4)), strict=True))


def as_one_of_two():
    found = {"devices": jax.device_count()}
    return found | {name: numbers(trained(task_mesh(), name)[1:]) for name in MAPS}


if __name__ == "__main__":
    if several := processes(os.environ):
        jax.distributed.initialize(*several)
    adaptation = alone if jax.process_count() == 1 else as_one_of_two
    print(json.dumps((search if sys.argv[1] == "search" else adaptation)()))
