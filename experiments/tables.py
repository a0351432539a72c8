"""The paper's tables: train what is missing, test all on the same tasks, print.

    python experiments/tables.py --table=4 --data=cifar_fs --budget=10000 --run=runs/t
    python experiments/tables.py --table=7 --run=runs/table_7 --cells='one_step/*'

Each cell is a run, or one of each seed, in a directory of its own below --run, which
goes on where it was interrupted; tables that share --run share their cells. Started
several times at once, on one machine, the programs take turns: each trains a cell that
no other has. --cells trains and prints some of them, and --print_only trains none. The
table also goes to table_<name>.md and .json there.
"""

import argparse
import fnmatch
import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from configs.tables import TABLES, Cell
from experiments import launch
from experiments.cells import Result, judge, members, resize, train_missing
from experiments.recording import environment, write_json, write_text
from l2f_jax.evaluation import interval, paired


def described(results: dict[str, Result | None], cell: Cell) -> dict | None:
    """Return what is known of a cell after each number of inner steps.

    mean, half: over tasks, of the mean over seeds.  seeds: each seed's mean.
    median: over tasks and seeds.  above_100: the share of tasks and seeds with an error
    above 100 or no number.  difference: from the other cell, on the same tasks.
    """
    result, other = results[cell.name], results.get(cell.against)
    if result is None:
        return None
    rows: dict[str, Any] = {"iterations": result.iterations, "steps": result.steps}
    rows["after"] = {}
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


def markdown(cells: Sequence[Cell], found: dict[str, dict | None], share: bool) -> str:
    """Write the table.

    Args:
      share: scores are shares, written in percent, after the trained number of inner
        steps; else errors, after each number, with what heavy tails ask for.
    """
    heavy = [] if share else ["median", "> 100"]
    names = ["cell", "steps", "mean ± 95 %", "seeds", *heavy, "paper", "difference"]
    lines = [names, ["---"] * len(names)]
    for cell in cells:
        rows = found[cell.name]
        if rows is None:
            lines.append([cell.name, "", "missing", *[""] * (len(names) - 3)])
            continue
        after = rows["after"]
        for point in [str(rows["steps"])] if share else after:
            lines.append([cell.name, point, *_texts(cell, point, after[point], share)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _texts(cell: Cell, point: str, row: dict[str, Any], share: bool) -> list[str]:
    def text(value: float) -> str:
        return f"{100 * value:.2f}" if share else number(value)

    least, most = (text(f(row["seeds"])) for f in (np.min, np.max))
    heavy = [number(row["median"]), f"{100 * row['above_100']:.2f} %"]
    gap, paper = row.get("difference"), cell.paper.get(int(point))
    return [
        f"{text(row['mean'])} ± {text(row['half'])}",
        least if least == most else f"{least} .. {most}",
        *([] if share else heavy),
        "" if paper is None else f"{100 * paper:.2f}" if share else str(paper),
        "" if gap is None else f"{text(gap[0])} ± {text(gap[1])}",
    ]


def number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.1e}"


def chosen_cells(table: str, data: str, pattern: str) -> list[Cell]:
    """Return the cells of a table whose names match a pattern.

    Raises ValueError for a table, data or a pattern of nothing.
    """
    if table not in TABLES:
        raise ValueError(f"--table ({table!r}) must be one of {', '.join(TABLES)}")
    cells = list(TABLES[table](data))
    matching = [cell for cell in cells if fnmatch.fnmatch(cell.name, pattern)]
    if not matching:
        names = ", ".join(cell.name for cell in cells)
        raise ValueError(f"--cells ({pattern!r}) matches none of {names}")
    return matching


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", required=True, help=", ".join(TABLES))
    parser.add_argument("--run", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--data", default="", help="of configs/classification, as NAME")
    parser.add_argument("--bank", help="the data set's folder, if not the config's")
    parser.add_argument("--cells", default="*", help="pattern of the cells to take")
    parser.add_argument("--budget", type=int, help="iterations of a cell's run")
    parser.add_argument("--seeds", type=int, help="runs of each cell")
    parser.add_argument("--print_only", action="store_true", help="train nothing")
    options = parser.parse_args()
    for name in ("budget", "seeds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} ({value}) must be at least 1")
    return options


def main() -> None:
    options = parsed()
    cells = chosen_cells(options.table, options.data, options.cells)
    runs = {}
    for cell in cells:
        if options.budget is not None:
            resize(cell.config, options.budget)
        if options.bank:
            if "bank" not in cell.config.data:
                raise ValueError(
                    f"--bank ({options.bank}): {cell.name} reads no image bank"
                )
            cell.config.data.bank = options.bank
        runs[cell.name] = members(cell, options.run, options.seeds)
    training = [cell.config.training for cell in cells]
    tasks = math.gcd(*[section.tasks for section in training])
    launch.set_up(training[0].cpu_devices, tasks)
    for cell in cells:
        if not options.print_only and not train_missing(runs[cell.name]):
            raise SystemExit(128 + signal.SIGTERM)
    results = {name: judge(list(parts)) for name, parts in runs.items()}
    found = {cell.name: described(results, cell) for cell in cells}
    share = any(result.score.percent for result in results.values() if result)
    text = markdown(cells, found, share)
    options.run.mkdir(parents=True, exist_ok=True)
    stem = options.run / f"table_{options.table}"
    write_text(stem.with_suffix(".md"), text + "\n")
    record = {"table": options.table, "cells": found, **environment()}
    write_json(stem.with_suffix(".json"), record)
    Console().print(text, soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    launch.guard(main)
