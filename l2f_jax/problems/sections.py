"""A config section names a component; its other keys are the component's arguments."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Section = Mapping[str, Any]


def select(
    section: Section,
    where: str,
    choices: Mapping[str, Callable],
    **context: Any,
) -> Any:
    """Call the component that `section.name` chooses, see `call`.

    Raises:
      ValueError: no component of that name, and what `call` raises.
    """
    options = dict(section)
    name = options.pop("name", None)
    if name not in choices:
        raise ValueError(
            f"`{where}.name` ({name!r}) must be one of {', '.join(choices)}"
        )
    return call(choices[name], options, where, **context)


def call(component: Callable, options: Section, where: str, **context: Any) -> Any:
    """Call a component with a section's keys and with context that is no config.

    Raises:
      ValueError: a key that the component does not take, or one that it needs; or the
        component's own, where each argument that is one of the keys has its section.
    """
    arguments = inspect.signature(component).parameters
    free = {k: v for k, v in arguments.items() if k not in context}
    prefix = f"{where}." if where else ""
    for key in options:
        if key not in free:
            raise ValueError(
                f"`{prefix}{key}` is no option here; the options are {', '.join(free)}"
            )
    for key, argument in free.items():
        if key not in options and argument.default is argument.empty:
            raise ValueError(f"`{prefix}{key}` is missing from the config")
    try:
        return component(**options, **context)
    except ValueError as error:
        located = _located(str(error), options, prefix)
        if located == str(error):  # such as an error with a class of its own
            raise
        raise ValueError(located) from error


def _located(message: str, options: Section, prefix: str) -> str:
    """Return a component's message with `name` as the config's key `section.name`."""

    def key(match: re.Match) -> str:
        return f"`{prefix}{match[1]}`" if match[1] in options else match[0]

    return re.sub(r"`(\w+)`", key, message)


def check_least(section: str, values: dict, least: dict[str, int]) -> None:
    """Raise ValueError for a value of a config's section below its least."""
    for name, minimum in least.items():
        if not values[name] >= minimum:
            raise ValueError(
                f"`{section}.{name}` ({values[name]}) must be at least {minimum}"
            )


class Range(NamedTuple):
    """Numbers that an option may have: whether it holds one, and which they are."""

    holds: Callable[[float], bool]
    text: str


POSITIVE = Range(lambda x: x > 0, "above 0")
INSIDE = Range(lambda x: 0 < x < 1, "above 0 and below 1")
SHARE = Range(lambda x: 0 <= x <= 1, "at least 0 and at most 1")


def check_ranges(section: str, values: dict, ranges: Mapping[str, Range]) -> None:
    """Raise ValueError for a value of a config's section outside its range."""
    for name, allowed in ranges.items():
        if not allowed.holds(values[name]):
            raise ValueError(
                f"`{section}.{name}` ({values[name]}) must be {allowed.text}"
            )
