"""A folder of checkpoints, which Orbax writes and reads: opened, checked, read."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

STATE, RECORD = "state", "record"  # what a checkpoint consists of
_UNFINISHED = re.compile(r"^\d+\.orbax-checkpoint-tmp")


class KeepSteps(ocp.checkpoint_managers.PreservationPolicy):
    """Preserve a set of steps that changes with every save."""

    def __init__(self):
        self.steps: set[int] = set()

    def should_preserve(self, checkpoints, *, context) -> Sequence[bool]:
        return [checkpoint.step in self.steps for checkpoint in checkpoints]


def open_folder(
    directory: Path, kept: KeepSteps, read_only: bool
) -> ocp.CheckpointManager:
    """Return Orbax's manager of a folder; `read_only` changes nothing in it."""
    options = ocp.CheckpointManagerOptions(
        preservation_policy=kept,
        create=not read_only,
        cleanup_tmp_directories=not read_only,
    )
    return ocp.CheckpointManager(directory, options=options, item_names=(STATE, RECORD))


def read(manager: ocp.CheckpointManager, folder: Path, item: str, how: Any) -> Any:
    """Return the state or the record of a checkpoint.

    Args:
      manager: of all of them.
      folder: the checkpoint's own, named by its step.
      item: `STATE` or `RECORD`.
      how: Orbax's arguments for it.
    Raises:
      ValueError: it is damaged, or gone.
    """
    try:
        args = ocp.args.Composite(**{item: how})
        return manager.restore(int(folder.name), args=args)[item]
    except Exception as error:  # of many types, as the damage is
        if not folder.exists():
            raise ValueError(
                f"'{folder}' is gone: the run goes on and keeps newer ones; try again"
            ) from error
        raise ValueError(
            f"'{folder}' is damaged: its {item} cannot be read ({_cause(error)}); "
            "delete that folder to go on without it"
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
