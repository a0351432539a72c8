"""The choices that depend on the machine, made in this one place.

convolution: "im2col" writes a convolution as one matrix product of shifted slices;
"xla" calls `lax.conv_general_dilated`; "forward" does too, but with derivatives written
as forward convolutions and products. All compute the same values.
task_map: "map" adapts the tasks of a meta-batch one after another (`lax.map`), "vmap"
all at once.

On CPUs both choices are measured: the gradients of XLA's own convolution are about 20
times slower inside a loop, and the inner steps are a loop; "forward" takes less time
and half the memory of "im2col"; one task at a time keeps one task's memory. XLA runs
"forward" mostly on one thread, so further cores want tasks of their own: `cpu_devices`.
On GPUs they are measured, too (an H100, images of 84x84): the gradients of XLA's
convolution are cuDNN's there, and one task after another takes the least time for the
official 2 tasks a step. All at once, "im2col" takes 1.14 times as long and 4.6 times
the memory; for 16 tasks 0.88 times as long and 34 times the memory. `vmap` makes XLA's
a grouped convolution, which takes 2.5 times as long. Images of 28x28 are not measured
there; their kernels are short, so that all tasks at once may pay.
On TPUs the defaults have NOT been measured.
"""

from collections.abc import Sequence

import jax

CONVOLUTIONS = ("forward", "im2col", "xla")
TASK_MAPS = ("map", "vmap")


def convolution(choice: str = "auto", platform: str | None = None) -> str:
    """Return how to compute convolutions: "forward", "im2col" or "xla".

    Args:
      choice: "auto", or one of the three to have it whatever the machine.
      platform: "cpu", "gpu", "tpu"; None asks JAX for its default backend.
    """
    platform = platform or jax.default_backend()
    defaults = {"cpu": "forward", "gpu": "xla"}
    return _resolve("conv", choice, CONVOLUTIONS, defaults.get(platform, "im2col"))


def task_map(choice: str = "auto", platform: str | None = None) -> str:
    """Return how to go through the tasks of a meta-batch: "map" or "vmap".

    Args:
      choice: "auto", or one of the two to have it whatever the machine.
      platform: "cpu", "gpu", "tpu"; None asks JAX for its default backend.
    """
    platform = platform or jax.default_backend()
    default = "map" if platform in ("cpu", "gpu") else "vmap"
    return _resolve("task_map", choice, TASK_MAPS, default)


def cpu_devices(choice: int, tasks: int, cores: int) -> int:
    """Return over how many virtual devices a CPU spreads the tasks of a step.

    Args:
      choice: at least 1, or 0 for as many of the cores as divide `tasks`: each core
        then adapts a task of its own, which is faster than several cores sharing each
        convolution, and holds a task's memory of its own.
    """
    if choice < 0:
        raise ValueError(f"`cpu_devices` ({choice}) must be at least 0 (auto)")
    return choice or most_sharing(tasks, cores)


def most_sharing(tasks: int, devices: int) -> int:
    """Return how many of the devices, at most, can share the tasks evenly."""
    return max(n for n in range(1, devices + 1) if tasks % n == 0)


def _resolve(name: str, choice: str, choices: Sequence[str], default: str) -> str:
    if choice not in ("auto", *choices):
        raise ValueError(
            f"`{name}` ({choice!r}) must be one of auto, {', '.join(choices)}"
        )
    return default if choice == "auto" else choice
