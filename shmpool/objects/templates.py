"""Plain arrays without pickling: all that lies before their bytes is the same for each dtype, shape and
order, so it is made once, and known again by its bytes.

What a **template** says is what `encode` says for such an array, to the byte; a reader without it
unpickles that. One array is what most objects are, and pickling it took longer than its copy.
"""

from __future__ import annotations

import pickle
import struct
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from . import layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Kinds of elements whose dtype is said by its name alone.
KINDS: Final = frozenset("biufc")
#: Smaller arrays stay in their pickle.
SMALLEST: Final = 1024
#: So many are kept; then all are forgotten.
MOST: Final = 512
#: None of them is longer: header, one entry, and a pickle of a shape of 32 dimensions.
LONGEST: Final = 512
_FIXED: Final = layout.HEADER_BYTES + layout.ENTRY_BYTES
_PICKLE_NBYTES_AT: Final = layout.PICKLE_NBYTES.start
_pickle_nbytes: Final = struct.Struct("<Q").unpack_from


class Template(NamedTuple):
    """*head* lies before the array's bytes, at *offset*; *nbytes* is the whole object."""

    head: memoryview
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: Any
    order: str

    def array(self, memory: Any, offset: int) -> NDArray[Any]:
        """The array whose bytes lie in *memory* from *offset* on."""
        made: NDArray[Any] = sys.modules["numpy"].ndarray(self.shape, self.dtype, memory, offset, None, self.order)
        return made


_by_kind: dict[tuple[Any, tuple[int, ...], bool], Template] = {}
_by_head: dict[bytes, Template] = {}
#: Kinds of which one was unpickled here.
_seen_once: set[tuple[Any, tuple[int, ...], bool]] = set()


class _Prototype:
    """Pickles as the array does, without its bytes."""

    def __init__(self, dtype: Any, shape: tuple[int, ...], order: str) -> None:
        self._arguments = shape, dtype.str, pickle.PickleBuffer(bytearray()), 0, None, order

    def __reduce__(self) -> Any:
        return sys.modules["numpy"].ndarray, self._arguments


def of(array: Any) -> Template | None:
    """The template of a numpy array, if it has one."""
    dtype, flags = array.dtype, array.flags
    if dtype.metadata is not None:  # it is equal to one without, and pickle keeps it
        return None
    is_fortran = flags.fnc
    found = _by_kind.get((dtype, array.shape, is_fortran))
    if found is None:
        if dtype.kind not in KINDS or array.nbytes < SMALLEST or not (flags.c_contiguous or is_fortran):
            return None
        return _make(dtype, array.shape, is_fortran)
    return found if flags.c_contiguous or is_fortran else None


def _make(dtype: Any, shape: tuple[int, ...], is_fortran: bool) -> Template | None:
    if dtype.type.__module__ != "numpy" or sys.modules["numpy"].dtype(dtype.str) != dtype:
        return None
    order, nbytes = "F" if is_fortran else "C", dtype.itemsize
    for length in shape:
        nbytes *= length
    text = pickle.dumps(_Prototype(dtype, shape, order), protocol=5, buffer_callback=lambda buffer: None)
    laid_out = layout.plan(len(text), [nbytes], 0)
    head = laid_out.prefix + text
    if len(head) > LONGEST:
        return None
    template = Template(memoryview(head), laid_out.offsets[0], laid_out.nbytes, shape, dtype, order)
    if len(_by_kind) >= MOST:
        _by_kind.clear()
        _by_head.clear()
    _by_kind[dtype, shape, is_fortran] = _by_head[head] = template
    return template


def find(view: memoryview) -> Template | None:
    """The template of the object in *view*, if this process knows it. It is known by all of its bytes,
    so nothing that a peer wrote is believed."""
    if len(view) < SMALLEST:
        return None
    length = _FIXED + _pickle_nbytes(view, _PICKLE_NBYTES_AT)[0]
    if length > LONGEST:
        return None
    template = _by_head.get(bytes(view[:length]))
    return template if template is not None and template.nbytes == len(view) else None


def learn(obj: Any) -> None:
    """An object was unpickled. Like the second of its kind the next one need not be; that of a kind that comes once
    would take longer to learn than it took to unpickle."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or type(obj) is not numpy.ndarray or obj.nbytes < SMALLEST:
        return
    kind = obj.dtype, obj.shape, obj.flags.fnc
    if kind in _seen_once:
        of(obj)
        return
    if len(_seen_once) >= MOST:
        _seen_once.clear()
    _seen_once.add(kind)
