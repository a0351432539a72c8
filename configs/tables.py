"""The paper's tables as families of configs: which runs, and what it reports for them.

    python experiments/tables.py --table=4 --data=cifar_fs --run=runs/cifar_fs

Tables 1 and 2 are Conv4 and ResNet12, 1 and 5 shots; 3 to 6 ablate Conv4 with 5 shots
on mini-ImageNet, here on any data set; 7 is sinusoid regression. "rate" is not in the
paper: MAML with other inner rates beside L2F, because behind a batch normalisation
gamma on a convolution acts as an inner rate of its own. A cell means the same run in
every table, so tables that share a folder share their runs.

Accuracies are of mini-ImageNet (tiered-ImageNet in Table 2), in percent; "±" in the
paper is over test tasks of one model.
"""

import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs.regression import sinusoid


class Cell(NamedTuple):
    """A row of a table: a run, and what the paper reports for it.

    against: the cell whose scores on the same tasks are subtracted; "" for none.
    paper: inner steps -> score.
    """

    name: str
    config: ConfigDict
    against: str
    paper: dict[int, float]


PAPER_1 = {
    "conv4_1shot": (None, 52.10),
    "conv4_5shot": (63.94, 69.38),
    "resnet12_1shot": (51.03, 57.48),
    "resnet12_5shot": (68.26, 74.68),
}
PAPER_2 = {
    "conv4_1shot": (49.06, 54.40),
    "conv4_5shot": (67.48, 73.34),
    "resnet12_1shot": (58.58, 63.94),
    "resnet12_5shot": (71.24, 77.61),
}
PAPER_3 = {
    "maml": (56.93, 55.63, 58.79, 62.72, 63.94, 64.54),
    "l2f": (68.16, 66.85, 68.61, 68.66, 69.38),
}
PAPER_4 = {"parameter": 64.7, "filter": 65.35, "layer": 68.49, "network": 67.84}
PAPER_7 = {
    ("maml", "k5"): (1.2247, 1.0268, 0.8995),
    ("maml", "k10"): (0.9884, 0.6192, 0.4072),
    ("maml", "k20"): (0.6144, 0.3346, 0.1817),
    ("l2f", "k5"): (1.0537, 0.8426, 0.7096),
    ("l2f", "k10"): (0.8069, 0.5317, 0.3696),
    ("l2f", "k20"): (0.5475, 0.2805, 0.1629),
}
RATES = (0.005, 0.02, 0.05, 0.1, 0.2)


def backbones(data: str, paper: dict[str, tuple]) -> Iterator[Cell]:
    """MAML and L2F on each network with each number of shots."""
    for setting, reported in paper.items():
        network, shots = setting.split("_")
        for method, score in zip(("maml", "l2f"), reported, strict=True):
            config = images(data, f"{method},{network},{shots}")
            against = "" if method == "maml" else f"{setting}_maml"
            yield _cell(f"{setting}_{method}", config, against, score)


def inner_steps(data: str) -> Iterator[Cell]:
    """Table 3: trained and tested with 1 to 6 inner steps."""
    for method, reported in PAPER_3.items():
        for steps, score in enumerate(reported, start=1):
            config = ablated(data, method, "learner", steps=steps)
            against = "" if method == "maml" else _steps("maml", steps)
            yield _cell(_steps(method, steps), config, against, score)


def scopes(data: str) -> Iterator[Cell]:
    """Table 4: one learned gamma for each part of a scope, the same for all tasks."""
    yield maml(data)
    for scope, score in PAPER_4.items():
        free = {"scope": scope, "conditioned": False, "squash": "none"}
        config = ablated(data, "l2f", "transform", **free)
        yield _cell(f"free_{scope}", config, "maml", score)
    yield l2f(data)


def embeddings(data: str) -> Iterator[Cell]:
    """Table 5: gammas from the prototypes of a trained ProtoNet, or gradients."""
    network = images(data, "protonet")
    yield Cell("protonet", network, "", {})
    # The name of a cell, whose run of the same seed is meant.
    config = ablated(data, "l2f", "transform", prototypes="protonet")
    yield _cell("l2f_prototypes", config, "l2f", 68.73)
    yield l2f(data)._replace(against="")


def transformations(data: str) -> Iterator[Cell]:
    """Table 6: generated gammas without sigmoid, and with a shift."""
    yield maml(data)
    for name, score, affine in (("affine", 66.22, True), ("unbounded", 67.56, False)):
        free = {"squash": "none", "affine": affine}
        yield _cell(name, ablated(data, "l2f", "transform", **free), "maml", score)
    yield l2f(data)


def rates(data: str) -> Iterator[Cell]:
    """MAML with other inner rates than the official 0.01; not in the paper."""
    yield maml(data)
    for lr in RATES:
        yield _cell(f"maml_rate_{lr}", ablated(data, "maml", "learner", lr=lr), "maml")
    yield l2f(data)


def sinusoids(data: str) -> Iterator[Cell]:
    """Table 7: mean squared error after 1, 2 and 5 inner steps."""
    if data:
        raise ValueError(
            f"--data ({data!r}): Table 7 makes its own tasks; leave it out"
        )
    for steps in ("one_step", "two_steps"):
        for k in ("k5", "k10", "k20"):
            for method in ("maml", "l2f"):
                config = sinusoid.get_config(f"{method},{k},{steps}")
                against = f"{steps}/{k}_maml" if method != "maml" else ""
                paper = dict(zip((1, 2, 5), PAPER_7[method, k], strict=True))
                yield Cell(f"{steps}/{k}_{method}", config, against, paper)


TABLES = {
    "1": lambda data: backbones(data or "miniimagenet", PAPER_1),
    "2": lambda data: backbones(data or "tieredimagenet", PAPER_2),
    "3": inner_steps,
    "4": scopes,
    "5": embeddings,
    "6": transformations,
    "7": sinusoids,
    "rate": rates,
}


def maml(data: str) -> Cell:
    return _cell("maml", images(data, "maml"), "", 63.94)


def l2f(data: str) -> Cell:
    return _cell("l2f", images(data, "l2f"), "maml", 69.38)


def images(data: str, variants: str) -> ConfigDict:
    """Return a config of `configs/classification`.

    Args:
      data: its name, with variants after a colon, as "icons:1shot"; 5 shots otherwise,
        and mini-ImageNet if it is empty.
      variants: further ones; they come first.
    Raises:
      ValueError: no such config or variant.
    """
    name, _, own = (data or "miniimagenet").partition(":")
    try:
        module = importlib.import_module(f"configs.classification.{name}")
    except ImportError:
        raise ValueError(
            f"--data ({data!r}): configs/classification has no {name}.py"
        ) from None
    shots = "" if "shot" in variants + own else "5shot"
    return module.get_config(",".join(filter(None, (variants, own, shots))))


def ablated(data: str, method: str, section: str, **changes: Any) -> ConfigDict:
    """Return a method's config with some keys of a section changed."""
    config = images(data, method)
    config[section].update(changes)
    return config


def _steps(method: str, steps: int) -> str:
    """Name a cell by its inner steps; the official 5 are the method's plain cell."""
    return method if steps == 5 else f"{method}_{steps}_steps"


def _cell(
    name: str, config: ConfigDict, against: str, percent: float | None = None
) -> Cell:
    paper = {} if percent is None else {config.learner.steps: percent / 100}
    return Cell(name, config, against, paper)
