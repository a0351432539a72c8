"""What is known of a table's cells, and the table as text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from configs.tables import Cell
from experiments.cells import Result
from l2f_jax.evaluation import interval, over_seeds, paired, quartiles
from l2f_jax.problems import Score


def described(results: Mapping[str, Result | None], cell: Cell) -> dict | None:
    """Return what is known of a cell after each number of inner steps.

    Of attenuated policies also before any, as "start".

    last, ensemble: of these checkpoints, the latter after the steps of training alone,
      mean, half: over tasks, of the mean over seeds.  seeds: each seed's mean.
      median, diverged: of errors, over tasks and seeds; the latter a share.
      difference: (mean, half) from the other cell, on the same tasks.
      differences: that of each seed, where there are several in both.
      over_seeds: (mean, half) of them.
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
            means = np.array([mean for mean, _ in found["differences"]])
            found["over_seeds"] = over_seeds(means)
    return found


def markdown(
    cells: Sequence[Cell], found: Mapping[str, dict | None], score: Score
) -> str:
    """Write the table.

    Shares are in percent, after the trained number of inner steps, of the last
    checkpoint and of the ensemble of the best; others after each number of steps, and
    errors with what heavy tails ask for. The difference of each seed shows one that
    has failed, which a mean may hide; its interval over seeds is Student's.
    """
    columns = ["steps", "last", "seeds", "difference", "of each seed", "over seeds"]
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
        "over seeds": both(*last["over_seeds"]) if "over_seeds" in last else "",
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
    of = ""
    if seeds > 1:
        of = (
            f" of the mean of {seeds} seeds (least .. most of a seed; intervals over "
            "seeds by Student's t)"
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
