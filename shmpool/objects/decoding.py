"""From a buffer back to its object: arrays over the same memory.

Unpickling runs code that the writer chose: peers of a pool trust each other. With *allow* only the
named classes and functions are looked up, besides plain data types of the standard library and
numpy; that keeps mistakes out, it is no sandbox.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Collection
from typing import Any, Final

from ..errors import FormatError, ShmpoolError
from ..system.outside import own_or_called
from . import layout

#: Looked up in any case: data without behaviour.
PLAIN: Final = frozenset(
    {"builtins." + name for name in (
        "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "range", "set", "slice",
        "str", "tuple")}
    | {"collections." + name for name in ("OrderedDict", "deque")}
    | {"datetime." + name for name in ("date", "datetime", "time", "timedelta", "timezone")}
    | {"decimal.Decimal", "fractions.Fraction", "uuid.UUID", "_codecs.encode"}
    | {"numpy." + name for name in ("dtype", "ndarray")}
    | {"numpy._core." + name for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")}
    | {"numpy.core." + name for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")}
    | {"shmpool.objects.rebuilding." + name for name in ("array", "broadcast", "masked")}
)  # fmt: skip


def decode(view: memoryview, allow: Collection[str] | None = None) -> Any:
    """The object in *view*; its arrays are over *view*'s memory, and as writable as it is. Raises
    FormatError for what `encode` did not make or *allow* does not name, else what unpickling raises."""
    if allow is not None:
        check_allow(allow)
    contents = layout.read(view)
    try:
        if allow is None:
            return pickle.loads(contents.pickle, buffers=contents.buffers)
        return _Restricted(io.BytesIO(contents.pickle), contents.buffers, allow).load()
    except (ShmpoolError, MemoryError, Warning):
        raise
    except own_or_called(Exception) as error:
        if _is_users(error):
            raise
        raise FormatError(f"this object cannot be unpickled here: {type(error).__name__}: {error}") from error


def check_allow(allow: Collection[str]) -> None:
    """Raises TypeError for what names no classes: of a str each letter would be one."""
    if (
        isinstance(allow, str | bytes)
        or not hasattr(allow, "__iter__")
        or not all(isinstance(name, str) for name in allow)
    ):
        raise TypeError(f'allow is a set of names like {{"module.qualname"}}, not {allow!r}')


def _is_users(error: Exception) -> bool:
    """Whether code of the object's own raised it (its ``__setstate__``, say), and not unpickling."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] not in _MACHINERY:
            return True
        trace = trace.tb_next
    return False


_MACHINERY: Final = frozenset({"shmpool", "pickle", "copyreg", "importlib", "numpy", "pyarrow", "torch"})


class _Restricted(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, buffers: list[memoryview], allow: Collection[str]) -> None:
        super().__init__(file, buffers=buffers)
        self._allowed = PLAIN.union(allow)

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self._allowed:
            raise FormatError(
                f"the object needs {module}.{name}, which get(allow=) does not name; add {f'{module}.{name}'!r} if its"
                " writer is trusted"
            )
        return super().find_class(module, name)
