"""Save a training run so that it resumes exactly, whatever moment it is killed at.

One folder per saved step, `directory/<step>`, holds the state (arrays, by Orbax) and a
record (JSON: the caller's metadata, the tables of the best and of the regular steps,
the shape and dtype of every leaf). A state is saved before it is validated: once its
score is known, the new table of the best is put beside. Kept are the newest step, the
one before until the newest has its score, and the steps in the tables, so ranking can
never delete the newest. Orbax renames a folder into place when it is complete and
deletes others only then: the newest folder is always whole and its tables say which
others are.
What else a killed process left over goes at the next start or with the next save.
"""

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from l2f_jax import leaves, storage
from l2f_jax.retention import Kept
from l2f_jax.storage import RECORD, STATE

_BEST = "best.json"


class Checkpoints:
    """The checkpoints of one run, the newest and the best, and regular ones if asked.

    They are saved in the background.

    Use as a context manager. With several processes, all of them make the same calls
    on a shared directory, with arrays replicated over the devices of all; Orbax writes
    each array once and process 0 writes the record.

    Args:
      directory: the run's own folder for checkpoints; created if missing.
      keep_best: how many of the best steps to keep, >= 0; unused when `read_only`.
      keep_every: keep also the steps that are multiples of it; 0 keeps none for that.
      read_only: never create, clean or delete anything; for evaluating a run, also
        one that is still being trained.
    Raises:
      ValueError: if `directory` holds files but no checkpoints or, when `read_only`,
        does not exist or is empty; if `keep_best` or `keep_every` < 0.
    """

    def __init__(
        self,
        directory: str | Path,
        keep_best: int = 3,
        keep_every: int = 0,
        *,
        read_only: bool = False,
    ):
        for name, value in (("keep_best", keep_best), ("keep_every", keep_every)):
            if value < 0:
                raise ValueError(f"`{name}` ({value}) must be >= 0")
        self._directory = Path(directory).absolute()
        storage.check_directory(self._directory, must_exist=read_only)
        self._keep_best = None if read_only else keep_best
        self._keep_every = keep_every
        self._read_only = read_only
        self._kept = storage.KeepSteps()
        self._manager = storage.open_folder(self._directory, self._kept, read_only)
        self._tables = self._read_tables()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    @property
    def latest(self) -> int | None:
        """The newest saved step, None if there is none."""
        return self._manager.latest_step()

    @property
    def best(self) -> list[tuple[int, float]]:
        """(step, score) of the best steps, best first; of equals the later first."""
        return list(self._tables.best)

    @property
    def ranked(self) -> bool:
        """Whether the newest step has its score."""
        return self._tables.ranked

    @property
    def steps(self) -> list[int]:
        """All kept steps, in order."""
        newest = [] if self.latest is None else [self.latest]
        return sorted({*newest, *self._tables.steps})

    def save(self, step: int, state: Any, metadata: dict | None = None) -> None:
        """Start saving a step; the state may be donated or overwritten at once.

        Saving the newest step again does nothing: a state is determined by its step.

        Args:
          step: greater than every step saved before.
          state: any tree of arrays, typed keys included.
          metadata: what JSON can hold; given back by the restore.
        Raises:
          ValueError: if `step` lies before the newest, or the run was opened with
            `read_only`.
        """
        self._check_writable()
        if self.latest is not None and step <= self.latest:
            if step == self.latest:
                return
            raise ValueError(f"`step` ({step}) must exceed the newest, {self.latest}")
        tables = self._tables.with_step(step, self.latest, self._keep_every)
        record = {
            "metadata": metadata or {},
            **tables._asdict(),
            "leaves": leaves.describe(state),
        }
        # Fail, and take the snapshot, here rather than in the writing thread.
        record = json.loads(json.dumps(record))
        self._tables, self._kept.steps = tables, {step, *tables.steps}
        args = {
            STATE: ocp.args.StandardSave(state),
            RECORD: ocp.args.JsonSave(record),
        }
        self._manager.save(step, args=ocp.args.Composite(**args), force=True)

    def rank(self, score: float) -> None:
        """Give the newest step its score, when it is saved.

        Args:
          score: finite, higher is better (validation accuracy); the step is kept as
            long as it is among the `keep_best` best.
        Raises:
          ValueError: if `score` is not finite, there is no step or the newest has its
            score, or the run was opened with `read_only`.
        """
        self._check_writable()
        if self.latest is None or self.ranked:
            raise ValueError(f"the newest step ({self.latest}) awaits no score")
        tables = self._tables.with_score(self.latest, float(score), self._keep_best)
        self.wait()
        if jax.process_index() == 0:
            path = self._directory / str(self.latest) / _BEST
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(tables.best))
            partial.replace(path)
        multihost_utils.sync_global_devices("ranked")  # all read the same from now on
        self._tables = tables
        for step in set(self._manager.all_steps()) - {*self.steps}:
            self._manager.delete(step)

    def restore_latest(self, like: Any) -> tuple[Any, dict] | None:
        """Return (state, metadata) of the newest step, None if nothing was saved.

        Args:
          like: a tree of arrays or `jax.ShapeDtypeStruct` with the structure, shapes
            and dtypes of the state. Arrays come back with the sharding that their
            counterpart here has (none: the first local device), NumPy as NumPy.
        Raises:
          ValueError: if a leaf is missing, left over, or of another shape or dtype.
        """
        return None if self.latest is None else self.restore(self.latest, like)

    def restore_best(self, rank: int, like: Any) -> tuple[Any, dict]:
        """Return (state, metadata) of the best step (`rank` 0), the second best, ...

        `like` and errors as for `restore_latest`; ValueError also if `rank` is not
        among the kept ones.
        """
        if not 0 <= rank < len(self.best):
            raise ValueError(
                f"`rank` ({rank}) must be in [0, {len(self.best)}), the scored "
                f"checkpoints in '{self._directory}'"
            )
        return self.restore(self.best[rank][0], like)

    def restore(self, step: int, like: Any) -> tuple[Any, dict]:
        """Return (state, metadata) of one of `steps`; as for `restore_latest`.

        Raises:
          ValueError: also if `step` is not kept, or cannot be read.
        """
        if step not in self.steps:
            raise ValueError(
                f"`step` ({step}) must be one of {self.steps}, the checkpoints in "
                f"'{self._directory}'"
            )
        self.wait()
        record = self._record(step)
        folder = self._directory / str(step)
        leaves.check(record["leaves"], leaves.describe(like), folder)
        target = ocp.args.StandardRestore(jax.tree.map(leaves.target, like))
        state = storage.read(self._manager, folder, STATE, target)
        return state, record["metadata"]

    def wait(self) -> None:
        """Block until all saves are complete; raise the error of one that failed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then release the threads."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _record(self, step: int) -> dict:
        folder = self._directory / str(step)
        return storage.read(self._manager, folder, RECORD, ocp.args.JsonRestore())

    def _check_writable(self) -> None:
        if self._read_only:
            raise ValueError(f"'{self._directory}' was opened with `read_only`")

    def _read_tables(self) -> Kept:
        step = self.latest
        if step is None:
            return Kept()
        saved = set(self._manager.all_steps())
        try:
            record = self._record(step)
        except ValueError:
            storage.beside_deletions(self._manager.reload)
            if self.latest == step:
                raise
            return self._read_tables()  # a run that goes on has saved another
        try:  # at once: a run that goes on may write it, or delete its folder
            table = (self._directory / str(step) / _BEST).read_text()
            best = [(int(at), float(score)) for at, score in json.loads(table)]
            ranked = True
        except (FileNotFoundError, TypeError, ValueError):
            # Not validated yet, or to be validated again: its table was lost when the
            # machine went down. Older runs saved a state with its score.
            best, ranked = record["best"], record.get("ranked", True)
        kept = Kept(best, record.get("regular", []), record.get("previous", []), ranked)
        return kept.among(saved, self._keep_best)
