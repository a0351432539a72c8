"""One device against four virtual ones, in a process of its own, in float64.

Run as a module, this file is that process: it prints what the tests look at.
"""

import json
import os
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
from l2f_jax.evaluation import make_predict
from l2f_jax.losses import cross_entropy
from l2f_jax.objectives import query_loss
from l2f_jax.outer import initial_state, make_update
from l2f_jax.parallel import check_divisible, mesh_for, task_mesh, tasks_at_once
from l2f_jax.problems import build
from l2f_jax.recipes import l2f
from tests import toys

ROOT = Path(__file__).parent.parent
TASKS, STEPS = 8, 1
MAPS = ("map", "vmap")


@pytest.fixture(scope="module")
def found():
    environment = {
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_ENABLE_X64": "1",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_parallel"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_there_are_four_devices(found):
    assert found["devices"] == 4


@pytest.mark.parametrize("task_map", MAPS)
@pytest.mark.parametrize("what", ["meta", "metrics", "outputs"])
def test_four_devices_compute_what_one_does(found, what, task_map):
    assert found[task_map][what] < 1e-12


def test_meta_parameters_moved(found):
    assert found["moved"] > 1e-3


def test_tasks_that_devices_cannot_share_are_refused(found):
    expected = "`tasks` (6) must be a positive multiple of the 4 device(s)"
    assert found["refusal"].startswith(expected)


def test_as_many_devices_as_divide_the_tasks_share_them(found):
    assert found["sharing"] == {"8": 4, "6": 3, "5": 1, "1": 1}


def test_any_number_of_devices_predicts(found):
    assert found["three"] < 1e-12  # the 8 tasks, by the 3 devices of 6 tasks


@pytest.mark.parametrize("what", ["meta", "metrics", "returns"])
def test_policies_are_searched_for_by_four_devices_as_by_one(found, what):
    assert found["search"]["devices"] == 3  # fewer
    assert found["search"][what] < 1e-12


def test_tasks_at_once():
    mesh = task_mesh(1)
    assert [tasks_at_once(how, 6, mesh) for how in MAPS] == [1, 6]


def toy_learner():
    model = toys.classifier(hidden=())
    return l2f(model, toys.task_loss(model), lr=0.5)


def results(devices, task_map):
    """Return (meta before, meta after, metrics, outputs) of one outer step."""
    learner, mesh = toy_learner(), task_mesh(devices)
    at_once = tasks_at_once(task_map, TASKS, mesh)
    update = make_update(
        query_loss(learner, cross_entropy, steps=STEPS),
        optax.sgd(0.1),
        lambda shared, item, key: item,
        tasks=TASKS,
        mesh=mesh,
        at_once=at_once,
    )
    episodes = toys.episode(tasks=(TASKS,))
    inputs = jnp.zeros((1, toys.FEATURES), float)
    state = initial_state(learner, optax.sgd(0.1), inputs, 0, mesh)
    after, metrics = update(state, (), jax.tree.map(lambda x: x[None], episodes))
    return state.meta, after.meta, metrics, outputs(after.meta, mesh, at_once)


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


def main():
    before, *one = results(1, "map")
    found = {"devices": jax.device_count(), "refusal": refusal()}
    found["moved"] = gap(before, one[0])
    found["sharing"] = {tasks: mesh_for(tasks).size for tasks in (8, 6, 5, 1)}
    found["three"] = gap(one[2], outputs(jax.tree.map(np.asarray, one[0]), mesh_for(6)))
    for task_map in MAPS:
        four = results(4, task_map)[1:]
        names = ("meta", "metrics", "outputs")
        found[task_map] = dict(zip(names, map(gap, one, four), strict=True))
    one, four = searched(1), searched(4)
    names = ("devices", "meta", "metrics", "returns")
    found["search"] = dict(zip(names, map(gap, one, four), strict=True))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
