"""Trained runs, read back from their directories."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2f_jax.checkpoint import Checkpoints
from l2f_jax.outer import TrainState, initial_state
from l2f_jax.parallel import task_mesh
from l2f_jax.problems.supervised import Method

CHECKPOINTS = ("best", "latest")


# What every run.json holds, as a tree of types, and what is added for a problem.
RECORD = {
    "protocol": str,
    "config": {
        "problem": str,
        "seed": int,
        "model": dict,
        "learner": dict,
        "transform": {"name": str},
        "optimiser": dict,
        "training": {"iterations": int, "tasks": int, "cpu_devices": int},
        "evaluation": dict,
    },
    "data": dict,
    "command": list,
    "versions": dict,
    "python": str,
    "device": str,
    "processes": int,
}
ADDED = {
    "classification": {
        "config": {"data": {"bank": str, "ways": int, "shots": int, "queries": int}},
        "data": {
            "shape": list,
            "images": int,
            "classes": dict,
            "provenance": {"source": str},
        },
    },
    "regression": {"config": {"data": {"shots": int, "test_queries": int}}},
    "reinforcement": {
        "config": {"env": {"name": str}, "sampling": {"trajectories": int}}
    },
}


def read_record(run: Path) -> dict[str, Any]:
    """Return run.json: the config that a run was trained with, its data and machine.

    Raises:
      ValueError: no such run, or a file that lacks something of `RECORD` or `ADDED`.
    """
    path = run / "run.json"
    if not path.is_file():
        raise ValueError(f"{run} is not a run directory: it has no run.json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} is not the record of a run: it is no JSON") from None
    if flaw := next(_flaws(record), ""):
        raise ValueError(f"{path} is not the record of a run: {flaw}")
    return record


def _flaws(record: Any) -> Iterator[str]:
    """Yield what keeps a file's content from being a record; the first is meant."""
    yield from _mistyped(record, RECORD)
    problem = record["config"]["problem"]
    if problem not in ADDED:
        yield f"`config.problem` ({problem!r}) must be one of {', '.join(ADDED)}"
    yield from _mistyped(record, ADDED[problem])


def _mistyped(found: Any, expected: Any, key: str = "") -> Iterator[str]:
    kind = expected if isinstance(expected, type) else dict
    if not isinstance(found, kind):
        name = f"`{key}`" if key else "it"
        yield f"{name} is of type {type(found).__name__}, not {kind.__name__}"
    elif kind is not expected:
        for name, part in expected.items():
            yield from _mistyped(found.get(name), part, f"{key}.{name}".lstrip("."))


def read_classification(run: Path) -> dict[str, Any]:
    """Return run.json of a run of classification; ValueError for another one."""
    record = read_record(run)
    problem = record["config"]["problem"]
    if problem != "classification":
        raise ValueError(f"{run} is a run of {problem}, not of classification")
    return record


def check_data(run: Path, facts: Mapping[str, Any]) -> None:
    """Raise ValueError unless a data set is the one that a run was trained on.

    By the images' shape, the statistics of the training images, and the classes of each
    split that both have, their number and, unless the record is older than that, names
    and sizes. Where there are no images, nothing can differ that the config does not
    tell. See `check_prototypes` for the network that a run may be conditioned on.

    Args:
      run: its directory.
      facts: `Experiment.facts` of the data set that is there now.
    """
    check_prototypes(run, facts.get("prototypes", ""))
    old, new = (_identity(data) for data in (read_record(run)["data"], facts))
    # The shape first, which says more than the classes or the colours' means.
    for key in sorted(old.keys() & new.keys(), key=lambda key: (key != "shape", key)):
        if not _same(old[key], new[key]):
            raise ValueError(
                f"`data.bank` is not what {run} was trained on: {key} {old[key]} then, "
                f"{new[key]} now; give it that data set, or begin another run"
            )


def check_prototypes(run: Path, found: str) -> None:
    """Raise ValueError unless a ProtoNet is the one that a run is conditioned on.

    Args:
      run: its directory; nothing is known of a run whose record is older than this.
      found: `digest` of the ProtoNet's best checkpoint now.
    """
    if read_record(run)["data"].get("prototypes", found) != found:
        raise ValueError(
            f"`transform.prototypes` is not the network that {run} was trained with: "
            "it was trained further since, or is another one; begin another run"
        )


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, str):
        return old == new
    return np.shape(old) == np.shape(new) and np.allclose(old, new, 0.0, atol=1e-6)


def _identity(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return key -> numbers that tell one data set from another."""
    provenance = data.get("provenance", {})
    found = {"shape": data.get("shape")}
    found |= {key: provenance.get(key) for key in ("mean", "std")}
    found |= {f"classes of {k!r}": n for k, n in data.get("classes", {}).items()}
    found |= {f"digest of {k!r}": x for k, x in data.get("digests", {}).items()}
    return {key: value for key, value in found.items() if value is not None}


def digest(state: TrainState) -> str:
    """Return what tells a trained network from others, by its parameters."""
    leaves = jax.tree.leaves((state.meta, state.stats))
    return hashlib.sha256(
        b"".join(np.asarray(x).tobytes() for x in leaves)
    ).hexdigest()[:16]


def restore(
    run: Path, checkpoint: str, built: Method, shape: tuple[int, ...]
) -> TrainState:
    """Restore the "best" checkpoint by validation, or the "latest".

    Args:
      run: of classification.
      built: what the run's config describes.
      shape: (H, W, C) of an image.
    Raises:
      ValueError: another `checkpoint`, or none is there.
    """
    if checkpoint not in CHECKPOINTS:
        raise ValueError(f"`checkpoint` ({checkpoint!r}) must be one of best, latest")
    example = jnp.zeros((1, *shape))
    # The shapes of a state are enough to restore one.
    like = jax.eval_shape(
        lambda: initial_state(built.learner, built.optimiser, example, 0, task_mesh(1))
    )
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise ValueError(f"{run} has no checkpoint yet")
    with Checkpoints(folder, read_only=True) as saved:
        latest = saved.restore_latest(like) if checkpoint == "latest" else None
        if latest is not None:
            return latest[0]
        if not saved.best:
            other = '; its "latest" is not validated yet' if saved.latest else ""
            raise ValueError(f"{run} has no {checkpoint} checkpoint yet{other}")
        return saved.restore_best(0, like)[0]
