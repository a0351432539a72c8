"""The eager PyTorch loop that training steps are timed against does the same work.

Where PyTorch is installed: losses and meta-gradients of one task equal the library's.
"""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from experiments import peer  # noqa: E402
from l2f_jax import cross_entropy, l2f, maml, query_loss, supervised  # noqa: E402
from l2f_jax.losses import squared_error  # noqa: E402
from l2f_jax.models.conv4 import conv4  # noqa: E402
from l2f_jax.models.mlp import mlp  # noqa: E402
from l2f_jax.types import Batch, Episode, MetaParams  # noqa: E402

STEPS = 2
SIZES = {"shots": 2, "queries": 3, "ways": 3, "size": 16, "channels": 2, "filters": 4}
RECIPES = {"maml": maml, "l2f": l2f}


def path_of(name: str) -> str:
    """Return our path of a tensor of the peer's."""
    kind, _, number = name.partition("_")
    if kind == "head" or name in ("weight_2", "bias_2"):
        return "head/bias" if kind == "bias" else "head/kernel"
    if name == "bias":
        return "head/bias"
    layer = {"kernel": "conv", "scale": "norm", "shift": "norm"}.get(kind, "dense")
    return f"{layer}_{number}/{'kernel' if kind == 'weight' else kind}"


def to_ours(x: np.ndarray) -> np.ndarray:
    """Lay a weight out as ours: [out, in, h, w] -> [h, w, in, out]."""
    return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T if x.ndim == 2 else x


def inputs_to_ours(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def phi_to_ours(weights: list, places: list[int]) -> dict[str, np.ndarray]:
    """Lay out the four tensors of an attenuator, or their gradients, as ours.

    Args:
      places: of each of the peer's gammas among ours.
    """
    phi = {}
    for i, (weight, bias) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
        kernel, moved = np.empty((len(places), len(places))), np.empty(len(places))
        kernel[np.ix_(places, places)], moved[places] = weight.T, bias
        phi |= {f"layer_{i}/kernel": kernel, f"layer_{i}/bias": moved}
    return phi


def arrays(tensors) -> list[np.ndarray]:
    return [x.detach().numpy() for x in tensors]


@pytest.fixture(params=["sinusoids", "images"])
def problem(request):
    """Return the peer's problem, its tensors by our paths, network and criterion."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    found = peer.PROBLEMS[request.param](SimpleNamespace(**SIZES, device="cpu"))
    held = found.episode()
    found = found._replace(episode=lambda: held)
    tensors = {path_of(name): x for name, x in found.params.items()}
    if request.param == "images":
        norms = [
            f"norm_{i}/{k}" for i in range(peer.STAGES) for k in ("scale", "shift")
        ]
        tensors |= dict(zip(norms, found.others, strict=True))
        network = conv4(SIZES["ways"], filters=SIZES["filters"]), cross_entropy
    else:
        network = mlp(1), squared_error
    for x in tensors.values():
        x.requires_grad_()
    yield found, tensors, *network
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("method", ["maml", "l2f"])
def test_meta_gradients_are_the_same(problem, method, first_order):
    theirs, tensors, network, criterion = problem
    paths = [path_of(name) for name in theirs.params]
    generator = peer.attenuator(len(paths)) if method == "l2f" else None
    learned = [*tensors.values(), *(generator.parameters() if generator else ())]
    loss = peer.task_loss(theirs, generator, STEPS, second=not first_order)
    gradients = torch.autograd.grad(loss, learned)

    def to_meta(values: list[np.ndarray]) -> MetaParams:
        params = {path: to_ours(x) for path, x in zip(tensors, values, strict=False)}
        phi = values[len(tensors) :]
        places = [sorted(paths).index(path) for path in paths]
        return MetaParams(
            dict(sorted(params.items())), phi_to_ours(phi, places) if phi else (), ()
        )

    x, y, query_x, query_y = arrays(theirs.episode())
    episode = Episode(
        Batch(inputs_to_ours(x), y), Batch(inputs_to_ours(query_x), query_y)
    )
    learner = RECIPES[method](network, supervised(network, criterion), lr=peer.LR)
    objective = query_loss(learner, criterion, steps=STEPS, first_order=first_order)

    def value(meta):
        return objective.value(meta, {}, episode, 0, None)[0]

    ours, found = jax.value_and_grad(value)(to_meta(arrays(learned)))
    np.testing.assert_allclose(ours, loss.item(), rtol=1e-12)
    wanted = to_meta(arrays(gradients))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max())
