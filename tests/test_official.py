"""The library against the official code: its numbers, and an independent program.

Both speak the official names and layouts; the library reads and writes them through
`interop`. All in float64.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

from l2f_jax import interop, recipes
from l2f_jax.inner import constant
from l2f_jax.losses import accuracy, cross_entropy, supervised
from l2f_jax.models.conv4 import conv4
from l2f_jax.models.layers import Norm
from l2f_jax.models.resnet12 import resnet12
from l2f_jax.objectives import multi_step_loss, query_loss
from l2f_jax.outer import meta_optimiser
from l2f_jax.transforms import attenuate, everything, is_not_norm
from l2f_jax.types import Batch, Episode

pytestmark = [pytest.mark.mixed_dtypes, pytest.mark.usefixtures("x64")]
GOLDEN = Path(__file__).parent / "golden" / "l2f_conv4_f64.npz"


def episodes(support_x, support_y, query_x, query_y) -> list[Episode]:
    def batch(x, y) -> Batch:
        x = np.moveaxis(x, -3, -1).astype(np.float64)
        return Batch(
            jnp.asarray(x.reshape(-1, *x.shape[-3:])), jnp.asarray(y.reshape(-1))
        )

    tasks = zip(support_x, support_y, query_x, query_y, strict=True)
    return [Episode(batch(a, b), batch(c, d)) for a, b, c, d in tasks]


def library_iteration(params, batch, options) -> dict:
    """Run one iteration of the library on official parameters; official names out."""
    adapts_norm = options.get("adapt_norm", False)
    official = interop.from_official(
        {k: v for k, v in params.items() if is_used(k, options)}, learned_rates=True
    )
    meta = jax.tree.map(jnp.asarray, official.meta)
    learner = _learner(params, official, options)
    steps, order = len(params[oracle.RATES]), options.get("order", 2)
    common = dict(steps=steps, first_order=order == 1, scores={"accuracy": accuracy})
    if (weights := options.get("msl_weights")) is None:
        objective = query_loss(learner, cross_entropy, **common)
    else:
        fixed = jnp.asarray(weights)
        objective = multi_step_loss(
            learner, cross_entropy, weights=lambda step: fixed, **common
        )

    @jax.jit
    def run(meta, episode):
        value = jax.value_and_grad(objective.value, has_aux=True)
        (loss, (_, metrics)), grads = value(meta, {}, episode, jnp.zeros((), int), None)
        adapted = learner.adapt(meta, {}, constant(episode.support), steps)
        logits, _ = learner.predict(adapted, steps, episode.query.inputs, phase="query")
        end = {k: x[-1] for k, x in adapted.path.items()}
        end = meta._replace(params=meta.params | end)
        return loss, metrics["outer/accuracy"], grads, logits, end

    losses, hits, grads, logits, ends = zip(
        *[run(meta, episode) for episode in episodes(*batch)], strict=True
    )
    scale = 1 / len(losses) if options.get("reduction") == "mean" else 1
    total = jax.tree.map(lambda *g: scale * sum(g), *grads)
    names = oracle.inner_names(params, official.network, adapts_norm)
    adapted = [interop.to_official(end) for end in ends]
    return {
        "meta": meta,
        "meta_grads": total,
        "total_loss": scale * sum(losses),
        "accuracy": np.mean(hits),
        "query_logits": np.stack(logits),
        "grads": interop.to_official(total),
        "adapted": {name: np.stack([end[name] for end in adapted]) for name in names},
    }


def is_used(name: str, options: dict) -> bool:
    return options.get("attenuate", True) or not name.startswith("attenuator")


def _learner(params, official, options):
    ways = len(params[oracle.HEAD[1]])
    norm = Norm(per_step=official.per_step)
    if official.network == "conv4":
        kernel = official.meta.params["conv_0/kernel"]
        model = conv4(
            ways,
            filters=kernel.shape[-1],
            conv_bias="conv_0/bias" in official.meta.params,
            pooling=options.get("pooling", "max"),
            norm=norm,
        )
    else:
        kernels = [official.meta.params[f"block_{b}/conv_0/kernel"] for b in range(4)]
        model = resnet12(ways, widths=[k.shape[-1] for k in kernels], norm=norm)
    select = everything if options.get("adapt_norm") else is_not_norm
    return recipes.mamlpp(
        model,
        supervised(model, cross_entropy),
        steps=len(params[oracle.RATES]),
        adapt_norm=options.get("adapt_norm", False),
        transform=attenuate(select=select) if options.get("attenuate", True) else None,
    )


def assert_close(ours, official, tolerance, size=None, name=""):
    """Compare to within a share of the largest element of the official array.

    Arrays that are exactly zero but for rounding (the gradient of a convolution's bias
    before batch normalisation) are compared absolutely.
    """
    size = max(np.abs(official).max() if size is None else size, 1e-5)
    np.testing.assert_allclose(
        ours, official, rtol=0, atol=tolerance * size, err_msg=name
    )


def test_one_iteration_equals_the_official_numbers():
    with np.load(GOLDEN) as file:
        golden = dict(file)
    params = {k[5:]: np.float64(v) for k, v in golden.items() if k[:5] == "init/"}
    names = ("support_x", "support_y", "query_x", "query_y")
    ours = library_iteration(params, [golden[f"batch/{n}"] for n in names], {})
    adam = meta_optimiser(1e-3, clip=10.0)
    updates, _ = adam.update(ours["meta_grads"], adam.init(ours["meta"]), ours["meta"])
    updated = interop.to_official(optax.apply_updates(ours["meta"], updates))
    found = {"total_loss": ours["total_loss"], "accuracy": ours["accuracy"]}
    found["query_logits_per_eval"] = ours["query_logits"][:, None]
    for group, arrays in {"adapted": ours["adapted"], "adam1": updated}.items():
        found |= {f"{group}/{name}": array for name, array in arrays.items()}
    found |= {f"grad/{name}": array for name, array in ours["grads"].items()}
    compared = [key for key in golden if key in found]
    assert len([key for key in compared if key.startswith("grad/")]) == 18
    for key in compared:
        size = golden.get(f"max_abs/{key}", np.abs(golden[key]).max())
        for part, value in oracle.reduced(key, found[key]).items():
            assert_close(value, golden[part], 1e-9, size, part)


CASES = {
    "l2f": {},
    "l2f first order": dict(order=1),
    "maml": dict(attenuate=False),
    "maml first order": dict(attenuate=False, order=1),
    "l2f multi-step": dict(msl_weights=(0.3, 0.7)),
    "maml multi-step first order": dict(
        attenuate=False, msl_weights=(0.3, 0.7), order=1
    ),
    "l2f learned rates": dict(learnable_rates=True),
    "maml learned rates first order": dict(
        attenuate=False, learnable_rates=True, order=1
    ),
    "l2f per-step norm": dict(per_step_norm=True),
    "maml, all of MAML++": dict(
        attenuate=False,
        per_step_norm=True,
        msl_weights=(0.4, 0.6),
        learnable_rates=True,
    ),
    "l2f adapted norm": dict(adapt_norm=True),
    "l2f, all of MAML++": dict(
        per_step_norm=True,
        adapt_norm=True,
        msl_weights=(0.4, 0.6),
        learnable_rates=True,
        conv_bias=True,
        reduction="mean",
    ),
    "l2f strided": dict(pooling="stride"),
    "l2f resnet12": dict(network="resnet12"),
    "maml resnet12 first order": dict(network="resnet12", attenuate=False, order=1),
    "l2f resnet12 multi-step": dict(network="resnet12", msl_weights=(0.3, 0.7)),
}
OF_PARAMS = ("network", "per_step_norm", "adapt_norm", "conv_bias", "pooling")


SLOW = ("l2f resnet12 multi-step",)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(case, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, case in CASES.items()
    ],
)
def test_meta_gradient_equals_the_independent_program(options):
    rng = np.random.default_rng(0)
    shape = {k: v for k, v in options.items() if k in OF_PARAMS}
    params = oracle.initial_params(rng, **shape)
    batch = oracle.random_tasks(rng)
    ours = library_iteration(params, batch, options)
    not_options = ("per_step_norm", "conv_bias")
    theirs = oracle.iteration(
        params, *batch, **{k: v for k, v in options.items() if k not in not_options}
    )
    assert_close(ours["total_loss"], theirs["total_loss"], 1e-10)
    assert_close(ours["query_logits"], theirs["query_logits_per_eval"][:, -1], 1e-10)
    for name, grad in theirs["grads"].items():
        assert_close(ours["grads"][name], grad, 1e-10, name=name)
    for name, tensor in theirs["adapted"].items():
        assert_close(ours["adapted"][name], tensor, 1e-10, name=name)
