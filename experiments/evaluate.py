"""Test trained runs on the same fixed tasks.

    python experiments/evaluate.py runs/icons/maml runs/icons/l2f

For each run: its score after 0 .. S inner steps (of an attenuated policy also before
any), of the last checkpoint, of the best by validation, and of the ensemble of the best
(mean logits; the official code's protocol), each as mean and 95 % interval over tasks.
Several runs are compared task by task with the first. Everything is also written to
evaluation_<split>.json in each run.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments import launch
from experiments.identity import check_comparable, check_distinct, read_config
from experiments.judging import evaluate
from experiments.scores import Evaluation
from l2f_jax.problems.saved import read_record


def set_up(runs: Sequence[Path]) -> None:
    """Set up the devices so that the tasks of every run divide among them."""
    training = [read_config(run).training for run in runs]
    launch.set_up(training[0].cpu_devices, math.gcd(*[t.tasks for t in training]))


def show(evaluations: Sequence[Evaluation], console: Console) -> None:
    """Print a table for each run, then the paired differences from the first."""
    for e in evaluations:
        percent = " in %" if e.score.percent else ""
        heading = (
            f"{e.run}: {e.split} {e.score.name}{percent}, mean +- 95 % interval over "
            f"{e.tasks} tasks"
        )
        _show(e, "; ".join([heading, e.protocol, *e.notes]), e.text, console)
    first, *others = evaluations
    for other in others:

        def gap(name: str, point: int | str, other: Evaluation = other) -> str:
            found = other.gap(first, name, point)
            return "" if found is None else other.score.text(found)

        heading = f"{other.run} - {first.run}, paired over the same tasks"
        _show(other, heading, gap, console)


def _show(
    e: Evaluation,
    heading: str,
    text: Callable[[str, int | str], str],
    console: Console,
) -> None:
    """Print a table of text(checkpoint, inner steps), that of training in bold."""
    console.print(f"\n{heading}:", soft_wrap=True)
    table = Table("inner steps")
    for name, steps in e.checkpoints.items():
        at = ", ".join(map(str, steps))
        table.add_column(f"{name} (step {at})", justify="right")
    for point in e.stages:
        known = ((name, e.has(name, point)) for name in e.checkpoints)
        texts = [text(name, point) if there else "" for name, there in known]
        style = "bold" if point == e.steps else None
        table.add_row(str(point), *texts, style=style)
    console.print(table)


def _check_same_number(records: dict[Path, dict[str, Any]]) -> None:
    """Raise ValueError for runs whose configs have different numbers of tasks."""
    numbers = {
        run: r["config"]["evaluation"]["test_tasks"] for run, r in records.items()
    }
    if len({*numbers.values()}) > 1:
        listed = ", ".join(f"{run} {number}" for run, number in numbers.items())
        raise ValueError(f"--tasks must be given, as configs differ in it: {listed}")


def main() -> None:
    parser = launch.Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument(
        "--tasks", type=int, help="fixed tasks; the config's by default"
    )
    parser.add_argument("--bank", help="the data set's folder, if it has moved")
    options = parser.parse_args()
    if options.tasks is not None and options.tasks < 1:
        raise ValueError(f"--tasks ({options.tasks}) must be at least 1")
    check_distinct(options.runs)
    records = {run: read_record(run) for run in options.runs}
    check_comparable(records)
    if options.tasks is None:
        _check_same_number(records)
    set_up(options.runs)
    arguments = options.split, options.tasks, options.bank
    show([evaluate(run, *arguments) for run in options.runs], Console())


if __name__ == "__main__":
    launch.guard(main)
