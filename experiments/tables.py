"""The paper's tables: train what is missing, test all on the same tasks, print.

    python experiments/tables.py --table=4 --data=cifar_fs --budget=10000
    python experiments/tables.py --table=7 --run=runs/table_7 --cells='one_step/*'

Each cell is a run, or one of each seed, in a directory of its own below --run, which
goes on where it was interrupted; tables that share --run share their cells. Started
several times at once, on one machine, the programs take turns: each trains a cell that
no other has. Without --run they are below runs/tables. --cells trains and prints some
of them, and --print_only trains none. The whole table also goes to table_<name>.md and
.json there.
"""

import argparse
import fnmatch
import math
import signal
from pathlib import Path

import numpy as np
from rich.console import Console

from configs.tables import TABLES, Cell
from experiments import launch
from experiments.cells import judge, members, resize, run_missing
from experiments.recording import environment, write_json, write_text
from experiments.tabulating import described, heading, markdown
from l2f_jax.problems import Score

NOTHING = Score("score", np.mean)  # of a table whose cells are all missing


def chosen_cells(table: str, data: str, pattern: str) -> list[Cell]:
    """Return the cells of a table whose names match a pattern.

    Raises ValueError for a table, data or a pattern of nothing.
    """
    if table not in TABLES:
        raise ValueError(f"--table ({table!r}) must be one of {', '.join(TABLES)}")
    cells = list(TABLES[table].cells(data))
    matching = [cell for cell in cells if fnmatch.fnmatch(cell.name, pattern)]
    if not matching:
        names = ", ".join(cell.name for cell in cells)
        raise ValueError(f"--cells ({pattern!r}) matches none of {names}")
    return matching


def parsed() -> argparse.Namespace:
    parser = launch.Parser(__doc__)
    parser.add_argument("--table", required=True, help=", ".join(TABLES))
    parser.add_argument("--run", type=Path, help="folder of the runs")
    parser.add_argument("--data", default="", help="of configs/classification, as NAME")
    parser.add_argument("--bank", help="the data set's folder, if not the config's")
    parser.add_argument("--cells", default="*", help="pattern of the cells to take")
    parser.add_argument("--budget", type=int, help="iterations of a cell's run")
    parser.add_argument("--seeds", type=int, help="runs of each cell")
    parser.add_argument(
        "--keep_every", type=int, help="keep the checkpoint of every n-th epoch"
    )
    parser.add_argument("--print_only", action="store_true", help="train nothing")
    options = parser.parse_args()
    if options.run is None:
        table = TABLES.get(options.table)
        data = options.data or (table.data if table else "")
        options.run = Path("runs/tables") / (data or options.table).replace(":", "_")
    for name in ("budget", "seeds", "keep_every"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} ({value}) must be at least 1")
    return options


def adjust(cell: Cell, options: argparse.Namespace) -> None:
    """Change a cell's config as the command line asks for."""
    if options.budget is not None:
        resize(cell.config, options.budget)
    if options.bank:
        if "bank" not in cell.config.get("data", {}):
            raise ValueError(
                f"--bank ({options.bank}): {cell.name} reads no image bank"
            )
        cell.config.data.bank = options.bank
    if options.keep_every is not None:
        cell.config.training.keep_every = options.keep_every


def main() -> None:
    options = parsed()
    cells = chosen_cells(options.table, options.data, options.cells)
    runs = {}
    for cell in cells:
        adjust(cell, options)
        runs[cell.name] = members(cell, options.run, options.seeds)
    training = [cell.config.training for cell in cells]
    tasks = math.gcd(*[section.tasks for section in training])
    launch.set_up(training[0].cpu_devices, tasks)
    for cell in cells:
        if options.print_only:
            continue
        if not run_missing(runs[cell.name], cell.matched):
            raise SystemExit(128 + signal.SIGTERM)
    results = {cell.name: judge(runs[cell.name], cell.matched) for cell in cells}
    found = {cell.name: described(results, cell) for cell in cells}
    table = TABLES[options.table]
    data = options.data or table.data
    head = heading(options.table, data, results, table.paper)
    score = next((r.score for r in results.values() if r), NOTHING)
    text = f"{head}\n\n{markdown(cells, found, score)}"
    if len(cells) == len(list(table.cells(options.data))):
        options.run.mkdir(parents=True, exist_ok=True)
        stem = options.run / f"table_{options.table}"
        write_text(stem.with_suffix(".md"), text + "\n")
        record = {"table": options.table, "heading": head, "cells": found}
        write_json(stem.with_suffix(".json"), record | environment())
    Console().print(text, soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    launch.guard(main)
