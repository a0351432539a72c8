"""Episodes: which images a task holds, how they are fetched, how they become inputs.

An episode is a pure function of (class table, spec, key): the same key gives the same
images whether the bank lies on the device or is streamed from disk. Everything is
written for one task; vmap over keys for a batch.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2f_jax.data.bank import ClassTable, ImageBank
from l2f_jax.types import Array, Batch, Episode

Preprocess = Callable[[Array, Array | None], Array]
"""preprocess(raw uint8 [ways, k, H, W, C], key or None) -> float32, the same shape."""


# Of fixed tasks that are numbers, the first of each split: those that choose
# checkpoints are not those that test them.
FIRST_TASK = {"test": 0, "val": 2**20, "train": 0}


class EpisodeSpec(NamedTuple):
    """The size of a task: classes, and support and query images of each class."""

    ways: int
    shots: int
    queries: int

    @property
    def images(self) -> int:
        """Images of one class in an episode."""
        return self.shots + self.queries


def check_spec(bank: ImageBank, split: str, spec: EpisodeSpec) -> None:
    """Raise ValueError if the split cannot fill an episode of this size."""
    for name, value in spec._asdict().items():
        least = 2 if name == "ways" else 1
        if value < least:
            raise ValueError(f"`{name}` ({value}) must be at least {least}")
    bank = bank.only(split)
    if len(bank.classes) < spec.ways:
        raise ValueError(
            f"`ways` ({spec.ways}) must be at most {len(bank.classes)}, the classes of "
            f"split {split!r}"
        )
    small = min(zip(bank.counts, bank.classes, strict=True))
    if small[0] < spec.images:
        raise ValueError(
            f"class {small[1]!r} of split {split!r} has {small[0]} images, an episode "
            f"needs {spec.images} (`shots` {spec.shots} + `queries` {spec.queries}); "
            "lower one of them, or leave the class out"
        )


def sample_indices(table: ClassTable, spec: EpisodeSpec, key: Array) -> Array:
    """Draw the images of one episode, every possible episode equally likely.

    Classes and, within a class, images are drawn without replacement: the positions of
    the largest of uniform random numbers. Numbers past the end of a class are masked.

    Returns:
      image numbers in the bank, [ways, shots + queries] int32; row = label, the first
      `shots` columns are the support set.
    """
    class_key, image_key = jax.random.split(key)
    _, rows = jax.lax.top_k(jax.random.uniform(class_key, table.start.shape), spec.ways)
    rank = jax.random.uniform(image_key, (spec.ways, table.largest))
    present = jnp.arange(table.largest)[None, :] < table.count[rows][:, None]
    _, offset = jax.lax.top_k(jnp.where(present, rank, -1.0), spec.images)
    return table.start[rows][:, None] + offset


def gather(images: Array | np.ndarray, indices: Array | np.ndarray) -> Any:
    """Fetch raw images, uint8 [*indices.shape, H, W, C].

    From a device array inside jit, or from a memory-mapped array on the host.
    """
    if isinstance(images, np.ndarray):
        return _read(images, indices)
    return images.at[indices].get(mode="promise_in_bounds")


def preprocessing(
    mean: Sequence[float],
    std: Sequence[float],
    augment: Callable[[Array, Array], Array] | None = None,
) -> Preprocess:
    """Build raw images -> (x / 255 - mean) / std per channel, float32.

    Args:
      mean, std: of the images scaled to [0, 1], one number per channel; (0,) and (1,)
        leave the images in [0, 1].
      augment: (key, raw images) -> raw images, see `augment.augment`. Applied only
        where a key is given, that is in meta-training.
    """
    if len(mean) != len(std) or min(std) <= 0.0:
        raise ValueError(
            f"`std` ({std}) must be positive and as long as `mean` ({mean})"
        )
    shift = np.asarray(mean, np.float32)
    scale = np.asarray(1.0 / np.asarray(std), np.float32)

    def preprocess(raw: Array, key: Array | None = None) -> Array:
        if shift.size not in (1, raw.shape[-1]):
            raise ValueError(
                f"`mean` and `std` ({shift.size} numbers each) must have 1 number, or "
                f"one for each of the images' {raw.shape[-1]} channels"
            )
        if augment is not None and key is not None:
            raw = augment(key, raw)
        axes = (1,) * (raw.ndim - 1) + (-1,)
        scaled = raw.astype(jnp.float32) / 255.0
        return (scaled - shift.reshape(axes)) * scale.reshape(axes)

    return preprocess


def to_episode(
    raw: Array, shots: int, preprocess: Preprocess, key: Array | None = None
) -> Episode:
    """Turn raw images uint8 [ways, shots + queries, H, W, C] into one task.

    Support and query inputs are float32 [ways * shots, H, W, C] and
    [ways * queries, ...], class after class; targets int32, the row number.
    `key=None` switches augmentation off.
    """
    images = preprocess(jnp.asarray(raw), key)
    return Episode(
        support=_labelled(images[:, :shots]), query=_labelled(images[:, shots:])
    )


def episode_keys(seed: int, first: int, count: int) -> Array:
    """Return the keys of evaluation tasks first .. first + count - 1.

    Task i of a seed has the same key whatever the batch it is evaluated in.
    """
    tasks = first + jnp.arange(count)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), tasks)


def stream(
    images: np.ndarray, indices: Iterable[Array | np.ndarray], depth: int = 2
) -> Iterator[np.ndarray]:
    """Gather batches from a memory-mapped bank ahead of their use, in order.

    A thread reads up to `depth` batches ahead. What it raises is raised here; closing
    or dropping the iterator ends the thread.

    Args:
      images: uint8 [N, H, W, C] on the host.
      indices: of each batch the image numbers, any shape.
    """
    indices = iter(indices)
    reader = ThreadPoolExecutor(1, thread_name_prefix="episodes")
    try:
        ahead = deque(reader.submit(_read, images, i) for i in islice(indices, depth))
        while ahead:
            raw = ahead.popleft().result()
            ahead.extend(reader.submit(_read, images, i) for i in islice(indices, 1))
            yield raw
    finally:
        reader.shutdown(wait=True, cancel_futures=True)


def _read(images: np.ndarray, indices: Array | np.ndarray) -> np.ndarray:
    return np.asarray(images[np.asarray(indices)])


def _labelled(images: Array) -> Batch:
    ways, number = images.shape[:2]
    return Batch(
        inputs=images.reshape(ways * number, *images.shape[2:]),
        targets=jnp.repeat(jnp.arange(ways, dtype=jnp.int32), number),
    )
