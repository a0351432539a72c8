"""What the outer loop is told about one task: query losses of adapted parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from l2f_jax.inner import constant
from l2f_jax.losses import Criterion
from l2f_jax.types import Array, Batch, Episode, Learner, MetaParams, Objective, Stats


def query_loss(
    learner: Learner,
    criterion: Criterion,
    *,
    steps: int,
    first_order: bool = False,
    scores: dict[str, Criterion] | None = None,
) -> Objective:
    """Judge a task by its query loss after the last inner step, Eq. (2).

    Args:
      learner: how a task is adapted.
      criterion: (outputs, targets) -> scalar.
      steps: inner steps.
      first_order: treat inner gradients as constants.
      scores: further criteria reported as "outer/<name>".
    """
    judge = _judge(learner, criterion, scores or {})

    def value(
        meta: MetaParams, stats: Stats, episode: Episode, step: Array, key: Array | None
    ):
        del step
        inner, outer = _keys(key)
        source = constant(episode.support)
        adapted = learner.adapt(
            meta, stats, source, steps, first_order=first_order, key=inner
        )
        return judge(adapted, steps, episode.query, outer)

    return Objective(value)


def multi_step_loss(
    learner: Learner,
    criterion: Criterion,
    *,
    steps: int,
    weights: Callable[[Array], Array],
    first_order: bool = False,
    scores: dict[str, Criterion] | None = None,
) -> Objective:
    """Judge a task by the weighted query losses after every inner step.

    sum over t = 1 .. steps of w_t L(theta'_t; query). Scores are of the last step.

    Args:
      weights: outer step -> [steps], see `multi_step_weights`.  Others: `query_loss`.
    Reference: Antoniou et al., How to train your MAML, ICLR 2019, Sec. 4.
    """
    if steps < 1:
        raise ValueError(f"`steps` ({steps}) must be at least 1 for a multi-step loss")
    judge = _judge(learner, criterion, scores or {})

    def value(
        meta: MetaParams, stats: Stats, episode: Episode, step: Array, key: Array | None
    ):
        inner, outer = _keys(key)
        source = constant(episode.support)
        adapted = learner.adapt(
            meta, stats, source, steps, first_order=first_order, key=inner
        )
        # One query pass live at a time, forwards and backwards.
        losses, (seen, metrics) = jax.lax.map(
            jax.checkpoint(lambda t: judge(adapted, t, episode.query, outer)),
            jnp.arange(1, steps + 1),
        )
        total = jnp.sum(weights(step).astype(losses.dtype) * losses)
        last = jax.tree.map(lambda x: x[-1], (seen, metrics))
        return total, last

    return Objective(value)


def multi_step_weights(epoch: Array | int, steps: int, epochs: int) -> Array:
    """Return the weights w_1 .. w_steps of the multi-step loss at an epoch.

    w_t = max(1/S - e/(S E), 0.03/S) for t < S and
    w_S = min(1/S + e (S-1)/(S E), 1 - (S-1) 0.03/S); they sum to 1. float32.

    Args:
      epoch: e, counted from 0.
      steps: S.
      epochs: E, over which the weight moves to the last step.
    """
    epoch = jnp.asarray(epoch, jnp.result_type(float))
    early = jnp.maximum(1 / steps - epoch / (steps * epochs), 0.03 / steps)
    last = jnp.minimum(
        1 / steps + epoch * (steps - 1) / (steps * epochs),
        1 - (steps - 1) * 0.03 / steps,
    )
    is_last = np.arange(steps) == steps - 1
    # The official code rounds them, whatever precision the rest is computed in.
    return jnp.where(is_last, last, early).astype(jnp.float32)


def _judge(learner: Learner, criterion: Criterion, scores: dict[str, Criterion]):
    def judge(adapted, t, query: Batch, key):
        outputs, stats = learner.predict(
            adapted, t, query.inputs, phase="query", key=key
        )
        loss = criterion(outputs, query.targets)
        metrics = {f"outer/{k}": f(outputs, query.targets) for k, f in scores.items()}
        return loss, (stats, {"outer/loss": loss, **metrics})

    return judge


def _keys(key: Array | None):
    return (None, None) if key is None else tuple(jax.random.split(key))
