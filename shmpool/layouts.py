"""What `Lease.write` takes: any buffer or array, written as its bytes in C order.

Plain bytes never come here. An array whose type no buffer format can name (datetime64,
bfloat16) is seen as so many opaque bytes an element; one that is not contiguous is copied
element by element, by numpy where it is loaded. What holds references to Python objects, or pointers of C, is
refused: its bytes are addresses.
"""

from __future__ import annotations

import sys
from operator import index

from .system.importing import door, explained
from .system.outside import own, own_or_called

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any, Final, Protocol

    from numpy.typing import DTypeLike, NDArray

    class SupportsBuffer(Protocol):
        """What `collections.abc.Buffer` is from Python 3.12 on: bytes, memoryviews, arrays."""

        def __buffer__(self, flags: int, /) -> memoryview:
            """Give access to the memory."""

    class SupportsArray(Protocol):
        """What numpy can make an array of without a copy of its own, such as a tensor."""

        def __array__(self) -> Any:
            """Give the array."""

    Payload = SupportsBuffer | SupportsArray


#: What fills the gaps between parts, a piece at a time.
_ZEROS: Final = memoryview(bytes(64 * 1024))


#: Copying so many bytes takes longer than to have the interpreter back from another thread.
COPIED_ASIDE: Final = 512 * 1024


def buffer_of(data: Any) -> memoryview:
    """The elements of *data* where they lie, in any layout. Raises TypeError for what has
    none, in words that say what to do."""
    try:
        return memoryview(data)
    except own_or_called(TypeError, ValueError, BufferError) as error:
        if not hasattr(data, "__array__"):
            hint = "; encode it" if isinstance(data, str) else ""
            raise TypeError(f"{_TAKES}, not {_kind(data)}{hint}") from error
    try:
        with door, explained:
            import numpy

        array: Any = numpy.asarray(data)
        if array.dtype.hasobject:
            raise _has_objects(array.dtype)
        return memoryview(array.view(f"V{array.dtype.itemsize}") if array.dtype.itemsize else array[:0].view("V1"))
    except own_or_called(ImportError, TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{_TAKES}, and this {_kind(data)} gives none: {error}") from error


def flat(source: memoryview) -> memoryview | None:
    """The bytes of a source in C order, without a copy; None when they lie otherwise. Raises
    TypeError for references to Python objects, and for pointers."""
    if source.format == "B" and source.ndim == 1 and source.contiguous:
        return source
    if source.format not in _PLAIN:
        # In a structure's format the names of its fields stand between colons.
        kinds = "".join(source.format.split(":")[::2])
        if "O" in kinds:
            raise _has_objects(source.format)
        for kind in _COMPLEX:
            kinds = kinds.replace(kind, "")
        if not _POINTERS.isdisjoint(kinds):
            raise TypeError(f"{_TAKES}; this one ({source.format}) has pointers, which mean nothing elsewhere")
    if not source.c_contiguous:
        return None
    with door, explained:
        from pickle import PickleBuffer  # unlike `cast`, of any format, without elements too

    return PickleBuffer(source).raw()


def copy(target: memoryview, source: memoryview) -> None:
    """Write a source into as many plain bytes."""
    raw = flat(source)
    if raw is None and not _copy_by_numpy(target, source):
        raw = memoryview(source.tobytes())
    if raw is not None:
        copy_bytes(target, raw)


def copy_bytes(target: memoryview, source: memoryview) -> None:
    """Write plain bytes into as many. What is large is copied by numpy, where it is loaded: it lets other threads
    run meanwhile."""
    numpy: Any = sys.modules.get("numpy") if target.nbytes >= COPIED_ASIDE else None
    try:
        copy_to, frombuffer = numpy.copyto, numpy.frombuffer
    except own(AttributeError):  # not here, or another thread is just importing it
        target[:] = source
        return
    copy_to(frombuffer(target, "B"), frombuffer(source, "B"))


def _copy_by_numpy(target: memoryview, source: memoryview) -> bool:
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return False
    try:
        # As opaque bytes: of a structure numpy would copy the fields, and leave what is between them.
        array = numpy.asarray(source).view(f"V{source.itemsize}")
    except own_or_called(TypeError, ValueError):  # a format that it does not know
        return False
    numpy.ndarray(source.shape, array.dtype, target)[...] = array
    return True


def as_ndarray(view: memoryview, dtype: DTypeLike, shape: int | Sequence[int]) -> NDArray[Any]:
    """An array over a view's bytes. Raises ValueError for another number of bytes, TypeError
    for elements that are references to Python objects."""
    with door, explained:
        import numpy

    kind = numpy.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"an array of {kind} has references to Python objects, whose bytes mean nothing elsewhere")
    count, rest = divmod(view.nbytes, kind.itemsize or 1)
    try:
        if rest:
            raise ValueError(f"an element has {kind.itemsize}")
        return numpy.ndarray((count,), kind, view).reshape(shape)
    except own_or_called(ValueError) as error:
        raise ValueError(f"{view.nbytes} bytes are no array of {kind} and shape {shape}: {error}") from None


def place(parts: Iterable[tuple[int, Payload]], nbytes: int) -> Iterator[tuple[int, memoryview]]:
    """(offset, source) of parts and of the zeros between them, in the order of their offsets.

    Raises ValueError and TypeError before anything is given: for a part that is no pair, that
    lies outside of *nbytes* bytes, or that overlaps another.
    """
    return _with_zeros(_placed(parts, nbytes), nbytes)


def _placed(parts: Iterable[tuple[int, Payload]], nbytes: int) -> list[tuple[int, memoryview]]:
    placed: list[tuple[int, memoryview]] = []
    if not hasattr(parts, "__iter__") and not hasattr(parts, "__getitem__"):
        raise TypeError(f"parts are pairs of an offset in bytes and data, not {parts!r:.80}")
    for part in parts:
        try:
            offset, data = part
            offset = index(offset)
        except own_or_called(TypeError, ValueError) as error:
            raise TypeError(f"a part is a pair of an offset in bytes and data, not {part!r:.80}") from error
        source = buffer_of(data)
        flat(source)  # refuses what cannot be written
        if not 0 <= offset <= nbytes - source.nbytes:
            raise ValueError(f"{source.nbytes} bytes at offset {offset} do not lie within the lease's {nbytes}")
        placed.append((offset, source))
    placed.sort(key=lambda part: part[0])
    end = 0
    for offset, source in placed:
        if offset < end and source.nbytes:
            raise ValueError(f"the part at offset {offset} overlaps the one before it, which ends at {end}")
        end = max(end, offset + source.nbytes)
    return placed


def _with_zeros(placed: list[tuple[int, memoryview]], nbytes: int) -> Iterator[tuple[int, memoryview]]:
    end = 0
    for offset, source in [*placed, (nbytes, _ZEROS[:0])]:
        for at in range(end, offset, len(_ZEROS)):
            yield at, _ZEROS[: offset - at]
        if source.nbytes:
            yield offset, source
        end = max(end, offset + source.nbytes)


#: Formats that most arrays have.
_PLAIN: Final = frozenset("bBhHiIlLqQfd?")
#: In a format: a pointer to something, to a string, to a wide one, to anything, to a function.
_POINTERS: Final = frozenset("&zZPX")
#: Complex numbers, whose formats begin with what is a pointer by itself.
_COMPLEX: Final = ("Zf", "Zd", "Zg")
_TAKES: Final = (
    "write takes bytes, or an array (as numpy.ascontiguousarray gives a contiguous one) of numbers, dates or fields"
)


def _kind(data: Any) -> str:
    return f"{type(data).__module__}.{type(data).__qualname__}".removeprefix("builtins.")


def _has_objects(kind: Any) -> TypeError:
    return TypeError(
        f"{_TAKES}; this one ({kind}) has references to Python objects, whose bytes mean nothing elsewhere: pickle them"
    )
