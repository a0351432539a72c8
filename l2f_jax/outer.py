"""The outer loop: meta-gradients summed over tasks, and an Optax update of theta, phi
and alpha (L2F, Eq. (2) and Algorithm 1).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from l2f_jax.parallel import REPLICATED, check_divisible, sum_over_tasks
from l2f_jax.types import Array, Learner, MetaParams, Objective, Stats

REDUCTIONS = ("sum", "mean")
OPTIMISERS = {"adam": optax.adam, "sgd": optax.sgd}


class TrainState(NamedTuple):
    """Everything that a resumed run needs: nothing else changes from step to step.

    step: [] int32, meta-iterations done.  key: the run's PRNG key; task number i of the
    run draws from fold_in(key, i).
    """

    step: Array
    key: Array
    meta: MetaParams
    opt_state: Any
    stats: Stats


def initial_state(
    learner: Learner,
    optimiser: optax.GradientTransformation,
    inputs: Array,
    seed: int,
    mesh: Mesh,
    *,
    episodes: int | None = None,
) -> TrainState:
    """Initialise a run, replicated over the mesh.

    Args:
      inputs: [n, ...] an example of the model's inputs; only its shape and dtype count.
      seed: of the parameters.
      episodes: the seed of all that training draws; None is `seed`. The runs of several
        differ in their tasks alone, as those of the official code do.
    """

    def init(key: Array, run_key: Array, inputs: Array) -> TrainState:
        init_key, run_key = jax.random.split(key)[0], jax.random.split(run_key)[1]
        meta, stats = learner.init(init_key, inputs)
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, run_key, meta, optimiser.init(meta), stats)

    replicated = NamedSharding(mesh, REPLICATED)
    keys = map(jax.random.key, (seed, seed if episodes is None else episodes))
    return jax.jit(init, out_shardings=replicated)(*keys, inputs)


def make_update(
    objective: Objective,
    optimiser: optax.GradientTransformation,
    episode: Callable[[Any, Any, Array], Any],
    *,
    tasks: int,
    mesh: Mesh,
    at_once: int = 1,
    reduction: str = "sum",
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """Build the jitted training step.

    Args:
      objective: the loss of one task.
      optimiser: of MetaParams.
      episode: (shared, item, key) -> the objective's episode; samples on the device.
      tasks: the meta-batch over all devices together.
      at_once: tasks a device adapts at once.
      reduction: "sum" (the official L2F code) or "mean" over tasks.
    Returns:
      update(state, shared, items, iterations=n) -> (state, metrics {name: [n]}), n
      meta-iterations in one dispatch. `items` [n, tasks, ...] (or () if all is sampled
      from `shared`) is sharded over tasks, `shared` is on every device. Metrics are
      means over the tasks.
    Raises:
      ValueError: unknown `reduction`, or `tasks` that do not divide evenly over the
        devices and there into groups of `at_once`.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"`reduction` ({reduction!r}) must be one of {', '.join(REDUCTIONS)}"
        )
    check_divisible(tasks, mesh, at_once)
    scale = 1.0 if reduction == "sum" else 1.0 / tasks

    def task(shared, item):
        state, data = shared
        number, item = item
        sample_key, key = jax.random.split(jax.random.fold_in(state.key, number))
        (_, (stats, metrics)), grads = jax.value_and_grad(
            objective.value, has_aux=True
        )(state.meta, state.stats, episode(data, item, sample_key), state.step, key)
        return grads, stats, metrics

    def one(data, state: TrainState, items):
        numbers = state.step * tasks + jnp.arange(tasks, dtype=jnp.int32)
        grads, stats, metrics = sum_over_tasks(
            task, (numbers, items), (state, data), mesh, at_once
        )
        grads = jax.tree.map(lambda g: scale * g, grads)
        metrics = jax.tree.map(lambda x: x / tasks, metrics)
        metrics["outer/gradient_norm"] = optax.tree.norm(grads)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.meta)
        meta: Any = optax.apply_updates(state.meta, updates)
        stats = jax.tree.map(lambda x: x / tasks, stats)
        return TrainState(state.step + 1, state.key, meta, opt_state, stats), metrics

    @partial(jax.jit, static_argnames="iterations")
    def update(state: TrainState, shared, items=(), *, iterations: int = 1):
        return jax.lax.scan(
            lambda state, items: one(shared, state, items), state, items, iterations
        )

    return update


def cosine_by_epoch(
    lr: float, minimum: float, epochs: int, iterations_per_epoch: int
) -> optax.Schedule:
    """Return the official rate: a cosine from lr to `minimum`, constant in an epoch.

    lr(e) = min + (lr - min) (1 + cos(pi e / epochs)) / 2, e = floor(step / iterations).
    """

    def schedule(step):
        epoch = jnp.minimum(step // iterations_per_epoch, epochs)
        return minimum + 0.5 * (lr - minimum) * (1 + jnp.cos(jnp.pi * epoch / epochs))

    return schedule


def meta_optimiser(
    learning_rate: float | optax.Schedule,
    *,
    clip: float | None = None,
    name: str = "adam",
) -> optax.GradientTransformation:
    """Return the optimiser of all of MetaParams.

    Args:
      learning_rate: eta, constant or a schedule.
      clip: largest absolute value of each meta-gradient element of theta (the
        attenuator's and the rates' are never clipped); None does not clip.
      name: "adam" (the official code's) or "sgd" (the paper's text, Algorithm 1).
    Raises:
      ValueError: unknown `name`, or `clip` <= 0.
    """
    if name not in OPTIMISERS:
        raise ValueError(
            f"`optimiser.name` ({name!r}) must be one of {', '.join(OPTIMISERS)}"
        )
    optimiser = OPTIMISERS[name](learning_rate)
    if clip is None:
        return optimiser
    if clip <= 0:
        raise ValueError(f"`clip` ({clip}) must be positive, or None for no clipping")
    theta_only = MetaParams(True, False, False)  # pyright: ignore  (a mask of its shape)
    return optax.chain(optax.masked(optax.clip(clip), theta_only), optimiser)
