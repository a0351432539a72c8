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
On GPUs they are measured, too (an H100, Conv4), and depend on the images. At 84x84 the
gradients of XLA's convolution are cuDNN's, and one task after another takes the least
time for the official 2 tasks a step; all at once, "im2col" takes 1.14 times as long and
4.6 times the memory. At 28x28 kernels are so short that starting them is what takes the
time: all tasks at once by "im2col" are several times as fast as either of XLA's. `vmap`
makes XLA's convolution a grouped one, which is slow.
On TPUs the defaults have NOT been measured.
"""

import math
from collections.abc import Sequence

import jax

CONVOLUTIONS = ("forward", "im2col", "xla")
TASK_MAPS = ("map", "vmap")
SMALL = 48 * 48  # pixels; measured are 28 x 28 and 84 x 84, of which this is the middle


def convolution(
    choice: str = "auto", shape: Sequence[int] = (), platform: str | None = None
) -> str:
    """Return how to compute convolutions: "forward", "im2col" or "xla".

    Args:
      choice: "auto", or one of the three to have it whatever the machine.
      shape: of the images, [n, H, W, C].
      platform: "cpu", "gpu", "tpu"; None asks JAX for its default backend.
    """
    defaults = {"cpu": "forward", "gpu": "im2col" if _small(shape) else "xla"}
    default = defaults.get(platform or jax.default_backend(), "im2col")
    return _resolve("conv", choice, CONVOLUTIONS, default)


def task_map(
    choice: str = "auto", shape: Sequence[int] = (), platform: str | None = None
) -> str:
    """Return how to go through the tasks of a meta-batch: "map" or "vmap".

    Args:
      choice: "auto", or one of the two to have it whatever the machine.
      shape: of a task's inputs, [n, H, W, C] for images.
      platform: "cpu", "gpu", "tpu"; None asks JAX for its default backend.
    """
    defaults = {"cpu": "map", "gpu": "vmap" if _small(shape) else "map"}
    default = defaults.get(platform or jax.default_backend(), "vmap")
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


def _small(shape: Sequence[int]) -> bool:
    return math.prod(shape[1:-1]) <= SMALL


def _resolve(name: str, choice: str, choices: Sequence[str], default: str) -> str:
    if choice not in ("auto", *choices):
        raise ValueError(
            f"`{name}` ({choice!r}) must be one of auto, {', '.join(choices)}"
        )
    return default if choice == "auto" else choice
