"""Scores of trained runs on fixed tasks: computed, recorded beside them, read back."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.identity import newest_step, read_config
from experiments.recording import environment, replacing, write_json
from l2f_jax.checkpoint import Checkpoints
from l2f_jax.evaluation import (
    Interval,
    Predictions,
    ensemble,
    interval,
    paired,
    quartiles,
)
from l2f_jax.problems import Experiment, Score, build
from l2f_jax.problems.saved import check_data

START = "start"  # the transformed policy before any update, as a point of adaptation


class Evaluation(NamedTuple):
    """Scores of a run, for each way of choosing checkpoints.

    The last checkpoint, "last", is judged after several numbers of inner steps, the
    best ones after those of training alone, as the official code does.

    points: after how many inner steps.  steps: those of training, one of the points.
    scores: "last" -> [seeds, tasks, points], any other name -> [seeds, tasks, 1].
    checkpoints: name -> their iterations.
    made: what the scores were computed with, see `recording.environment`.
    others: "<name>/<score>" -> the experiment's other scores, shaped as `scores`; empty
      where an older program has judged.
    """

    run: Path
    split: str
    score: Score
    points: tuple[int, ...]
    steps: int
    protocol: str
    scores: dict[str, np.ndarray]
    checkpoints: dict[str, list[int]]
    made: dict[str, Any]
    others: dict[str, np.ndarray]

    @property
    def tasks(self) -> int:
        return self.scores["last"].shape[1]

    @property
    def ensemble(self) -> str | None:
        """The name of the ensemble's scores, if there is one."""
        return next((name for name in self.scores if "ensemble" in name), None)

    @property
    def stages(self) -> list[int | str]:
        """The points and, where its return is known, `START` in its place."""
        after = [point for point in self.points if point > 0]
        before = [0] * (0 in self.points)
        known = f"last/return_{START}" in self.others
        return [*before, *[START] * known, *after]

    def points_of(self, name: str) -> tuple[int, ...]:
        """Return the points after which there are scores of this name."""
        return self.points if name == "last" else (self.steps,)

    def has(self, name: str, point: int | str | None) -> bool:
        """Say whether there are such scores, see `at`."""
        if name not in self.scores:
            return False
        known = self.stages if name == "last" else self.points_of(name)
        return point is None or point in known

    def at(self, name: str = "last", point: int | str | None = None) -> np.ndarray:
        """Return the scores at one of `stages`, or of training: [seeds, tasks]."""
        if point == START:
            return self.others[f"{name}/return_{START}"][:, :, 0]
        column = self.points_of(name).index(self.steps if point is None else point)
        return self.scores[name][:, :, column]

    def by_task(self, name: str = "last", point: int | str | None = None) -> np.ndarray:
        """Return each task's score, see `at`; of several seeds, their mean: [tasks]."""
        return self.at(name, point).mean(0)

    def interval(self, name: str = "last", point: int | str | None = None) -> Interval:
        """Return the mean over tasks, see `by_task`."""
        return interval(self.by_task(name, point))

    def text(self, name: str = "last", point: int | str | None = None) -> str:
        """Write the mean and its interval, of errors also what heavy tails ask for."""
        mean, errors = self.score.text(self.interval(name, point)), self.at(name, point)
        if self.score.limit is None:
            return mean
        median = self.score.number(quartiles(errors)[1])
        diverged = 100 * self.score.diverged(errors).mean()
        return f"{mean}, median {median}, {diverged:.2f} % diverged"

    def curve(self, name: str = "last") -> list[Interval]:
        """Return the means over tasks after each of `points_of` the name."""
        return [self.interval(name, point) for point in self.points_of(name)]

    def gap(
        self, other: "Evaluation", name: str = "last", point: int | str | None = None
    ) -> Interval | None:
        """Return this less the other, task by task; None where one has no such score.

        Without a `point`, each is taken after its own steps of training.
        """
        known = self.has(name, point) and other.has(name, point)
        if not known or self.tasks != other.tasks:
            return None
        return paired(self.by_task(name, point), other.by_task(name, point))


def evaluate(
    run: Path, split: str = "test", tasks: int | None = None, bank: str | None = None
) -> Evaluation:
    """Evaluate a run's checkpoints, and record the scores.

    Args:
      run: its directory.
      split: "test" or "val".
      tasks: how many fixed tasks; the config's number by default.
      bank: the data set's folder, if it has moved since training.
    Raises:
      ValueError: the run has no checkpoint.
    """
    experiment, seed = _built(run, bank)
    tasks = tasks or experiment.evaluation.test_tasks
    predictions, steps = _predictions(run, experiment, seed, split, tasks)
    arrays = {}
    for name, found in predictions.items():
        arrays |= _scores(name, experiment, found)
    evaluation = _evaluation(run, split, experiment, arrays, steps, environment())
    record(evaluation)
    return evaluation


def judged(
    run: Path, split: str = "test", tasks: int | None = None, bank: str | None = None
) -> Evaluation:
    """Read what is recorded of the newest checkpoint; where nothing is, evaluate.

    Arguments as `evaluate`; without `tasks`, any number of recorded ones will do.
    """
    found = _recorded(run, split)
    if found is not None:
        content, arrays = found
        number = arrays["last"].shape[1]
        newest = content["results"]["last"]["steps"] == [newest_step(run)]
        if newest and tasks in (None, number):
            experiment, _ = _built(run, bank)
            steps = {name: r["steps"] for name, r in content["results"].items()}
            made = {key: content[key] for key in environment()}
            return _evaluation(run, split, experiment, arrays, steps, made)
    return evaluate(run, split, tasks, bank)


def record(evaluation: Evaluation) -> None:
    """Write evaluation_<split>.json, and every score to evaluation_<split>.npz.

    In the former, `after` has the intervals after each of `inner_steps`, of the best
    checkpoints after the steps of training alone; `tasks` each task's score after
    those, and `others` the means of other scores.
    """
    path = evaluation.run / f"evaluation_{evaluation.split}.npz"
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **evaluation.scores, **evaluation.others)
    results = {
        name: {
            "steps": steps,
            "after": [value._asdict() for value in evaluation.curve(name)],
            "tasks": evaluation.by_task(name).round(6).tolist(),
            "others": {
                key.removeprefix(f"{name}/"): array.mean((0, 1)).tolist()
                for key, array in evaluation.others.items()
                if key.startswith(f"{name}/")
            },
        }
        for name, steps in evaluation.checkpoints.items()
    }
    content = {
        "score": evaluation.score.name,
        "inner_steps": list(evaluation.points),
        "split": evaluation.split,
        "protocol": evaluation.protocol,
        "results": results,
        **evaluation.made,
    }
    write_json(path.with_suffix(".json"), content)


def _built(run: Path, bank: str | None) -> tuple[Experiment, int]:
    config = read_config(run)
    if bank:
        if "bank" not in config.get("data", {}):
            raise ValueError(
                f"--bank ({bank}): a run of {config.problem} reads no image bank"
            )
        config.data.bank = bank
    experiment = build(config)
    check_data(run, experiment.facts)
    return experiment, config.seed


def _evaluation(
    run: Path,
    split: str,
    experiment: Experiment,
    arrays: dict[str, np.ndarray],
    steps: dict[str, list[int]],
    made: dict[str, Any],
) -> Evaluation:
    training = experiment.points.index(experiment.steps)

    def narrow(name: str, array: np.ndarray) -> np.ndarray:
        # Older programs judged the best checkpoints after every number of steps, too.
        wide = not name.startswith("last") and array.shape[-1] > 1
        return array[:, :, [training]] if wide else array

    arrays = {name: narrow(name, array) for name, array in arrays.items()}
    return Evaluation(
        run=run,
        split=split,
        score=experiment.score,
        points=experiment.points,
        steps=experiment.steps,
        protocol=experiment.protocol,
        scores={name: arrays[name] for name in steps},
        checkpoints=steps,
        made=made,
        others={name: x for name, x in arrays.items() if name not in steps},
    )


def _scores(
    name: str, experiment: Experiment, predictions: Predictions
) -> dict[str, np.ndarray]:
    """Return what `record` writes of checkpoints: of each score [seeds, tasks, points].

    That by which they are judged has their name alone.
    """
    found = {
        key: array.reshape(experiment.seeds, -1, array.shape[-1])
        for key, array in experiment.scores(predictions).items()
    }
    judged = found.pop(experiment.score.name)
    return {name: judged} | {f"{name}/{key}": array for key, array in found.items()}


def _predictions(
    run: Path, experiment: Experiment, seed: int, split: str, tasks: int
) -> tuple[dict[str, Predictions], dict[str, list[int]]]:
    like, trained = experiment.init(seed), (experiment.steps,)

    def predict(state: Any, points: tuple[int, ...]) -> Predictions:
        return experiment.predict(state.meta, state.stats, split, tasks, points=points)

    if not newest_step(run):
        raise ValueError(f"{run} has no complete checkpoint yet")
    with Checkpoints(run / "checkpoints", read_only=True) as saved:
        restored = saved.restore_latest(like)
        assert restored is not None
        last = int(restored[0].step)
        whole = predict(restored[0], experiment.points)
        chosen, steps = {"last": whole}, {"last": [last]}
        column = experiment.points.index(experiment.steps)
        made = {last: whole._replace(outputs=whole.outputs[:, [column]])}
        best = [step for step, _ in saved.best]
        for rank, step in enumerate(best):
            if step not in made:
                made[step] = predict(saved.restore_best(rank, like)[0], trained)
        members = [made[step] for step in best]
    if members:
        chosen["best"], steps["best"] = members[0], best[:1]
    if len(members) > 1:
        name = f"ensemble of {len(members)}"
        chosen[name], steps[name] = ensemble(members), best
    return chosen, steps


def _recorded(run: Path, split: str) -> tuple[dict, dict[str, np.ndarray]] | None:
    """Return what `record` wrote; None if it wrote nothing, or was interrupted."""
    path = run / f"evaluation_{split}.json"
    if not path.exists() or not path.with_suffix(".npz").exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        with np.load(path.with_suffix(".npz")) as file:
            arrays = dict(file)
        for name, found in content["results"].items():
            means = [entry["mean"] for entry in found["after"]]
            if not np.allclose(
                _known(arrays[name].mean((0, 1))), _known(means), equal_nan=True
            ):
                return None
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is not what evaluate.py writes") from error
    return content, arrays


def _known(means: Any) -> np.ndarray:
    """Return numbers as JSON knows them: none that is not finite differs from NaN."""
    numbers = np.asarray(means, np.float64)  # null is NaN
    return np.where(np.isfinite(numbers), numbers, np.nan)
