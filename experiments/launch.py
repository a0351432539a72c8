"""What every entry point does first: flags, devices, and one-line errors."""

import argparse
import contextlib
import ctypes
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from l2f_jax import backend

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "l2f_jax"

PROCESSES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def config_flag() -> None:
    """Define --config=FILE[:variants], with overrides --config.section.key=value."""
    config_flags.DEFINE_config_file(
        "config", help_string="the experiment, as FILE or FILE:variants"
    )
    flags.mark_flag_as_required("config")


def run(main: Callable[[], None]) -> None:
    """Parse the absl flags, set up the devices and run `main`, guarded."""

    def parsed() -> None:
        if {"-h", "--help", "-help"} & {*sys.argv[1:]}:
            print(sys.modules["__main__"].__doc__)
            for module in ("experiments.launch", sys.argv[0]):
                print(flags.FLAGS.module_help(module))
            return
        rest = _parse(sys.argv)
        if rest:
            raise ValueError(f"unexpected argument {rest[0]!r}; options begin with --")
        training = config().training
        set_up(training.cpu_devices, training.tasks)
        main()

    guard(parsed)


class Parser(argparse.ArgumentParser):
    """Parse the options of a program without a config; a mistake is a ValueError."""

    def __init__(self, description: str):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=layout)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def guard(main: Callable[[], None]) -> None:
    """Run `main`; a user's mistake ends in one line and exit code 2.

    A mistake is what raises ValueError or OSError; a run that diverges raises
    FloatingPointError and ends in one line and exit code 1. Anything else is a defect
    of the program and keeps its traceback, as everything does with
    L2F_JAX_TRACEBACK=1.
    """
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("L2F_JAX_TRACEBACK"):
            raise
        # Of a damaged checkpoint every array would have its say, as it is collected.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        message = " ".join(str(error).split())
        print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
        sys.exit(1 if isinstance(error, FloatingPointError) else 2)


def set_up(cpu_devices: int = 1, tasks: int = 1) -> None:
    """Keep compiled programs across runs, and join the other processes of this one.

    On a CPU the tasks of a step are spread over virtual devices, see
    `backend.cpu_devices`; JAX_NUM_CPU_DEVICES overrules that.

    A run over several processes sets the variables of `PROCESSES` in each of them, on
    clusters that JAX knows, too: a single process there is one run with all devices.
    """
    several = processes(os.environ)
    jax.monitoring.register_event_duration_secs_listener(return_memory)
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        devices = backend.cpu_devices(cpu_devices, tasks, os.cpu_count() or 1)
        jax.config.update("jax_num_cpu_devices", devices)
    if several is not None:
        # It would take the signals that the training loop saves at.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(*several)


def processes(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """Return the first process's address, how many there are and which this one is.

    None without any of the variables of `PROCESSES`. Raises ValueError naming one that
    is missing beside others, or that is no number of its range.
    """
    missing = [name for name in PROCESSES if name not in environment]
    if len(missing) == len(PROCESSES):
        return None
    if missing:
        raise ValueError(
            f"{missing[0]} is not set; several processes need {', '.join(PROCESSES)}"
        )
    address, *numbers = (environment[name] for name in PROCESSES)
    for name, number in zip(PROCESSES[1:], numbers, strict=True):
        if not number.isdecimal():
            raise ValueError(f"{name} ({number!r}) must be an integer of at least 0")
    count, own = map(int, numbers)
    if own >= count:
        raise ValueError(
            f"JAX_PROCESS_ID ({own}) must be less than {count}, their number"
        )
    return address, count, own


def return_memory(event: str, seconds: float, **_) -> None:
    """Give the memory that a long compilation has freed back to the system.

    The C library keeps it otherwise, hundreds of MiB, on top of what the program needs.
    """
    if event.endswith("/backend_compile_duration") and seconds > 1:
        with contextlib.suppress(TypeError, AttributeError):  # it is glibc's own
            ctypes.CDLL(None).malloc_trim(0)


def config() -> ConfigDict:
    """Return the resolved config, locked."""
    return flags.FLAGS.config


def _parse(argv: list[str]) -> list[str]:
    for first, second in zip(argv, [*argv[1:], ""], strict=True):
        name, _, value = first.partition("=")
        file = (value or second).partition(":")[0]
        if name in ("--config", "-config") and not Path(file).is_file():
            raise ValueError(f"--config ({file}) must be a file that exists")
    try:
        return flags.FLAGS(argv)[1:]
    except flags.Error as error:
        raise ValueError(_cause(str(error))) from error
    except (AttributeError, KeyError, TypeError, SyntaxError, ImportError) as error:
        raise ValueError(_flaw(error, argv)) from error


def _flaw(error: Exception, argv: list[str]) -> str:
    """Return what is wrong with a config; an override may be of a key that it lacks."""
    # ml_collections raises a KeyError, or an AttributeError around one.
    inner = error.args[0] if error.args and isinstance(error, AttributeError) else error
    if not isinstance(inner, KeyError):
        return f"--config: {error}"
    key, *advice = str(inner.args[0]).splitlines()  # perhaps which one was meant
    overrides = [argument.partition("=")[0] for argument in argv]
    found = [name for name in overrides if key.strip("'") in name.split(".")[1:]]
    sentences = f"{(*found, '--config')[0]}: this config has no key {key}", *advice
    return ". ".join(sentences)


def _cause(message: str) -> str:
    """Return what a config file's own error says, without the way that it took."""
    if message.endswith(")") and "as a ConfigDict: ValueError" in message:
        override = message.partition(": ")[0].removeprefix("flag ")
        return f"{override}: a section; set its keys, as in --config.section.key=value"
    if "Traceback (most recent call last)" not in message:
        return message
    return message.strip().splitlines()[-1].partition(": ")[2]
