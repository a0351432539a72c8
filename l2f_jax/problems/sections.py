"""A config section names a component; its other keys are the component's arguments."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

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
      ValueError: a key that the component does not take, or one that it needs.
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
    return component(**options, **context)
