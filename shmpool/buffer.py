"""Buffers: published objects as a reader sees them, read-only, without a copy.

Opening takes a ticket under its byte lock (`tickets`); releasing stores DONE when the
last view is gone. A reader keeps a **record** for each cell that it has opened: the
window, and the words and locks precomputed.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from functools import partial
from sys import getrefcount
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from . import layouts
from .errors import LeakedView, LeaseReleased
from .protocol.figures import DEFERRED
from .protocol.ledger import GENERATION_FIELD, SEAT_MASK, STATE_SHIFT
from .protocol.states import CellState
from .windows import AT_REST, Window

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from .session import Session

_DONE = CellState.DONE << STATE_SHIFT


class Record:
    """What a reader knows of one cell: *word* and *cell* index the ledger, *shape* is the
    extent word without length and tickets, *links* are (word, value) pairs that hold while
    the run is the one that *window* maps, *wanted* indexes the header."""

    __slots__ = ("cell", "is_direct", "links", "lock", "row", "session", "shape", "wanted", "window", "word")

    session: Session
    window: Window | None
    row: int
    word: int
    cell: int
    shape: int
    links: tuple[tuple[int, int], ...]
    lock: bytes
    wanted: int
    is_direct: bool


class Buffer:
    """A published object. Made by `Pool.open`, used by one thread at a time, best as a
    context manager. It is given back when its last view is gone: arrays and slices of
    `view` that outlive it delay that (`LeakedView` in strict mode). Not usable in a forked
    child (`LeaseReleased`), where an inherited array reads as zeros."""

    __slots__ = ("__weakref__", "_granted", "_record", "nbytes", "view")

    _record: Record
    _granted: int
    #: Bytes published.
    nbytes: int
    #: Read-only (writing raises TypeError), exactly `nbytes` long, format "B", one piece.
    view: memoryview

    @property
    def chunks(self) -> list[memoryview]:
        """The bytes of `view` as one memoryview for each extent."""
        view, session = self.view, self._record.session
        if self._record.is_direct:
            return [view[:]]
        size, at = session.tier_of(self._record.row).size, 0
        parts: list[memoryview] = []
        for _, count in session.spans_of(self._record.row):
            if at < self.nbytes or not parts:
                parts.append(view[at : at + count * size])
            at += count * size
        return parts

    def ndarray(self, dtype: DTypeLike = "uint8", shape: int | Sequence[int] = -1) -> NDArray[Any]:
        """`view` as a read-only numpy array of *dtype* and *shape*, which may have one -1.
        ValueError where that is another number of bytes."""
        return layouts.as_ndarray(self.view, dtype, shape)

    def __len__(self) -> int:
        return self.nbytes

    def __bytes__(self) -> bytes:
        return bytes(self.view)

    def __bool__(self) -> bool:
        return True

    if sys.version_info >= (3, 12):

        def __buffer__(self, flags: int, /) -> memoryview:
            return memoryview(self.view)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Buffer cannot be copied or pickled, since its ticket is used up: send its bytes(), or have its"
            " publisher make a handle for each reader (lease.publish_many)"
        )

    def release(self) -> None:
        """Give the buffer back. On a buffer that is over it does nothing."""
        raise NotImplementedError

    def _release_slowly(self) -> None:
        """A direct segment, whose map must be gone before DONE, or a view that lives on."""
        record, session = self._record, self._record.session
        is_leaked = getrefcount(record.window) != AT_REST
        window, record.window = record.window, None  # the next open of this cell makes another
        if session.is_over:
            return
        assert window is not None
        session.windows.when_dead(window, partial(finish, record, self._granted))
        del window  # nothing but users' views may keep it alive
        if is_leaked and session.strict and not session.is_at_exit:
            raise LeakedView(
                "an array or slice of buffer.view is alive at release (strict mode);"
                " the buffer is given back when it is gone"
            )
        if is_leaked:
            session.count(DEFERRED)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Buffer of {self.nbytes} bytes, row {self._record.row}>"


class LiveBuffer(Buffer):
    """A buffer that is not over."""

    __slots__ = ()

    def release(self) -> None:
        record = self._record
        try:
            self.view.release()
        except BufferError:
            pass  # numpy holds it; the reference count tells below
        except AttributeError:  # its opening was interrupted, or its release: the ticket is found (`lost`)
            self.__class__ = EndedBuffer  # type: ignore[assignment]
            return
        del self.view
        self.__class__ = EndedBuffer  # type: ignore[assignment]
        if getrefcount(record.window) != AT_REST or record.is_direct:
            self._release_slowly()
            return
        session = record.session
        granted = self._granted
        words = session.words
        if session.barrier:
            session.barrier()
        words[record.cell] = granted & GENERATION_FIELD | _DONE
        if words[record.word] != granted or session.header[record.wanted]:
            _ring(record, granted)

    def __del__(self) -> None:
        # Without a view an exception came while it was made or released: `lost` finds its ticket.
        if hasattr(self, "view") and not self._record.session.is_over:
            self.release()
            if self._record.session.is_at_exit:
                return
            warnings.warn(
                f"a buffer of {self.nbytes} bytes was not released; it is now",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )


class EndedBuffer(Buffer):
    """A buffer that is over: released, or of a parent process."""

    __slots__ = ()

    @property
    def view(self) -> memoryview:  # type: ignore[override]
        _is_over()

    @property
    def chunks(self) -> list[memoryview]:
        _is_over()

    def release(self) -> None:
        pass

    def __repr__(self) -> str:
        return f"<Buffer of {self.nbytes} bytes, over>"


def finish(record: Record, granted: int) -> None:
    """Store DONE, and ring where somebody has to look. Takes no lock: it runs in finalizers."""
    session = record.session
    if session.is_over:
        return
    if session.barrier:
        session.barrier()
    session.words[record.cell] = granted & GENERATION_FIELD | _DONE
    _ring(record, granted)


def _ring(record: Record, granted: int) -> None:
    """After DONE: have the broker look, soon if it is the custodian, at once if somebody waits.
    A row of another generation was reaped already."""
    session = record.session
    if session.header[record.wanted]:
        session.ring(record.row)
    elif session.words[record.word] == granted & ~SEAT_MASK:
        session.bells.soon(record.row)


def _is_over() -> NoReturn:
    raise LeaseReleased("the buffer is over: it was released, or belongs to the parent of this fork")
