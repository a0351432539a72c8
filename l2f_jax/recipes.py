"""Named algorithms, each a choice of (start, fast parameters, rule).

Every recipe takes `transform=`: L2F on top of any of them is that one argument,

    maml(model, loss, transform=attenuate())        # the paper's MAML+L2F, or `l2f`
    meta_sgd(model, loss, transform=attenuate())    # L2F on Meta-SGD

and `adapt_norm=True` adds the norm layers' scale and shift to what adapts.
`fomaml` is first order wherever it is used; the others are where they are adapted with
`first_order=True`.
"""

from collections.abc import Callable

from l2f_jax import inner
from l2f_jax.learners.gradient import gradient_learner
from l2f_jax.transforms import attenuate, identity
from l2f_jax.tree import everything, is_not_norm
from l2f_jax.types import (
    Array,
    InitTransform,
    InnerRule,
    Learner,
    Model,
    Params,
    Stats,
    TaskLoss,
)

HEAD = "head/"  # how the paths of a head begin in the models of this library


def maml(
    model: Model,
    loss: TaskLoss,
    *,
    lr: float = 0.01,
    rule: InnerRule | None = None,
    adapt_norm: bool = False,
    transform: InitTransform | None = None,
    remat: bool = True,
) -> Learner:
    """Adapt all tensors but the norm layers' by gradient descent.

    Args:
      model, loss: the network, and its loss on a support set.
      lr: inner rate alpha; unused when `rule` is given.
      rule: any other inner rule, such as `inner.adam` or `inner.from_optax`.
      adapt_norm: see above.
      transform: where the inner loop starts; theta itself by default.
      remat: see `inner.unroll`.
    Reference: Finn et al., Model-Agnostic Meta-Learning, ICML 2017.
    """
    return gradient_learner(
        model,
        loss,
        fast=_moving(is_not_norm, adapt_norm),
        transform=transform or identity(),
        rule=rule or inner.sgd(lr),
        remat=remat,
    )


def fomaml(
    model: Model,
    loss: TaskLoss,
    *,
    lr: float = 0.01,
    rule: InnerRule | None = None,
    adapt_norm: bool = False,
    transform: InitTransform | None = None,
    remat: bool = True,
) -> Learner:
    """First-order MAML: inner gradients are constants to the meta-gradient.

    d theta'_S / d theta is then the identity, and no second derivative is taken: less
    work, and another direction. Arguments as for `maml`.

    Reference: Finn et al., Model-Agnostic Meta-Learning, ICML 2017, Sec. 5.2.
    """
    rule = inner.first_order(rule or inner.sgd(lr))
    return maml(
        model, loss, rule=rule, adapt_norm=adapt_norm, transform=transform, remat=remat
    )


def l2f(
    model: Model,
    loss: TaskLoss,
    *,
    lr: float = 0.01,
    rule: InnerRule | None = None,
    adapt_norm: bool = False,
    remat: bool = True,
) -> Learner:
    """MAML from an initialisation attenuated per task and layer (Algorithm 1).

    Attenuated are the tensors that adapt, each by one gamma conditioned on the mean
    support gradients, as in the official code. Arguments as for `maml`.

    Reference: Baik et al., Learning to Forget for Meta-Learning, CVPR 2020.
    """
    start = attenuate(select=everything if adapt_norm else is_not_norm)
    rule = rule or inner.sgd(lr)
    return maml(
        model, loss, rule=rule, adapt_norm=adapt_norm, transform=start, remat=remat
    )


def meta_sgd(
    model: Model,
    loss: TaskLoss,
    *,
    lr: float = 0.01,
    adapt_norm: bool = False,
    transform: InitTransform | None = None,
    remat: bool = True,
) -> Learner:
    """MAML with one learned rate per number, all starting at `lr`; else as `maml`.

    Reference: Li et al., Meta-SGD, 2017.
    """
    rule = inner.meta_sgd(lr)
    return maml(
        model, loss, rule=rule, adapt_norm=adapt_norm, transform=transform, remat=remat
    )


def mamlpp(
    model: Model,
    loss: TaskLoss,
    *,
    steps: int,
    lr: float = 0.1,
    adapt_norm: bool = False,
    transform: InitTransform | None = None,
    remat: bool = True,
) -> Learner:
    """MAML++: one learned rate per tensor and inner step, all starting at `lr`.

    Its other parts are options of the model (per-step norm: `Norm(per_step=steps)`),
    the objective (`multi_step_loss`) and the outer loop (annealing, cosine rate).
    Arguments as for `maml`; `steps` is the number of inner steps trained with.

    Reference: Antoniou et al., How to train your MAML, ICLR 2019.
    """
    rule = inner.per_step_rates(lr, steps)
    return maml(
        model, loss, rule=rule, adapt_norm=adapt_norm, transform=transform, remat=remat
    )


def anil(
    model: Model,
    loss: TaskLoss,
    *,
    lr: float = 0.01,
    rule: InnerRule | None = None,
    head: str = HEAD,
    adapt_norm: bool = False,
    transform: InitTransform | None = None,
    remat: bool = True,
) -> Learner:
    """Adapt the head only ("almost no inner loop"); arguments as for `maml`.

    Args:
      head: how the paths of the head's tensors begin; a network without any is refused
        by `init`.
    Reference: Raghu et al., Rapid Learning or Feature Reuse?, ICLR 2020.
    """
    return gradient_learner(
        _with_head(model, head),
        loss,
        fast=_moving(lambda path: path.startswith(head), adapt_norm),
        transform=transform or identity(),
        rule=rule or inner.sgd(lr),
        remat=remat,
    )


def boil(
    model: Model,
    loss: TaskLoss,
    *,
    lr: float = 0.01,
    rule: InnerRule | None = None,
    head: str = HEAD,
    adapt_norm: bool = False,
    transform: InitTransform | None = None,
    remat: bool = True,
) -> Learner:
    """Adapt the body only ("body only update in inner loop"); arguments as for `anil`.

    Reference: Oh et al., BOIL, ICLR 2021.
    """

    def is_body(path: str) -> bool:
        return is_not_norm(path) and not path.startswith(head)

    return gradient_learner(
        _with_head(model, head),
        loss,
        fast=_moving(is_body, adapt_norm),
        transform=transform or identity(),
        rule=rule or inner.sgd(lr),
        remat=remat,
    )


def _with_head(model: Model, head: str) -> Model:
    """Let a network's `init` refuse one that has no such head."""

    def init(key: Array, inputs: Array) -> tuple[Params, Stats]:
        params, stats = model.init(key, inputs)
        if not any(path.startswith(head) for path in params):
            raise ValueError(
                f"`head` ({head!r}) must begin some of the paths {', '.join(params)}"
            )
        return params, stats

    return model._replace(init=init)


def _moving(part: Callable[[str], bool], adapt_norm: bool) -> Callable[[str], bool]:
    return lambda path: part(path) or (adapt_norm and not is_not_norm(path))
