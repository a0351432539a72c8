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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from configs.tables import TABLES, Cell
from experiments import launch
from experiments.cells import Result, judge, members, resize, run_missing
from experiments.recording import environment, write_json, write_text
from l2f_jax.evaluation import interval, paired, quartiles
from l2f_jax.problems import Score

NOTHING = Score("score", np.mean)  # of a table whose cells are all missing


def described(results: Mapping[str, Result | None], cell: Cell) -> dict | None:
    """Return what is known of a cell after each number of inner steps.

    Of attenuated policies also before any, as "start".

    last, ensemble: of these checkpoints, the latter after the steps of training alone,
      mean, half: over tasks, of the mean over seeds.  seeds: each seed's mean.
      median, diverged: of errors, over tasks and seeds; the latter a share.
      difference: (mean, half) from the other cell, on the same tasks.
      differences: that of each seed, where there are several in both.
    """
    result, other = results[cell.name], results.get(cell.against)
    if result is None:
        return None
    rows: dict[str, Any] = {"iterations": result.iterations, "steps": result.steps}
    rows["after"] = {}
    for point in result.scores["last"]:
        rows["after"][str(point)] = row = {}
        for name, scores in result.scores.items():
            if point not in scores:
                continue
            row[name] = _described(scores[point], result.score)
            theirs = other.scores.get(name, {}) if other else {}
            if point in theirs:
                row[name] |= _differences(scores[point], theirs[point])
    return rows


def _described(scores: np.ndarray, score: Score) -> dict[str, Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        mean = interval(scores.mean(0))
        found = {
            "mean": mean.mean,
            "half": mean.half,
            "seeds": scores.mean(1).tolist(),
        }
    if score.limit is not None:
        found["median"] = float(quartiles(scores)[1])
        found["diverged"] = float(score.diverged(scores).mean())
    return found


def _differences(scores: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Subtract another cell's scores from a cell's, [seeds, tasks] both."""
    with np.errstate(over="ignore", invalid="ignore"):
        found: dict[str, Any] = {
            "difference": paired(scores.mean(0), other.mean(0))[:2]
        }
        if len(scores) == len(other) > 1:
            pairs = zip(scores, other, strict=True)
            found["differences"] = [paired(a, b)[:2] for a, b in pairs]
    return found


def markdown(
    cells: Sequence[Cell], found: Mapping[str, dict | None], score: Score
) -> str:
    """Write the table.

    Shares are in percent, after the trained number of inner steps, of the last
    checkpoint and of the ensemble of the best; others after each number of steps, and
    errors with what heavy tails ask for. The difference of each seed shows one that
    has failed, which a mean may hide.
    """
    columns = ["steps", "last", "seeds", "difference", "of each seed"]
    if score.percent:
        columns += ["ensemble", "its difference"]
    if score.limit is not None:
        columns += ["median", "diverged"]
    names = ["cell", *columns, "paper"]
    lines = [names, ["---"] * len(names)]
    for cell in cells:
        rows = found[cell.name]
        if rows is None:
            lines.append([cell.name, "", "missing", *[""] * (len(names) - 3)])
            continue
        points = [str(rows["steps"])] if score.percent else rows["after"]
        for point in points:
            texts = _texts(cell, point, rows["after"][point], score)
            lines.append([texts[name] for name in names])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _texts(
    cell: Cell, point: str, row: Mapping[str, Any], score: Score
) -> dict[str, str]:
    """Return a row's text in every column that a table may have."""

    def text(value: float) -> str:
        return f"{100 * value:.2f}" if score.percent else number(value)

    def both(mean: float, half: float) -> str:
        return f"{text(mean)} ± {text(half)}"

    def difference(part: Mapping[str, Any]) -> str:
        if "difference" not in part:
            return ""
        return f"{both(*part['difference'])} from {cell.against}"

    last = row["last"]
    paper = {str(steps): value for steps, value in cell.paper.items()}.get(point)
    least, most = (text(f(last["seeds"])) for f in (np.min, np.max))
    texts = {
        "cell": cell.name,
        "steps": point,
        "last": both(last["mean"], last["half"]),
        "seeds": least if least == most else f"{least} .. {most}",
        "difference": difference(last),
        "of each seed": ", ".join(both(*x) for x in last.get("differences", ())),
        "ensemble": "",
        "its difference": "",
        "paper": "" if paper is None else text(paper),
    }
    if ensemble := row.get("ensemble"):
        texts["ensemble"] = both(ensemble["mean"], ensemble["half"])
        texts["its difference"] = difference(ensemble)
    if score.limit is not None:
        texts["median"] = number(last["median"])
        texts["diverged"] = f"{100 * last['diverged']:.2f} %"
    return texts


def heading(
    table: str, data: str, results: Mapping[str, Result | None], paper: str
) -> str:
    """Say what the numbers of a table are of."""
    done = [result for result in results.values() if result]
    if not done:
        return f"Table {table}: no cell is complete."
    seeds, tasks = next(iter(done[0].scores["last"].values())).shape
    iterations = sorted({result.iterations for result in done})
    length = f"{iterations[0]:,}"
    if len(iterations) > 1:
        length += f" to {iterations[-1]:,}"
    first = done[0]
    unit = f"{first.score.name} in %" if first.score.percent else first.score.name
    where = f" on {data}" if data else ""
    of = (
        "" if seeds == 1 else f" of the mean of {seeds} seeds (least .. most of a seed)"
    )
    limit = first.score.limit
    diverged = "" if limit is None else f"A task diverges above {limit:g}. "
    return (
        f"Table {table}{where}: {unit}, mean ± 95 % interval over {tasks} test tasks"
        f"{of}; {length} iterations; {_protocols(results)}. {diverged}"
        f"Paper: {paper}."
    )


def _protocols(results: Mapping[str, Result | None]) -> str:
    """Say once what all cells have in common, else which cells each is of."""
    cells: dict[str, list[str]] = {}
    for name, result in results.items():
        if result:
            cells.setdefault(result.protocol, []).append(name)
    if len(cells) == 1:
        return next(iter(cells))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in cells.items())


def number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.1e}"


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
