"""The inner loop: data sources, update rules and one `unroll` for every learner."""

import math
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from l2f_jax.tree import at
from l2f_jax.types import Array, Data, InnerRule, Params, Source, Stats


def constant(data: Data) -> Source:
    """Serve the same data at every inner step: a supervised support set."""
    return lambda params, t: data


def recorded(data: Data) -> Source:
    """Serve data[t] of a leading axis: 0 for the transform, t for inner step t."""
    return lambda params, t: at(data, t)


def sgd(lr: float) -> InnerRule:
    """Move by -lr times the gradient: MAML's rule, Eq. (1).

    Raises ValueError for an `lr` below 0, or infinite.
    """
    _check_rate(lr)
    return from_optax(optax.sgd(lr))


def adam(lr: float, *, eps_root: float = 1e-8, **options) -> InnerRule:
    """Move by Adam.

    eps_root > 0 keeps the meta-gradient finite where a gradient is exactly zero, as for
    a convolution's bias before batch normalisation. Raises ValueError for an `lr` below
    0, or infinite.
    """
    _check_rate(lr)
    return from_optax(optax.adam(lr, eps_root=eps_root, **options))


def from_optax(optimiser: optax.GradientTransformation) -> InnerRule:
    """Move by any Optax transformation, with nothing learned in it."""
    return InnerRule(lambda fast: (), lambda alpha: optimiser)


def meta_sgd(lr: float) -> InnerRule:
    """Learn one rate per number: theta' = theta - alpha * gradient, elementwise.

    Args:
      lr: where all rates start; they are not kept positive.
    Raises:
      ValueError: `lr` < 0, or infinite.
    Reference: Li et al., Meta-SGD, 2017.
    """
    _check_rate(lr)

    def init(fast: Params) -> Params:
        return jax.tree.map(lambda x: jnp.full_like(x, lr), fast)

    def optimiser(alpha: Params) -> optax.GradientTransformation:
        return optax.stateless(
            lambda grads, _: jax.tree.map(lambda a, g: -a * g, alpha, grads)
        )

    return InnerRule(init, optimiser)


def per_step_rates(lr: float, steps: int) -> InnerRule:
    """Learn one rate per tensor and inner step: {path: [steps]} (MAML++'s LSLR).

    Args:
      lr: where all rates start; they are not kept positive.
      steps: the steps trained with; adaptation beyond them keeps the last step's rates.
    Raises:
      ValueError: `lr` < 0, or infinite; `steps` < 1.
    Reference: Antoniou et al., How to train your MAML, ICLR 2019, Sec. 4.
    """
    _check_rate(lr)
    if steps < 1:
        raise ValueError(f"`steps` ({steps}) must be at least 1")

    def init(fast: Params) -> Params:
        return {path: jnp.full(steps, lr, x.dtype) for path, x in fast.items()}

    return InnerRule(init, _indexed_by_step)


def fixed_rates(
    rates: Mapping[str, Array | float], lr: float | None = None
) -> InnerRule:
    """Move each tensor by rates of its own, of which none is learned.

    Official checkpoints hold such a table, see `interop.OfficialModel.rates`.

    Args:
      rates: {path: one rate, or [steps]}, also below 0, as learned ones may be; steps
        beyond the last keep its rate.
      lr: rate of the tensors that `rates` does not name.
    Raises:
      ValueError (from init): `rates` names a tensor that does not move, or lacks one
        while there is no `lr`.
    """

    def init(fast: Params) -> tuple:
        known = ", ".join(fast)
        for path in rates:
            if path not in fast:
                raise ValueError(f"`rates` names {path!r}; what moves is {known}")
        if lr is None and len(rates) < len(fast):
            named = ", ".join(rates) or "nothing"
            raise ValueError(
                f"`rates` names {named}; without `lr` it must name {known}"
            )
        return ()

    return InnerRule(init, lambda alpha: _indexed_by_step(rates, lr))


def first_order(rule: InnerRule) -> InnerRule:
    """Follow a rule whose gradients count as constants: first-order MAML.

    Meta-gradients then reach theta through theta'_t = theta'_{t-1} + update alone,
    and rates that the rule learns.
    """
    stop = optax.stateless(lambda grads, _: jax.lax.stop_gradient(grads))
    return InnerRule(rule.init, lambda alpha: optax.chain(stop, rule.optimiser(alpha)))


def _check_rate(lr: float) -> None:
    if isinstance(lr, Tracer):  # a rate that is swept over
        return
    if not 0 <= lr < math.inf:
        raise ValueError(f"`lr` ({lr}) must be a finite number of at least 0")


def _indexed_by_step(
    rates: Mapping[str, Array | float], lr: float | None = None
) -> optax.GradientTransformation:
    def init(params: Any) -> Any:
        del params
        return jnp.zeros((), int)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params

        def rate(path: str, dtype: Any) -> Array:
            # An index beyond the last step takes the last.
            steps = jnp.asarray(rates[path] if path in rates else lr, dtype)
            return jnp.atleast_1d(steps)[state]

        return {
            path: -rate(path, g.dtype) * g for path, g in updates.items()
        }, state + 1

    return optax.GradientTransformation(init, update)


def unroll(
    loss: Callable[..., tuple[Array, Stats]],
    optimiser: optax.GradientTransformation,
    fast: Params,
    stats: Stats,
    source: Source,
    steps: int,
    *,
    remat: bool = True,
) -> tuple[Params, Stats]:
    """Run `steps` updates of the fast parameters and return the whole path.

    Args:
      loss: (fast, stats, data, step) -> (scalar, stats); step counts from 0.
      optimiser: what turns gradients into updates.
      fast: where the path starts.
      stats: model statistics before the first pass.
      source: the data of each step, source(fast, t) with t = 1 .. steps.
      steps: how many updates; 0 returns the start.
      remat: recompute each step when meta-gradients walk back instead of storing its
        activations: exact second order at about first-order memory.
    Returns:
      (path, stats), each [steps + 1, ...]: index t is the state after t updates, and
      stats[t] those left by the support pass at path[t].
    Raises:
      ValueError: `steps` is no integer of at least 0.
    """
    if not isinstance(steps, Integral) or steps < 0:
        raise ValueError(f"`steps` ({steps!r}) must be an integer of at least 0")
    gradient = jax.value_and_grad(loss, has_aux=True)

    def step(carry, t: Array):
        fast, stats, memory = carry
        (_, stats), grads = gradient(fast, stats, source(fast, t + 1), t)
        updates, memory = optimiser.update(grads, memory, fast)
        fast: Any = optax.apply_updates(fast, updates)
        return (fast, stats, memory), (fast, stats)

    # Inside a scan nothing can be merged with the original computation, so the barrier
    # that checkpoint puts in against that (prevent_cse) is only a cost.
    body = jax.checkpoint(step, prevent_cse=False) if remat else step
    start: Any = (fast, stats, optimiser.init(fast))
    (end, last, _), (path, seen) = jax.lax.scan(body, start, jnp.arange(steps))
    if stats:  # one more support pass, for the statistics that go with the end point
        _, last = loss(end, last, source(end, steps), max(steps - 1, 0))
    first = jax.tree.map(lambda x: x[None], fast)
    return _append(first, path), _append(seen, jax.tree.map(lambda x: x[None], last))


def _append(head: Any, tail: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), head, tail)
