"""Trained runs, opened from their directories, and read side by side."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.identity import (
    check_comparable,
    check_complete,
    newest_step,
    short_names,
)
from experiments.judging import judged
from experiments.scores import Evaluation
from l2f_jax import analysis
from l2f_jax.checkpoint import Checkpoints
from l2f_jax.outer import TrainState
from l2f_jax.problems import Experiment, build
from l2f_jax.problems.saved import check_data, read_record


class Run(NamedTuple):
    """A trained run.

    name: what tells it from the others.  path: its directory.
    record: run.json.  experiment: what its config describes.
    step: of the newest checkpoint.
    """

    name: str
    path: Path
    record: dict[str, Any]
    experiment: Experiment
    step: int

    @property
    def config(self) -> dict[str, Any]:
        return self.record["config"]

    @property
    def iterations(self) -> int:
        """How many it is to be trained for."""
        return self.experiment.schedule.iterations


def open_runs(
    paths: Sequence[Path], bank: str | None = None, *, complete: bool = True
) -> list[Run]:
    """Open runs that are judged on the same tasks.

    Args:
      paths: run directories.
      bank: the data set's folder, if it has moved since training.
      complete: whether all must be trained to their end, or just have a checkpoint.
    Raises:
      ValueError: one sentence, for a directory that is no such run, and for runs whose
        tasks differ.
    """
    names = short_names(paths)
    records = [read_record(path) for path in paths]
    if bank:
        _move(records, bank)
    check_comparable(dict(zip(paths, records, strict=True)))
    for path in paths:
        if complete:
            check_complete(path)
        elif not newest_step(path):
            raise ValueError(f"{path} has no complete checkpoint yet")
    steps = [newest_step(path) for path in paths]
    experiments = [build(ConfigDict(found["config"])) for found in records]
    for path, experiment in zip(paths, experiments, strict=True):
        check_data(path, experiment.facts)
    parts = zip(names, paths, records, experiments, steps, strict=True)
    return [Run(*part) for part in parts]


def judge(
    runs: Sequence[Run], split: str = "test", bank: str | None = None
) -> dict[str, Evaluation]:
    """Return the scores of the runs by their names, all on the same tasks.

    Those that `evaluate.py` wrote for the newest and the best checkpoints; where it has
    not, the run is evaluated and the scores recorded in the same way.

    Args:
      split: "test" or "val".
      bank: as `open_runs`.
    Raises:
      ValueError: one sentence, where the numbers of recorded tasks differ.
    """
    found = {run.name: judged(run.path, split, bank=bank) for run in runs}
    first, *others = found.values()
    for other in others:
        if other.tasks != first.tasks:
            raise ValueError(
                f"{first.run} was judged on {first.tasks} tasks, {other.run} on "
                f"{other.tasks}; evaluate.py --tasks judges both alike"
            )
    return found


def checkpoints(run: Run) -> Iterator[TrainState]:
    """Yield the start of a run and all its checkpoints, in order."""
    start = run.experiment.init(run.config["seed"])
    yield start
    with Checkpoints(run.path / "checkpoints", read_only=True) as saved:
        for step in saved.steps:
            yield saved.restore(step, start)[0]


def last_state(run: Run) -> TrainState:
    """Restore the newest checkpoint."""
    like = run.experiment.init(run.config["seed"])
    with Checkpoints(run.path / "checkpoints", read_only=True) as saved:
        restored = saved.restore_latest(like)
    assert restored is not None  # `open_runs` has seen it
    return restored[0]


def is_attenuated(run: Run) -> bool:
    """Say whether `gammas` has anything to measure."""
    attenuated = run.config["transform"]["name"] == "attenuate"
    return attenuated and run.experiment.measure is not None


def gammas(run: Run, tasks: int, split: str = "test") -> dict[str, np.ndarray]:
    """Return the newest checkpoint's gammas on fixed tasks, {path: [tasks, ...]}.

    Those of several seeds follow each other. Empty where nothing is attenuated.
    """
    state, of = last_state(run), analysis.gammas(run.experiment.learner)
    return run.experiment.measure(state.meta, state.stats, split, tasks, of)


def _move(records: Sequence[dict[str, Any]], bank: str) -> None:
    for found in records:
        if "bank" in found["config"].get("data", {}):
            found["config"]["data"]["bank"] = bank
