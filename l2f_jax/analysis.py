"""What the paper looks at beside accuracy: conflict, gammas, the inner loss landscape.

`update_direction`, `gammas`, `embeddings` and `inner_landscape` build measures of one
task, (meta, stats, episode) -> arrays, which `Experiment.measure` maps over many. The
paper says neither over how many tasks conflict is summed nor which step sizes its
landscapes have; what was chosen stands at each function.

References: Baik et al., Learning to Forget for Meta-Learning, CVPR 2020, Sec. 3.3 and
Figures 2, 3; Santurkar et al., How Does Batch Normalization Help Optimization?, NeurIPS
2018, Sec. 3.1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2f_jax.embeddings import gradients
from l2f_jax.inner import constant
from l2f_jax.learners.gradient import task_view
from l2f_jax.scopes import Scope, pool, scope_of, spread
from l2f_jax.tree import at, is_not_norm, split
from l2f_jax.types import (
    Array,
    Episode,
    InitTransform,
    Learner,
    MetaParams,
    Objective,
    Params,
    Stats,
    TaskLoss,
)

Measure = Callable[[MetaParams, Stats, Episode], Any]


def angles(scope: Scope, a: Params, b: Params) -> Array:
    """Return the angle between two directions in each part of a scope.

    arccos(a^j . b^j / (||a^j|| ||b^j||)) for the coefficients j of `scope`, computed as
    2 atan2(||u - v||, ||u + v||) of the unit vectors u, v: exact also near 0 and pi,
    where float32 leaves an arccos no digits.

    Args:
      scope: the parts: "layer" for each tensor, "network" for all numbers together.
      a, b: {path: [...]}, with the paths of `scope`.
    Returns:
      [scope.size], in [0, pi] rad; not a number where a or b is zero.
    """

    def unit(x: Params) -> Params:
        length = spread(scope, jnp.sqrt(pool(scope, _squares(x))))
        return {path: x[path] / length[path] for path in scope.blocks}

    u, v = unit(a), unit(b)
    # Means of squares for norms: the numbers of a part cancel in both quotients.
    apart = pool(scope, _squares({path: u[path] - v[path] for path in u}))
    along = pool(scope, _squares({path: u[path] + v[path] for path in u}))
    return 2 * jnp.arctan2(jnp.sqrt(apart), jnp.sqrt(along))


def conflict(scope: Scope, directions: Params) -> Array:
    """Return each task's degree of conflict with the others, in each part of a scope.

    The angle between u_i and sum_i u_i (Sec. 3.3; its absolute value changes nothing).
    The mean over tasks is the paper's degree of conflict. The sum contains u_i itself:
    n orthogonal directions of equal length are at arccos(1 / sqrt(n)), which tends to
    pi/2, and so numbers compare only for the same n. The paper's n is not known.

    Args:
      scope: see `angles`.
      directions: u_i of a batch of tasks, {path: [tasks, ...]}.
    Returns:
      [tasks, scope.size], in [0, pi] rad; not a number where u_i is zero.
    """
    total = {path: jnp.sum(u, axis=0) for path, u in directions.items()}
    return jax.vmap(lambda u: angles(scope, u, total))(directions)


def update_direction(objective: Objective) -> Measure:
    """Measure where a task would move theta in the meta-update.

    u_i = -grad_theta L(f_theta'_i; query) (Sec. 3.3), {path: [...]}, through the
    adaptation as far as the objective differentiates; phi and alpha stay.
    """

    def measure(meta: MetaParams, stats: Stats, episode: Episode) -> Params:
        def loss(params: Params) -> Array:
            moved = meta._replace(params=params)
            return objective.value(moved, stats, episode, jnp.zeros((), int), None)[0]

        return jax.tree.map(jnp.negative, jax.grad(loss)(meta.params))

    return measure


def attenuate_tensor(meta: MetaParams, path: str, gamma: float | Array) -> MetaParams:
    """Attenuate one layer's initialisation by hand: theta^j becomes gamma theta^j.

    Figure 3b: of MAML. A learned attenuation, if any, comes after it.

    Raises:
      ValueError: `path` is no parameter.
    """
    if path not in meta.params:
        raise ValueError(f"`path` ({path!r}) must be one of {', '.join(meta.params)}")
    return meta._replace(params={**meta.params, path: gamma * meta.params[path]})


def gammas(learner: Learner) -> Measure:
    """Measure the gammas that the learner's transform generates for a task, Eq. (4).

    {path: block}, in (0, 1) behind a sigmoid; a block broadcasts to its tensor, so it
    is a single number unless the scope is finer than a tensor. Empty for MAML.

    Raises:
      ValueError: `learner` has no inner loop.
    """
    loss, transform = _inner_loop(learner)

    def measure(meta: MetaParams, stats: Stats, episode: Episode) -> Params:
        view = task_view(loss, stats, episode.support)
        return transform.gamma(meta.transform, meta.params, view)

    return measure


def embeddings(learner: Learner) -> Measure:
    """Measure a task's embedding by gradients, that which L2F sees, tensor by tensor.

    {path: e}, e the signed mean of theta's support gradient over the tensor, outside
    norm layers. Those of a softmax head are zero but for rounding: the gradient sums to
    zero over its classes.

    Raises:
      ValueError: `learner` has no inner loop.
    """
    loss, _ = _inner_loop(learner)
    embedding = gradients()

    def measure(meta: MetaParams, stats: Stats, episode: Episode) -> Params:
        view = task_view(loss, stats, episode.support)
        seen, _ = split(meta.params, is_not_norm)
        means = spread(scope_of(seen, "layer"), embedding.apply(meta.params, view))
        return {path: mean.reshape(()) for path, mean in means.items()}

    return measure


class Landscape(NamedTuple):
    """A loss along its own gradient g, at theta - r g for step sizes r.

    loss [rates]: L(theta - r g).
    difference [rates]: ||grad L(theta - r g) - g||, l2 ("gradient predictiveness").
    smoothness []: the largest ||grad L(theta - r g) - g|| / ||r g||, effective beta.
    """

    loss: Array
    difference: Array
    smoothness: Array


def landscape(
    loss: Callable[[Params], Array], params: Params, rates: Array
) -> Landscape:
    """Walk along the gradient of a loss and look at loss and gradient there.

    Figure 2 draws the ranges of loss and difference over the step sizes.

    Args:
      loss: of the parameters that move.
      params: where the gradient is taken; r = 0 is not looked at.
      rates: [rates] step sizes r, above 0.
    Returns:
      Landscape; its smoothness is not a number where the gradient is zero.
    """
    slope = jax.grad(loss)(params)

    def walk(rate: Array) -> tuple[Array, Array]:
        there = jax.tree.map(lambda x, g: x - rate * g, params, slope)
        value, other = jax.value_and_grad(loss)(there)
        return value, _distance(other, slope)

    losses, differences = jax.lax.map(walk, rates)
    moved = rates * optax.tree.norm(slope)
    return Landscape(losses, differences, jnp.max(differences / moved))


def inner_landscape(learner: Learner, *, steps: int, rates: Array) -> Measure:
    """Measure the landscape of the support loss at each inner step.

    At theta'_t, t = 0 .. steps - 1, along the gradient of the parameters that move, as
    gradient descent would take it, whatever the learner's own rule.

    Args:
      steps: inner steps taken.
      rates: [rates], see `landscape`.
    Returns:
      (meta, stats, episode) -> Landscape with a leading axis of steps.
    Raises:
      ValueError: `steps` < 1, or `learner` has no inner loop.
    """
    if steps < 1:
        raise ValueError(f"`steps` ({steps}) must be at least 1 for an inner landscape")
    loss, _ = _inner_loop(learner)

    def measure(meta: MetaParams, stats: Stats, episode: Episode) -> Landscape:
        source = constant(episode.support)
        adapted = learner.adapt(meta, stats, source, steps, first_order=True)

        def at_step(t: Array) -> Landscape:
            fast, seen = at((adapted.path, adapted.stats), t)
            view = task_view(loss, seen, episode.support, step=t)
            return landscape(lambda x: view.loss({**x, **adapted.shared}), fast, rates)

        return jax.lax.map(at_step, jnp.arange(steps))

    return measure


def _inner_loop(learner: Learner) -> tuple[TaskLoss, InitTransform]:
    if learner.loss is None or learner.transform is None:
        raise ValueError("`learner` has no inner loop: it follows no gradient")
    return learner.loss, learner.transform


def _squares(x: Params) -> Params:
    return {path: jnp.square(value) for path, value in x.items()}


def _distance(a: Params, b: Params) -> Array:
    return optax.tree.norm(jax.tree.map(jnp.subtract, a, b))
