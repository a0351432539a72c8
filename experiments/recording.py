"""What a run leaves behind and shows while it goes: record, metrics, progress."""

import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tensorboardX import SummaryWriter

PACKAGES = ("l2f_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment() -> dict[str, Any]:
    """Describe what the numbers of a run were computed with."""
    device = jax.devices()[0]
    return {
        "command": sys.argv,
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "processes": jax.process_count(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a copy of the source
        return "not installed"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write a file, which then takes its place complete.

    Each process writes to a place of its own.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    yield partial
    os.replace(partial, path)


def beside(path: Path, suffix: str) -> Path:
    """Return where the file that goes with another one is written.

    Raises ValueError if something else has that name: it is there and the other is not.
    """
    other = path.with_suffix(suffix)
    if other.exists() and not path.exists():
        raise ValueError(f"--out ({path}) would replace {other}; choose another name")
    return other


def write_text(path: Path, content: str) -> None:
    """Write a file completely or not at all."""
    with replacing(path) as partial:
        partial.write_text(content, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a file completely or not at all; see `to_json`."""
    write_text(path, to_json(content, indent=2) + "\n")


def to_json(content: Any, **options: Any) -> str:
    """Return JSON, with null for the floats that it cannot hold: NaN and infinities."""
    return json.dumps(_finite(content), allow_nan=False, **options)


def _finite(content: Any) -> Any:
    match content:
        case float():
            return content if math.isfinite(content) else None
        case dict():
            return {key: _finite(value) for key, value in content.items()}
        case list() | tuple():
            return [_finite(value) for value in content]
    return content


class Recorder:
    """Metrics to metrics.jsonl and TensorBoard, and progress to the screen.

    A terminal gets a bar with the time left, anything else plain lines. In a run of
    several processes only the first records and shows.

    Args:
      run: the run directory.
      step: where the run starts; what an interrupted run recorded after it is dropped,
        as those steps are taken again.
      total: the run's last step.
      validated: whether the validation at `step` is not done again.
    """

    def __init__(self, run: Path, step: int, total: int, *, validated: bool = True):
        self.active = jax.process_index() == 0
        self.start, self.total, self.began = step, total, time.monotonic()
        self.console = Console(stderr=True, quiet=not self.active)
        if not self.active:
            return
        self.path = run / "metrics.jsonl"
        _drop_after(self.path, step, validated)
        again = [] if validated else [r for r in read_metrics(run) if r["step"] == step]
        purged = step + validated
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=purged)
        for record in again:
            self._show_on_board(record)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=total, completed=step)
        self.bar.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of a step."""
        if not self.active:
            return
        line = to_json({"step": step, **{k: float(v) for k, v in values.items()}})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._show_on_board({"step": step, **values})
        self.bar.update(self.task, completed=step)

    def _show_on_board(self, record: Mapping[str, float]) -> None:
        for name, value in record.items():
            if name != "step":
                self.board.add_scalar(name, float(value), int(record["step"]))

    def say(self, message: str) -> None:
        """Show one line."""
        if self.active:
            self.console.print(message, highlight=False, soft_wrap=True)

    def time_left(self, step: int) -> str:
        """Estimate the time that is left, as h:mm:ss; "?" before a step is taken."""
        if step == self.start:
            return "?"
        passed = time.monotonic() - self.began
        seconds = passed / (step - self.start) * (self.total - step)
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_) -> None:
        if self.active:
            self.bar.stop()
            self.board.close()


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Return the records of metrics.jsonl in order, with NaN for null.

    A torn last line is left out.
    """
    path, records = run / "metrics.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        known = {k: math.nan if v is None else v for k, v in record.items()}
        records.append(known)
    return records


def _drop_after(path: Path, step: int, validated: bool) -> None:
    def done(record: dict[str, float]) -> bool:
        if record["step"] != step or validated:
            return record["step"] <= step
        return not any(name.startswith("validation/") for name in record)

    kept = [record for record in read_metrics(path.parent) if done(record)]
    if path.exists():
        write_text(path, "".join(to_json(r) + "\n" for r in kept))
