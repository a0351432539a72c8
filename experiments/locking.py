"""Files that one process of a machine holds against the others."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

try:
    import fcntl
except ImportError:  # on Windows nothing is held, and nothing is in the way
    fcntl = None


@contextlib.contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a file against other processes of this machine; false if one of them does.

    With `wait`, wait until none of them does. The system lets go of it when the process
    ends, however that happens.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def lock_of(run: Path) -> Path:
    """Return the file to hold while a run is trained or tested; beside its folder."""
    run = run.resolve()
    return run.with_name(f".{run.name}.lock")


@contextlib.contextmanager
def alone(run: Path) -> Iterator[None]:
    """Hold a run; ValueError if another process of this machine does.

    The processes of one distributed run train it together, and do not ask.
    """
    if jax.process_count() > 1:
        yield
        return
    if run.exists() and not run.is_dir():
        raise ValueError(f"--run ({run}) must be a folder, or a new name")
    with held(lock_of(run)) as mine:
        if not mine:
            raise ValueError(f"--run ({run}) is in use by another process")
        yield
