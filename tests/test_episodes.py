import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2f_jax.data.bank import ImageBank
from l2f_jax.data.episodes import (
    EpisodeSpec,
    check_spec,
    episode_keys,
    gather,
    preprocessing,
    sample_indices,
    stream,
    to_episode,
)

COUNTS = (4, 9, 5, 7, 4)
SPEC = EpisodeSpec(ways=3, shots=1, queries=3)


def bank_of(counts=COUNTS, split="train"):
    """Return a bank whose pixel (0, 0) is the class, pixel (0, 1) the image number."""
    images = np.zeros((sum(counts), 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.repeat(np.arange(len(counts)), counts)
    images[:, 0, 1, 0] = np.arange(sum(counts))
    names = tuple(f"class {row}" for row in range(len(counts)))
    return ImageBank(images, names, counts, (split,) * len(counts), {})


@functools.cache
def all_episodes():
    draw = jax.jit(jax.vmap(sample_indices, (None, None, 0)), static_argnums=1)
    return np.asarray(draw(bank_of().table("train"), SPEC, episode_keys(0, 0, 6000)))


def episodes(count):
    return all_episodes()[:count]


def chi_square(observed, categories):
    """Return the statistic against equal frequencies, categories - 1 degrees."""
    counts = np.unique(observed, axis=0, return_counts=True)[1]
    expected = len(observed) / categories
    missing = categories - len(counts)
    return ((counts - expected) ** 2).sum() / expected + missing * expected


def test_rows_are_distinct_classes_and_images():
    images = bank_of().images[:, 0, 0, 0]
    for indices in episodes(50):
        classes = images[indices]
        assert indices.shape == (3, 4) and indices.dtype == np.int32
        assert (classes == classes[:, :1]).all()  # a row is one class
        assert len(set(classes[:, 0])) == 3
        assert len(np.unique(indices)) == indices.size  # support and query disjoint


def test_class_with_just_enough_images_is_used_up():
    indices = episodes(50).reshape(-1, 4)
    smallest = indices[bank_of().images[indices[:, 0], 0, 0, 0] == 0]
    assert len(smallest) > 0
    assert (np.sort(smallest) == np.arange(4)).all()


def test_ordered_pairs_of_classes_are_uniform():
    classes = bank_of().images[:, 0, 0, 0][episodes(6000)][:, :2, 0]
    # 5 * 4 ordered pairs; 43.8 is exceeded with probability 0.001 at 19 degrees.
    assert chi_square(classes, 20) < 43.8


@pytest.mark.parametrize(("row", "count"), [(0, 4), (1, 9)])
def test_ordered_pairs_of_images_are_uniform(row, count):
    indices = episodes(6000).reshape(-1, 4)
    images = indices[bank_of().images[indices[:, 0], 0, 0, 0] == row]
    # 4 * 3 pairs: 31.3 at 11 degrees of freedom; 9 * 8 pairs: 112.3 at 71.
    assert (
        chi_square(images[:, [0, 3]], count * (count - 1)) < {4: 31.3, 9: 112.3}[count]
    )


def test_jit_and_vmap_draw_what_a_loop_draws():
    table = bank_of().table("train")
    loop = [sample_indices(table, SPEC, key) for key in episode_keys(0, 0, 2)]
    np.testing.assert_array_equal(episodes(2), np.stack(loop))


def test_task_keys_do_not_depend_on_the_batch():
    whole = jax.random.key_data(episode_keys(7, 0, 6))
    part = jax.random.key_data(episode_keys(7, 4, 2))
    np.testing.assert_array_equal(whole[4:], part)
    other = jax.random.key_data(episode_keys(8, 0, 6))
    assert len(np.unique(np.concatenate([whole, other]), axis=0)) == 12


def test_restricted_bank_draws_the_same_images():
    bank = bank_of()
    splits = ("val", "train", "train", "val", "train")
    bank = ImageBank(bank.images, bank.classes, bank.counts, splits, {})
    part, key = bank.only("train"), jax.random.key(3)
    whole = gather(bank.images, sample_indices(bank.table("train"), SPEC, key))
    np.testing.assert_array_equal(
        whole, gather(part.images, sample_indices(part.table("train"), SPEC, key))
    )


def test_device_and_host_gather_the_same():
    images, indices = bank_of().images, episodes(2)
    on_device = jax.jit(gather)(jnp.asarray(images), indices)
    host = gather(images, indices)
    assert on_device.dtype == host.dtype == np.uint8
    np.testing.assert_array_equal(on_device, host)


def test_episode_is_class_ordered():
    indices = episodes(1)[0]
    raw = gather(bank_of().images, indices)
    episode = to_episode(raw, 1, preprocessing((0.0,), (1.0,)))
    assert episode.support.inputs.shape == (3, 2, 2, 1)
    assert episode.support.targets.tolist() == [0, 1, 2]
    assert episode.query.targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    numbers = np.rint(np.asarray(episode.query.inputs[:, 0, 1, 0]) * 255)
    np.testing.assert_array_equal(numbers, indices[:, 1:].ravel())


def test_preprocessing_normalises_per_channel():
    raw = jnp.asarray([0, 255], jnp.uint8).reshape(1, 1, 1, 1, 2)
    out = preprocessing((0.5, 0.2), (0.25, 0.4))(raw, None)
    # (0 - 0.5) / 0.25 = -2 and (1 - 0.2) / 0.4 = 2.
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out.ravel(), [-2.0, 2.0], rtol=1e-6)


def test_augmentation_needs_a_key():
    preprocess = preprocessing((0.0,), (1.0,), lambda key, raw: raw + jnp.uint8(255))
    raw = jnp.zeros((1, 1, 1, 1, 1), jnp.uint8)
    assert preprocess(raw, None).item() == 0.0
    assert preprocess(raw, jax.random.key(0)).item() == 1.0


@pytest.mark.parametrize("statistics", [((0.0,), (0.0,)), ((0.0, 0.0), (1.0,))])
def test_preprocessing_refuses_bad_statistics(statistics):
    with pytest.raises(ValueError, match="`std`"):
        preprocessing(*statistics)


def test_preprocessing_refuses_other_channels():
    raw = jnp.zeros((1, 1, 1, 1, 2), jnp.uint8)
    with pytest.raises(ValueError, match="3 numbers.*2 channels"):
        preprocessing((0.0,) * 3, (1.0,) * 3)(raw, None)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (EpisodeSpec(6, 1, 1), r"`ways` \(6\) must be at most 5"),
        (EpisodeSpec(5, 2, 3), "'class 0'.*4 images.*needs 5"),
        (EpisodeSpec(5, 0, 1), r"`shots` \(0\)"),
        (EpisodeSpec(1, 1, 1), r"`ways` \(1\) must be at least 2"),
    ],
)
def test_check_spec_refuses(spec, message):
    with pytest.raises(ValueError, match=message):
        check_spec(bank_of(), "train", spec)


def test_check_spec_accepts_the_largest_episode():
    check_spec(bank_of(), "train", EpisodeSpec(5, 1, 3))


def test_check_spec_refuses_a_missing_split():
    with pytest.raises(ValueError, match="'test'.*one of train"):
        check_spec(bank_of(), "test", SPEC)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_stream_yields_in_order(depth):
    images, indices = bank_of().images, episodes(4)
    for raw, index in zip(stream(images, indices, depth), indices, strict=True):
        np.testing.assert_array_equal(raw, images[index])


def test_stream_reads_ahead_but_not_all():
    taken = []
    batches = (taken.append(number) or np.array([number]) for number in range(10))
    next(stream(bank_of().images, batches, depth=3))
    assert taken == [0, 1, 2, 3]


def test_stream_raises_in_the_consumer():
    batches = stream(bank_of().images, [np.array([0]), np.array([999])])
    next(batches)
    with pytest.raises(IndexError):
        next(batches)


def test_closed_stream_ends_its_thread():
    before = threading.active_count()
    batches = stream(bank_of().images, ([0] for _ in range(100)))
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before
