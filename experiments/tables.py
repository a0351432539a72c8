"""The paper's tables: train what is missing, test all on the same tasks, print.

    python experiments/tables.py --table=7 --run=runs/table_7
    python experiments/tables.py --table=7 --run=runs/table_7 --cells='one_step/*'

Each cell is a run in a directory of its own below --run, which goes on where it was
interrupted; --cells trains and prints some of them, and --print_only trains none. The
table also goes to table.md and table.json there.
"""

import argparse
import fnmatch
import importlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from experiments import launch
from experiments.evaluate import by_task, read_config
from experiments.recording import environment, write_json
from experiments.train import train
from l2f_jax.checkpoint import Checkpoints
from l2f_jax.evaluation import interval, paired
from l2f_jax.problems import build


class Cell(NamedTuple):
    """A row of a table: a run, and what the paper reports for it.

    against: the cell whose scores on the same tasks are subtracted; "" for none.
    paper: inner steps -> score.
    """

    name: str
    config: ConfigDict
    against: str
    paper: dict[int, float]


PAPER_7 = {
    ("maml", "k5"): (1.2247, 1.0268, 0.8995),
    ("maml", "k10"): (0.9884, 0.6192, 0.4072),
    ("maml", "k20"): (0.6144, 0.3346, 0.1817),
    ("l2f", "k5"): (1.0537, 0.8426, 0.7096),
    ("l2f", "k10"): (0.8069, 0.5317, 0.3696),
    ("l2f", "k20"): (0.5475, 0.2805, 0.1629),
}


def table_7() -> Iterator[Cell]:
    """Sinusoid regression, mean squared error after 1, 2 and 5 inner steps."""
    module = importlib.import_module("configs.regression.sinusoid")
    for steps in ("one_step", "two_steps"):
        for k in ("k5", "k10", "k20"):
            for method in ("maml", "l2f"):
                name = f"{steps}/{k}_{method}"
                config = module.get_config(f"{method},{k},{steps}")
                against = f"{steps}/{k}_maml" if method != "maml" else ""
                paper = dict(zip((1, 2, 5), PAPER_7[method, k], strict=True))
                yield Cell(name, config, against, paper)


TABLES = {"7": table_7}


class Result(NamedTuple):
    """A trained cell's scores on the test tasks, [seeds, tasks, points]."""

    scores: np.ndarray
    points: tuple[int, ...]
    iterations: int


def judge(run: Path) -> Result | None:
    """Test the last checkpoint of a run; None if it has none."""
    if not (run / "run.json").exists():
        return None
    config = read_config(run)
    experiment = build(config)
    with Checkpoints(run / "checkpoints", read_only=True) as saved:
        restored = saved.restore_latest(experiment.init(config.seed))
    if restored is None:
        return None
    state, tasks = restored[0], experiment.evaluation.test_tasks
    predictions = experiment.predict(state.meta, state.stats, "test", tasks)
    scores = by_task(experiment, predictions)
    return Result(scores, experiment.points, int(state.step))


def described(results: dict[str, Result | None], cell: Cell) -> dict | None:
    """Return what the table prints of a cell after each number of inner steps.

    mean, half: over tasks, of the mean over seeds.  seeds: each seed's mean.
    median: over tasks and seeds.  above_100: the share of tasks and seeds with an error
    above 100 or no number.  difference: from the other cell, on the same tasks.
    """
    result, other = results[cell.name], results.get(cell.against)
    if result is None:
        return None
    rows: dict[str, Any] = {"iterations": result.iterations, "after": {}}
    for i, point in enumerate(result.points):
        scores = result.scores[:, :, i]
        with np.errstate(over="ignore", invalid="ignore"):
            mean = interval(scores.mean(0))
            row: dict[str, Any] = {
                "mean": mean.mean,
                "half": mean.half,
                "seeds": scores.mean(1).tolist(),
                "median": float(np.median(np.nan_to_num(scores, nan=np.inf))),
                "above_100": float((~(scores <= 100)).mean()),
            }
            if other is not None and other.scores.shape == result.scores.shape:
                gap = paired(scores.mean(0), other.scores[:, :, i].mean(0))
                row["difference"] = gap.mean, gap.half
        rows["after"][str(point)] = row
    return rows


def markdown(cells: Sequence[Cell], found: dict[str, dict | None]) -> str:
    """Write the table: a line for each cell and number of inner steps."""
    lines = [
        "| cell | steps | mean ± 95 % | seeds | median | > 100 | paper | difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in cells:
        rows = found[cell.name]
        if not rows:
            lines.append(f"| {cell.name} | | missing | | | | | |")
            continue
        for point, row in rows["after"].items():
            least, most = (number(f(row["seeds"])) for f in (np.min, np.max))
            gap = row.get("difference")
            lines.append(
                f"| {cell.name} | {point} | {number(row['mean'])} ± "
                f"{number(row['half'])} | {least} .. {most} "
                f"| {number(row['median'])} | {100 * row['above_100']:.2f} % "
                f"| {cell.paper.get(int(point), '')} "
                f"| {'' if gap is None else f'{number(gap[0])} ± {number(gap[1])}'} |"
            )
    return "\n".join(lines)


def number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.1e}"


def chosen_cells(table: str, pattern: str) -> list[Cell]:
    """Return the cells of a table whose names match a pattern.

    Raises ValueError for a table or a pattern of nothing.
    """
    if table not in TABLES:
        raise ValueError(f"--table ({table!r}) must be one of {', '.join(TABLES)}")
    cells = list(TABLES[table]())
    matching = [cell for cell in cells if fnmatch.fnmatch(cell.name, pattern)]
    if not matching:
        names = ", ".join(cell.name for cell in cells)
        raise ValueError(f"--cells ({pattern!r}) matches none of {names}")
    return matching


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", required=True, help=", ".join(TABLES))
    parser.add_argument("--run", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--cells", default="*", help="pattern of the cells to take")
    parser.add_argument("--iterations", type=int, help="of a cell, if not its config's")
    parser.add_argument("--print_only", action="store_true", help="train nothing")
    options = parser.parse_args()
    cells = chosen_cells(options.table, options.cells)
    training = cells[0].config.training
    launch.set_up(training.cpu_devices, training.tasks)
    for cell in cells:
        if options.iterations is not None:
            cell.config.training.iterations = options.iterations
        if not options.print_only and not train(cell.config, options.run / cell.name):
            raise SystemExit(128 + signal.SIGTERM)
    results = {cell.name: judge(options.run / cell.name) for cell in cells}
    found = {cell.name: described(results, cell) for cell in cells}
    options.run.mkdir(parents=True, exist_ok=True)
    text = markdown(cells, found)
    (options.run / "table.md").write_text(text + "\n", encoding="utf-8")
    record = {"table": options.table, "cells": found, **environment()}
    write_json(options.run / "table.json", record)
    Console().print(text, soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    launch.guard(main)
