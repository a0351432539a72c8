"""The library against the official code: its numbers, and an independent program.

Both speak the official names and layouts; the library reads and writes them through
`interop`. All in float64. The package holds a thinned file of the official numbers; if
the environment variable L2F_JAX_GOLDEN names a whole one, that is compared too.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

from l2f_jax import interop, recipes
from l2f_jax.embeddings import gradients
from l2f_jax.inner import constant
from l2f_jax.learners.gradient import task_view
from l2f_jax.losses import accuracy, cross_entropy, supervised
from l2f_jax.models.conv4 import conv4
from l2f_jax.models.resnet12 import resnet12
from l2f_jax.objectives import multi_step_loss, query_loss
from l2f_jax.official import form_of_params
from l2f_jax.outer import meta_optimiser
from l2f_jax.transforms import attenuate
from l2f_jax.tree import at, everything, is_not_norm, merge
from l2f_jax.types import Batch, Episode

pytestmark = [pytest.mark.mixed_dtypes, pytest.mark.usefixtures("x64")]
GOLDEN = Path(__file__).parent / "golden" / "l2f_conv4_f64.npz"
WHOLE = os.environ.get("L2F_JAX_GOLDEN", "")
INPUTS_AND_CHECKS = ("init/", "batch/", "mean/", "max_abs/")


def episodes(support_x, support_y, query_x, query_y) -> list[Episode]:
    def batch(x, y) -> Batch:
        x = np.moveaxis(x, -3, -1).astype(np.float64)
        return Batch(
            jnp.asarray(x.reshape(-1, *x.shape[-3:])), jnp.asarray(y.reshape(-1))
        )

    tasks = zip(support_x, support_y, query_x, query_y, strict=True)
    return [Episode(batch(a, b), batch(c, d)) for a, b, c, d in tasks]


def library_iteration(params, batch, options) -> dict:
    """Run one iteration of the library on official parameters.

    Returns the keys of `oracle.iteration`, and the MetaParams `meta` and `meta_grads`.
    """
    official = interop.from_official(
        {k: v for k, v in params.items() if is_used(k, options)}, learned_rates=True
    )
    meta = jax.tree.map(jnp.asarray, official.meta)
    model, learner = _learner(params, official, options)
    steps = len(params[oracle.RATES])
    objective = _objective(learner, steps, options)

    @jax.jit
    def run(meta, episode):
        value = jax.value_and_grad(objective.value, has_aux=True)
        (loss, (_, metrics)), grads = value(meta, {}, episode, jnp.zeros((), int), None)
        seen = passes(model, learner, meta, episode, steps, options)
        end = seen.pop("end")
        return loss, metrics["outer/accuracy"], grads, seen, end

    losses, hits, grads, seen, ends = zip(
        *[run(meta, episode) for episode in episodes(*batch)], strict=True
    )
    scale = 1 / len(losses) if options.get("reduction") == "mean" else 1
    total = jax.tree.map(lambda *g: scale * sum(g), *grads)
    names = oracle.inner_names(
        params, official.network, options.get("adapt_norm", False)
    )
    adapted = [interop.to_official(end) for end in ends]
    stacked = jax.tree.map(lambda *values: np.stack(values), *seen)
    paths = form_of_params(official.meta.params, official.rates).adapted
    ranks = np.argsort(np.argsort(paths))  # sorted order to registration order
    for name in {"embedding", "gamma"} & set(stacked):
        stacked[name] = stacked[name][:, ranks]
    return stacked | {
        "meta": meta,
        "meta_grads": total,
        "total_loss": scale * sum(losses),
        "accuracy": np.mean(hits),
        "grads": interop.to_official(total),
        "adapted": {name: np.stack([end[name] for end in adapted]) for name in names},
    }


def _objective(learner, steps, options):
    first_order = options.get("order", 2) == 1
    common = dict(steps=steps, first_order=first_order, scores={"accuracy": accuracy})
    if (weights := options.get("msl_weights")) is None:
        return query_loss(learner, cross_entropy, **common)
    fixed = jnp.asarray(weights)
    return multi_step_loss(learner, cross_entropy, weights=lambda step: fixed, **common)


def passes(model, learner, meta, episode, steps, options) -> dict:
    """Return what is computed on the way, each pass as the library makes it.

    Coefficients are in the library's order. `end` is MetaParams after the last step.
    """
    support, query = episode

    def on_support(params, t):
        logits, _ = model.apply(params, {}, support.inputs, phase="support", step=t)
        return cross_entropy(logits, support.targets), logits

    def on_query(t):
        logits, _ = learner.predict(adapted, t, query.inputs, phase="query")
        return cross_entropy(logits, query.targets), logits

    adapted = learner.adapt(meta, {}, constant(support), steps)
    support_losses, support_logits = jax.lax.map(
        lambda t: on_support(merge(at(adapted.path, t), adapted.shared), t),
        jnp.arange(steps),
    )
    query_losses, query_logits = jax.lax.map(
        on_query, jnp.arange(1 if "msl_weights" in options else steps, steps + 1)
    )
    seen = {
        "support_loss_per_step": support_losses,
        "support_logits_per_step": support_logits,
        "query_loss_per_eval": query_losses,
        "query_logits_per_eval": query_logits,
    }
    if meta.transform:
        view = task_view(learner.loss, {}, support)
        gamma = learner.transform.gamma(meta.transform, meta.params, view)
        embedding = gradients(select=_select(options)).apply(meta.params, view)
        loss, logits = on_support(meta.params, 0)
        seen |= {
            "embedding": embedding,
            "gamma": jnp.concatenate([gamma[path].ravel() for path in sorted(gamma)]),
            "embedding_support_loss": loss,
            "embedding_support_logits": logits,
        }
    last = {path: x[-1] for path, x in adapted.path.items()}
    return seen | {"end": meta._replace(params=meta.params | last)}


def is_used(name: str, options: dict) -> bool:
    return options.get("attenuate", True) or not name.startswith("attenuator")


def _learner(params, official, options):
    ways = len(params[oracle.HEAD[1]])
    if official.network == "conv4":
        kernel = official.meta.params["conv_0/kernel"]
        model = conv4(
            ways,
            filters=kernel.shape[-1],
            stages=sum(x.ndim == 4 for x in official.meta.params.values()),
            conv_bias="conv_0/bias" in official.meta.params,
            pooling=options.get("pooling", "max"),
            norm=official.norm,
        )
    else:
        kernels = [official.meta.params[f"block_{b}/conv_0/kernel"] for b in range(4)]
        widths = [k.shape[-1] for k in kernels]
        model = resnet12(ways, widths=widths, norm=official.norm)
    start = attenuate(select=_select(options))
    learner = recipes.mamlpp(
        model,
        supervised(model, cross_entropy),
        steps=len(params[oracle.RATES]),
        adapt_norm=options.get("adapt_norm", False),
        transform=start if options.get("attenuate", True) else None,
    )
    return model, learner


def _select(options):
    return everything if options.get("adapt_norm") else is_not_norm


def assert_close(ours, official, tolerance, size=None, name=""):
    """Compare to within a share of the largest element of the official array.

    Arrays that are exactly zero but for rounding (the gradient of a convolution's bias
    before batch normalisation) are compared absolutely.
    """
    size = max(np.abs(official).max() if size is None else size, 1e-5)
    np.testing.assert_allclose(
        ours, official, rtol=0, atol=tolerance * size, err_msg=name
    )


def found_in(golden) -> dict:
    """Return the library's numbers under the keys of a golden file."""
    params = {k[5:]: np.float64(v) for k, v in golden.items() if k[:5] == "init/"}
    names = ("support_x", "support_y", "query_x", "query_y")
    found = library_iteration(params, [golden[f"batch/{n}"] for n in names], {})
    meta, grads = found.pop("meta"), found.pop("meta_grads")
    adam = meta_optimiser(1e-3, clip=10.0)
    updates, _ = adam.update(grads, adam.init(meta), meta)
    updated = interop.to_official(optax.apply_updates(meta, updates))
    tensors = {"adapted": found.pop("adapted"), "grad": found.pop("grads")}
    for group, arrays in {**tensors, "adam1": updated}.items():
        found |= {f"{group}/{name}": array for name, array in arrays.items()}
    for name in ("loss", "logits"):
        found[f"final_query_{name}"] = found[f"query_{name}_per_eval"][:, -1]
    network = [x for k, x in found.items() if k.startswith("grad/classifier")]
    found["max_abs_classifier_grad"] = max(np.abs(x).max() for x in network)
    return found


def check_golden(file):
    """Compare every expected array of a golden file."""
    with np.load(file) as content:
        golden = {k: x for k, x in content.items() if x.dtype.kind != "U"}
    found = found_in(golden)
    expected = {key for key in golden if not key.startswith(INPUTS_AND_CHECKS)}
    assert expected <= set(found), f"not compared: {sorted(expected - set(found))}"
    for key in sorted(expected):
        size = golden.get(f"max_abs/{key}", np.abs(golden[key]).max())
        thinned = f"max_abs/{key}" in golden
        parts = oracle.reduced(key, found[key]) if thinned else {key: found[key]}
        for part, value in parts.items():
            assert_close(value, golden[part], 1e-9, size, part)


def test_one_iteration_equals_the_official_numbers():
    check_golden(GOLDEN)


@pytest.mark.skipif(not WHOLE, reason="L2F_JAX_GOLDEN names no file")
def test_one_iteration_equals_a_whole_file_of_official_numbers():
    check_golden(WHOLE)


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


# The others say the same of one option at a time, for two minutes.
FAST = (
    "maml first order",
    "maml learned rates first order",
    "l2f, all of MAML++",
    "l2f strided",
)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(case, id=name, marks=[] if name in FAST else [pytest.mark.slow])
        for name, case in CASES.items()
    ],
)
def test_meta_gradient_equals_the_independent_program(options):
    rng = np.random.default_rng(0)
    shape = {k: v for k, v in options.items() if k in OF_PARAMS}
    if options.get("network") != "resnet12":
        shape["widths"] = (4, 4)  # all four stages are in the golden numbers
    params = oracle.initial_params(rng, **shape)
    batch = oracle.random_tasks(rng)
    ours = library_iteration(params, batch, options)
    not_options = ("per_step_norm", "conv_bias")
    theirs = oracle.iteration(
        params, *batch, **{k: v for k, v in options.items() if k not in not_options}
    )
    for group in ("grads", "adapted"):
        for name, tensor in theirs.pop(group).items():
            assert_close(ours[group][name], tensor, 1e-10, name=name)
    for name, array in theirs.items():
        assert_close(ours[name], array, 1e-10, name=name)
