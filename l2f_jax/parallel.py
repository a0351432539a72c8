"""From one task to a batch of tasks, on one device or many.

The tasks of a meta-batch are sharded over a mesh with the single axis "tasks"; on each
device they are adapted `at_once` at a time. Functions stay per task.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from l2f_jax import backend
from l2f_jax.types import Array

AXIS = "tasks"
SHARDED, REPLICATED = PartitionSpec(AXIS), PartitionSpec()


def task_mesh(devices: int | None = None) -> Mesh:
    """Lay all devices of all processes (or the first few) along the tasks axis."""
    devices = devices or jax.device_count()
    return jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,))


def mesh_for(tasks: int) -> Mesh:
    """Lay as many devices as can share so many tasks evenly along the tasks axis.

    Several processes must all take part, with all their devices: ValueError if those
    do not divide the tasks.
    """
    if jax.process_count() > 1:
        mesh = task_mesh()
        check_divisible(tasks, mesh)
        return mesh
    return task_mesh(backend.most_sharing(tasks, jax.device_count()))


def check_divisible(tasks: int, mesh: Mesh, at_once: int = 1) -> None:
    """Raise ValueError unless every device gets equally many tasks, in full groups."""
    if tasks < 1 or tasks % mesh.size:
        raise ValueError(
            f"`tasks` ({tasks}) must be a positive multiple of the {mesh.size} "
            "device(s) that share them"
        )
    if at_once < 1 or tasks // mesh.size % at_once:
        raise ValueError(
            f"`at_once` ({at_once}) must divide the {tasks // mesh.size} task(s) of a "
            "device"
        )


def tasks_at_once(how: str, tasks: int, mesh: Mesh) -> int:
    """Return how many tasks a device adapts at once: its all ("vmap") or 1 ("map")."""
    return tasks // mesh.size if how == "vmap" else 1


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Put host arrays, the same in every process, on every device of the mesh."""
    sharding = NamedSharding(mesh, REPLICATED)
    place = jax.make_array_from_process_local_data
    return jax.tree.map(lambda x: place(sharding, np.asarray(x)), tree)


def share(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Put each process's own slice of the tasks axis on its devices."""
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))
    place = jax.make_array_from_process_local_data
    return jax.tree.map(lambda x: place(sharding, np.asarray(x)), tree)


def sum_over_tasks(fn: Callable, tasks: Any, shared: Any, mesh: Mesh, at_once: int):
    """Sum fn(shared, task) over the leading axis of `tasks`, on all devices.

    Each device keeps only a running sum and the tasks in hand, so memory does not grow
    with the number of tasks when `at_once` is 1.
    """

    # Traced once, though asked for its shapes first: tracing a task is most of what a
    # small program takes to start.
    @partial(jax.jit, inline=True)
    def one(shared, group):
        if at_once == 1:
            return fn(shared, jax.tree.map(lambda x: x[0], group))
        results = jax.vmap(lambda task: fn(shared, task))(group)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), results)

    def local(tasks, shared):
        groups = _groups(tasks, at_once)
        start = jax.tree.map(lambda x: x[0], groups)
        zero = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, shared, start)
        )

        def add(total, group):
            return jax.tree.map(jnp.add, total, one(shared, group)), None

        return jax.lax.psum(jax.lax.scan(add, zero, groups)[0], AXIS)

    return on_devices(local, mesh, REPLICATED)(tasks, shared)


def map_over_tasks(fn: Callable, tasks: Any, shared: Any, mesh: Mesh, at_once: int):
    """Stack fn(shared, task) over the leading axis of `tasks`, on all devices."""

    def local(tasks, shared):
        if at_once == 1:
            return jax.lax.map(lambda task: fn(shared, task), tasks)
        mapped = jax.lax.map(
            jax.vmap(lambda task: fn(shared, task)), _groups(tasks, at_once)
        )
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), mapped)

    return on_devices(local, mesh, SHARDED)(tasks, shared)


def mean_over_devices(tree: Any) -> Any:
    """Average over the devices, inside of `on_devices`."""
    return jax.lax.pmean(tree, AXIS)


def on_devices(local: Callable, mesh: Mesh, out: PartitionSpec) -> Callable:
    """Run local(tasks, shared) on every device, each with its part of the tasks.

    Args:
      out: `SHARDED` over the tasks, or `REPLICATED`: the same on all devices.
    """
    # Gradients are taken inside, of replicated parameters. Without the check of varying
    # axes they stay each device's own until the explicit psum; with it they would come
    # out already summed, and the psum would count them once per device.
    return jax.shard_map(
        local, mesh=mesh, in_specs=(SHARDED, REPLICATED), out_specs=out, check_vma=False
    )


def _groups(tasks: Any, size: int) -> Any:
    def fold(x: Array) -> Array:
        return x.reshape(-1, size, *x.shape[1:])

    return jax.tree.map(fold, tasks)
