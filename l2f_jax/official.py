"""The networks of the official L2F code: names, order and shapes of their tensors.

The order is that in which the official code registers its modules, and so that of its
inner rates and of its attenuator's inputs and outputs.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

RATES = "task_learning_rate"
PREFIX = "classifier.layer_dict."
ATTENUATOR = {
    "attenuator.0.weight": "layer_0/kernel",
    "attenuator.0.bias": "layer_0/bias",
    "attenuator.2.weight": "layer_1/kernel",
    "attenuator.2.bias": "layer_1/bias",
}

NEUTRAL = {"scale": 1, "shift": 0}  # of a norm, where it is not learned
AXES = {"batch": {1, 2}, "layer": {3}}  # of a norm's shift: [C], [steps, C]; [H, W, C]

Arrays = dict[str, Any]  # official name or path -> np.ndarray


class Layer(NamedTuple):
    """A convolution and its norm: our path, the official name, whose output it sees."""

    conv: str
    norm: str
    official_conv: str
    official_norm: str
    source: str


class Form(NamedTuple):
    """Which of the official networks a set of tensors belongs to.

    stages: of Conv4; blocks of ResNet12, which has 4.
    norm: "batch" or, for Conv4 alone, "layer", whose scale is constant.
    constant: which of "scale", "shift" of the norm layers are not learned; the official
      code stores them, here they are no parameters.
    """

    network: str
    stages: int
    norm: str
    conv_bias: bool
    constant: tuple[str, ...]
    attenuate: bool
    adapts_norm: bool

    @property
    def layers(self) -> list[Layer]:
        """The convolutions in registration order."""
        blocks = _conv4_stage if self.network == "conv4" else _resnet12_block
        return [layer for b in range(self.stages) for layer in blocks(b)]

    @property
    def tensors(self) -> dict[str, str]:
        """{official name: path} in registration order: shift before scale."""
        names = {}
        for layer in self.layers:
            names[f"{layer.official_conv}.weight"] = f"{layer.conv}/kernel"
            if self.conv_bias:
                names[f"{layer.official_conv}.bias"] = f"{layer.conv}/bias"
            names[f"{layer.official_norm}.bias"] = f"{layer.norm}/shift"
            names[f"{layer.official_norm}.weight"] = f"{layer.norm}/scale"
        names |= {"linear.weights": "head/kernel", "linear.bias": "head/bias"}
        return {PREFIX + name: path for name, path in names.items()}

    @property
    def names(self) -> dict[str, str]:
        """{official name: path} of the tensors that are parameters here."""
        return {k: path for k, path in self.tensors.items() if not self._omits(path)}

    @property
    def constants(self) -> dict[str, str]:
        """{official name: "scale" or "shift"} of the tensors that are none."""
        omitted = {k: path for k, path in self.tensors.items() if self._omits(path)}
        return {name: path.rpartition("/")[2] for name, path in omitted.items()}

    def _omits(self, path: str) -> bool:
        return path.rpartition("/")[2] in self.constant

    @property
    def adapted(self) -> list[str]:
        """Paths of the adapted tensors in registration order."""
        paths = self.names.values()
        return [path for path in paths if self.adapts_norm or "norm" not in path]


def _conv4_stage(b: int) -> list[Layer]:
    conv, norm = f"conv{b}.conv", f"conv{b}.norm_layer"
    return [Layer(f"conv_{b}", f"norm_{b}", conv, norm, f"conv_{b - 1}")]


def _resnet12_block(b: int) -> list[Layer]:
    before, rows = f"block_{b - 1}/conv_2", []
    for conv, norm, official_conv, official_norm, source in (
        ("conv_0", "norm_0", "conv1.conv", "conv1.norm_layer", before),
        ("conv_1", "norm_1", "conv2.conv", "conv2.norm_layer", f"block_{b}/conv_0"),
        ("conv_2", "norm_2", "conv3", "norm_layer", f"block_{b}/conv_1"),
        ("shortcut", "shortcut_norm", "shortcut_conv", "shortcut_norm_layer", before),
    ):
        ours = f"block_{b}/{conv}", f"block_{b}/{norm}"
        theirs = f"layer{b}.{official_conv}", f"layer{b}.{official_norm}"
        rows.append(Layer(*ours, *theirs, source))
    return rows


def form_of_state(tensors: Arrays, constant: tuple[str, ...]) -> Form:
    """Guess from telling names; whether all the others are there is checked later."""
    resnet12 = any(name.startswith(f"{PREFIX}layer") for name in tensors)
    shift = tensors.get(f"{PREFIX}conv0.norm_layer.bias", np.zeros(0))
    norm = "layer" if shift.ndim in AXES["layer"] else "batch"
    if norm == "layer":
        constant = ("scale", *constant)
    form = Form(
        network="resnet12" if resnet12 else "conv4",
        stages=4 if resnet12 else _stages(tensors, rf"{re.escape(PREFIX)}conv(\d+)\."),
        norm=norm,
        conv_bias=f"{PREFIX}conv0.conv.bias" in tensors,
        constant=constant,
        attenuate=any(name.startswith("attenuator.") for name in tensors),
        adapts_norm=False,
    )
    rates = tensors.get(RATES, np.zeros((0, 0)))
    forms = [form, form._replace(adapts_norm=True)]
    fitting = [form for form in forms if rates.shape[1:] == (len(form.adapted),)]
    return (*fitting, form)[0]


def form_of_params(params: Arrays, rates: Arrays) -> Form:
    """Find the network that has these paths, and adapts the tensors that have rates.

    Raises ValueError if the official code has none.
    """
    kinds = {path.rpartition("/")[2] for path in params}
    axes = {x.ndim for path, x in params.items() if path.endswith("/shift")}
    resnet12 = "block_0/conv_0/kernel" in params
    form = Form(
        network="resnet12" if resnet12 else "conv4",
        stages=4 if resnet12 else _stages(params, r"conv_(\d+)/"),
        norm="layer" if axes == AXES["layer"] else "batch",
        conv_bias="conv_0/bias" in params,
        constant=tuple(kind for kind in NEUTRAL if kind not in kinds),
        attenuate=False,
        adapts_norm=False,
    )
    known = axes <= AXES[form.norm] and (form.norm == "batch" or not resnet12)
    if not known or set(form.names.values()) != set(params):
        raise ValueError(
            f"`meta.params` ({', '.join(params)}) must have the paths of conv4 with "
            "batch or layer norm, or of resnet12 with batch norm"
        )
    forms = [form, form._replace(adapts_norm=True)]
    fitting = [form for form in forms if set(form.adapted) == set(rates)]
    shapes = {x.shape for x in rates.values()}
    if not fitting or len(shapes) != 1 or len(*shapes) != 1:
        raise ValueError(
            f"`rates` (of {', '.join(rates) or 'nothing'}) must be [steps] for every "
            "tensor of `meta.params`, or for every one outside the norm layers"
        )
    return fitting[0]


def _stages(names: Iterable[str], pattern: str) -> int:
    """Return how many stages the names tell of, at least 1."""
    found = {match[1] for name in names if (match := re.match(pattern, name))}
    return max(len(found), 1)


def check_state(form: Form, tensors: Arrays) -> None:
    """Raise ValueError naming every tensor missing, left over or of a wrong shape, and
    every constant of a wrong value.
    """
    expected = [RATES, *form.tensors, *(ATTENUATOR if form.attenuate else ())]
    faults = [f"'{name}' is missing" for name in expected if name not in tensors]
    faults += [f"'{name}' is left over" for name in tensors if name not in expected]
    for name, shape in {} if faults else _shapes(form, tensors).items():
        found = tensors[name].shape
        pairs = zip(found, shape, strict=False)
        if len(found) != len(shape) or any(b not in (a, None) for a, b in pairs):
            sides = ", ".join("any" if side is None else str(side) for side in shape)
            faults.append(f"'{name}' has shape {found}, expected ({sides})")
    for name, kind in ({} if faults else form.constants).items():
        if np.any(tensors[name] != NEUTRAL[kind]):
            faults.append(f"'{name}' is learned, not constant {NEUTRAL[kind]}")
    if faults:
        raise ValueError(
            f"`state` is no official {form.network} checkpoint: {'; '.join(faults)}"
        )


def _shapes(form: Form, tensors: Arrays) -> dict[str, tuple[int | None, ...]]:
    """Return {official name: shape} as implied by the widths; None: any."""
    found = {path: tensors[name].shape for name, path in form.tensors.items()}
    first = form.layers[0]
    # A tensor of too few axes has no width; it is refused below for its own shape.
    width = {path: (*shape, None)[0] for path, shape in found.items()}
    image = (*found[f"{first.conv}/kernel"], None, None)[1]
    scale = found[f"{first.norm}/scale"]
    steps = scale[:-1] if len(scale) == 2 else ()
    n, ways = len(form.adapted), width["head/kernel"]
    shapes = {"head/kernel": (ways, None), "head/bias": (ways,)}
    for layer in form.layers:
        # The shortcut is added to the block's last convolution.
        out = width[f"{layer.conv.replace('shortcut', 'conv_2')}/kernel"]
        size = 1 if "shortcut" in layer.conv else 3
        inputs = width.get(f"{layer.source}/kernel", image)
        shapes[f"{layer.conv}/kernel"] = (out, inputs, size, size)
        shapes[f"{layer.conv}/bias"] = (out,)
        shift = found[f"{layer.norm}/shift"]
        sides = (*shift[1:], None, None)[:2]
        affine = (out, *sides) if form.norm == "layer" else (*steps, out)
        shapes[f"{layer.norm}/scale"] = shapes[f"{layer.norm}/shift"] = affine
    expected = {name: shapes[path] for name, path in form.tensors.items()}
    if form.attenuate:
        expected |= dict(zip(ATTENUATOR, [(n, n), (n,)] * 2, strict=True))
    return {RATES: (None, n), **expected}
