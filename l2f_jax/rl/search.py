"""The outer loop of policy search: MAML-TRPO for theta, phi and alpha.

Reference: Finn et al., Model-Agnostic Meta-Learning, ICML 2017, Sec. 5.3.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from l2f_jax.envs.env import Env
from l2f_jax.inner import recorded
from l2f_jax.learners.gradient import task_view
from l2f_jax.models.policy import Gaussian
from l2f_jax.outer import TrainState
from l2f_jax.parallel import (
    REPLICATED,
    check_divisible,
    mean_over_devices,
    on_devices,
)
from l2f_jax.rl.losses import act
from l2f_jax.rl.rollout import Sampling, experience, rollouts, total_return
from l2f_jax.rl.trpo import Mean, TrustRegion, on_one_device, trust_region_step
from l2f_jax.tree import at, merge
from l2f_jax.types import Array, Learner, MetaParams, Model, Trajectories


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
