"""The paper's tables as families of configs: which runs, and what it reports for them.

    python experiments/tables.py --table=4 --data=cifar_fs --run=runs/cifar_fs

Tables 1 and 2 are Conv4 and ResNet12, 1 and 5 shots; 3 to 6 ablate Conv4 with 5 shots
on mini-ImageNet, here on any data set; 7 is sinusoid regression. Not in the paper:
"rate", MAML with other inner rates beside L2F, because behind a batch normalisation
gamma on a convolution acts as an inner rate of its own; "7_open", what the paper leaves
open of Table 7; "navigation", "direction" and "velocity", Figure 5 as tables.

A cell means the same run in every table of a data set, so tables that share a folder
share their runs.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs.regression import sinusoid
from configs.rl import half_cheetah, navigation


class Table(NamedTuple):
    """A table: its cells, given --data; the data without; what the paper's are of."""

    cells: Callable[[str], Iterator["Cell"]]
    data: str
    paper: str


class Cell(NamedTuple):
    """A row of a table: a run, and what the paper reports for it.

    against: the cell whose scores on the same tasks are subtracted; "" for none.
    paper: inner steps -> score.
    matched: the cell whose gammas' inner rates its run takes, see `rates`; "" for none.
    """

    name: str
    config: ConfigDict
    against: str
    paper: dict[int, float]
    matched: str = ""


PAPER_1 = {  # MAML on conv4: as its own paper has it
    "conv4_1shot": (48.70, 52.10),
    "conv4_5shot": (63.11, 69.38),
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
# Mean returns after so many updates, decoded from what MAML's own code published. Of
# its oracle one number is known, of policies that it did not train only the two ends.
PUBLISHED = {
    "navigation": {
        "maml": {0: -40.4, 1: -11.7, 2: -3.3, 3: -3.2},
        "random": {0: -82.7, 3: -46.8},
        "oracle": {0: -2.3},
    },
    "direction": {
        "maml": {0: -50.7, 1: 293.2, 2: 313.5, 3: 315.7},
        "pretrained": {0: -43.0, 3: 19.6},
        "random": {0: -35.7, 3: 86.2},
        "oracle": {0: 442.7},
    },
    "velocity": {
        "maml": {0: -129.5, 1: -78.6, 2: -66.6, 3: -60.8},
        "pretrained": {0: -158.0, 3: -133.6},
        "random": {0: -254.8, 3: -230.8},
        "oracle": {0: -54.5},
    },
}
OPEN = "one_step/k10"  # the cell of Table 7 whose open settings are varied
RATES = (0.005, 0.02, 0.05, 0.1, 0.2)


def backbones(data: str, paper: dict[str, tuple]) -> Iterator[Cell]:
    """MAML and L2F on each network with each number of shots."""
    for setting, reported in paper.items():
        network, shots = setting.split("_")
        # The runs of the ablations are those of this setting.
        prefix = "" if setting == "conv4_5shot" else f"{setting}_"
        for method, score in zip(("maml", "l2f"), reported, strict=True):
            config = images(data, f"{method},{network},{shots}")
            against = "" if method == "maml" else f"{prefix}maml"
            yield _cell(f"{prefix}{method}", config, against, score)


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
    yield maml(data)
    network = images(data, "protonet")
    yield Cell("protonet", network, "", {})
    # The name of a cell, whose run of the same seed is meant.
    config = ablated(data, "l2f", "transform", prototypes="protonet")
    yield _cell("l2f_prototypes", config, "l2f", 68.73)
    yield _cell("l2f", images(data, "l2f"), "maml", 69.48)  # sic; 69.38 elsewhere


def transformations(data: str) -> Iterator[Cell]:
    """Table 6: generated gammas without sigmoid, and with a shift."""
    yield maml(data)
    for name, score, affine in (("affine", 66.22, True), ("unbounded", 67.56, False)):
        free = {"squash": "none", "affine": affine}
        yield _cell(name, ablated(data, "l2f", "transform", **free), "maml", score)
    yield l2f(data)


def rates(data: str) -> Iterator[Cell]:
    """MAML with other inner rates than the official 0.01; not in the paper.

    One of all convolutions, and those that the gammas of L2F's run of the same seed
    amount to: each convolution's own, alpha / gamma^2.
    """
    yield l2f(data)._replace(against="")
    yield maml(data)._replace(against="l2f")
    matched = _cell("maml_matched", images(data, "maml"), "l2f")
    yield matched._replace(matched="l2f")
    for lr in RATES:
        yield _cell(f"maml_rate_{lr}", ablated(data, "maml", "learner", lr=lr), "l2f")


def sinusoids(data: str) -> Iterator[Cell]:
    """Table 7: mean squared error after 1, 2 and 5 inner steps."""
    if data:
        raise ValueError(
            f"--data ({data!r}): Table 7 makes its own tasks; leave it out"
        )
    for steps in ("one_step", "two_steps"):
        for k in ("k5", "k10", "k20"):
            for method in ("maml", "l2f"):
                yield waves(method, k, steps)


def waves(method: str, k: str, steps: str) -> Cell:
    config = sinusoid.get_config(f"{method},{k},{steps}")
    against = f"{steps}/{k}_maml" if method != "maml" else ""
    paper = dict(zip((1, 2, 5), PAPER_7[method, k], strict=True))
    return Cell(f"{steps}/{k}_{method}", config, against, paper)


def open_settings(data: str) -> Iterator[Cell]:
    """What the paper leaves open of Table 7, one at a time; k = 10, one step."""
    if data:
        raise ValueError(f"--data ({data!r}): this table makes its own tasks")
    plain = f"{OPEN}_maml"
    yield waves("maml", "k10", "one_step")
    yield waves("l2f", "k10", "one_step")
    for name, key, value in (
        ("bias_4", "bias", 4.0),
        ("module", "scope", "module"),
        ("through", "through", True),
    ):
        config = sinusoid.get_config("l2f,k10,one_step")
        config.transform[key] = value
        yield Cell(f"{OPEN}_l2f_{name}", config, plain, {})
    for name in ("rate_0.001", "frequency_1", "disjoint"):
        for method in ("maml", "l2f"):
            ranges = ",disjoint" if name == "disjoint" else ""
            config = sinusoid.get_config(f"{method},k10,one_step{ranges}")
            if name == "rate_0.001":
                config.learner.lr = 0.001
            if name == "frequency_1":
                config.data.train.frequency = (1.0, 1.0)
            against = f"{plain}_{name}" if method != "maml" else ""
            yield Cell(f"{OPEN}_{method}_{name}", config, against, {})


def policies(
    config: Callable[[str], ConfigDict], published: dict[str, dict[int, float]]
) -> Iterator[Cell]:
    """Figure 5 as a table: mean returns after 0 to 3 updates, of MAML's own paper.

    "maml_equal_steps" has as many environment steps in training as L2F, whose transform
    needs trajectories of its own; at test it has fewer, see `configs/rl/navigation.py`.
    "l2f_scale_100" shows g_phi policy gradients of a size that gamma depends on;
    "l2f_same" takes its first inner step on the trajectories that the transform saw.
    """
    yield Cell("maml", config("maml"), "", published["maml"])
    yield Cell("l2f", config("l2f"), "maml", {})
    equal = config("maml,equal_steps")
    yield Cell("maml_equal_steps", equal, "l2f", {})
    scaled, same = config("l2f"), config("l2f")
    scaled.transform.embedding_scale = 100.0
    same.sampling.fresh = False
    yield Cell("l2f_scale_100", scaled, "maml", {})
    yield Cell("l2f_same", same, "maml", {})
    for name in ("first_order", "pretrained", "random", "oracle"):
        reported = published.get(name, {})
        yield Cell(name, config(f"maml,{name}"), "maml", reported)


def searches(
    config: Callable[[str], ConfigDict], published: dict[str, dict[int, float]]
) -> Table:
    def cells(data: str) -> Iterator[Cell]:
        if data:
            raise ValueError(
                f"--data ({data!r}): this table has no images; leave it out"
            )
        return policies(config, published)

    return Table(cells, "", "MAML's published code on its own tasks")


MINI, TIERED = "mini-ImageNet", "tiered-ImageNet"
ABLATION = f"{MINI}, 5-way 5-shot, Conv4, an ensemble of three"
TABLES = {
    "1": Table(
        lambda data: backbones(data or "miniimagenet", PAPER_1), MINI, f"{MINI}, 5-way"
    ),
    "2": Table(
        lambda data: backbones(data or "tieredimagenet", PAPER_2),
        TIERED,
        f"{TIERED}, 5-way",
    ),
    "3": Table(inner_steps, MINI, ABLATION),
    "4": Table(scopes, MINI, ABLATION),
    "5": Table(embeddings, MINI, ABLATION),
    "6": Table(transformations, MINI, ABLATION),
    "7": Table(sinusoids, "", "Table 7"),
    "7_open": Table(open_settings, "", "Table 7"),
    "rate": Table(rates, MINI, ABLATION),
    "navigation": searches(navigation.get_config, PUBLISHED["navigation"]),
    "direction": searches(
        lambda arg: half_cheetah.get_config(f"{arg},direction"), PUBLISHED["direction"]
    ),
    "velocity": searches(
        lambda arg: half_cheetah.get_config(f"{arg},velocity"), PUBLISHED["velocity"]
    ),
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
      variants: further ones, of a cell.
    Raises:
      ValueError: no such config or variant, or one that contradicts the cell's.
    """
    name, _, own = (data or "miniimagenet").partition(":")
    try:
        config = importlib.import_module(f"configs.classification.{name}").get_config
    except (ImportError, AttributeError):
        raise ValueError(
            f"--data ({data!r}): configs/classification has no {name}.py"
        ) from None
    shots = "" if "shot" in variants + own else "5shot"
    try:
        return config(",".join(filter(None, (variants, own, shots))))
    except ValueError as error:
        raise ValueError(f"--data ({data!r}): {error}") from error


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
