"""Measure a config's training step: time, arithmetic, memory; also against a peer.

    python experiments/benchmark.py --config=configs/classification/icons.py
    python experiments/benchmark.py --config=... --peer="python experiments/peer.py ..."
    python experiments/benchmark.py --config=... --sweep=training.tasks:1,2,4,8
    python experiments/benchmark.py --config=... --synthetic=84x84x3 --orders

Timed is the whole step of the run's last epoch (sampling from a bank on the device,
adaptation, meta-gradient, Adam), `training.iterations_per_dispatch` meta-iterations in
a dispatch: median_s, min_s and max_s are seconds of one. gflop counts the products and
convolutions of one, matmul_share is their rate relative to that of large float32
products on the whole machine, timed in turn with them. Of policy search, whose line
search has no fixed length, steps of the environment count instead: trained_steps_per_s
is how fast they are made and learned from, env_steps_per_s how fast a policy makes them
in all tasks at once, nothing learned. program_mib is the compiler's account of a
device's memory, peak_mib the resident memory of this process, device_mib the peak on
the device. time_ratio and memory_ratio are relative to the peer's peer_s and peer_mib.

--parts takes as many iterations in four ways: dispatch_share is what single dispatches
would add to a step, sampling_share what episodes that are there already would save, and
stream_share what reading the images on the host would add.
"""

import contextlib
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import launch, measure, overheads
from experiments.locking import held
from experiments.recording import environment
from l2f_jax.data.writer import write_bank
from l2f_jax.problems import build

Row = dict[str, Any]
CLASSES, IMAGES = 64, 60  # of a synthetic bank: the classes of mini-ImageNet


def benchmark(config: ConfigDict, repeats: int, peer: str = "", turns: str = "") -> Row:
    """Measure the step in turn with matrix products and, if given, a peer.

    turns: a file that is locked while the clock runs, see `own_turn`; "" for none.
    """
    experiment = build(config)
    step = measure.compile_step(experiment)
    product, product_gflop = measure.matrix_product()
    calls: dict[str, Any] = {
        "step": lambda: measure.seconds(step.run) / step.iterations,
        "product": lambda: measure.warm_seconds(product),
    }
    collection = None
    if config.problem == "reinforcement":
        collection = measure.collection(config, experiment)
        calls["collection"] = lambda: measure.seconds(collection.run)
    with own_turn(turns):
        measure.alternate(1, **calls)  # what only the first call costs
        if peer:
            calls["peer"] = lambda: run_json(peer)[-1]
        taken = measure.alternate(repeats, **calls)
    median = statistics.median(taken["step"])
    row = {
        "compile_s": step.facts["compile_s"],
        "median_s": median,
        "min_s": min(taken["step"]),
        "max_s": max(taken["step"]),
        "tasks_per_s": experiment.schedule.tasks / median,
        "program_mib": step.facts["program_mib"],
        **measure.memory_peaks(),
    }
    if "gflop" in step.facts:
        row |= arithmetic(step.facts["gflop"], product_gflop, taken)
    if collection:
        alone = statistics.median(taken["collection"])
        row |= {
            "trained_steps_per_s": experiment.facts["environment_steps"] / median,
            "env_steps_per_s": collection.steps / alone,
        }
    return row | (compared(row, taken["step"], taken["peer"]) if peer else {})


@contextlib.contextmanager
def own_turn(turns: str) -> Iterator[None]:
    """Wait for the lock of a file, and keep it from whoever else asks for its turn."""
    if not turns:
        yield
        return
    with held(Path(turns), wait=True):
        yield


def arithmetic(gflop: float, product_gflop: float, taken: dict[str, list]) -> Row:
    """Return the step's rate of operations, and relative to the matrix product's."""
    speed = measure.median_ratio(taken["product"], taken["step"])
    return {
        "gflop": gflop,
        "gflop_per_s": gflop / statistics.median(taken["step"]),
        "matmul_gflop_per_s": product_gflop / statistics.median(taken["product"]),
        "matmul_share": gflop / product_gflop * speed,
    }


def compared(row: Row, ours: list[float], peers: list[Row]) -> Row:
    """Return what a peer needs, and our time and memory relative to it."""
    theirs = [record["median_s"] for record in peers]
    memory = statistics.median(record["peak_mib"] for record in peers)
    return {
        "peer_s": statistics.median(theirs),
        "peer_mib": memory,
        "time_ratio": measure.median_ratio(ours, theirs),
        "memory_ratio": row["peak_mib"] / memory,
        "time_ratios": [a / b for a, b in zip(ours, theirs, strict=True)],
    }


def orders(config: ConfigDict) -> Iterator[Row]:
    """Compile the first-order and the second-order step without running them."""
    config = ConfigDict(config.to_dict())
    config.training.first_order_epochs = 0
    for order in (1, 2):
        config.training.order = order
        yield {"order": order, **measure.compile_step(build(config)).facts}


def sweep(option: str, arguments: list[str]) -> Iterator[Row]:
    """Run this program for each value of a key, as KEY:VALUE,VALUE says.

    In processes of their own, because a process's peak of memory never goes down.
    """
    key, _, values = option.partition(":")
    if not key or not values:
        raise ValueError(f"--sweep ({option!r}) must be KEY:VALUE,VALUE,...")
    for value in values.split(","):
        own = [*arguments, "--sweep=", "--json", f"--config.{key}={value}"]
        for row in run_json(shlex.join([sys.executable, __file__, *own])):
            yield {key: value} | row


def run_json(command: str) -> list[Row]:
    """Run a shell command; return the JSON records among the lines that it prints."""
    # On Linux a program inherits the peak of memory of the process that executed it. A
    # shell with something left to do executes the command in a fresh child of its own.
    done = subprocess.run(
        f"{command}\nexit $?", shell=True, stdout=subprocess.PIPE, text=True
    )
    records = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not records:
        raise ValueError(
            f"`{command}` ended with exit code {done.returncode} and "
            f"{len(records)} lines of JSON"
        )
    return [json.loads(record) for record in records]


def synthesise(size: str, config: ConfigDict, folder: Path) -> None:
    """Write a bank of random images HxWxC, and point the config to it."""
    try:
        height, width, channels = map(int, size.split("x"))
    except ValueError:
        raise ValueError(f"--synthetic ({size!r}) must be HxWxC, as 84x84x3") from None
    images = max(IMAGES, config.data.shots + config.data.queries)
    shape, random = (images, height, width, channels), np.random.default_rng(0)
    with write_bank(folder, {"source": "random numbers"}) as add:
        for number in range(max(CLASSES, config.data.ways)):
            add(str(number), "train", random.integers(0, 256, shape, np.uint8))
    config.data.bank = str(folder)


def show(rows: Iterable[Row], as_json: bool) -> None:
    """Print rows as they come: numbers under their names, or all as lines of JSON."""
    header = None
    for row in rows:
        if as_json:
            print(json.dumps(row), flush=True)
            continue
        cells = {k: v for k, v in row.items() if not isinstance(v, list | dict)}
        widths = {name: max(len(name), 7) for name in cells}
        if header != (header := "  ".join(f"{k:>{w}}" for k, w in widths.items())):
            print(header)
        print(
            "  ".join(f"{text(cells[k]):>{w}}" for k, w in widths.items()), flush=True
        )


def text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.4f}"


def rows(options: flags.FlagValues, config: ConfigDict, folder: Path) -> Iterator[Row]:
    """Yield the rows that the options ask for."""
    if config.problem == "classification":
        config.data.placement = "device"  # a stream is no part of the compiled step
    if options.synthetic:
        synthesise(options.synthetic, config, folder)
    if options.orders:
        measured = orders(config)
    elif options.parts:
        measured = iter([overheads.shares(config, build(config), options.repeats)])
    else:
        measured = iter(
            [benchmark(config, options.repeats, options.peer, options.turns)]
        )
    for row in measured:
        yield row | {"environment": environment()}


def check(options: Any, config: ConfigDict) -> None:
    """Raise ValueError for options that are wrong or would be ignored."""
    if options.repeats < 1:
        raise ValueError(f"--repeats ({options.repeats}) must be at least 1")
    kinds = ("orders", "parts", "peer", "turns")
    given = [f"--{name}" for name in kinds if getattr(options, name)]
    if len(given) > 1 and (options.orders or options.parts):
        raise ValueError(f"{' and '.join(given)} do not go together; give one of them")
    for name in ("synthetic", "parts"):
        if getattr(options, name) and config.problem != "classification":
            raise ValueError(f"--{name} is for classification, not {config.problem}")
    if options.orders and config.problem == "reinforcement":
        raise ValueError(
            "--orders is for episodes, which can be compiled without being run, not "
            "for reinforcement; set --config.training.order"
        )


def main() -> None:
    options, config = flags.FLAGS, launch.config()
    check(options, config)
    if options.sweep:
        show(sweep(options.sweep, sys.argv[1:]), options.json)
        return
    # Compilation is timed as it is without a cache of compiled programs.
    jax.config.update("jax_enable_compilation_cache", False)
    with tempfile.TemporaryDirectory() as folder:
        show(rows(options, config, Path(folder) / "bank"), options.json)


if __name__ == "__main__":
    launch.config_flag()
    flags.DEFINE_integer("repeats", 5, "blocks of iterations that are timed")
    flags.DEFINE_string("peer", "", "a command to time in turn; it prints such JSON")
    flags.DEFINE_string(
        "turns", "", "a file: compile beside others that name it, time one at a time"
    )
    flags.DEFINE_string("sweep", "", "KEY:VALUE,VALUE,... a row for each value")
    flags.DEFINE_string("synthetic", "", "HxWxC: random images instead of a data set")
    flags.DEFINE_bool("parts", False, "the cost of dispatching, sampling, streaming")
    flags.DEFINE_bool("orders", False, "compile first and second order, run nothing")
    flags.DEFINE_bool("json", False, "print lines of JSON instead of a table")
    launch.run(main)
