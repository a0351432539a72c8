"""Measure the training step of an experiment: compilation, time, arithmetic, memory."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from ml_collections import ConfigDict

from experiments.flops import flops
from l2f_jax.outer import TrainState
from l2f_jax.problems import Experiment
from l2f_jax.problems.policy_search import method as policy_search
from l2f_jax.rl.rollout import rollouts
from l2f_jax.types import Params

MIB = 2**20
IN_A_ROW = 8  # matrix products that are timed as one


class Step(NamedTuple):
    """A compiled training step.

    run() takes `iterations` meta-iterations in one dispatch. facts: compile_s (tracing
    to executable, in seconds), gflop (10^9 operations of a meta-iteration, if they can
    be counted), and by the compiler's account temporary_mib and, with arguments and
    outputs, program_mib.
    """

    run: Callable[[], Any]
    iterations: int
    facts: dict[str, float]


def last_epoch(experiment: Experiment) -> tuple[TrainState, int, int]:
    """Return (state, step, iterations) of a dispatch in a run's last epoch.

    Warm-up epochs (first-order, multi-step) lie before it, if the run has them.
    """
    schedule = experiment.schedule
    step = (schedule.epochs - 1) * schedule.iterations_per_epoch
    state = experiment.init(0)
    state = state._replace(step=state.step + step)
    iterations = min(schedule.iterations_per_dispatch, schedule.iterations - step)
    return state, step, iterations


def compile_step(experiment: Experiment) -> Step:
    """Compile what `experiment.update` runs in the last epoch, ahead of time."""
    state, step, iterations = last_epoch(experiment)
    start = time.perf_counter()
    update = jax.jit(experiment.update, static_argnums=(1, 2))
    traced = update.trace(state, step, iterations).jaxpr

    # The data set is a constant of this trace. In training it is an argument of the
    # program, so it becomes one here too.
    def run(constants, arguments):
        return jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, constants))(*arguments)

    inputs = traced.consts, jax.tree.leaves(state)
    compiled = jax.jit(run).lower(*inputs).compile()
    compile_s = time.perf_counter() - start
    memory = compiled.memory_analysis()
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes
    arrays -= memory.alias_size_in_bytes
    facts = {
        "compile_s": compile_s,
        **_arithmetic(traced, iterations),
        "temporary_mib": memory.temp_size_in_bytes / MIB,
        "program_mib": (memory.temp_size_in_bytes + arrays) / MIB,
    }
    return Step(lambda: compiled(*inputs), iterations, facts)


def _arithmetic(traced: ClosedJaxpr, iterations: int) -> dict[str, float]:
    try:
        return {"gflop": flops(traced) / iterations / 1e9}
    except ValueError:  # a line search takes as many steps as it needs
        return {}


def seconds(run: Callable[[], Any]) -> float:
    """Time one call, to the end of its computations."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def warm_seconds(run: Callable[[], Any]) -> float:
    """Time one call after another one.

    The first product after a step takes up to twice as long as those that follow.
    """
    jax.block_until_ready(run())
    return seconds(run)


def alternate(repeats: int, **calls: Callable[[], Any]) -> dict[str, list[Any]]:
    """Call all in turn, A B A B ..., and return the results of each.

    On a busy machine only neighbours are comparable: take the median of their ratios.
    """
    results: dict[str, list[Any]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            results[name].append(call())
    return results


def median_ratio(a: list[float], b: list[float]) -> float:
    """Return the median of a / b, pair by pair."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


class Collection(NamedTuple):
    """What acts in all tasks of a meta-iteration once, and learns nothing.

    run() takes `steps` steps of the environment, those after an early end included.
    """

    run: Callable[[], Any]
    steps: int


def collection(config: ConfigDict, experiment: Experiment) -> Collection:
    """Return the collection of one set of trajectories a task, by the first policy."""
    names = "env model learner transform sampling optimiser training".split()
    search = policy_search(**{name: config[name] for name in names})
    tasks, sampling = search.schedule.tasks, search.sampling

    @jax.jit
    def collect(params: Params, keys: jax.Array):
        def one(key: jax.Array):
            task_key, key = jax.random.split(key)
            task = search.env.sample_task(task_key)
            # Without the advantages, which nobody asks for, no baseline is fitted.
            return rollouts(search.env, search.policy, sampling, task)(params, key)[:-1]

        return jax.vmap(one)(keys)

    params = experiment.init(0).meta.params
    keys = jax.random.split(jax.random.key(0), tasks)
    steps = tasks * sampling.sampled * search.env.horizon
    return Collection(lambda: collect(params, keys), steps)


def matrix_product() -> tuple[Callable[[], Any], float]:
    """Return large float32 products on the whole machine, and their 10^9 operations.

    On a CPU one device will do: it uses all cores, which virtual devices share.
    """
    on_cpu = jax.default_backend() == "cpu"
    size = 2048 if on_cpu else 8192
    devices = jax.local_devices()[:1] if on_cpu else jax.local_devices()
    matrices = [jax.device_put(jnp.full((size, size), 1 / size), d) for d in devices]

    @jax.jit
    def products(matrix: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, IN_A_ROW, lambda _, x: x @ matrix, matrix)

    parts = len(devices) * jax.process_count() * IN_A_ROW
    return lambda: [products(matrix) for matrix in matrices], parts * 2 * size**3 / 1e9


def memory_peaks() -> dict[str, float]:
    """Return the most memory used so far, in MiB.

    peak_mib: resident, of this process.  device_mib: on the first device, unless a CPU.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peaks = {"peak_mib": peak / (MIB if sys.platform == "darwin" else 1024)}
    device = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in device:
        peaks["device_mib"] = device["peak_bytes_in_use"] / MIB
    return peaks
