import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2f_jax.data.augment import augment, flip, random_crop, rotate_classes

RAW = np.random.default_rng(0).integers(1, 256, (6, 3, 4, 4, 2), dtype=np.uint8)


def turns_of(image, rotated):
    """Return all k for which `rotated` is `image` turned by k * 90 degrees."""
    return {k for k in range(4) if np.array_equal(np.rot90(image, k), rotated)}


def test_rotation_is_one_per_class():
    rotated = np.asarray(rotate_classes(jax.random.key(0), RAW))
    turns = [
        set.intersection(*(turns_of(*pair) for pair in zip(*both, strict=True)))
        for both in zip(RAW, rotated, strict=True)
    ]
    assert all(len(found) == 1 for found in turns)
    assert len(set.union(*turns)) > 1  # classes differ


def test_all_four_rotations_occur_equally_often():
    keys = jax.random.split(jax.random.key(0), 1000)
    corners = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 2, 1)
    rotated = jax.jit(jax.vmap(rotate_classes, (0, None)))(keys, corners)
    counts = np.bincount(np.asarray(rotated)[:, 0, 0, 0, 0, 0], minlength=4)
    # Chi-square with 3 degrees of freedom; 16.3 is exceeded with probability 0.001.
    assert ((counts - 250) ** 2 / 250).sum() < 16.3


def test_rotation_refuses_oblong_images():
    with pytest.raises(ValueError, match="square images, not 4 x 5"):
        rotate_classes(jax.random.key(0), np.zeros((2, 1, 4, 5, 1), np.uint8))


def test_flip_mirrors_some_images():
    flipped = np.asarray(flip(jax.random.key(0), RAW))
    mirrored = (flipped == RAW[:, :, :, ::-1]).all((2, 3, 4))
    same = (flipped == RAW).all((2, 3, 4))
    assert (mirrored ^ same).all() and mirrored.any() and same.any()


def test_crop_shifts_within_the_padding():
    cropped = np.asarray(random_crop(1)(jax.random.key(0), RAW))
    padded = np.pad(RAW, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    corners = [(row, column) for row in range(3) for column in range(3)]
    for index in np.ndindex(6, 3):
        windows = [padded[index][r : r + 4, c : c + 4] for r, c in corners]
        assert any(np.array_equal(cropped[index], window) for window in windows)
    assert not np.array_equal(cropped, RAW)


def test_crop_refuses_no_padding():
    with pytest.raises(ValueError, match=r"`padding` \(0\)"):
        random_crop(0)


def test_chain_keeps_shape_and_type_under_jit():
    apply = augment("rotate_classes", "crop", "flip")
    out = jax.jit(apply)(jax.random.key(0), RAW)
    assert out.shape == RAW.shape and out.dtype == jnp.uint8
    assert not np.array_equal(out, RAW)


def test_chain_applies_in_order():
    add_one = lambda key, raw: raw + jnp.uint8(1)  # noqa: E731, one line is clearer
    double = lambda key, raw: raw * jnp.uint8(2)  # noqa: E731, one line is clearer
    raw = jnp.full((1, 1, 1, 1, 1), 3, jnp.uint8)
    assert augment(add_one, double)(jax.random.key(0), raw).item() == 8


def test_same_augmentation_twice_draws_twice():
    twice = augment("flip", "flip")(jax.random.key(1), RAW)
    assert not np.array_equal(twice, RAW)  # equal draws would cancel


def test_no_name_is_no_augmentation():
    np.testing.assert_array_equal(augment()(jax.random.key(0), RAW), RAW)


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'spin'.*rotate_classes, crop, flip"):
        augment("crop", "spin")
