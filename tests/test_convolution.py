"""Every way to convolve against XLA's own convolution, in value and derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from l2f_jax.backend import CONVOLUTIONS, convolution, cpu_devices, task_map
from l2f_jax.models.convolution import conv, patches, side_after

pytestmark = pytest.mark.usefixtures("x64")
METHODS = [m for m in CONVOLUTIONS if m != "xla"]
SHAPES = {"3x3": (3, 2, 3), "1x1": (1, 2, 3), "3x3 thin": (3, 1, 12)}


def inputs(shape):
    size, channels, filters = shape
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 5, 4, channels))
    kernel = jax.random.normal(keys[1], (size, size, channels, filters))
    return x, kernel, jax.random.normal(keys[2], (2, 5, 4, filters))


def direct(x, kernel, stride=1, padding=None):
    pad = kernel.shape[0] // 2 if padding is None else padding
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12 * np.abs(y).max())


@pytest.mark.parametrize("method", CONVOLUTIONS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values(method, shape):
    x, kernel, _ = inputs(shape)
    close(conv(x, kernel, method=method), direct(x, kernel))


@pytest.mark.parametrize("method", CONVOLUTIONS)
def test_stride_two_of_an_odd_map(method):
    x, kernel, _ = inputs((3, 2, 3))
    ours = conv(x, kernel, stride=2, method=method)
    assert ours.shape == (2, 3, 2, 3)
    close(ours, direct(x, kernel, stride=2))


@pytest.mark.parametrize("method", CONVOLUTIONS)
@pytest.mark.parametrize(("padding", "sides"), [(0, (3, 2)), (2, (7, 6)), (3, (9, 8))])
def test_any_padding(method, padding, sides):
    x, kernel, _ = inputs((3, 2, 3))
    ours = conv(x, kernel, padding=padding, method=method)
    assert (
        ours.shape[1:3] == sides == tuple(side_after(n, 3, 1, padding) for n in (5, 4))
    )
    close(ours, direct(x, kernel, padding=padding))
    strided = conv(x, kernel, stride=2, padding=padding, method=method)
    assert strided.shape[1:3] == tuple(side_after(n, 3, 2, padding) for n in (5, 4))
    close(strided, direct(x, kernel, stride=2, padding=padding))


@pytest.mark.parametrize("padding", [0, 2])
def test_derivatives_with_any_padding(padding):
    def gradients(convolve):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(convolve(x, kernel, padding=padding)))

        return jax.grad(loss, argnums=(0, 1))(*inputs((3, 2, 3))[:2])

    ours = functools.partial(conv, method="forward")
    close(gradients(ours), gradients(direct))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_first_and_second_derivatives(method, shape):
    x, kernel, weight = inputs(shape)

    def first(convolve):
        def loss(x, kernel):
            return jnp.sum(jnp.tanh(convolve(x, kernel)) * weight)

        return jax.grad(loss, argnums=(0, 1))

    def second(convolve):
        def size(x, kernel):
            return sum(jnp.sum(g**2) for g in first(convolve)(x, kernel))

        return jax.grad(size, argnums=(0, 1))

    def ours(x, kernel):
        return conv(x, kernel, method=method)

    for order in (first, second):
        close(jax.jit(order(ours))(x, kernel), jax.jit(order(direct))(x, kernel))


@pytest.mark.parametrize("method", METHODS)
def test_kernels_of_their_own_under_vmap(method):
    x, kernel, _ = inputs((3, 2, 3))
    kernels = jnp.stack([kernel, 2 * kernel])
    both = jax.vmap(lambda k: conv(x, k, method=method))(kernels)
    close(both[1], direct(x, 2 * kernel))


def test_patches_of_a_corner():
    # The window around pixel (0, 0) of 1 2 / 3 4 has the four in its lower right.
    x = jnp.asarray([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    window = patches(x, 3, 1, 1)[0, 0, 0].reshape(3, 3)
    close(window, jnp.asarray([[0.0, 0, 0], [0, 1, 2], [0, 3, 4]]))


def test_the_backend_decides_and_can_be_overruled():
    small, large, vectors = (75, 28, 28, 1), (75, 84, 84, 3), (10, 1)

    def chosen(shape, platform):
        return convolution("auto", shape, platform), task_map("auto", shape, platform)

    assert chosen(small, "cpu") == chosen(large, "cpu") == ("forward", "map")
    assert chosen(small, "gpu") == ("im2col", "vmap")
    assert chosen(large, "gpu") == ("xla", "map")
    assert chosen(vectors, "gpu")[1] == "vmap"
    assert chosen(small, "tpu") == chosen(large, "tpu") == ("im2col", "vmap")
    assert convolution("xla", large, "cpu") == "xla"
    assert task_map("vmap", large, "cpu") == "vmap"
    with pytest.raises(ValueError, match="conv.*'fft'.*auto, forward, im2col, xla"):
        convolution("fft")


def test_cpu_devices_divide_the_tasks():
    # Of 4 cores, 3 are the most that share 6 tasks evenly.
    assert cpu_devices(0, tasks=6, cores=4) == 3
    assert cpu_devices(0, tasks=1, cores=4) == 1
    assert cpu_devices(2, tasks=6, cores=1) == 2
    with pytest.raises(ValueError, match="cpu_devices.*-1"):
        cpu_devices(-1, tasks=2, cores=2)
