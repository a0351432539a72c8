"""Meta-train: the one loop for all problems.

    python experiments/train.py --run=runs/icons \\
        --config=configs/classification/icons.py

Started again with the same arguments, it goes on where it was interrupted: on the same
CPU, with as many cores and devices, bit for bit, else up to rounding.
"""

import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from experiments import launch
from experiments.identity import check_same, newest, resolved
from experiments.locking import alone
from experiments.recording import Recorder, environment, write_json
from l2f_jax.checkpoint import Checkpoints
from l2f_jax.evaluation import interval
from l2f_jax.outer import TrainState
from l2f_jax.problems import Experiment, build
from l2f_jax.problems.saved import check_data, read_record


class Interruption:
    """Remember a SIGTERM or SIGINT until the loop can save; a second one kills."""

    def __init__(self):
        self.received = False
        self.previous = {}

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT):
            self.previous[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number, frame) -> None:
        self.received = True
        signal.signal(number, self.previous[number])

    def agreed(self) -> bool:
        """Say whether any process is to stop; all of them ask at the same steps."""
        received = multihost_utils.process_allgather(np.array(self.received))
        return bool(received.any())

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def train(config: ConfigDict, run: Path) -> bool:
    """Train a config in a run directory, from its latest checkpoint if it has one.

    Returns whether the run is complete; False after an interruption, with the state
    saved. Raises ValueError for a bad config, or a directory of another run, and
    FloatingPointError when the loss or the validation score is not finite.
    """
    experiment = build(config)
    check_split(config, experiment, "val", "validate on")
    state = experiment.init(config.seed)  # what it refuses leaves no directory behind
    claim(run, config, experiment)
    schedule, best = experiment.schedule, experiment.evaluation.ensemble
    every = schedule.keep_every * schedule.iterations_per_epoch
    with Checkpoints(run / "checkpoints", best, every) as checkpoints:
        restored = checkpoints.restore_latest(state)
        if restored is not None:
            state, _ = restored
        step, total = int(state.step), schedule.iterations
        recorder = Recorder(run, step, total, validated=checkpoints.ranked)
        with recorder, Interruption() as interruption:
            recorder.say(f"{run}: step {step} of {total}; {experiment.protocol}")
            while not interruption.agreed():
                # Saved first: validation may take minutes.
                if not checkpoints.ranked and step == schedule.boundary(step - 1):
                    validate(experiment, state, step, recorder, checkpoints)
                elif step < total:
                    state, step = train_epoch(
                        experiment, state, step, recorder, interruption, checkpoints
                    )
                    checkpoints.save(step, state)
                else:
                    break
        complete = step == total and checkpoints.ranked
        recorder.say(f"{run}: {'complete' if complete else 'interrupted'} at {step}")
    return complete


def train_epoch(
    experiment: Experiment,
    state: TrainState,
    step: int,
    recorder: Recorder,
    interruption: Interruption,
    checkpoints: Checkpoints,
) -> tuple[TrainState, int]:
    """Train to the next boundary, or by at least one dispatch if interrupted."""
    schedule = experiment.schedule
    boundary, pending = schedule.boundary(step), None
    while True:
        iterations = min(schedule.iterations_per_dispatch, boundary - step)
        state, metrics = experiment.update(state, step, iterations)
        # Metrics are fetched one dispatch late, so that the device never waits. (With
        # several processes it pauses for their agreement, milliseconds a dispatch.)
        if pending is not None:
            record(*pending, recorder, checkpoints)
        pending = step, metrics
        step += iterations
        if step == boundary or interruption.agreed():
            record(*pending, recorder, checkpoints)
            return state, step


def record(
    step: int, metrics: dict[str, Any], recorder: Recorder, checkpoints: Checkpoints
) -> None:
    """Record the mean of a dispatch that began at `step`; stop if one is not finite."""
    values = {name: np.asarray(x) for name, x in metrics.items()}
    for name, x in values.items():
        if not np.isfinite(x).all():
            where = step + int(np.argmin(np.isfinite(x))) + 1
            raise not_finite(name, where, checkpoints)
    last = step + len(x)
    recorder.log(last, {name: x.mean() for name, x in values.items()})


def not_finite(name: str, step: int, checkpoints: Checkpoints) -> FloatingPointError:
    """Return the error that says where a run stops, and what is left of it."""
    good = [saved for saved in checkpoints.steps if saved < step]
    left = f"step {good[-1]}" if good else "none"
    return FloatingPointError(
        f"{name} is not finite at step {step}; the last good checkpoint is {left}"
    )


def validate(
    experiment: Experiment,
    state: TrainState,
    step: int,
    recorder: Recorder,
    checkpoints: Checkpoints,
) -> None:
    """Rank the newest checkpoint by the fixed validation tasks, fully adapted to."""
    predictions = experiment.predict(
        state.meta,
        state.stats,
        "val",
        experiment.evaluation.validation_tasks,
        points=(experiment.steps,),
    )
    found = {k: v[:, 0] for k, v in experiment.scores(predictions).items()}
    # Of several seeds each task's mean: they are judged on the same tasks.
    by_task = {k: v.reshape(experiment.seeds, -1).mean(0) for k, v in found.items()}
    scores = {k: interval(v) for k, v in by_task.items()}
    recorder.log(step, {f"validation/{k}": v.mean for k, v in scores.items()})
    shown = ", ".join(f"{k} {v.mean:.4f} +- {v.half:.4f}" for k, v in scores.items())
    recorder.say(f"step {step}: validation {shown}; {recorder.time_left(step)} left")
    rank = experiment.score.rank(found[experiment.score.name])
    if not np.isfinite(rank):
        raise not_finite(f"validation/{experiment.score.name}", step, checkpoints)
    checkpoints.rank(rank)


def check_split(
    config: ConfigDict, experiment: Experiment, split: str, use: str
) -> None:
    """Raise ValueError for a data set without a split that will be needed to `use`."""
    classes = experiment.facts.get("classes")  # of each split; None of no data set
    if classes is not None and split not in classes:
        held = ", ".join(f"{n} classes of {name!r}" for name, n in classes.items())
        raise ValueError(
            f"`data.bank` ({config.data.bank}) must hold a split {split!r} of at least "
            f"`data.ways` ({config.data.ways}) classes, to {use}; it has {held}"
        )


def claim(run: Path, config: ConfigDict, experiment: Experiment) -> None:
    """Write run.json, or check that the one there is of the same experiment.

    Only `training.iterations` may change, and only where the outer rate does not
    depend on it; and `training.keep_every`, on which no number depends. The record
    keeps what else the run began with, and has an entry in "resumed" for each time that
    it went on.
    """
    path = run / "run.json"
    if path.exists():
        outer = config.optimiser  # a trust region has no rate
        check_same(run, config, longer=outer.get("lr") == outer.get("min_lr"))
        check_data(run, experiment.facts)
    elif run.exists() and any(run.iterdir()):
        raise ValueError(
            f"--run ({run}) holds files but no run.json; name a new folder"
        )
    # All check, as opening checkpoints takes all processes, and before one writes.
    multihost_utils.sync_global_devices("checked")
    step, ranked = newest(run)  # asked in all, too
    complete = ranked and step >= experiment.schedule.iterations
    if jax.process_index() == 0:
        run.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            facts = {"protocol": experiment.protocol, "config": resolved(config)}
            facts["data"] = experiment.facts
            record = {**facts, **environment(), "resumed": []}
        else:
            record = read_record(run) | {"config": resolved(config)}
            if not complete:
                again = {"step": step, **environment()}
                record["resumed"] = [*record.get("resumed", []), again]
        write_json(path, record)


def main() -> None:
    run = Path(flags.FLAGS.run)
    with alone(run):
        complete = train(launch.config(), run)
    if not complete:
        raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    launch.config_flag()
    flags.DEFINE_string("run", None, "the run directory", required=True)
    launch.run(main)
