"""The gradient-based learner: every member of the MAML family is one of these."""

from collections.abc import Callable
from numbers import Integral

import jax
import jax.numpy as jnp

from l2f_jax import inner
from l2f_jax.tree import at, merge, split
from l2f_jax.types import (
    Adapted,
    Array,
    Data,
    InitTransform,
    InnerRule,
    Learner,
    MetaParams,
    Model,
    Params,
    Phase,
    Source,
    Stats,
    TaskLoss,
    TaskView,
    check_phase,
)


def gradient_learner(
    model: Model,
    loss: TaskLoss,
    *,
    fast: Callable[[str], bool],
    transform: InitTransform,
    rule: InnerRule,
    remat: bool = True,
) -> Learner:
    """Adapt by gradient steps from a transformed initialisation.

    theta_bar = transform(theta); theta'_0 = theta_bar;
    theta'_t = rule(theta'_{t-1}, grad L(theta'_{t-1})), t = 1 .. steps (Algorithm 1).

    Args:
      model: the network.
      loss: the task loss of the inner loop.
      fast: which paths move in the inner loop; the others are shared by all tasks.
      transform: where the inner loop starts.
      rule: how the fast parameters move.
      remat: see `inner.unroll`.
    Raises:
      ValueError: `rule` is no inner rule, such as an Optax optimiser itself; from init:
        `fast` selects no parameter.
    """
    if not isinstance(rule, InnerRule):
        raise ValueError(
            f"`rule` ({type(rule).__name__}) must be an InnerRule; "
            "`inner.from_optax` makes one of an Optax optimiser"
        )

    def init(key: Array, inputs: Array) -> tuple[MetaParams, Stats]:
        # The network draws first and alone, so that every transform and rule starts
        # from the same network.
        model_key, transform_key = jax.random.split(key)
        params, stats = model.init(model_key, inputs)
        moving, _ = split(params, fast)
        if not moving:
            raise ValueError(f"`fast` selects none of {', '.join(params)}")
        phi, alpha = transform.init(transform_key, params), rule.init(moving)
        return MetaParams(params, phi, alpha), stats

    def adapt(
        meta: MetaParams,
        stats: Stats,
        source: Source,
        steps: int,
        *,
        first_order: bool = False,
        key: Array | None = None,
    ) -> Adapted:
        view = task_view(loss, stats, source(meta.params, 0), key=key)
        start = transform.apply(meta.transform, meta.params, view)
        moving, shared = split(start, fast)

        def inner_loss(moving: Params, stats: Stats, data: Data, step: Array):
            params = {**moving, **shared}
            key_t = None if key is None else jax.random.fold_in(key, step)
            return loss(params, stats, data, phase="support", step=step, key=key_t)

        followed = inner.first_order(rule) if first_order else rule
        optimiser = followed.optimiser(meta.rule)
        path, seen = inner.unroll(
            inner_loss, optimiser, moving, stats, source, steps, remat=remat
        )
        return Adapted(path, shared, seen)

    def predict(
        adapted: Adapted,
        t: int | Array,
        inputs: Array,
        *,
        phase: Phase,
        key: Array | None = None,
    ) -> tuple[Array, Stats]:
        check_phase(phase)
        if isinstance(t, Integral):
            _check_point(int(t), adapted.path)
        params = merge(at(adapted.path, t), adapted.shared)
        # Per-step tensors are indexed by the last step taken, as in the official code.
        step = jnp.maximum(t - 1, 0)
        return model.apply(
            params, at(adapted.stats, t), inputs, phase=phase, step=step, key=key
        )

    return Learner(init, adapt, predict, loss, transform)


def task_view(
    loss: TaskLoss,
    stats: Stats,
    data: Data,
    *,
    step: int | Array = 0,
    key: Array | None = None,
) -> TaskView:
    """Return a support set with its loss at an inner step, as a function of theta."""
    key_t = None if key is None else jax.random.fold_in(key, step)

    def support_loss(params: Params) -> Array:
        return loss(params, stats, data, phase="support", step=step, key=key_t)[0]

    return TaskView(support_loss, data)


def _check_point(t: int, path: Params) -> None:
    """Raise ValueError unless point t is on a path; JAX would take the nearest."""
    steps = next(iter(path.values())).shape[0] - 1
    if not 0 <= t <= steps:
        raise ValueError(f"`t` ({t}) must lie in 0 .. {steps}, the inner steps taken")
