"""A training run of the library against the independent program, in float64.

One iteration is compared in `test_official.py`. Here it is what lies between several:
Adam's memory, the clip, the rate of an epoch, and the programs of a schedule.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from l2f_jax.interop import from_official, to_official
from l2f_jax.losses import cross_entropy
from l2f_jax.models.conv4 import conv4
from l2f_jax.problems import supervised
from l2f_jax.problems.running import run
from l2f_jax.types import Batch, Episode

pytestmark = [pytest.mark.mixed_dtypes, pytest.mark.usefixtures("x64")]

IMAGE, STEPS, LR, MIN_LR, CLIP = (2, 8, 8), 2, 1e-2, 1e-3, 0.3
TRAINING = {
    "iterations": 6,
    "iterations_per_epoch": 2,
    "iterations_per_dispatch": 2,
    "tasks": 2,
    "reduction": "sum",
    "order": 2,
    "first_order_epochs": 2,
    "multi_step_epochs": 2,
    "task_map": "map",
}
PROGRAMS = [(1, True), (1, True), (2, False)]  # order and multi-step loss of each epoch


def trained_by_oracle(params, batches):
    adam = None
    for i, batch in enumerate(batches):
        epoch = i // 2
        order, multi_step = PROGRAMS[epoch]
        weights = oracle.msl_weights(epoch, STEPS, epochs=2) if multi_step else None
        seen = oracle.iteration(
            params, *batch, order=order, msl_weights=weights, learnable_rates=True
        )
        lr = MIN_LR + (LR - MIN_LR) * (1 + np.cos(np.pi * epoch / 3)) / 2
        params, adam = oracle.adam(params, seen["grads"], adam, lr=lr, clamp=CLIP)
        kernel = seen["grads"][oracle.NETWORK + "conv1.conv.weight"]
        assert 0 < np.sum(np.abs(kernel) > CLIP) < kernel.size  # the clip does clip
    return params


def feed(batches):
    """Serve the oracle's tasks, one after another, to the library."""

    def batch(x, y):
        x, y = np.stack(x), np.stack(y)  # [iterations, tasks, ways, k, ...]
        x = np.moveaxis(x, -3, -1)
        x = x.reshape(*x.shape[:2], -1, *x.shape[-3:])
        return Batch(jnp.asarray(x), jnp.asarray(y.reshape(*x.shape[:3])))

    support_x, support_y, query_x, query_y = zip(*batches, strict=True)
    episodes = Episode(batch(support_x, support_y), batch(query_x, query_y))

    def training_items(key, step, iterations, tasks):
        return jax.tree.map(lambda x: x[step : step + iterations], episodes)

    return SimpleNamespace(
        shared=(),
        episode=lambda shared, item, key: item,
        training_items=training_items,
    )


def trained_by_library(params, batches):
    learner, steps = supervised.adapting(
        conv4(3, filters=4, stages=2, conv="xla"),  # compiled the fastest
        cross_entropy,
        learner={"name": "mamlpp", "lr": 0.05, "steps": STEPS},
        transform={"name": "attenuate"},
    )
    optimiser = {"name": "adam", "lr": LR, "min_lr": MIN_LR, "clip": CLIP}
    built = supervised.method(
        learner, steps, cross_entropy, optimiser=optimiser, training=TRAINING
    )
    example = jax.ShapeDtypeStruct((1, *IMAGE[1:], IMAGE[0]), jnp.float64)
    runs = run(built, lambda split: feed(batches), example, [steps], fixed=0)
    start = from_official(params, learned_rates=True).meta
    state = runs.init(0)._replace(meta=jax.tree.map(jnp.asarray, start))
    step = 0
    while step < built.schedule.iterations:
        count = built.schedule.boundary(step) - step
        state, _ = runs.update(state, step, count)
        step += count
    return to_official(state.meta)


def test_a_run_through_all_programs_equals_the_independent_program():
    rng = np.random.default_rng(0)
    params = oracle.initial_params(rng, widths=(4, 4), image=IMAGE, steps=STEPS)
    batches = [oracle.random_tasks(rng, image=IMAGE) for _ in range(6)]
    ours = trained_by_library(params, batches)
    for name, tensor in trained_by_oracle(params, batches).items():
        size = np.abs(tensor).max()
        np.testing.assert_allclose(ours[name], tensor, 0, 1e-9 * size, err_msg=name)
