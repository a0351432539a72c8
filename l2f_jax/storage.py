"""A folder of checkpoints, which Orbax writes and reads: opened, checked, read."""

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

STATE, RECORD = "state", "record"  # what a checkpoint consists of
DELETION_S = 1.0  # seconds that Orbax may take from a folder's first file to its last
_UNFINISHED = re.compile(r"^\d+\.orbax-checkpoint-tmp")


class KeepSteps(ocp.checkpoint_managers.PreservationPolicy):
    """Preserve a set of steps that changes with every save."""

    def __init__(self):
        self.steps: set[int] = set()

    def should_preserve(self, checkpoints, *, context) -> Sequence[bool]:
        return [checkpoint.step in self.steps for checkpoint in checkpoints]


class Unreadable(ValueError):
    """A checkpoint is there but cannot be read, most likely because it is damaged."""


def open_folder(
    directory: Path, kept: KeepSteps, read_only: bool
) -> ocp.CheckpointManager:
    """Return Orbax's manager of a folder; `read_only` changes nothing in it."""
    options = ocp.CheckpointManagerOptions(
        preservation_policy=kept,
        create=not read_only,
        cleanup_tmp_directories=not read_only,
    )
    return beside_deletions(
        lambda: ocp.CheckpointManager(
            directory, options=options, item_names=(STATE, RECORD)
        )
    )


def beside_deletions(call: Callable[[], Any]) -> Any:
    """Call what lists all steps, again when one is deleted while it does.

    A run that goes on deletes some whenever it saves.
    """
    for _ in range(10):
        try:
            return call()
        except FileNotFoundError:
            time.sleep(DELETION_S / 10)
    return call()


def read(manager: ocp.CheckpointManager, folder: Path, item: str, how: Any) -> Any:
    """Return the state or the record of a checkpoint.

    Args:
      manager: of all of them.
      folder: the checkpoint's own, named by its step.
      item: `STATE` or `RECORD`.
      how: Orbax's arguments for it.
    Raises:
      ValueError: the checkpoint is gone, or is none of this program.
      Unreadable: it is there.
    """
    try:
        args = ocp.args.Composite(**{item: how})
        return manager.restore(int(folder.name), args=args)[item]
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        time.sleep(DELETION_S)  # a folder that is being deleted is so file by file
        if not folder.exists():
            raise ValueError(
                f"'{folder}' is gone: the run goes on and keeps newer ones; try again"
            ) from error
        if not (folder / RECORD).is_dir():
            raise ValueError(
                f"'{folder}' is not a checkpoint of this program"
            ) from error
        raise Unreadable(
            f"the {item} in '{folder}' cannot be read ({_cause(error)}); if it is "
            "damaged, move that folder away to go on without it"
        ) from error


def has_checkpoint(directory: Path) -> bool:
    """Say whether a folder holds a checkpoint, not just one that is being saved."""
    if not directory.is_dir():
        return False
    return any(entry.name.isdecimal() for entry in directory.iterdir())


def check_directory(directory: Path, must_exist: bool) -> None:
    """Refuse a folder that is evidently not one of checkpoints."""
    if not directory.exists() and not must_exist:
        return
    if not directory.is_dir():
        fault = "is a file" if directory.exists() else "does not exist"
        raise ValueError(f"`directory` ('{directory}') {fault}")
    visible = [entry for entry in directory.iterdir() if entry.name[0] != "."]
    others = [entry.name for entry in visible if not _UNFINISHED.match(entry.name)]
    ours = any((directory / name / RECORD).is_dir() for name in others)
    if others and not ours:
        raise ValueError(
            f"`directory` ('{directory}') holds no checkpoints but '{min(others)}'"
        )
    if must_exist and not others:
        raise ValueError(f"`directory` ('{directory}') holds no checkpoints")


def _cause(error: Exception) -> str:
    """Return the first line of what a library says, cut where it goes on and on."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 160 else f"{lines[0][:160]} ..."
