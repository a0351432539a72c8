"""What a run is, by its run.json: which config, and which tasks it is judged on."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from l2f_jax.checkpoint import Checkpoints
from l2f_jax.problems.saved import read_record
from l2f_jax.storage import has_checkpoint

IRRELEVANT = "training.keep_every"  # the one key on which no number of a run depends
ABSENT = "absent"  # what a record says of a key that the config has gained since
# Such keys that are not simply off in older runs, and what those were trained with.
GAINED = {
    "model.norm.learn_scale": True,
    "model.norm.learn_shift": True,
    "model.padding": 1,
    "transform.embedding_scope": "layer",
}


def read_config(run: Path) -> ConfigDict:
    """Return the config that a run was trained with."""
    return ConfigDict(read_record(run)["config"])


def newest(run: Path) -> tuple[int, bool]:
    """Return the step of the newest checkpoint, and whether it has its score.

    (0, False) if there is none. Raises ValueError if its record cannot be read; the
    state is not.
    """
    folder = run / "checkpoints"
    if not has_checkpoint(folder):
        return 0, False
    with Checkpoints(folder, read_only=True) as saved:
        return saved.latest or 0, saved.ranked


def newest_step(run: Path) -> int:
    """Return the step of the newest complete checkpoint, 0 if there is none."""
    return newest(run)[0]


def is_complete(run: Path, iterations: int) -> bool:
    """Say whether a run has been trained to its end, and that validated."""
    step, ranked = newest(run)
    return ranked and step >= iterations


def check_complete(run: Path) -> None:
    """Raise ValueError unless a run has been trained to its end, and validated."""
    last = read_config(run).training.iterations
    step, ranked = newest(run)
    if not ranked or step < last:
        raise ValueError(
            f"{run} is unfinished: its last checkpoint is of step {step} of {last}"
            + (", not validated yet" if step >= last else "")
        )


def resolved(config: ConfigDict) -> dict[str, Any]:
    """Return a config as run.json holds it."""
    return json.loads(config.to_json())


def differences(
    old: dict, new: dict, prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, old value, new value) where two resolved configs differ."""
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key, ABSENT), new.get(key, ABSENT)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b


def check_same(run: Path, config: ConfigDict, *, longer: bool = False) -> None:
    """Raise ValueError unless a run's directory holds a run of this config.

    With `longer`, it may have been trained for fewer iterations. A key that its record
    lacks is no difference where it is as in all older runs: as in GAINED, or off, which
    is 0, empty, False or None.
    """
    found = differences(read_record(run)["config"], resolved(config))
    # The iterations last: where anything else differs, more of them do not help.
    for key, old, new in sorted(found, key=lambda d: d[0] == "training.iterations"):
        if old == ABSENT and (new == GAINED[key] if key in GAINED else not new):
            continue
        if key == "training.iterations" and longer:
            if (step := newest_step(run)) > new:
                raise ValueError(
                    f"{run} is trained for {step} iterations already; "
                    f"`training.iterations` ({new}) must be at least that"
                )
        elif key != IRRELEVANT:
            raise ValueError(
                f"{run} holds a run with {key} = {old!r}, not {new!r}; use another "
                "--run, or the same config"
            )


def check_distinct(paths: Sequence[Path]) -> None:
    """Raise ValueError for a directory that is given twice."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"a run is given twice: {', '.join(map(str, paths))}")


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the directories' last names, or where two agree, whole paths."""
    names = [path.resolve().name for path in paths]
    if len({*names}) == len(names):
        return names
    check_distinct(paths)
    return [str(path) for path in paths]


def check_comparable(records: dict[Path, dict[str, Any]]) -> None:
    """Raise ValueError unless all runs are judged on the same tasks."""
    (first, expected), *others = records.items()
    for path, found in others:
        problems = [record["config"]["problem"] for record in (expected, found)]
        if len({*problems}) > 1:
            differing = [("problem", *problems)]
        else:
            pairs = differences(_tasks(expected), _tasks(found))
            # Older records have no digests of the classes.
            differing = [d for d in pairs if "digests" not in d[0] or ABSENT not in d]
        if differing:
            # The name of the data set says more than the number of its images.
            key, a, b = min(differing, key=lambda d: not d[0].endswith(".source"))
            raise ValueError(
                f"{first} and {path} are not judged on the same tasks: `{key}` is "
                f"{a!r} in the one, {b!r} in the other"
            )


def _tasks(record: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the tasks that a run is judged on."""
    config, facts = record["config"], dict(record["data"])
    own = config["evaluation"]
    evaluation = {"seed": own.get("seed", 0)}
    if config["problem"] == "reinforcement":
        # What a policy sees, and what moves its world, is not the task.
        apart = {"observe_goal", "engine"}
        env = {k: v for k, v in config["env"].items() if k not in apart}
        sampled = config["sampling"] | own
        evaluation["trajectories"] = sampled["trajectories"]
        evaluation["surplus"] = sampled.get("surplus", 0)
        return {"env": env, "evaluation": evaluation}
    if config["problem"] == "regression":
        judged = ("shots", "test_queries")
    else:
        judged = ("ways", "shots", "queries")
        provenance = facts["provenance"]
        known = provenance.keys() - {"versions"}  # of what has read the files
        facts["provenance"] = {k: provenance[k] for k in sorted(known)}
        facts.pop("prototypes", None)  # of the method, not the tasks
    data = facts | {key: config["data"][key] for key in judged}
    return {"data": data, "evaluation": evaluation}
