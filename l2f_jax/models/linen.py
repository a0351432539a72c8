"""Any Flax linen module as a model."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from l2f_jax.types import Array, Model, Params, Phase, Stats


def _no_arguments(phase: Phase) -> Mapping[str, Any]:
    del phase
    return {}


def from_linen(
    module: nn.Module,
    arguments: Callable[[Phase], Mapping[str, Any]] = _no_arguments,
) -> Model:
    """Wrap a linen module whose call takes the inputs and returns the outputs.

    The collection "params" becomes the parameters and "batch_stats" the statistics,
    with paths joined by "/": "Conv_0/kernel", "BatchNorm_0/scale". Recipes know norm
    layers by "norm" in these, so keep it in names that you give. A module with other
    collections is refused by `init`. Dropout draws from the key of `apply`; with
    `key=None` the module must be deterministic. The inner step is not passed on.

    Args:
      module: the network.
      arguments: the keyword arguments of the call in a phase, static values, such as
        `lambda phase: {"train": phase != "test"}`; none by default.
    """

    def init(key: Array, inputs: Array) -> tuple[Params, Stats]:
        variables = module.init(key, inputs, **arguments("test"))
        unknown = sorted(set(variables) - {"params", "batch_stats"})
        if unknown:
            raise ValueError(
                f"`module` has collections {unknown}; only params, batch_stats work"
            )
        params = _flat(variables.get("params", {}))
        return params, _flat(variables.get("batch_stats", {}))

    def apply(
        params: Params,
        stats: Stats,
        inputs: Array,
        *,
        phase: Phase = "support",
        step: Array | int = 0,
        key: Array | None = None,
    ) -> tuple[Array, Stats]:
        del step  # linen modules do not know of inner steps
        variables = {
            "params": unflatten_dict(params, sep="/"),
            "batch_stats": unflatten_dict(stats, sep="/"),
        }
        outputs, changed = module.apply(
            variables,
            inputs,
            **arguments(phase),
            rngs=None if key is None else {"dropout": key},
            mutable=["batch_stats"],
        )
        return outputs, stats | _flat(changed.get("batch_stats", {}))

    return Model(init, apply)


def _flat(tree: Any) -> dict[str, Array]:
    return dict(sorted(flatten_dict(tree, sep="/").items()))
