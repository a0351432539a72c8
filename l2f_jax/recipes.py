"""Named algorithms, each a choice of (start, fast parameters, rule).

Every recipe takes `transform=`: L2F on top of any of them is that one argument,

    maml(model, loss, transform=attenuate())        # the paper's MAML+L2F
    meta_sgd(model, loss, transform=attenuate())    # L2F on Meta-SGD
"""

from l2f_jax.inner import meta_sgd as meta_sgd_rule
from l2f_jax.inner import per_step_rates, sgd
from l2f_jax.learners.gradient import gradient_learner
from l2f_jax.transforms import attenuate, everything, identity, is_not_norm
from l2f_jax.types import InitTransform, InnerRule, Learner, Model, TaskLoss


def maml(
    model: Model,
    loss: TaskLoss,
    *,
    lr: float = 0.01,
    adapt_norm: bool = False,
    transform: InitTransform | None = None,
    rule: InnerRule | None = None,
    remat: bool = True,
) -> Learner:
    """Adapt all tensors but the norm layers' by gradient descent.

    First-order MAML is this learner adapted with `first_order=True`.

    Args:
      lr: inner rate alpha; unused when `rule` is given.
      adapt_norm: also adapt the norm layers' scale and shift.
      transform: where the inner loop starts; at theta by default.
      rule: any inner rule instead of SGD with `lr`.
      remat: see `inner.unroll`.
    Reference: Finn et al., Model-Agnostic Meta-Learning, ICML 2017.
    """
    return gradient_learner(
        model,
        loss,
        fast=everything if adapt_norm else is_not_norm,
        transform=transform or identity(),
        rule=rule or sgd(lr),
        remat=remat,
    )


def l2f(
    model: Model,
    loss: TaskLoss,
    *,
    lr: float = 0.01,
    adapt_norm: bool = False,
    transform: InitTransform | None = None,
    remat: bool = True,
) -> Learner:
    """MAML from an initialisation attenuated per task and layer (Algorithm 1).

    Args:
      transform: another attenuation; by default layer-wise, conditioned on gradients,
        of the tensors that adapt, as in the official code.  Others: see `maml`.
    Reference: Baik et al., Learning to Forget for Meta-Learning, CVPR 2020.
    """
    select = everything if adapt_norm else is_not_norm
    transform = transform or attenuate(select=select)
    return maml(
        model, loss, lr=lr, adapt_norm=adapt_norm, transform=transform, remat=remat
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
    """MAML with one learned rate per number, all starting at `lr`.

    Reference: Li et al., Meta-SGD, 2017.
    """
    return maml(
        model,
        loss,
        adapt_norm=adapt_norm,
        transform=transform,
        rule=meta_sgd_rule(lr),
        remat=remat,
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
    """MAML++: one learned rate per tensor and step, all starting at `lr`.

    Its other parts are options of the model (per-step norm: `Norm(per_step=steps)`),
    the objective (`multi_step_loss`) and the outer loop (annealing, cosine rate).

    Reference: Antoniou et al., How to train your MAML, ICLR 2019.
    """
    return maml(
        model,
        loss,
        adapt_norm=adapt_norm,
        transform=transform,
        rule=per_step_rates(lr, steps),
        remat=remat,
    )


def anil(
    model: Model,
    loss: TaskLoss,
    *,
    lr: float = 0.01,
    transform: InitTransform | None = None,
    remat: bool = True,
) -> Learner:
    """Adapt the head only ("almost no inner loop").

    Reference: Raghu et al., Rapid Learning or Feature Reuse?, ICLR 2020.
    """
    return gradient_learner(
        model,
        loss,
        fast=_is_head,
        transform=transform or identity(),
        rule=sgd(lr),
        remat=remat,
    )


def boil(
    model: Model,
    loss: TaskLoss,
    *,
    lr: float = 0.01,
    transform: InitTransform | None = None,
    remat: bool = True,
) -> Learner:
    """Adapt the body only ("body only update in inner loop").

    Reference: Oh et al., BOIL, ICLR 2021.
    """
    return gradient_learner(
        model,
        loss,
        fast=lambda path: is_not_norm(path) and not _is_head(path),
        transform=transform or identity(),
        rule=sgd(lr),
        remat=remat,
    )


def _is_head(path: str) -> bool:
    return path.startswith("head/")
