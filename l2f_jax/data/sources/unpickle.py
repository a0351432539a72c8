"""Read the pickles of published data sets without running code from them.

A pickle may name any function to be called when it is loaded. Here only what builds
NumPy arrays and plain containers is found; everything else is refused by its name.
"""

import codecs
import pickle
from typing import Any, BinaryIO

import numpy as np
from numpy._core import multiarray, numeric

_NUMPY: dict[str, Any] = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": multiarray._reconstruct,  # type: ignore[attr-defined]
    "scalar": multiarray.scalar,  # type: ignore[attr-defined]
    "_frombuffer": numeric._frombuffer,  # type: ignore[attr-defined]
}


def _encode(text: str, encoding: str) -> bytes:
    """Stand for `_codecs.encode`, by which protocol 2 spells bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return codecs.latin_1_encode(text)[0]


def _defaultdict(factory: Any = None, *items: Any) -> dict:
    """Stand for `collections.defaultdict`, without its factory."""
    return dict(*items)


_STANDARD: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): dict,
    ("collections", "defaultdict"): _defaultdict,
} | {
    (module, kind.__name__): kind
    for module in ("builtins", "__builtin__")  # the latter is that of Python 2
    for kind in (list, dict, set, frozenset, tuple)
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) in _STANDARD:
            return _STANDARD[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load(file: BinaryIO, where: str) -> Any:
    """Return what a pickle holds; text of Python 2 is read as Latin-1.

    Raises ValueError naming `where` if the pickle is damaged or asks for anything but
    arrays and plain containers.
    """
    try:
        return _Unpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{where}: refused to unpickle, {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(f"{where}: not a readable pickle ({error})") from None


def load_entries(file: BinaryIO, where: str, *keys: str) -> list[Any]:
    """Return the named entries of the dictionary in a pickle; else as `load`."""
    content = load(file, where)
    if not isinstance(content, dict):
        raise ValueError(f"{where}: holds {type(content).__name__}, not a dictionary")
    named = {text(key): value for key, value in content.items()}
    for key in keys:
        if key not in named:
            raise ValueError(f"{where}: has no entry {key!r}")
    return [named[key] for key in keys]


def text(value: Any) -> str:
    """Decode bytes, as old pickles have for names."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
