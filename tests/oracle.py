"""One training iteration of the official L2F code, slowly and plainly, in float64.

The library is checked against this program, so it shares no code with it: Python
loops over tasks and inner steps, kernels OIHW, images NCHW, parameters under the names
of the official state dict, gradients by `jax.grad`. It follows the public repository
baiksung/L2F, commit 72665260, and is itself checked against numbers which that code
produced (`test_oracle.py`, `golden/README.md`).

Everything here takes and returns NumPy arrays; only single network passes are compiled.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NETWORK = "classifier.layer_dict."
RATES = "task_learning_rate"
HEAD = [NETWORK + "linear.weights", NETWORK + "linear.bias"]
ATTENUATOR = [f"attenuator.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]


# Networks --------------------------------------------------------------------


def convolution(x, kernel, bias=None, *, stride=1, padding=1):
    pads = [(padding, padding), (padding, padding)]
    x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads)  # NCHW, OIHW
    return x if bias is None else x + bias.reshape(1, -1, 1, 1)


def batch_norm(x, scale, shift):
    """Normalise with the statistics of this very batch, biased variance."""
    mean = x.mean(axis=(0, 2, 3), keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=(0, 2, 3), keepdims=True)
    x = (x - mean) / jnp.sqrt(variance + 1e-5)
    return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


def layer_norm(x, scale, shift):
    """Normalise each image by its own statistics; scale and shift [C, H, W]."""
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=(1, 2, 3), keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5) * scale[None] + shift[None]


def max_pool(x, padding=0):
    """Take the maximum of 2x2 windows, an odd last row or column dropped."""
    p = padding
    x = jnp.pad(x, ((0, 0), (0, 0), (p, p), (p, p)), constant_values=-jnp.inf)
    rows, columns = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    corners = [x[:, :, i:rows:2, j:columns:2] for i in (0, 1) for j in (0, 1)]
    windows = jnp.stack(corners)
    first = jnp.argmax(windows, axis=0, keepdims=True)  # of equals, as torch does
    return jnp.take_along_axis(windows, first, axis=0)[0]


def leaky_relu(x, slope):
    return jnp.where(x > 0, x, slope * x)


def normalise(params, x, name, step):
    """Apply the norm layer `name`; [steps, channels] tensors are indexed by step."""
    scale, shift = params[name + ".weight"], params[name + ".bias"]
    if scale.ndim == 3:
        return layer_norm(x, scale, shift)
    if scale.ndim == 2:
        scale, shift = scale[step], shift[step]
    return batch_norm(x, scale, shift)


def conv4(params, x, step, pooling):
    for stage in range(blocks(params, "conv4")):
        name = f"{NETWORK}conv{stage}"
        kernel = params[name + ".conv.weight"]
        bias = params.get(name + ".conv.bias")  # MAML++ has one, L2F has none
        x = convolution(x, kernel, bias, stride=2 if pooling == "stride" else 1)
        x = leaky_relu(normalise(params, x, name + ".norm_layer", step), 0.01)
        if pooling == "max":
            x = max_pool(x)
    if pooling == "stride":
        x = x.mean(axis=(2, 3))
    return linear(params, x)


def resnet12(params, x, step, pooling):
    assert pooling == "max"
    for block in range(4):
        name = f"{NETWORK}layer{block}."
        short = convolution(x, params[name + "shortcut_conv.weight"], padding=0)
        short = normalise(params, short, name + "shortcut_norm_layer", step)
        for layer in ("conv1", "conv2"):
            x = convolution(x, params[name + layer + ".conv.weight"])
            x = normalise(params, x, name + layer + ".norm_layer", step)
            x = leaky_relu(x, 0.0)
        x = convolution(x, params[name + "conv3.weight"])
        x = normalise(params, x, name + "norm_layer", step)
        x = leaky_relu(x + short, 0.0)
        if block < 3:
            x = max_pool(x, padding=1 if block == 2 else 0)
    return linear(params, x.mean(axis=(2, 3)))


def linear(params, x):
    weights, bias = (params[name] for name in HEAD)
    return x.reshape(len(x), -1) @ weights.T + bias.reshape(1, -1)


def blocks(params, network):
    """Count the stages of Conv4; a ResNet has four blocks."""
    if network == "resnet12":
        return 4
    return sum(name.endswith(".conv.weight") for name in params)


def convolutions(network, block):
    """List (convolution, norm layer) of a stage or block in the official order."""
    if network == "conv4":
        stage = f"{NETWORK}conv{block}."
        return [(stage + "conv", stage + "norm_layer")]
    layer = f"{NETWORK}layer{block}."
    return [
        (layer + "conv1.conv", layer + "conv1.norm_layer"),
        (layer + "conv2.conv", layer + "conv2.norm_layer"),
        (layer + "conv3", layer + "norm_layer"),
        (layer + "shortcut_conv", layer + "shortcut_norm_layer"),
    ]


def inner_names(params, network, adapt_norm=False):
    """List the adapted tensors in the official order, one "layer" each."""
    names = []
    for block in range(blocks(params, network)):
        for conv, norm in convolutions(network, block):
            names.append(conv + ".weight")
            if conv + ".bias" in params:
                names.append(conv + ".bias")
            if adapt_norm:
                names += [norm + ".bias", norm + ".weight"]
    return (*names, *HEAD)


# One iteration ---------------------------------------------------------------


class Options(NamedTuple):
    """What the parameters and the batch do not tell."""

    network: str = "conv4"  # or "resnet12"
    attenuate: bool = True  # L2F; false: MAML
    order: int = 2  # 1: no derivative of the inner gradients
    msl_weights: tuple | None = None  # query loss weights [steps]; None: last step only
    learnable_rates: bool = False  # whether task_learning_rate gets a gradient
    adapt_norm: bool = False  # whether the inner loop adapts the norm layers too
    pooling: str = "max"  # "stride": Conv4's variant with strided convolutions
    reduction: str = "sum"  # or "mean", of the task losses


class Kind(NamedTuple):
    """What a compiled function is specialised to."""

    network: str
    pooling: str
    names: tuple  # the inner tensors in order


compiled = functools.partial(jax.jit, static_argnames="kind")


def loss_and_logits(params, x, y, step, kind):
    """Return the mean cross-entropy of the images x with labels y, and the logits."""
    forward = {"conv4": conv4, "resnet12": resnet12}[kind.network]
    logits = forward(params, x, step, kind.pooling)
    log_probabilities = jax.nn.log_softmax(logits)
    return -log_probabilities[jnp.arange(len(y)), y].mean(), logits


query_loss = compiled(loss_and_logits)


@compiled
def support_gradient(params, x, y, step, kind):
    """Return the loss, the logits and the loss's gradient for the inner tensors."""

    def loss(inner):
        return loss_and_logits(params | inner, x, y, step, kind)

    inner = {name: params[name] for name in kind.names}
    (value, logits), gradient = jax.value_and_grad(loss, has_aux=True)(inner)
    return value, logits, gradient


@compiled
def attenuate(params, embedding, kind):
    """Map the embedding to gamma: linear, ReLU, linear, sigmoid; scale by it."""
    w1, b1, w2, b2 = (params[name] for name in ATTENUATOR)
    hidden = leaky_relu(w1 @ embedding + b1, 0.0)
    gamma = jax.nn.sigmoid(w2 @ hidden + b2)
    return gamma, {name: gamma[j] * params[name] for j, name in enumerate(kind.names)}


@compiled
def descend(params, gradient, rates, kind):
    """Take one step of gradient descent, one rate for each inner tensor."""
    pairs = zip(rates, kind.names, strict=True)
    return {name: params[name] - rate * gradient[name] for rate, name in pairs}


def run_task(params, task, options):
    """Adapt to one task; return its loss and everything seen on the way."""
    support_x, support_y, query_x, query_y = task
    names = inner_names(params, options.network, options.adapt_norm)
    kind = Kind(options.network, options.pooling, names)
    current = {k: v for k, v in params.items() if k.startswith(NETWORK)}
    seen = {}

    def on_support(step):
        # First order: the gradient is a constant, computed from constants.
        point = jax.lax.stop_gradient(current) if options.order == 1 else current
        return support_gradient(point, support_x, support_y, step, kind)

    if options.attenuate:
        loss, logits, gradient = on_support(0)
        embedding = jnp.stack([gradient[name].mean() for name in names])
        embedding = jax.lax.stop_gradient(embedding)
        gamma, attenuated = attenuate(params, embedding, kind)
        current = current | attenuated
        seen |= {"embedding": embedding, "gamma": gamma}
        seen |= {"embedding_support_loss": loss, "embedding_support_logits": logits}

    support, queries = [], []
    for step, rates in enumerate(params[RATES]):
        loss, logits, gradient = on_support(step)
        support.append((loss, logits))
        current = current | descend(current, gradient, rates, kind)
        if options.msl_weights is not None or step == len(params[RATES]) - 1:
            queries.append(query_loss(current, query_x, query_y, step, kind))

    weights = [1.0] if options.msl_weights is None else options.msl_weights
    total = sum(float(w) * q[0] for w, q in zip(weights, queries, strict=True))
    seen["support_loss_per_step"] = jnp.stack([loss for loss, _ in support])
    seen["support_logits_per_step"] = jnp.stack([logits for _, logits in support])
    seen["query_loss_per_eval"] = jnp.stack([loss for loss, _ in queries])
    seen["query_logits_per_eval"] = jnp.stack([logits for _, logits in queries])
    seen["accuracy"] = (queries[-1][1].argmax(axis=1) == query_y).astype(float).mean()
    seen["adapted"] = {name: current[name] for name in names}
    return total, seen


def iteration(params, support_x, support_y, query_x, query_y, **options):
    """Run the forward and backward pass of one training iteration.

    The parameters themselves tell the number of inner steps (rows of
    `task_learning_rate`), whether norm layers are per step ([steps, channels] instead
    of [channels]) and whether Conv4 has convolution biases.

    Args:
      params: {official name: array}.
      support_x: [tasks, ..., C, H, W], e.g. [tasks, ways, shots, C, H, W].
      support_y: [tasks, ...] integers; query_x and query_y alike.
      **options: see `Options`.
    Returns:
      A dict of float64 arrays. Per task, stacked on axis 0: embedding, gamma,
      embedding_support_loss, embedding_support_logits (these four if `attenuate`),
      support_loss_per_step, support_logits_per_step (before each update),
      query_loss_per_eval, query_logits_per_eval (after each step with `msl_weights`,
      else after the last one), adapted {name: array}. Scalars: total_loss, accuracy.
      And grads {name: array} of total_loss, before any clamp.
    """
    options = Options(**options)
    with jax.enable_x64(True):
        params = {k: jnp.asarray(v, jnp.float64) for k, v in params.items()}
        batches = zip(support_x, support_y, query_x, query_y, strict=True)
        tasks = [(images(a), labels(b), images(c), labels(d)) for a, b, c, d in batches]
        trained = dict(params)
        for name in [] if options.attenuate else ATTENUATOR:
            trained.pop(name, None)
        if not options.learnable_rates:
            del trained[RATES]

        def total_loss(trained):
            losses, seen = [], []
            for task in tasks:
                loss, seen_of_task = run_task(params | trained, task, options)
                losses.append(loss)
                seen.append(seen_of_task)
            return {"sum": sum, "mean": mean}[options.reduction](losses), seen

        (total, seen), grads = jax.value_and_grad(total_loss, has_aux=True)(trained)
        result = jax.tree.map(lambda *values: np.stack(values), *seen)
        result["accuracy"] = result["accuracy"].mean()
        result["total_loss"] = np.asarray(total)
        result["grads"] = jax.tree.map(np.asarray, grads)
    return result


def images(x):
    return jnp.asarray(x, jnp.float64).reshape(-1, *np.shape(x)[-3:])


def labels(y):
    return jnp.asarray(y, jnp.int64).reshape(-1)


def mean(losses):
    return sum(losses) / len(losses)


# Outer loop ------------------------------------------------------------------


class AdamState(NamedTuple):
    step: int
    first: dict  # running mean of the gradient
    second: dict  # running mean of its square


def adam(params, grads, state=None, lr=1e-3, clamp=None):
    """Take one step of torch's Adam; return the parameters and the state.

    `clamp` limits every element of the network's gradients to [-clamp, clamp]; those
    of the attenuator and of the inner rates are never clamped. Parameters without a
    gradient stay as they are.
    """
    zeros = dict.fromkeys(grads, 0.0)
    step, first, second = state or AdamState(0, zeros, zeros)
    step += 1
    params, first, second = dict(params), dict(first), dict(second)
    for name, grad in grads.items():
        if clamp is not None and name.startswith(NETWORK):
            grad = np.clip(grad, -clamp, clamp)
        first[name] = 0.9 * first[name] + 0.1 * grad
        second[name] = 0.999 * second[name] + 0.001 * grad**2
        m = first[name] / (1 - 0.9**step)
        v = second[name] / (1 - 0.999**step)
        params[name] = params[name] - lr * m / (np.sqrt(v) + 1e-8)
    return params, AdamState(step, first, second)


def msl_weights(epoch, steps, epochs):
    """Return the multi-step loss weights [steps], float32 as the official code has."""
    others = max(1 / steps - epoch / (steps * epochs), 0.03 / steps)
    last = 1 / steps + epoch * (steps - 1) / (steps * epochs)
    last = min(last, 1 - (steps - 1) * 0.03 / steps)
    return np.array([others] * (steps - 1) + [last], np.float32)


# Inputs for tests ------------------------------------------------------------


def initial_params(
    rng,
    network="conv4",
    *,
    widths=(4, 4, 4, 4),
    image=(3, 16, 16),
    ways=3,
    steps=2,
    rate=0.05,
    per_step_norm=False,
    layer_norm=False,
    adapt_norm=False,
    conv_bias=False,
    pooling="max",
):
    """Draw parameters where no scale is exactly one and no bias exactly zero.

    But the scale of a layer norm is one, as the official code does not learn it.

    The attenuator is always there; without `attenuate`, `iteration` ignores it.

    Args:
      rng: numpy Generator.
      widths: channels of the stages (any number) or of the four blocks.
      image: (C, H, W); inner rates lie in [rate / 2, 3 rate / 2].
    """
    assert network == "conv4" or not conv_bias
    channels, height, width = image
    params = {}

    def draw(name, *shape, centre=0.0, spread):
        params[name] = centre + spread * rng.uniform(-1, 1, shape)

    for block, outputs in enumerate(widths):
        for i, (conv, norm) in enumerate(convolutions(network, block)):
            size = 1 if i == 3 else 3  # the fourth of a ResNet block is the shortcut
            inputs = channels if i in (0, 3) else outputs
            spread = np.sqrt(6 / ((inputs + outputs) * size**2))
            draw(conv + ".weight", outputs, inputs, size, size, spread=spread)
            if conv_bias:
                draw(conv + ".bias", outputs, spread=0.1)
            shape = (steps, outputs) if per_step_norm else (outputs,)
            if layer_norm:  # of Conv4, whose maps are halved by each stage
                shape = (outputs, height >> block, width >> block)
            draw(norm + ".bias", *shape, spread=0.3)
            spread = 0.0 if layer_norm else 0.3
            draw(norm + ".weight", *shape, centre=1.0, spread=spread)
        channels = outputs
    averaged = network == "resnet12" or pooling == "stride"
    scale = 2 ** len(widths)
    features = channels if averaged else channels * (height // scale) * (width // scale)
    draw(HEAD[0], ways, features, spread=np.sqrt(6 / (features + ways)))
    draw(HEAD[1], ways, spread=0.1)
    n = len(inner_names(params, network, adapt_norm))
    for name in ATTENUATOR:
        draw(name, *((n, n) if "weight" in name else (n,)), spread=1 / np.sqrt(n))
    draw(RATES, steps, n, centre=rate, spread=rate / 2)
    return params


def random_tasks(rng, *, tasks=2, ways=3, shots=1, queries=2, image=(3, 16, 16)):
    """Draw support_x, support_y, query_x, query_y: [tasks, ways, k, ...]."""
    classes = rng.normal(size=(tasks, ways, 1, *image))

    def draw(k):
        x = classes + rng.normal(size=(tasks, ways, k, *image))
        return x, np.broadcast_to(np.arange(ways)[:, None], (tasks, ways, k))

    return *draw(shots), *draw(queries)


def reduced(key, array):
    """Thin a big array for a small fixture: every 97th element, mean, largest size."""
    array = np.asarray(array)
    if array.size <= 1000:
        return {key: array}
    values, mean, max_abs = array.reshape(-1)[::97], array.mean(), np.abs(array).max()
    return {key: values, "mean/" + key: mean, "max_abs/" + key: max_abs}
