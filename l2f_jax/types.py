"""The types every module speaks: plain data in NamedTuples, functions in NamedTuples.

Everything is written for one task. A batch of tasks is the same type with a leading
`tasks` axis; `outer.make_update` and `evaluation` are the only places that map over it.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import optax

Array = jax.Array
Params = dict[str, Array]  # path -> array, "conv_0/kernel"; flat, sorted by path
Stats = dict[str, Array]  # statistics that a model threads; {} if it has none
Data = Any  # opaque to the inner loop: a Batch, trajectories, ...
Phase = Literal["support", "query", "test"]
"""What a forward pass is for: adaptation on the support set, the query pass of
meta-training, or the query pass of an evaluation. Only norm layers and dropout care."""


def check_phase(phase: str) -> None:
    """Raise ValueError unless it is a `Phase`; norm layers would take it for one."""
    if phase not in get_args(Phase):
        choices = ", ".join(get_args(Phase))
        raise ValueError(f"`phase` ({phase!r}) must be one of {choices}")


class Batch(NamedTuple):
    """Labelled examples: inputs [n, ...], targets [n] int32 (or [n, d] float)."""

    inputs: Array
    targets: Array


class Episode(NamedTuple):
    """One task: a support set to adapt on and a disjoint query set to be judged on."""

    support: Batch
    query: Batch


class Trajectories(NamedTuple):
    """What a policy did in one task: B trajectories of up to H steps.

    observations [B, H, o] before each action [B, H, a]; rewards [B, H], 0 after the
    end; mask [B, H] 1 until the end, then 0, and 0 throughout where a trajectory does
    not count; advantages [B, H].
    """

    observations: Array
    actions: Array
    rewards: Array
    mask: Array
    advantages: Array


class Model(NamedTuple):
    """A network as pure functions.

    init(key, inputs) -> (params, stats); `inputs` [n, ...] gives shapes only.
    apply(params, stats, inputs, *, phase, step, key) -> (outputs, stats); `step` is the
    inner step that indexes per-step tensors, `key=None` switches dropout off.
    """

    init: Callable[[Array, Array], tuple[Params, Stats]]
    apply: Callable[..., tuple[Array, Stats]]


class MetaParams(NamedTuple):
    """All that the outer loop learns: theta, phi (attenuator) and alpha (rates)."""

    params: Params
    transform: Any
    rule: Any


class Adapted(NamedTuple):
    """What adaptation returns.

    path: fast parameters [steps + 1, ...]; index 0 is the start after the transform.
    shared: the parameters that did not move.
    stats: model statistics [steps + 1, ...] of the support pass at each path point.
    """

    path: Params
    shared: Params
    stats: Stats


class TaskView(NamedTuple):
    """A task as an initialisation transform sees it."""

    loss: Callable[[Params], Array]  # support loss as a function of all parameters
    data: Data


class InitTransform(NamedTuple):
    """Where the inner loop starts.

    init(key, params) -> phi;  apply(phi, params, view: TaskView) -> params.
    gamma(phi, params, view) -> {path: block}: what `apply` multiplies theta by, in
      blocks that broadcast to the tensors; without the tensors it does not multiply.
    """

    init: Callable[[Array, Params], Any]
    apply: Callable[[Any, Params, TaskView], Params]
    gamma: Callable[[Any, Params, TaskView], Params] = lambda phi, params, view: {}


class InnerRule(NamedTuple):
    """By what rule the fast parameters move.

    init(fast params) -> alpha (learned; () if nothing is);
    optimiser(alpha) -> optax.GradientTransformation.
    """

    init: Callable[[Params], Any]
    optimiser: Callable[[Any], optax.GradientTransformation]


Source = Callable[[Params, Any], Data]
"""source(params, t) -> data: t = 0 is what the transform sees, t = 1 .. K step t."""

TaskLoss = Callable[..., tuple[Array, Stats]]
"""loss(params, stats, data, *, phase, step, key) -> (scalar, stats)."""


class Learner(NamedTuple):
    """Adaptation and prediction for one task.

    init(key, inputs) -> (MetaParams, Stats)
    adapt(meta, stats, source, steps, *, first_order, key) -> Adapted
    predict(adapted, t, inputs, *, phase, key) -> (outputs, Stats), with path point t.
    loss: what the inner loop descends.  transform: where it starts. None where no
      gradient is followed.
    """

    init: Callable[[Array, Array], tuple[MetaParams, Stats]]
    adapt: Callable[..., Adapted]
    predict: Callable[..., tuple[Array, Stats]]
    loss: TaskLoss | None = None
    transform: InitTransform | None = None


class Objective(NamedTuple):
    """What the outer loop is told.

    value(meta, stats, episode, step, key) -> (scalar, (Stats, metrics)).
    """

    value: Callable[..., tuple[Array, tuple[Stats, dict[str, Array]]]]
