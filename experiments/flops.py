"""Count the arithmetic of a program's matrix products and convolutions.

XLA's own cost analysis counts the body of a loop once, however often it runs; a jaxpr
tells the length of every scan, so the count here is of what is executed.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr


def flops(program: ClosedJaxpr | Jaxpr) -> int:
    """Return the floating-point operations of all products in a jaxpr.

    A product of [m, k] and [k, n] counts 2 m k n, a convolution 2 per output number and
    kernel number that meets a number of the input there: zeros of padding and dilation,
    which are most of what some gradients of a convolution are written with, count
    nothing, nor does elementwise work. Of the branches of a `cond` the dearest counts;
    a program over several devices counts them all.

    Raises:
      ValueError: products inside a `while`, of which no jaxpr tells the length.
    """
    return sum(map(_equation, program.eqns))


def _equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _product(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    inner = [flops(program) for program in _programs(params)]
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError("the program has products in a `while`, of unknown length")
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":
        return params["mesh"].size * sum(inner)
    return sum(inner)


def _product(equation: Any) -> int:
    left, _ = (variable.aval.shape for variable in equation.invars)
    (contracted, _), _ = equation.params["dimension_numbers"]
    (out,) = equation.outvars
    return 2 * prod(out.aval.shape) * prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    image, kernel = (variable.aval.shape for variable in equation.invars)
    (out,), params = equation.outvars, equation.params
    numbers = params["dimension_numbers"]
    meetings = [
        _meetings(
            image[numbers.lhs_spec[2 + i]],
            kernel[numbers.rhs_spec[2 + i]],
            out.aval.shape[numbers.out_spec[2 + i]],
            params["window_strides"][i],
            params["padding"][i][0],
            params["lhs_dilation"][i],
            params["rhs_dilation"][i],
        )
        for i in range(len(image) - 2)
    ]
    outputs = prod(out.aval.shape[axis] for axis in numbers.out_spec[:2])
    return 2 * outputs * kernel[numbers.rhs_spec[1]] * prod(meetings)


def _meetings(
    side: int, size: int, out: int, stride: int, before: int, apart: int, spread: int
) -> int:
    """Count the pairs of an output and a number of the kernel that meet the input.

    Along one axis, of an input of length `side` with `before` zeros ahead of it and its
    numbers `apart` from each other, and a kernel of length `size`, its own `spread`.
    """
    places = np.arange(out)[:, None] * stride + np.arange(size) * spread - before
    inside = (places >= 0) & (places <= (side - 1) * apart) & (places % apart == 0)
    return int(inside.sum())


def _programs(params: dict[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    """Yield the programs in an equation: loop bodies, branches, called functions."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield part
