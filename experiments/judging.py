"""Judge a trained run on fixed tasks, or read what is recorded of it."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.identity import newest_step, read_config
from experiments.recording import environment
from experiments.scores import Evaluation, record, recorded
from l2f_jax.checkpoint import Checkpoints
from l2f_jax.evaluation import Predictions, ensemble
from l2f_jax.problems import Experiment, build
from l2f_jax.problems.saved import check_data


def evaluate(
    run: Path,
    split: str = "test",
    tasks: int | None = None,
    bank: str | None = None,
    *,
    whole: bool = True,
) -> Evaluation:
    """Evaluate a run's checkpoints, and record the scores.

    Args:
      run: its directory.
      split: "test" or "val".
      tasks: how many fixed tasks; the config's number by default.
      bank: the data set's folder, if it has moved since training.
      whole: judge all checkpoints after every number of inner steps. Else only the last
        one is; the best are after the steps of training, which takes half the time.
    Raises:
      ValueError: the run has no checkpoint.
    """
    experiment, seed = _built(run, bank)
    tasks = tasks or experiment.evaluation.test_tasks
    predictions, steps = _predictions(run, experiment, seed, split, tasks, whole)
    arrays = {}
    for name, found in predictions.items():
        arrays |= _scores(name, experiment, found)
    evaluation = _evaluation(run, split, experiment, arrays, steps, environment())
    record(evaluation)
    return evaluation


def judged(
    run: Path, split: str = "test", tasks: int | None = None, bank: str | None = None
) -> Evaluation:
    """Read what is recorded of the newest and the best checkpoints, or evaluate them.

    Arguments as `evaluate`, which is not asked for the `whole`; without `tasks`, any
    number of recorded ones will do.
    """
    found = recorded(run, split)
    if found is not None:
        content, arrays = found
        number = arrays["last"].shape[1]
        steps = {name: r["steps"] for name, r in content["results"].items()}
        if steps == _chosen(run) and tasks in (None, number):
            experiment, _ = _built(run, bank)
            made = {key: content[key] for key in environment()}
            return _evaluation(run, split, experiment, arrays, steps, made)
    return evaluate(run, split, tasks, bank, whole=False)


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
    run: Path, experiment: Experiment, seed: int, split: str, tasks: int, whole: bool
) -> tuple[dict[str, Predictions], dict[str, list[int]]]:
    like, points = experiment.init(seed), experiment.points
    of_best = points if whole else (experiment.steps,)

    def predict(state: Any, points: tuple[int, ...]) -> Predictions:
        return experiment.predict(state.meta, state.stats, split, tasks, points=points)

    if not newest_step(run):
        raise ValueError(f"{run} has no complete checkpoint yet")
    with Checkpoints(run / "checkpoints", read_only=True) as saved:
        steps = _chosen_of(saved)
        (last,) = steps["last"]
        newest = predict(saved.restore(last, like)[0], points)
        columns = [points.index(point) for point in of_best]
        made = {last: newest._replace(outputs=newest.outputs[:, columns])}
        for step, _ in saved.best:
            if step not in made:
                made[step] = predict(saved.restore(step, like)[0], of_best)
    chosen = {"last": newest}
    for name, members in steps.items():
        if name != "last":
            chosen[name] = ensemble([made[step] for step in members])
    return chosen, steps


def _chosen(run: Path) -> dict[str, list[int]]:
    """Return what `evaluate` would judge now: the steps of each choice, by its name."""
    with Checkpoints(run / "checkpoints", read_only=True) as saved:
        return _chosen_of(saved)


def _chosen_of(saved: Checkpoints) -> dict[str, list[int]]:
    assert saved.latest is not None
    best = [step for step, _ in saved.best]
    steps = {"last": [saved.latest]}
    if best:
        steps["best"] = best[:1]
    if len(best) > 1:
        steps[f"ensemble of {len(best)}"] = best
    return steps
