"""Trained runs to be reported side by side: opened, tested and checked to compare."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.evaluate import evaluate, newest_state, read_record, record
from experiments.train import differences
from l2f_jax import analysis
from l2f_jax.checkpoint import Checkpoints
from l2f_jax.evaluation import Interval
from l2f_jax.outer import TrainState
from l2f_jax.problems import Experiment, build


class Run(NamedTuple):
    """A trained run.

    name: what tells it from the others.  path: its directory.
    record: run.json.  experiment: what its config describes.
    step: of the newest checkpoint.  evaluation: evaluation_<split>.json.
    """

    name: str
    path: Path
    record: dict[str, Any]
    experiment: Experiment
    step: int
    evaluation: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        return self.record["config"]

    @property
    def iterations(self) -> int:
        """How many it is to be trained for."""
        return self.experiment.schedule.iterations

    @property
    def points(self) -> list[int]:
        """After how many inner steps it was judged."""
        return self.evaluation["inner_steps"]

    def scores(self, checkpoint: str = "last") -> list[Interval]:
        """Return the scores after each of the evaluation's inner steps."""
        entries = self.evaluation["results"][checkpoint]["after"]
        return [Interval(**entry) for entry in entries]


def open_runs(
    paths: Sequence[Path], split: str = "test", bank: str | None = None
) -> list[Run]:
    """Open runs whose scores can stand in one table.

    Scores are those that `evaluate.py` wrote for the newest checkpoint; where it has
    not, the run is evaluated and the scores recorded in the same way.

    Args:
      paths: run directories.
      split: "test" or "val".
      bank: the data set's folder, if it has moved since training.
    Raises:
      ValueError: one sentence, for a directory that is no run or has no checkpoint, and
        for runs whose tasks differ.
    """
    names = _names(paths)
    records = [read_record(path) for path in paths]
    if bank:
        _move(records, bank)
    steps = [_newest(path) for path in paths]
    check_comparable(dict(zip(paths, records, strict=True)))
    experiments = [build(ConfigDict(found["config"])) for found in records]
    evaluations = [
        _evaluation(path, split, step, bank)
        for path, step in zip(paths, steps, strict=True)
    ]
    parts = names, paths, records, experiments, steps, evaluations
    runs = [Run(*part) for part in zip(*parts, strict=True)]
    _check_same_number(runs)
    return runs


def last_state(run: Run) -> TrainState:
    """Restore the newest checkpoint."""
    state = newest_state(run.path, run.experiment, run.config["seed"])
    assert state is not None  # `open_runs` has seen it
    return state


def is_attenuated(run: Run) -> bool:
    """Say whether `gammas` has anything to measure."""
    attenuated = run.config.get("transform", {}).get("name") == "attenuate"
    return attenuated and run.experiment.measure is not None


def gammas(run: Run, split: str) -> dict[str, np.ndarray]:
    """Return the newest checkpoint's gammas on the judged tasks, {path: [tasks, ...]}.

    Those of several seeds follow each other.
    """
    state, tasks = last_state(run), run.scores()[0].tasks
    of = analysis.gammas(run.experiment.learner)
    return run.experiment.measure(state.meta, state.stats, split, tasks, of)


def check_comparable(records: dict[Path, dict[str, Any]]) -> None:
    """Raise ValueError unless all runs are judged on the same tasks."""
    (first, expected), *others = records.items()
    for path, found in others:
        problems = [record["config"]["problem"] for record in (expected, found)]
        if len({*problems}) > 1:
            differing = [("problem", *problems)]
        else:
            differing = list(differences(_tasks(expected), _tasks(found)))
        if differing:
            # The name of the data set says more than the number of its images.
            key, a, b = min(differing, key=lambda d: not d[0].endswith(".source"))
            raise ValueError(
                f"no table can hold both {first} and {path}: `{key}` is {a!r} in the "
                f"one, {b!r} in the other"
            )


def _tasks(record: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the tasks that a run is judged on."""
    config, facts = record["config"], dict(record["data"])
    if config["problem"] == "reinforcement":
        same = {"observe_goal", "engine"}  # what the task does not depend on
        env = {k: v for k, v in config["env"].items() if k not in same}
        trajectories = config["sampling"]["trajectories"]
        return {"env": env, "sampling": {"trajectories": trajectories}}
    if config["problem"] == "regression":
        judged = ("shots", "test_queries")
    else:
        judged = ("ways", "shots", "queries")
        provenance = facts["provenance"]
        known = provenance.keys() - {"versions"}  # of what has read the files
        facts["provenance"] = {k: provenance[k] for k in sorted(known)}
    return {"data": facts | {key: config["data"][key] for key in judged}}


def _check_same_number(runs: Sequence[Run]) -> None:
    first, expected = runs[0], runs[0].scores()[0].tasks
    for run in runs[1:]:
        if run.scores()[0].tasks != expected:
            raise ValueError(
                f"{first.path} was judged on {expected} tasks, {run.path} on "
                f"{run.scores()[0].tasks}; evaluate.py --tasks judges both alike"
            )


def _newest(path: Path) -> int:
    """Return the step of the newest complete checkpoint."""
    try:
        with Checkpoints(path / "checkpoints", read_only=True) as saved:
            assert saved.latest is not None  # else it refuses the folder
            return saved.latest
    except ValueError as error:
        raise ValueError(f"{path} has no complete checkpoint yet: {error}") from error


def _move(records: Sequence[dict[str, Any]], bank: str) -> None:
    for found in records:
        data = found["config"].get("data", {})
        if "bank" not in data:
            problem = found["config"]["problem"]
            raise ValueError(f"--bank ({bank}): a run of {problem} reads no image bank")
        data["bank"] = bank


def _evaluation(path: Path, split: str, step: int, bank: str | None) -> dict[str, Any]:
    file = path / f"evaluation_{split}.json"
    if file.exists():
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["results"]["last"]["steps"] == [step]:
                return found
        except (json.JSONDecodeError, KeyError) as error:
            raise ValueError(f"{file} is not what evaluate.py writes") from error
    record(evaluate(path, split, bank=bank))
    return json.loads(file.read_text(encoding="utf-8"))


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the directories' last names, or where two agree, whole paths."""
    names = [path.resolve().name for path in paths]
    if len({*names}) == len(names):
        return names
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"a run is given twice: {', '.join(map(str, paths))}")
    return [str(path) for path in paths]
