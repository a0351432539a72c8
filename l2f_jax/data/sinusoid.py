"""Sinusoid regression tasks, sampled: y = A sin(f x - phi).

Reference: Finn et al., Model-Agnostic Meta-Learning, ICML 2017, Sec. 5.1, whose code
has f = 1; Baik et al., Learning to Forget for Meta-Learning, CVPR 2020, Sec. 4.2, which
samples the frequency too, from a range that is not published.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2f_jax.types import Array, Batch, Episode

Range = tuple[float, float]


class Wave(NamedTuple):
    """A task: amplitude A, frequency f (radians per unit of x), phase phi (radians)."""

    amplitude: Array
    frequency: Array
    phase: Array


class WaveSpec(NamedTuple):
    """The ranges that tasks are drawn from, each (low, high), uniformly."""

    amplitude: Range = (0.1, 5.0)
    frequency: Range = (0.8, 1.2)
    phase: Range = (0.0, math.pi)
    inputs: Range = (-5.0, 5.0)


def check_spec(spec: WaveSpec, where: str) -> None:
    """Raise ValueError unless every range is a pair of numbers, low before high."""
    for name, value in spec._asdict().items():
        if len(value) != 2 or not all(map(math.isfinite, value)) or value[0] > value[1]:
            raise ValueError(
                f"`{where}.{name}` ({tuple(value)}) must be (low, high), low <= high"
            )


def sample_wave(spec: WaveSpec, key: Array) -> Wave:
    """Draw a task."""
    ranges = spec.amplitude, spec.frequency, spec.phase
    keys = jax.random.split(key, len(ranges))
    return Wave(
        *(
            jax.random.uniform(k, (), minval=low, maxval=high)
            for k, (low, high) in zip(keys, ranges, strict=True)
        )
    )


def value(wave: Wave, x: Array) -> Array:
    """Return A sin(f x - phi) at x, any shape."""
    return wave.amplitude * jnp.sin(wave.frequency * x - wave.phase)


def sample_episode(spec: WaveSpec, shots: int, queries: int, key: Array) -> Episode:
    """Draw a task with `shots` support and `queries` query points, each [n, 1]."""
    wave_key, *keys = jax.random.split(key, 3)
    wave = sample_wave(spec, wave_key)

    def points(key: Array, number: int) -> Batch:
        low, high = spec.inputs
        x = jax.random.uniform(key, (number, 1), minval=low, maxval=high)
        return Batch(x, value(wave, x))

    return Episode(points(keys[0], shots), points(keys[1], queries))
