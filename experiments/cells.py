"""The runs behind a table's cells: sized, trained once, judged on the same tasks."""

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs.tables import Cell
from experiments.evaluate import by_task, newest_state, read_config
from experiments.train import train
from l2f_jax.problems import Score, build

OFFICIAL = 50_000  # iterations of MAML in the official configs


def resize(config: ConfigDict, budget: int) -> None:
    """Make a config's run `budget` iterations long, with all its parts in proportion.

    Warm-up (first order, multi-step) keeps its share of the official run of MAML, also
    for L2F, whose own is shorter: equal budgets have equal warm-up. There are at least
    10 epochs, so that validation has something to choose from.
    """
    training = config.training
    per_epoch = min(training.iterations_per_epoch, max(budget // 10, 1))
    for name in ("first_order_epochs", "multi_step_epochs"):
        if name in training:
            share = training[name] * training.iterations_per_epoch / OFFICIAL
            training[name] = round(share * budget / per_epoch)
    training.iterations, training.iterations_per_epoch = budget, per_epoch


def members(cell: Cell, folder: Path, seeds: int | None) -> dict[Path, ConfigDict]:
    """Return the runs of a cell: one directory a seed, or one if they train as one."""
    if "seeds" in cell.config.training:
        cell.config.training.seeds = seeds or cell.config.training.seeds
        return {folder / cell.name: cell.config}
    runs = {}
    for seed in range(seeds or 1):
        config = ConfigDict(cell.config.to_dict())
        config.seed = seed
        if other := config.transform.get("prototypes"):
            config.transform.prototypes = str(folder / other / f"seed_{seed}")
        runs[folder / cell.name / f"seed_{seed}"] = config
    return runs


def train_missing(runs: dict[Path, ConfigDict]) -> bool:
    """Train what no other process has; say whether nothing interrupted it."""
    for run, config in runs.items():
        if other := config.transform.get("prototypes"):
            with taken(Path(other), wait=True):
                pass  # whoever trains it has finished
        with taken(run) as mine:
            if mine and not train(config, run):
                return False
    return True


@contextlib.contextmanager
def taken(run: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a run against other processes of this machine; false if one of them does.

    With `wait`, wait until none of them does. The system lets go of it when the process
    ends, however that happens.
    """
    run.parent.mkdir(parents=True, exist_ok=True)
    with run.with_name(f"{run.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


class Result(NamedTuple):
    """A trained cell's scores on the test tasks, [seeds, tasks, points].

    steps: inner steps trained with.  iterations: of the shortest run.
    """

    scores: np.ndarray
    points: tuple[int, ...]
    score: Score
    steps: int
    iterations: int


def judge(runs: Sequence[Path]) -> Result | None:
    """Test the last checkpoint of each run of a cell; None if one is not complete."""
    found = [_judge(run) for run in runs]
    if not all(found):
        return None
    scores = np.concatenate([result.scores for result in found])
    iterations = min(result.iterations for result in found)
    return found[0]._replace(scores=scores, iterations=iterations)


def _judge(run: Path) -> Result | None:
    if not (run / "run.json").exists():
        return None
    config = read_config(run)
    experiment = build(config)
    state = newest_state(run, experiment, config.seed, config.training.iterations)
    if state is None:
        return None
    tasks = experiment.evaluation.test_tasks
    predictions = experiment.predict(state.meta, state.stats, "test", tasks)
    return Result(
        by_task(experiment, predictions),
        experiment.points,
        experiment.score,
        experiment.steps,
        int(state.step),
    )
