"""The runs behind a table's cells: sized, trained once, tested on the same tasks."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs.tables import Cell
from experiments.identity import (
    check_complete,
    check_same,
    is_complete,
    read_config,
)
from experiments.judging import judged
from experiments.locking import held, lock_of
from experiments.panels import effective_rates
from experiments.runs import open_runs
from experiments.train import train
from l2f_jax.problems import Score
from l2f_jax.storage import Unreadable

OFFICIAL = 50_000  # iterations of MAML in the official configs
MATCHING_TASKS = 100  # of validation, over which a tensor's inner rate is a median


def resize(config: ConfigDict, budget: int) -> None:
    """Make a config's run `budget` iterations long, with all its parts in proportion.

    Warm-up (first order, multi-step) keeps its share of the official run of MAML, also
    for L2F, whose own is shorter: equal budgets have equal warm-up. There are at least
    10 epochs, so that validation has something to choose from.
    """
    training = config.training
    if training.iterations == 1:  # a baseline that is not trained
        return
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
            prototypes = folder.resolve() / other / f"seed_{seed}"
            config.transform.prototypes = str(prototypes)
        runs[folder / cell.name / f"seed_{seed}"] = config
    return runs


def run_missing(runs: Mapping[Path, ConfigDict], matched: str = "") -> bool:
    """Train and test what no other process has; say whether nothing interrupted it.

    Processes that share a folder so share the testing, too. A run that diverges,
    cannot be read, or builds on one that is not complete, is left as it is, which is
    said, and the others are trained.

    Args:
      runs: of a cell.
      matched: the cell whose inner rates they take, if any.
    Raises:
      ValueError: a directory holds a run of another config.
    """
    for run, config in runs.items():
        recorded = (run / "run.json").exists()
        if matched and recorded:
            config.learner.rates = _rates(run, config)
        source = _source(run, config, "" if recorded else matched)
        if source and (lack := _lack(source)):
            print(f"{run} is not trained: {lack}", file=sys.stderr)
            continue
        with held(lock_of(run)) as mine:
            if not mine:
                continue
            if matched and source and not recorded:
                config.learner.rates = _matching(source)
            try:
                if not train(config, run):
                    return False
                judged(run, tasks=config.evaluation.test_tasks)
            except (FloatingPointError, Unreadable) as error:
                print(f"{run}: {error}", file=sys.stderr)
    return True


def _source(run: Path, config: ConfigDict, matched: str) -> Path | None:
    """Return the run that this one builds on, if it does on one."""
    if matched:
        return run.parent.parent / matched / run.name
    other = config.transform.get("prototypes")
    return Path(other) if other else None


def _lack(run: Path) -> str:
    """Wait until no process trains a run; say what it lacks to be built on, or ""."""
    if lock_of(run).exists():
        with held(lock_of(run), wait=True):
            pass
    try:
        check_complete(run)
    except ValueError as error:
        return str(error)
    return ""


def _rates(run: Path, config: ConfigDict) -> ConfigDict:
    """Return `learner.rates` of a matched cell, as its run's record has them.

    Raises ValueError for a run without: it is of another config.
    """
    rates = read_config(run).learner.get("rates")
    if not rates:
        config.learner.rates = ConfigDict({"of": "gammas"})
        check_same(run, config)
    return rates


def _matching(run: Path) -> ConfigDict:
    """Return the inner rate of each convolution that a run's gammas amount to."""
    (source,) = open_runs([run])
    found = effective_rates(source, MATCHING_TASKS, "val")
    medians = {path: float(np.median(x)) for path, x in found["layers"].items()}
    return ConfigDict(medians)


class Result(NamedTuple):
    """A trained cell's scores on the test tasks: name -> point -> [seeds, tasks].

    "last" is of the last checkpoints, after numbers of inner steps and, where all runs
    have it, at `scores.START`; "ensemble" of the best, after the steps of training.
    steps: inner steps trained with.  iterations: of every run.
    """

    scores: dict[str, dict[int | str, np.ndarray]]
    score: Score
    steps: int
    iterations: int
    protocol: str


def judge(runs: Mapping[Path, ConfigDict], matched: str = "") -> Result | None:
    """Test the runs of a cell, or read their scores; None if one is not complete.

    Nor is one whose newest checkpoint cannot be read, which is said.

    Arguments as `run_missing`. Raises ValueError where a directory holds a run of
    another config.
    """
    for run, config in runs.items():
        if (run / "run.json").exists():
            if matched:
                config.learner.rates = _rates(run, config)
            check_same(run, config)
        try:
            if not is_complete(run, config.training.iterations):
                return None
        except Unreadable as error:
            print(f"{run}: {error}", file=sys.stderr)
            return None
    found = []
    for run, config in runs.items():
        # What another process computes is read then.
        with held(lock_of(run), wait=True):
            found.append(judged(run, tasks=config.evaluation.test_tasks))
    stages = [p for p in found[0].stages if all(p in e.stages for e in found)]

    def gathered(names: Sequence[str], points: Sequence[int | str]) -> dict:
        named = list(zip(found, names, strict=True))
        return {p: np.concatenate([e.at(name, p) for e, name in named]) for p in points}

    e = found[0]
    scores = {"last": gathered(["last"] * len(found), stages)}
    ensembles = [e.ensemble for e in found if e.ensemble]
    if len(ensembles) == len(found):
        scores["ensemble"] = gathered(ensembles, [e.steps])
    iterations = max(e.checkpoints["last"][0] for e in found)
    return Result(scores, e.score, e.steps, iterations, e.protocol)
