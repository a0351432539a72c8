"""ResNet12: four residual blocks of three convolutions, as MAML and L2F use it.

Reference: Baik et al., Learning to Forget for Meta-Learning, CVPR 2020, Sec. 4.1, with
the official code's details: a convolved and normalised shortcut in every block, plain
ReLU, max pools after the first three blocks (the third one padded), no dropout.
"""

import functools
from collections.abc import Callable

import jax

from l2f_jax import backend, tree
from l2f_jax.models import layers
from l2f_jax.models.convolution import conv as conv_layer
from l2f_jax.models.norm import BATCH, Norm, init_norm, normalise
from l2f_jax.types import Array, Model, Params, Phase, Stats

POOL_PADDING = (0, 0, 1, None)  # of each block; None: no pool


def resnet12(
    outputs: int | None,
    *,
    widths: tuple[int, int, int, int] = (64, 128, 256, 512),
    norm: Norm = BATCH,
    conv: str = "auto",
) -> Model:
    """Build ResNet12 for images [n, H, W, C].

    Parameters: block_{b}/conv_{0,1,2}/kernel [3, 3, in, out],
    block_{b}/norm_{0,1,2}/{scale,shift}, block_{b}/shortcut/kernel [1, 1, in, out],
    block_{b}/shortcut_norm/{scale,shift}, head/kernel [features, outputs], head/bias;
    dtype of the inputs. Kernels start Glorot uniform, biases and shifts 0, scales 1.

    Args:
      outputs: number of classes (ways); None for no head: the outputs are features.
      widths: channels of the four blocks.
      norm: which statistics normalisation uses, in every normalisation.
      conv: how to compute a convolution, see `backend.convolution`.
    """
    if len(widths) != len(POOL_PADDING):
        raise ValueError(f"`widths` {widths} must have {len(POOL_PADDING)} entries")
    layers.check_sizes(outputs=outputs, widths=widths)
    backend.convolution(conv)  # refused here if there is no such way

    def init(key: Array, inputs: Array) -> tuple[Params, Stats]:
        *block_keys, head_key = jax.random.split(key, len(widths) + 1)
        x = jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)
        params, stats = {}, {}
        for b, (block_key, width, padding) in enumerate(
            zip(block_keys, widths, POOL_PADDING, strict=True)
        ):
            block_params, block_stats = _init_block(block_key, b, x, width, norm)
            params, stats = params | block_params, stats | block_stats
            sides = [s if padding is None else s // 2 + padding for s in x.shape[1:3]]
            x = jax.ShapeDtypeStruct((x.shape[0], *sides, width), x.dtype)
        if 0 in x.shape:
            raise ValueError(f"`inputs` {inputs.shape} are too small for the pools")
        head = layers.init_head(head_key, widths[-1], outputs, x.dtype)
        return tree.merge(params, head), tree.merge(stats)

    def block(
        params: Params,
        stats: Stats,
        x: Array,
        b: int,
        convolved: Callable,
        normed: Callable,
    ) -> tuple[Array, Stats]:
        path = f"block_{b}"
        shortcut = convolved(x, params[f"{path}/shortcut/kernel"])
        shortcut, stats = normed(params, stats, f"{path}/shortcut_norm", shortcut)
        for i in range(3):
            x = convolved(x, params[f"{path}/conv_{i}/kernel"])
            x, stats = normed(params, stats, f"{path}/norm_{i}", x)
            x = jax.nn.relu(x) if i < 2 else x + shortcut
        # Pooling first gives the same values, as the activation is increasing.
        if (padding := POOL_PADDING[b]) is not None:
            x = layers.max_pool(x, padding)
        return jax.nn.relu(x), stats

    def apply(
        params: Params,
        stats: Stats,
        inputs: Array,
        *,
        phase: Phase = "support",
        step: Array | int = 0,
        key: Array | None = None,
    ) -> tuple[Array, Stats]:
        del key  # nothing here is random
        method = backend.convolution(conv, inputs.shape)
        convolved = functools.partial(conv_layer, method=method)
        normed = functools.partial(normalise, norm, phase=phase, step=step)
        x = inputs
        for b in range(len(widths)):
            x, stats = block(params, stats, x, b, convolved, normed)
        x = x.mean((1, 2))
        return x if outputs is None else layers.linear(params, "head", x), stats

    return Model(init, apply)


def _init_block(
    key: Array, b: int, x: jax.ShapeDtypeStruct, width: int, norm: Norm
) -> tuple[Params, Stats]:
    """Return the parameters and statistics of block b for images like x."""
    path, channels = f"block_{b}", x.shape[-1]
    kernels = {
        "conv_0": (3, 3, channels, width),
        "conv_1": (3, 3, width, width),
        "conv_2": (3, 3, width, width),
        "shortcut": (1, 1, channels, width),
    }
    params, stats = {}, {}
    for kernel_key, (name, shape) in zip(
        jax.random.split(key, len(kernels)), kernels.items(), strict=True
    ):
        params[f"{path}/{name}/kernel"] = layers.glorot(kernel_key, shape, x.dtype)
    out = jax.ShapeDtypeStruct((*x.shape[:-1], width), x.dtype)
    for name in ("norm_0", "norm_1", "norm_2", "shortcut_norm"):
        affine, recorded = init_norm(norm, f"{path}/{name}", out)
        params, stats = params | affine, stats | recorded
    return params, stats
