"""Test trained runs on the same fixed tasks.

    python experiments/evaluate.py runs/icons/maml runs/icons/l2f

For each run: accuracy after 0 .. S inner steps of the last checkpoint, of the best by
validation, and of the ensemble of the best (mean logits; the official code's protocol),
each as mean and 95 % interval over tasks. Several runs are compared task by task with
the first. Everything is also written to evaluation_<split>.json in each run.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from experiments import launch
from experiments.recording import environment, write_json
from l2f_jax.checkpoint import Checkpoints
from l2f_jax.evaluation import Predictions, ensemble, interval, paired
from l2f_jax.outer import TrainState
from l2f_jax.problems import Experiment, Score, build


class Evaluation(NamedTuple):
    """Scores [tasks, points] of a run, for each way of choosing checkpoints.

    Those of a run of several seeds are means over its seeds.
    """

    run: Path
    split: str
    score: Score
    points: tuple[int, ...]
    protocol: str
    scores: dict[str, np.ndarray]
    checkpoints: dict[str, list[int]]


def read_record(run: Path) -> dict[str, Any]:
    """Return run.json: the config that a run was trained with, its data and machine."""
    path = run / "run.json"
    if not path.is_file():
        raise ValueError(f"{run} is not a run directory: it has no run.json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = "problem" in record["config"]
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(f"{path} is not the record of a run")
    return record


def read_config(run: Path) -> ConfigDict:
    """Return the config that a run was trained with."""
    return ConfigDict(read_record(run)["config"])


def set_up(runs: Sequence[Path]) -> None:
    """Set up the devices so that the tasks of every run divide among them."""
    training = [read_config(run).training for run in runs]
    launch.set_up(training[0].cpu_devices, math.gcd(*[t.tasks for t in training]))


def newest_state(
    run: Path, experiment: Experiment, seed: int, least: int = 0
) -> TrainState | None:
    """Restore the newest checkpoint of a run; None if there is none from `least` on."""
    try:
        checkpoints = Checkpoints(run / "checkpoints", read_only=True)
    except ValueError:  # killed early, it has no such folder, or an empty one
        return None
    with checkpoints as saved:
        if saved.latest is None or saved.latest < least:
            return None
        restored = saved.restore_latest(experiment.init(seed))
    return None if restored is None else restored[0]


def evaluate(
    run: Path, split: str = "test", tasks: int | None = None, bank: str | None = None
) -> Evaluation:
    """Evaluate a run's checkpoints.

    Args:
      run: its directory.
      split: "test" or "val".
      tasks: how many fixed tasks; the config's number by default.
      bank: the data set's folder, if it has moved since training.
    """
    config = read_config(run)
    if bank:
        config.data.bank = bank
    experiment = build(config)
    tasks = tasks or experiment.evaluation.test_tasks
    predictions, steps = _predictions(run, experiment, config.seed, split, tasks)
    scores = {
        name: by_task(experiment, predicted).mean(0)
        for name, predicted in predictions.items()
    }
    score, points = experiment.score, experiment.points
    return Evaluation(run, split, score, points, experiment.protocol, scores, steps)


def by_task(experiment: Experiment, predictions: Predictions) -> np.ndarray:
    """Return the score of every seed, task and point: [seeds, tasks, points]."""
    scores = experiment.scores(predictions)[experiment.score.name]
    return scores.reshape(experiment.seeds, -1, scores.shape[-1])


def _predictions(
    run: Path, experiment: Experiment, seed: int, split: str, tasks: int
) -> tuple[dict[str, Predictions], dict[str, list[int]]]:
    like, made = experiment.init(seed), {}

    def predict(step: int, state: Any) -> Predictions:
        if step not in made:
            made[step] = experiment.predict(state.meta, state.stats, split, tasks)
        return made[step]

    with Checkpoints(run / "checkpoints", read_only=True) as saved:
        restored = saved.restore_latest(like)
        if restored is None:
            raise ValueError(f"{run} has no complete checkpoint yet")
        last = int(restored[0].step)
        chosen = {"last": predict(last, restored[0])}
        steps = {"last": [last]}
        best = [step for step, _ in saved.best]
        members = [
            predict(step, saved.restore_best(rank, like)[0])
            for rank, step in enumerate(best)
        ]
    if members:
        chosen["best"], steps["best"] = members[0], best[:1]
    if len(members) > 1:
        name = f"ensemble of {len(members)}"
        chosen[name], steps[name] = ensemble(members), best
    return chosen, steps


def record(evaluation: Evaluation) -> None:
    """Write evaluation_<split>.json: intervals and every task's final score."""
    results = {
        name: {
            "steps": evaluation.checkpoints[name],
            "after": [interval(column)._asdict() for column in scores.T],
            "tasks": scores[:, -1].round(6).tolist(),
        }
        for name, scores in evaluation.scores.items()
    }
    content = {
        "score": evaluation.score.name,
        "inner_steps": list(evaluation.points),
        "split": evaluation.split,
        "protocol": evaluation.protocol,
        "results": results,
        **environment(),
    }
    write_json(evaluation.run / f"evaluation_{evaluation.split}.json", content)


def show(evaluations: Sequence[Evaluation], console: Console) -> None:
    """Print a table for each run, then the paired differences from the first."""
    for evaluation in evaluations:
        _show_one(evaluation, console)
    first = evaluations[0]
    for other in evaluations[1:]:
        console.print(f"\n{other.run} - {first.run}, paired over the same tasks:")
        for name in other.scores:
            a, b = other.scores[name], first.scores.get(name)
            if b is not None and len(a) == len(b):
                difference = first.score.text(paired(a[:, -1], b[:, -1]))
                console.print(f"  {name}: {difference}", highlight=False)


def _show_one(evaluation: Evaluation, console: Console) -> None:
    score, tasks = evaluation.score, len(next(iter(evaluation.scores.values())))
    console.print(
        f"\n{evaluation.run}: {evaluation.split} {score.name}"
        f"{' in %' if score.percent else ''}, mean +- 95 % "
        f"interval over {tasks} tasks; {evaluation.protocol}",
        soft_wrap=True,
    )
    table = Table("inner steps")
    for name in evaluation.scores:
        at = ", ".join(map(str, evaluation.checkpoints[name]))
        table.add_column(f"{name} (step {at})", justify="right")
    for i, point in enumerate(evaluation.points):
        columns = [interval(scores[:, i]) for scores in evaluation.scores.values()]
        table.add_row(str(point), *map(score.text, columns))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument(
        "--tasks", type=int, help="fixed tasks; the config's by default"
    )
    parser.add_argument("--bank", help="the data set's folder, if it has moved")
    options = parser.parse_args()
    if options.tasks is not None and options.tasks < 1:
        raise ValueError(f"--tasks ({options.tasks}) must be at least 1")
    set_up(options.runs)
    evaluations = []
    for run in options.runs:
        evaluations.append(evaluate(run, options.split, options.tasks, options.bank))
        record(evaluations[-1])
    show(evaluations, Console())


if __name__ == "__main__":
    launch.guard(main)
