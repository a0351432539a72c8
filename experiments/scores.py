"""Scores of a run on fixed tasks: what there is of them, recorded, read back."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.recording import replacing, write_json
from l2f_jax.evaluation import Interval, interval, paired, quartiles
from l2f_jax.problems import Score

START = "start"  # the transformed policy before any update, as a point of adaptation


class Evaluation(NamedTuple):
    """Scores of a run, for each way of choosing checkpoints.

    points: after how many inner steps.  steps: those of training, one of the points.
    scores: name -> [seeds, tasks, points]; but for "last", of the last checkpoint, they
      may be of the steps of training alone: [seeds, tasks, 1].
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
    def notes(self) -> list[str]:
        """What a reader of these scores has to know, in clauses."""
        found, seeds = [], len(self.scores["last"])
        if self.score.limit is not None:
            found.append(f"a task diverges above {self.score.limit:g}")
        if seeds > 1:
            found.append(f"a task's score is the mean of {seeds} seeds")
        if START in self.stages:
            found.append(f"{START}: the transformed policy before any update")
        return found

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
        return self.points if self.scores[name].shape[-1] > 1 else (self.steps,)

    def has(self, name: str, point: int | str | None) -> bool:
        """Say whether there are such scores, see `at`."""
        if point == START:
            return f"{name}/return_{START}" in self.others
        return name in self.scores and point in (None, *self.points_of(name))

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


def record(evaluation: Evaluation) -> None:
    """Write evaluation_<split>.json, and every score to evaluation_<split>.npz.

    In the former, `after` has the intervals after each of `inner_steps` (or those of
    training alone, see `Evaluation.scores`), `tasks` each task's score after the steps
    of training, and `others` the means of other scores.
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


def recorded(run: Path, split: str) -> tuple[dict, dict[str, np.ndarray]] | None:
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
