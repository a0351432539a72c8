"""Where the inner loop starts: initialisation transforms, L2F's attenuation first.

theta_bar = gamma * theta (+ delta), with (gamma, delta) spread over a scope, generated
from an embedding of the task or learned freely.
Reference: Baik et al., Learning to Forget for Meta-Learning, CVPR 2020, Sec. 3.4.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2f_jax.embeddings import Embedding, gradients, nothing
from l2f_jax.scopes import check_kind, scope_of, spread
from l2f_jax.tree import is_not_norm, merge, split
from l2f_jax.types import Array, InitTransform, Params, TaskView

SQUASHES: dict[str, Callable[[Array], Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "none": lambda x: x,
}


class Generator(NamedTuple):
    """Coefficients from an embedding.

    init(key, inputs, gains, shifts, dtype) -> phi: how many of each to generate;
    apply(phi, embedding [inputs]) -> [gains + shifts].
    """

    init: Callable[..., Any]
    apply: Callable[[Any, Array], Array]


def identity() -> InitTransform:
    """Start at theta itself: MAML."""
    return InitTransform(lambda key, params: (), lambda phi, params, view: params)


def chain(*transforms: InitTransform) -> InitTransform:
    """Apply transforms in order; each sees the parameters that the one before made."""

    def init(key: Array, params: Params) -> tuple:
        keys = jax.random.split(key, max(len(transforms), 1))
        return tuple(t.init(k, params) for t, k in zip(transforms, keys, strict=False))

    def apply(phi: tuple, params: Params, view: TaskView) -> Params:
        for transform, part in zip(transforms, phi, strict=True):
            params = transform.apply(part, params, view)
        return params

    def gamma(phi: tuple, params: Params, view: TaskView) -> Params:
        product = {}
        for transform, part in zip(transforms, phi, strict=True):
            for path, factor in transform.gamma(part, params, view).items():
                product[path] = factor * product[path] if path in product else factor
            params = transform.apply(part, params, view)
        return product

    return InitTransform(init, apply, gamma)


def modulate(
    *,
    scope: str,
    generator: Generator,
    embedding: Embedding,
    squash: str = "sigmoid",
    affine: bool = False,
    select: Callable[[str], bool] = is_not_norm,
) -> InitTransform:
    """Scale, and with `affine` shift, the initialisation by generated coefficients.

    gamma = squash(v[:m]), delta = v[m:], v = generator(embedding(task)), and
    theta_bar^j = gamma^j theta^j + delta^j for the m coefficients j of `scope`.

    Args:
      scope: which numbers share a coefficient, one of `scopes.KINDS`.
      generator: `mlp()` or `free()`.
      embedding: `gradients()`, `prototypes()` or `nothing()`.
      squash: "sigmoid" keeps gamma in (0, 1); "none" leaves it unbounded (Table 6).
      affine: also generate delta (never squashed; Table 6, model 2).
      select: which tensors are modulated; the others pass untouched.
    Raises:
      ValueError: unknown `scope` or `squash`; from init: `select` selects nothing.
    """
    check_kind("scope", scope)
    if squash not in SQUASHES:
        raise ValueError(f"`squash` ({squash!r}) must be one of {', '.join(SQUASHES)}")

    def init(key: Array, params: Params) -> Any:
        chosen, _ = split(params, select)
        if not chosen:
            raise ValueError(f"`select` selects none of {', '.join(params)}")
        gains = scope_of(chosen, scope).size
        dtype = jnp.result_type(*chosen.values())
        shifts = gains if affine else 0
        return generator.init(key, embedding.size(params), gains, shifts, dtype)

    def coefficients(phi: Any, params: Params, view: TaskView) -> tuple[Params, Params]:
        where = scope_of(split(params, select)[0], scope)
        v = generator.apply(phi, embedding.apply(params, view))
        gamma = spread(where, SQUASHES[squash](v[: where.size]))
        return gamma, spread(where, v[where.size :]) if affine else {}

    def apply(phi: Any, params: Params, view: TaskView) -> Params:
        chosen, others = split(params, select)
        gamma, delta = coefficients(phi, params, view)
        start = {path: gamma[path] * x for path, x in chosen.items()}
        if affine:
            start = {path: x + delta[path] for path, x in start.items()}
        return merge(start, others)

    def gamma(phi: Any, params: Params, view: TaskView) -> Params:
        return coefficients(phi, params, view)[0]

    return InitTransform(init, apply, gamma)


def attenuate(
    scope: str = "layer",
    *,
    embedding: Embedding | None = None,
    conditioned: bool = True,
    squash: str = "sigmoid",
    affine: bool = False,
    layers: int = 2,
    bias: float | None = None,
    embedding_scope: str = "layer",
    embedding_scale: float = 1.0,
    through: bool = False,
    select: Callable[[str], bool] = is_not_norm,
) -> InitTransform:
    """Attenuate the initialisation per task and per layer: L2F.

    gamma = g_phi(layer-wise mean support gradient), Eq. (4);
    theta_bar^j = gamma^j theta^j, Eq. (3).

    The same start could be reached as a zeroth inner update (gamma - 1) * theta; as a
    transform it also moves tensors that the inner loop leaves alone.

    Args:
      scope: which numbers share a gamma (Table 4); "layer" is the official tensor-wise
        reading, "module" takes weight and bias of a layer together.
      embedding: what g_phi sees; by default `gradients`, the mean support gradient of
        each part of `embedding_scope`, times `embedding_scale`; see there, also for
        `through`.
      conditioned: False learns the coefficients themselves, without g_phi and from 1
        before the squash; Table 4's gamma = 1 takes squash="none".
      squash, affine: see `modulate` (Table 6).
      layers, bias: of g_phi, see `mlp`.
      select: the attenuated tensors; all but the norm layers' by default.
    Raises:
      ValueError: unknown `scope` or `squash`, `layers` < 1, or options that nothing
        would read beside an `embedding` or without `conditioned`.
    """
    unread = {"through": (through, False), "embedding_scale": (embedding_scale, 1)}
    unread |= {"embedding_scope": (embedding_scope, "layer")}
    if not conditioned:
        given = embedding is not None
        unread |= {"embedding": (given, False), "layers": (layers, 2)}
        unread |= {"bias": (bias, None)}
    if embedding or not conditioned:
        beside = "beside an `embedding`" if conditioned else "with `conditioned` False"
        for name, (value, default) in unread.items():
            if value != default:
                raise ValueError(f"`{name}` ({value}) would have no effect {beside}")
    check_kind("embedding_scope", embedding_scope)
    if conditioned:
        seen = embedding or gradients(
            embedding_scope, through=through, scale=embedding_scale, select=select
        )
        generator = mlp(layers, bias)
    else:
        generator, seen = free(), nothing()
    return modulate(
        scope=scope,
        generator=generator,
        embedding=seen,
        squash=squash,
        affine=affine,
        select=select,
    )


def mlp(layers: int = 2, bias: float | None = None) -> Generator:
    """Generate coefficients by linear layers with ReLU between: g_phi.

    All hidden layers are as wide as the embedding. Weights and biases start uniform in
    +-1/sqrt(layer inputs), the official code's (PyTorch's) default.

    Args:
      layers: how many; the official code has 2, the paper's text 3.
      bias: where the gains' bias of the last layer starts, if not there; with a sigmoid
        after it, 4 starts with gamma near 1.
    """
    if layers < 1:
        raise ValueError(f"`layers` ({layers}) must be at least 1")

    def init(key: Array, inputs: int, gains: int, shifts: int, dtype) -> Params:
        widths = [*[inputs] * layers, gains + shifts]
        bound, phi = inputs**-0.5, {}
        for i, k in enumerate(jax.random.split(key, layers)):
            shape = widths[i : i + 2]
            kernel, offset = jax.random.split(k)
            draw = dict(dtype=dtype, minval=-bound, maxval=bound)
            phi[f"layer_{i}/kernel"] = jax.random.uniform(kernel, shape, **draw)
            phi[f"layer_{i}/bias"] = jax.random.uniform(offset, shape[1:], **draw)
        if bias is not None:
            last = f"layer_{layers - 1}/bias"
            phi[last] = phi[last].at[:gains].set(bias)
        return phi

    def apply(phi: Params, x: Array) -> Array:
        for i in range(layers):
            x = x @ phi[f"layer_{i}/kernel"] + phi[f"layer_{i}/bias"]
            x = jax.nn.relu(x) if i < layers - 1 else x
        return x

    return Generator(init, apply)


def free(value: float = 1.0) -> Generator:
    """Learn the coefficients themselves, the same for every task.

    Args:
      value: where they start, before the squash; 1 is Table 4's. Shifts start at 0.
    """

    def init(key: Array, inputs: int, gains: int, shifts: int, dtype) -> Array:
        parts = jnp.full(gains, value, dtype), jnp.zeros(shifts, dtype)
        return jnp.concatenate(parts)

    return Generator(init, lambda phi, embedding: phi)
