"""A multilayer perceptron, for regression and tests.

Reference: Finn et al., Model-Agnostic Meta-Learning, ICML 2017, Sec. 5.1: 1-40-40-1
with ReLU, kernels truncated normal of deviation 0.01 and biases 0 for the sinusoid.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from l2f_jax.models import layers
from l2f_jax.types import Array, Model, Params, Phase, Stats

SMALL = jax.nn.initializers.truncated_normal(0.01)


def mlp(
    outputs: int,
    hidden: tuple[int, ...] = (40, 40),
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
    kernel_init: Callable[..., Array] = SMALL,
) -> Model:
    """Build a perceptron for inputs [n, ...], which are flattened.

    Parameters: dense_{i}/kernel [in, out], dense_{i}/bias, head/kernel, head/bias;
    dtype of the inputs. Biases start at 0.

    Args:
      outputs: width of the last, linear layer.
      hidden: widths of the hidden layers.
      activation: applied after each hidden layer.
      kernel_init: (key, shape, dtype) -> kernel, one of `jax.nn.initializers`.
    """
    layers.check_sizes(outputs=outputs, hidden=hidden)
    paths = [*(f"dense_{i}" for i in range(len(hidden))), "head"]

    def init(key: Array, inputs: Array) -> tuple[Params, Stats]:
        widths = (inputs.size // inputs.shape[0], *hidden, outputs)
        keys = jax.random.split(key, len(paths))
        params = {}
        for path, layer_key, *shape in zip(
            paths, keys, widths[:-1], widths[1:], strict=True
        ):
            params[f"{path}/kernel"] = kernel_init(layer_key, shape, inputs.dtype)
            params[f"{path}/bias"] = jnp.zeros(shape[-1], inputs.dtype)
        return dict(sorted(params.items())), {}

    def apply(
        params: Params,
        stats: Stats,
        inputs: Array,
        *,
        phase: Phase = "support",
        step: Array | int = 0,
        key: Array | None = None,
    ) -> tuple[Array, Stats]:
        del phase, step, key  # nothing here depends on them
        x = inputs.reshape(inputs.shape[0], -1)
        for path in paths[:-1]:
            x = activation(layers.linear(params, path, x))
        return layers.linear(params, paths[-1], x), stats

    return Model(init, apply)
