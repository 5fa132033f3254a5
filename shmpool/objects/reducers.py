"""Which objects travel otherwise than pickle would send them, and how.

A reducer is a function of the object and the encoder that returns what ``__reduce__`` does, or
NotImplemented; ``encoder.out_of_band(array)`` stands for an array that leaves the pickle. Those of
numpy, pyarrow and torch are made when their module has been imported: an object of theirs cannot
be met before.
"""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

from ..system.outside import own
from . import rebuilding
from .layout import HAS_TENSORS

Reducer = Callable[[Any, Any], Any]

#: What `register_reducer` was told, by exact type.
registered: dict[type, Reducer] = {}
#: By exact type; None for a type that pickle serves well.
_known: dict[type, Reducer | None] = {}
_lock: Final = threading.RLock()


def register_reducer(cls: type, function: Callable[[Any], Any]) -> None:
    """Have `put` reduce objects of exactly *cls* by *function*, which takes the object and returns
    what ``__reduce__`` may return; `pickle.PickleBuffer` in it travels out of band. None as
    *function* takes the registration back. For this process; thread-safe; comes before the reducers
    of the package."""
    if not isinstance(cls, type):
        raise TypeError(f"register_reducer takes a class, not {cls!r}")
    if function is not None and not callable(function):
        raise TypeError(f"the reducer of {cls.__qualname__} must be callable, not {function!r}")
    with _lock:
        if function is None:
            registered.pop(cls, None)
        else:
            registered[cls] = lambda obj, encoder: function(obj)
        _known.pop(cls, None)


def find(cls: type) -> Reducer | None:
    """The reducer of objects of exactly this class."""
    try:
        return _known[cls]
    except own(KeyError):
        with _lock:
            _known[cls] = reducer = registered.get(cls) or _builtin(cls)
        return reducer


def _builtin(cls: type) -> Reducer | None:
    module = cls.__module__.partition(".")[0]
    if module == "numpy":
        np = sys.modules["numpy"]
        return {np.ndarray: _reduce_array, np.ma.MaskedArray: _reduce_masked}.get(cls)
    if module == "pyarrow":
        pa = sys.modules["pyarrow"]
        if issubclass(cls, pa.Table | pa.RecordBatch | pa.Array | pa.ChunkedArray):
            return _reduce_arrow
    if module == "torch":
        torch = sys.modules["torch"]
        return {torch.Tensor: _reduce_tensor, torch.nn.Parameter: _reduce_parameter}.get(cls)
    return None


# --- numpy ---------------------------------------------------------------------------------------

#: What is smaller stays in the pickle, as numpy itself puts it there.
_SMALL: Final = 1024


#: Kinds whose arrays numpy lets go of as buffers.
_PLAIN_KINDS: Final = "biufcSU"


def _reduce_array(array: Any, encoder: Any) -> Any:
    dtype, flags = array.dtype, array.flags
    if dtype.kind in _PLAIN_KINDS and dtype.isbuiltin and (flags.c_contiguous or flags.f_contiguous):
        return NotImplemented  # numpy's own way is the same, and faster
    if dtype.hasobject or not dtype.itemsize:
        return NotImplemented
    if array.size and 0 in array.strides and (compact := _compact(array)).nbytes < array.nbytes:
        return rebuilding.broadcast, (compact, array.shape)
    if array.nbytes < _SMALL and array.dtype.kind not in "mM":  # numpy's own way forgets their byte order
        return NotImplemented
    order = "F" if array.flags.fnc else "C"
    return rebuilding.array, (encoder.out_of_band(_bytes_of(array, order)), array.dtype, array.shape, order)


def _compact(array: Any) -> Any:
    """A broadcast array's real elements."""
    return array[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)]


def _bytes_of(array: Any, order: str) -> Any:
    """An array as one that any buffer consumer takes, in the order that it is to lie in: C
    contiguous, of bytes where its own kind cannot be exported (datetime64, bfloat16)."""
    if order == "F":
        array = array.T
    if array.flags.c_contiguous:
        return array.reshape(-1).view("u1")
    if array.dtype.isbuiltin == 1 and array.dtype.kind not in "mM":
        return array
    return array.view(f"V{array.dtype.itemsize}")


def _reduce_masked(array: Any, encoder: Any) -> Any:
    if array.dtype.hasobject or array.nbytes < _SMALL or vars(array).get("_optinfo"):
        return NotImplemented
    return rebuilding.masked, (array.data, array.mask, array.fill_value, array.hardmask)


# --- pyarrow -------------------------------------------------------------------------------------


def _reduce_arrow(data: Any, encoder: Any) -> Any:
    """A slice pickles all of its parent; an IPC stream has its own bytes only."""
    pa = sys.modules["pyarrow"]
    if data.get_total_buffer_size() - data.nbytes < max(_SMALL, data.nbytes // 8):
        return NotImplemented
    if isinstance(data, pa.Table):
        kind, table = "table", data
    elif isinstance(data, pa.RecordBatch):
        kind, table = "batch", pa.Table.from_batches([data])
    else:
        kind, table = ("chunked" if isinstance(data, pa.ChunkedArray) else "array"), pa.table({"": data})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return rebuilding.table, (pickle.PickleBuffer(sink.getvalue()), kind)


# --- torch ---------------------------------------------------------------------------------------


def _reduce_tensor(tensor: Any, encoder: Any) -> Any:
    """A dense tensor of this host's memory, by its bytes: torch's own way puts them into the pickle."""
    torch = sys.modules["torch"]
    is_plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not is_plain or not tensor.is_leaf or vars(tensor):
        return NotImplemented
    # Conjugated and negated views are flags on other bytes.
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
    encoder.flags |= HAS_TENSORS
    return rebuilding.tensor, (flat, tensor.dtype, tuple(tensor.shape), tensor.requires_grad)


def _reduce_parameter(parameter: Any, encoder: Any) -> Any:
    torch = sys.modules["torch"]
    if vars(parameter):
        return NotImplemented
    return torch._utils._rebuild_parameter, (parameter.detach(), parameter.requires_grad, {})
