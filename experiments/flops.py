"""Count the arithmetic of a program's matrix products and convolutions.

XLA's own cost analysis counts the body of a loop once, however often it runs; a jaxpr
tells the length of every scan, so the count here is of what is executed.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def flops(program: ClosedJaxpr | Jaxpr) -> int:
    """Return the floating-point operations of all products in a jaxpr.

    A product of [m, k] and [k, n] counts 2 m k n, a convolution 2 per output number and
    kernel number that it sees, padding included. Elementwise work counts nothing. Of
    the branches of a `cond` the dearest counts; a program over several devices counts
    them all.

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
    kernel = equation.invars[1].aval.shape
    filters = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    (out,) = equation.outvars
    return 2 * prod(out.aval.shape) * prod(kernel) // filters


def _programs(params: dict[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    """Yield the programs in an equation: loop bodies, branches, called functions."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield part
