"""The outer loop of policy search: one trust region step for theta, phi and alpha.

The surrogate is minimised along the conjugate direction of its gradient, as far as the
mean KL divergence between adapted policies before and after allows.
Reference: Schulman et al., Trust Region Policy Optimization, ICML 2015; Finn et al.,
Model-Agnostic Meta-Learning, ICML 2017, Sec. 5.3.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from l2f_jax.envs.env import Env
from l2f_jax.inner import recorded
from l2f_jax.learners.gradient import task_view
from l2f_jax.models.policy import Gaussian, divergence
from l2f_jax.outer import TrainState
from l2f_jax.parallel import (
    REPLICATED,
    check_divisible,
    mean_over_devices,
    on_devices,
)
from l2f_jax.rl.losses import act, surrogate
from l2f_jax.rl.returns import masked_mean
from l2f_jax.rl.rollout import Sampling, experience, rollouts, total_return
from l2f_jax.tree import at, merge
from l2f_jax.types import Array, Learner, MetaParams, Model, Trajectories

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


def adapted_policies(
    learner: Learner,
    policy: Model,
    meta: MetaParams,
    data: Trajectories,
    *,
    steps: int,
    first_order: bool = False,
) -> Gaussian:
    """Replay the adaptation of every task and act on its last trajectories.

    data [tasks, steps + 2, B, H, ...] -> mean [tasks, B, H, a], log_std [tasks, a].
    """

    def one(data: Trajectories) -> Gaussian:
        adapted = learner.adapt(
            meta, {}, recorded(data), steps, first_order=first_order
        )
        params = merge(at(adapted.path, steps), adapted.shared)
        return act(policy, params, at(data, -1))

    return jax.vmap(one)(data)


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
    matrix: 1 / sigma^2 for a mean, 2 for a log deviation. J is linearised once. Behind
    a stop-gradient (L2F with `through` False) J omits how gamma depends on theta, and
    F is the Hessian with each task's embedding held fixed.

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


def gamma_metrics(
    learner: Learner, meta: MetaParams, data: Trajectories, mean: Mean = on_one_device
) -> dict[str, Array]:
    """Measure how much the transform attenuates, and how that depends on the task.

    Args:
      data: [tasks, steps + 2, B, H, ...], see `rollout.experience`.
      mean: see `trust_region_step`.
    Returns:
      Means over tensors: "transform/gamma", mean over tasks, and
      "transform/gamma_deviation", standard deviation over tasks. Nothing for MAML.
    """
    loss, transform = learner.loss, learner.transform
    if loss is None or transform is None:
        return {}

    def one(data: Trajectories) -> dict[str, Array]:
        view = task_view(loss, {}, at(data, 0))
        return transform.gamma(meta.transform, meta.params, view)

    gammas = jax.vmap(one)(data)
    if not gammas:
        return {}

    def over_tasks(tree: dict) -> dict:
        return mean(jax.tree.map(lambda x: x.mean(0), tree))

    def over_tensors(tree: dict) -> Array:
        return jnp.stack([x.mean() for x in tree.values()]).mean()

    means = over_tasks(gammas)
    squares = over_tasks(jax.tree.map(lambda x, m: (x - m[None]) ** 2, gammas, means))
    return {
        "transform/gamma": over_tensors(means),
        "transform/gamma_deviation": over_tensors(jax.tree.map(jnp.sqrt, squares)),
    }


def make_update(
    env: Env,
    learner: Learner,
    policy: Model,
    *,
    tasks: int,
    steps: int,
    sampling: Sampling,
    region: TrustRegion,
    mesh: Mesh,
    fresh: bool = False,
    first_order: bool = False,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """Build the jitted training step: experience in new tasks, then one TRPO step.

    Task number i of a run draws from fold_in(state.key, i), as in `outer.make_update`.

    Args:
      env: the family of tasks.
      learner, policy: how a task is adapted, and the network that acts.
      tasks: the meta-batch over all devices together.
      steps: inner steps.
      sampling, region: see there.
      mesh: the devices that share the tasks, see `parallel`.
      fresh: see `rollout.experience`.
      first_order: leave out the derivative of the inner gradients.
    Returns:
      update(state, iterations=n) -> (state, metrics {name: [n]}); "outer/return_0" and
      "outer/return_<steps>" are mean returns of theta and of the adapted policies, and
      "outer/return_start", if `fresh`, of the transformed ones before any step; and
      those of `gamma_metrics`.
    Raises:
      ValueError: `tasks` that do not divide evenly over the devices.
    """
    check_divisible(tasks, mesh)

    def gather(meta: MetaParams, key: Array) -> Trajectories:
        task_key, key = jax.random.split(key)
        collect = rollouts(env, policy, sampling, env.sample_task(task_key))
        return experience(learner, meta, collect, key, steps=steps, fresh=fresh)

    def local(numbers: Array, state: TrainState):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(state.key, numbers)
        data = jax.vmap(gather, (None, 0))(state.meta, keys)
        last = jax.tree.map(lambda x: x[:, -1], data)

        def policies(meta: MetaParams) -> Gaussian:
            return adapted_policies(
                learner, policy, meta, data, steps=steps, first_order=first_order
            )

        mean = mean_over_devices
        meta, metrics = trust_region_step(policies, state.meta, last, region, mean)
        metrics |= gamma_metrics(learner, state.meta, data, mean)
        returns = mean(total_return(data).mean(0))
        metrics["outer/return_0"] = returns[0]
        metrics[f"outer/return_{steps}"] = returns[-1]
        if fresh and steps:
            metrics["outer/return_start"] = returns[1]
        return state._replace(step=state.step + 1, meta=meta), metrics

    def one(state: TrainState, _):
        numbers = state.step * tasks + jnp.arange(tasks, dtype=jnp.int32)
        return on_devices(local, mesh, REPLICATED)(numbers, state)

    @partial(jax.jit, static_argnames="iterations")
    def update(state: TrainState, *, iterations: int = 1):
        return lax.scan(one, state, None, iterations)

    return update
