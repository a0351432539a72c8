"""Trained runs to be reported side by side: opened, tested and checked to compare."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.identity import check_comparable, newest_step, short_names
from experiments.scores import Evaluation, judged, newest_state
from l2f_jax import analysis
from l2f_jax.outer import TrainState
from l2f_jax.problems import Experiment, build
from l2f_jax.problems.saved import read_record


class Run(NamedTuple):
    """A trained run.

    name: what tells it from the others.  path: its directory.
    record: run.json.  experiment: what its config describes.
    step: of the newest checkpoint.  evaluation: its scores.
    """

    name: str
    path: Path
    record: dict[str, Any]
    experiment: Experiment
    step: int
    evaluation: Evaluation

    @property
    def config(self) -> dict[str, Any]:
        return self.record["config"]

    @property
    def iterations(self) -> int:
        """How many it is to be trained for."""
        return self.experiment.schedule.iterations


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
    names = short_names(paths)
    records = [read_record(path) for path in paths]
    if bank:
        _move(records, bank)
    steps = [_newest(path) for path in paths]
    check_comparable(dict(zip(paths, records, strict=True)))
    experiments = [build(ConfigDict(found["config"])) for found in records]
    evaluations = [judged(path, split, bank=bank) for path in paths]
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
    state, tasks = last_state(run), run.evaluation.tasks
    of = analysis.gammas(run.experiment.learner)
    return run.experiment.measure(state.meta, state.stats, split, tasks, of)


def _check_same_number(runs: Sequence[Run]) -> None:
    first, expected = runs[0], runs[0].evaluation.tasks
    for run in runs[1:]:
        if run.evaluation.tasks != expected:
            raise ValueError(
                f"{first.path} was judged on {expected} tasks, {run.path} on "
                f"{run.evaluation.tasks}; evaluate.py --tasks judges both alike"
            )


def _newest(path: Path) -> int:
    """Return the step of the newest complete checkpoint."""
    if step := newest_step(path):
        return step
    raise ValueError(f"{path} has no complete checkpoint yet")


def _move(records: Sequence[dict[str, Any]], bank: str) -> None:
    for found in records:
        if "bank" in found["config"].get("data", {}):
            found["config"]["data"]["bank"] = bank
