"""One step of a trust region for all parameters that policies depend on.

The surrogate is minimised along the conjugate direction of its gradient, as far as the
mean KL divergence between adapted policies before and after allows.
Reference: Schulman et al., Trust Region Policy Optimization, ICML 2015.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from l2f_jax.models.policy import Gaussian, divergence
from l2f_jax.rl.losses import surrogate
from l2f_jax.rl.returns import masked_mean
from l2f_jax.types import Array, Trajectories

Product = Callable[[Array], Array]
Mean = Callable[[Any], Any]  # of a tree, over the devices that share the tasks


def on_one_device(tree: Any) -> Any:
    """Return the mean over a single device."""
    return tree


class TrustRegion(NamedTuple):
    """How far a step may go.

    max_kl: bound on the mean KL divergence, nats.  damping: added to the Fisher matrix.
    conjugate_steps: of conjugate gradient.  backtracks: the most times that a step is
    shortened, each by the factor `shrink`; after that nothing moves.
    """

    max_kl: float = 0.01
    damping: float = 1e-5
    conjugate_steps: int = 10
    backtracks: int = 14
    shrink: float = 0.8


def trust_region_step(
    policies: Callable[[Any], Gaussian],
    params: Any,
    data: Trajectories,
    region: TrustRegion,
    mean: Mean = on_one_device,
) -> tuple[Any, dict[str, Array]]:
    """Take one step of TRPO.

    Args:
      policies: params -> the policies of all tasks at the observations of `data`.
      params: any tree, here MetaParams.
      data: what the policies of `params` did, [tasks, B, H, ...].
      region: how far to go.
      mean: over devices, where each has equally many of the tasks.
    Returns:
      (params, metrics): the same params if no step lowers the surrogate within the
      bound. Metrics: "outer/loss" before, "outer/improvement", "outer/kl",
      "outer/accepted" (0 or 1), "outer/backtracks".
    """
    flat, unravel = ravel_pytree(params)
    old = lax.stop_gradient(policies(params))

    def judge(flat: Array) -> tuple[Array, Array]:
        """Return the loss and the divergence, means over the tasks of this device."""
        new = policies(unravel(flat))
        kl = jax.vmap(masked_mean)(jax.vmap(divergence)(old, new), data.mask)
        return jax.vmap(surrogate)(old, new, data).mean(), kl.mean()

    # Means are taken of gradients: no derivative of a mean over devices.
    (before, _), gradient = mean(jax.value_and_grad(judge, has_aux=True)(flat))
    fisher = fisher_product(lambda x: policies(unravel(x)), flat, data.mask)

    def damped(v: Array) -> Array:
        return mean(fisher(v)) + region.damping * v

    direction = conjugate_gradient(damped, gradient, region.conjugate_steps)
    curvature = direction @ damped(direction)
    step = jnp.sqrt(2 * region.max_kl / (curvature + 1e-8)) * direction
    last, accepted = line_search(lambda x: mean(judge(x)), flat, step, before, region)
    metrics = {
        "outer/loss": before,
        "outer/improvement": jnp.where(accepted, before - last.loss, 0.0),
        "outer/kl": jnp.where(accepted, last.kl, 0.0),
        "outer/accepted": accepted.astype(flat.dtype),
        "outer/backtracks": last.backtracks.astype(flat.dtype),
    }
    return unravel(jnp.where(accepted, last.params, flat)), metrics


class Attempt(NamedTuple):
    """Parameters that the line search tried, and what came of them."""

    backtracks: Array
    params: Array
    loss: Array
    kl: Array


def line_search(
    judge: Callable[[Array], tuple[Array, Array]],
    flat: Array,
    step: Array,
    before: Array,
    region: TrustRegion,
) -> tuple[Attempt, Array]:
    """Shorten a step until it lowers the loss within the bound.

    Args:
      judge: parameters -> (loss, divergence), the same on all devices.
      flat, before: the parameters to start from, and their loss.
      step: what is subtracted from them, in full size.
    Returns:
      (the last attempt, whether it is good); attempts end with the first good one.
    """

    def good(attempt: Attempt) -> Array:
        # A comparison with a number that is none is false: such a step is refused.
        return (attempt.loss < before) & (attempt.kl <= region.max_kl)

    def go_on(attempt: Attempt) -> Array:
        return ~good(attempt) & (attempt.backtracks < region.backtracks)

    def shorten(attempt: Attempt) -> Attempt:
        count = attempt.backtracks + 1
        new = flat - region.shrink ** count.astype(flat.dtype) * step
        return Attempt(count, new, *judge(new))

    # Not yet an attempt: the loop begins with the whole step, shortened 0 times.
    none = Attempt(jnp.full((), -1), flat, before, jnp.zeros_like(before))
    last = lax.while_loop(go_on, shorten, none)
    return last, good(last)


def fisher_product(
    policies: Callable[[Array], Gaussian], flat: Array, mask: Array
) -> Product:
    """Return v -> F v, the Hessian of the mean KL divergence at the old parameters.

    There F = J^T M J, J the Jacobian of all distributions and M their own Fisher
    matrix: 1 / sigma^2 for a mean, 2 for a log deviation. J is linearised once; MAML's
    code takes a difference of gradients at v / |flat| instead, a secant. Behind a
    stop-gradient (L2F with `through` False) J omits how gamma depends on theta, and F
    is the Hessian with each task's embedding held fixed.

    Args:
      policies: flat -> distributions, mean [tasks, B, H, a], log_std [tasks, a].
      mask: [tasks, B, H].
    """
    at_flat, jacobian = jax.linearize(policies, flat)
    transposed = jax.linear_transpose(jacobian, flat)
    tasks = mask.shape[0]
    taken = jnp.maximum(mask.sum((1, 2), keepdims=True), 1.0)
    weight = (mask / taken / tasks)[..., None]
    precision = jnp.exp(-2 * at_flat.log_std)[:, None, None]

    def product(v: Array) -> Array:
        change = jacobian(v)
        metric = Gaussian(weight * precision * change.mean, 2 / tasks * change.log_std)
        return transposed(metric)[0]

    return product


def conjugate_gradient(product: Product, b: Array, steps: int) -> Array:
    """Solve product(x) = b from x = 0, product being symmetric and positive definite.

    At most `steps` steps; none follows a residual b - product(x) shorter than 1e-5.
    """

    def step(carry, _):
        x, residual, direction, size = carry
        moved = product(direction)
        rate = size / (direction @ moved)
        x_next, residual_next = x + rate * direction, residual - rate * moved
        size_next = residual_next @ residual_next
        direction_next = residual_next + size_next / size * direction
        following = x_next, residual_next, direction_next, size_next
        done = size < 1e-10
        return jax.tree.map(partial(jnp.where, done), carry, following), None

    start = jnp.zeros_like(b), b, b, b @ b
    return lax.scan(step, start, None, steps)[0][0]
