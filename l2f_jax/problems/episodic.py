"""Episodes of a bank for the compiled steps: sampled on the device, or streamed.

Both ways give the same episodes. On the device, the images of a split are one array and
a step samples from it; streamed, a step receives raw images that a thread gathered from
the memory-mapped bank while the step before ran.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from l2f_jax.data import episodes
from l2f_jax.data.bank import ImageBank
from l2f_jax.data.episodes import EpisodeSpec, Preprocess
from l2f_jax.parallel import replicate, share
from l2f_jax.types import Array, Episode

PLACEMENTS = ("auto", "device", "stream")
HOST_LIMIT = 4 * 2**30  # bytes; a bank is copied into a CPU's memory up to this size


@dataclass(frozen=True)
class RawImages:
    """The raw images of tasks, read from a bank when some of the tasks are taken.

    images: uint8 [N, H, W, C] on the host.
    numbers: [tasks, ways, shots + queries], of each task's images in the bank.
    """

    images: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, tasks: np.ndarray) -> np.ndarray:
        return episodes.gather(self.images, self.numbers[tasks])


class Feed:
    """The episodes of one split, with what a compiled step needs to make them.

    shared: put on every device once;  items: what a step gets per task.
    `episode(shared, item, key)` is what `outer.make_update` calls for each task.
    """

    def __init__(
        self,
        bank: ImageBank,
        split: str,
        spec: EpisodeSpec,
        preprocess: Preprocess,
        *,
        placement: str,
        mesh: Mesh,
    ):
        episodes.check_spec(bank, split, spec)
        self.bank, self.spec, self.preprocess = bank.only(split), spec, preprocess
        self.mesh, self.table = mesh, self.bank.table(split)
        self.streamed = not _on_device(self.bank, placement)
        self._shared: Any = None
        self._stream: Iterator[np.ndarray] = iter(())
        self._expected: tuple[int, int] | None = None
        draw = jax.vmap(lambda key: episodes.sample_indices(self.table, spec, key))
        self._draw = jax.jit(draw)

    @property
    def shared(self) -> Any:
        """The device's copy of images and class table; () if streamed."""
        if self.streamed:
            return ()
        if self._shared is None:
            self._shared = replicate((self.bank.images, self.table), self.mesh)
        return self._shared

    def episode(self, shared: Any, item: Any, key: Array) -> Episode:
        """Make the episode of a key, augmented; `item` is () or its raw images."""
        sample_key, augment_key = jax.random.split(key)
        raw = item if self.streamed else self._sampled(shared, sample_key)
        return episodes.to_episode(raw, self.spec.shots, self.preprocess, augment_key)

    def fixed_episode(self, shared: Any, item: Any) -> Episode:
        """Make an evaluation episode, not augmented; `item` is a key or raw images."""
        raw = item if self.streamed else self._sampled(shared, item)
        return episodes.to_episode(raw, self.spec.shots, self.preprocess)

    def training_items(self, key: Array, step: int, iterations: int, tasks: int) -> Any:
        """Return what `iterations` steps from `step` on get, [iterations, tasks]."""
        if not self.streamed:
            return ()
        if self._expected != (step, iterations):
            numbers = self._own_numbers(key, step, iterations, tasks)
            self._stream = episodes.stream(self.bank.images, numbers)
        self._expected = (step + iterations, iterations)
        return share(next(self._stream), self.mesh, axis=1)

    def fixed_items(self, seed: int, tasks: int) -> Any:
        """Return the items of evaluation tasks 0 .. tasks - 1, for `make_measure`."""
        keys = episodes.episode_keys(seed, 0, tasks)
        if not self.streamed:
            return keys
        return RawImages(self.bank.images, np.asarray(self._draw(keys)))

    def _sampled(self, shared: Any, key: Array) -> Array:
        images, table = shared
        return episodes.gather(images, episodes.sample_indices(table, self.spec, key))

    def _own_numbers(
        self, key: Array, step: int, iterations: int, tasks: int
    ) -> Iterator[np.ndarray]:
        """Yield, dispatch after dispatch, the image numbers of this process's tasks."""
        bits = np.asarray(jax.random.key_data(key))  # the key lies on all processes
        run_key = jax.random.wrap_key_data(jnp.asarray(bits))
        owners = [device.process_index for device in self.mesh.devices.flat]
        own = own_tasks(tasks, owners, jax.process_index())
        while True:
            steps = step + np.arange(iterations)[:, None]
            numbers = steps * tasks + own
            flat = jnp.asarray(numbers.reshape(-1))
            keys = jax.vmap(_sample_key, (None, 0))(run_key, flat)
            drawn = np.asarray(self._draw(keys))
            yield drawn.reshape(*numbers.shape, *drawn.shape[1:])
            step += iterations


def own_tasks(tasks: int, owners: Sequence[int], process: int) -> np.ndarray:
    """Return which of a step's tasks 0 .. tasks - 1 a process samples, in order.

    Args:
      owners: the process of each device that shares the tasks.
    """
    by_device = np.arange(tasks).reshape(len(owners), -1)
    return by_device[np.asarray(owners) == process].reshape(-1)


def _sample_key(run_key: Array, number: Array) -> Array:
    """Return the key that `episode` samples with in training task `number`."""
    episode_key = jax.random.split(jax.random.fold_in(run_key, number))[0]
    return jax.random.split(episode_key)[0]


def _on_device(bank: ImageBank, placement: str) -> bool:
    if placement not in PLACEMENTS:
        raise ValueError(
            f"`placement` ({placement!r}) must be one of {', '.join(PLACEMENTS)}"
        )
    if placement != "auto":
        return placement == "device"
    memory = jax.local_devices()[0].memory_stats() or {}
    limit = memory.get("bytes_limit", 2 * HOST_LIMIT) // 2
    return bank.images.nbytes <= limit
