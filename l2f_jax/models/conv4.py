"""Conv4: the four-stage convolutional network of few-shot classification.

A stage is 3x3 convolution, normalisation, leaky ReLU (slope 0.01), 2x2 max pool; a
linear head follows. Reference: Baik et al., Learning to Forget for Meta-Learning, CVPR
2020, Sec. 4.1, with the official code's details: no convolution bias, 48 filters.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from l2f_jax import backend, tree
from l2f_jax.models import layers
from l2f_jax.models.convolution import conv as conv_layer
from l2f_jax.models.convolution import side_after
from l2f_jax.models.norm import BATCH, Norm, init_norm, normalise, normalise_and_pool
from l2f_jax.types import Array, Model, Params, Phase, Stats

NEGATIVE_SLOPE = 0.01


def conv4(
    outputs: int | None,
    *,
    filters: int = 48,
    stages: int = 4,
    conv_bias: bool = False,
    padding: int = 1,
    pooling: Literal["max", "stride"] = "max",
    norm: Norm = BATCH,
    conv: str = "auto",
) -> Model:
    """Build Conv4 for images [n, H, W, C].

    Parameters: conv_{b}/kernel [3, 3, in, filters], conv_{b}/bias, norm_{b}/scale,
    norm_{b}/shift, head/kernel [features, outputs], head/bias; dtype of the inputs.
    Kernels start Glorot uniform, biases and shifts 0, scales 1.

    Args:
      outputs: number of classes (ways); None for no head: the outputs are features.
      filters: channels of every stage.
      stages: number of stages; each halves the map.
      conv_bias: add a bias after each convolution, as MAML++ does.
      padding: zeros on each side of what a convolution sees, in pixels, at least 0; 1
        keeps the map's size.
      pooling: "max" pools and flattens the last map; "stride" convolves with stride 2
        and averages the last map.
      norm: which statistics normalisation uses.
      conv: how to compute a convolution, see `backend.convolution`.
    """
    layers.check_sizes(outputs=outputs, filters=filters, stages=stages)
    if pooling not in ("max", "stride"):
        raise ValueError(f"`pooling` ({pooling!r}) must be one of max, stride")
    if padding < 0:
        raise ValueError(f"`padding` ({padding}) must be at least 0")
    backend.convolution(conv)  # refused here if there is no such way
    stride = 2 if pooling == "stride" else 1

    def init(key: Array, inputs: Array) -> tuple[Params, Stats]:
        *conv_keys, head_key = jax.random.split(key, stages + 1)
        images, height, width, channels = inputs.shape
        params, stats = {}, {}
        for b, conv_key in enumerate(conv_keys):
            kernel = (3, 3, channels, filters)
            params[f"conv_{b}/kernel"] = layers.glorot(conv_key, kernel, inputs.dtype)
            if conv_bias:
                params[f"conv_{b}/bias"] = jnp.zeros(filters, inputs.dtype)
            height = side_after(height, 3, stride, padding)
            width = side_after(width, 3, stride, padding)
            x = jax.ShapeDtypeStruct((images, height, width, filters), inputs.dtype)
            affine, recorded = init_norm(norm, f"norm_{b}", x)
            params, stats = params | affine, stats | recorded
            if pooling == "max":
                height, width = height // 2, width // 2
            if 0 in (height, width):
                raise ValueError(
                    f"`inputs` {inputs.shape} are too small for {stages} stages with "
                    f"`padding` {padding}"
                )
            channels = filters
        features = filters if pooling == "stride" else filters * height * width
        head = layers.init_head(head_key, features, outputs, inputs.dtype)
        return tree.merge(params, head), tree.merge(stats)

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
        method, x = backend.convolution(conv, inputs.shape), inputs
        for b in range(stages):
            kernel = params[f"conv_{b}/kernel"]
            x = conv_layer(x, kernel, stride=stride, padding=padding, method=method)
            if conv_bias:
                x = x + lax.broadcast_to_rank(params[f"conv_{b}/bias"], x.ndim)
            # Pooling before the activation gives the same values, as it is increasing.
            following = normalise_and_pool if pooling == "max" else normalise
            x, stats = following(
                norm, params, stats, f"norm_{b}", x, phase=phase, step=step
            )
            x = jax.nn.leaky_relu(x, NEGATIVE_SLOPE)
        x = x.mean((1, 2)) if pooling == "stride" else x.reshape(x.shape[0], -1)
        return x if outputs is None else layers.linear(params, "head", x), stats

    return Model(init, apply)
