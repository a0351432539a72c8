"""Prototypical networks: classify by the nearest class mean in a learned space.

Reference: Snell et al., Prototypical Networks for Few-shot Learning, NeurIPS 2017.
"""

import jax.numpy as jnp

from l2f_jax.embeddings import class_means
from l2f_jax.losses import present
from l2f_jax.types import (
    Adapted,
    Array,
    Learner,
    MetaParams,
    Model,
    Phase,
    Source,
    Stats,
    check_phase,
)


def protonet(model: Model, *, ways: int) -> Learner:
    """Adapt by averaging: nothing moves but the class prototypes.

    c_k = mean of f(x) over the support examples x of class k;  logits of a query x are
    -|f(x) - c_k|^2, Eqs. (1, 2). Whatever the number of steps, the path stays there.

    Args:
      model: a network without head, inputs [n, ...] -> features [n, d].
      ways: the number of classes; support targets are in 0 .. ways - 1. A class that
        is not among them has logits -inf, no probability.
    """

    def init(key: Array, inputs: Array) -> tuple[MetaParams, Stats]:
        params, stats = model.init(key, inputs)
        return MetaParams(params, (), ()), stats

    def adapt(
        meta: MetaParams,
        stats: Stats,
        source: Source,
        steps: int,
        *,
        first_order: bool = False,
        key: Array | None = None,
    ) -> Adapted:
        del first_order  # no gradient is taken
        support = source(meta.params, 0)
        features, stats = model.apply(
            meta.params, stats, support.inputs, phase="support", step=0, key=key
        )
        prototypes = class_means(features, support.targets, ways)

        def along(x: Array) -> Array:
            return jnp.broadcast_to(x, (steps + 1, *x.shape))

        known = present(support.targets, ways)
        path = {"present": along(known), "prototypes": along(prototypes)}
        return Adapted(path, meta.params, {k: along(v) for k, v in stats.items()})

    def predict(
        adapted: Adapted,
        t: int | Array,
        inputs: Array,
        *,
        phase: Phase,
        key: Array | None = None,
    ) -> tuple[Array, Stats]:
        check_phase(phase)
        stats = {name: x[t] for name, x in adapted.stats.items()}
        features, stats = model.apply(
            adapted.shared, stats, inputs, phase=phase, step=0, key=key
        )
        away = features[:, None] - adapted.path["prototypes"][t][None]
        logits = -jnp.sum(away**2, axis=-1)
        return jnp.where(adapted.path["present"][t][None], logits, -jnp.inf), stats

    return Learner(init, adapt, predict)
