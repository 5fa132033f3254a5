"""Leases: the right to write one buffer, until it is published or given back.

A live lease turns into an ended one by its class, so the live one checks nothing and the
ended one raises. The order in `publish` is the protocol: the view goes, the cells are stored (and
the extent word, where the lease has not done it right already), the grant word last.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from sys import getrefcount
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from . import layouts
from .errors import InvalidSize, LeakedView, LeaseReleased
from .layouts import Payload
from .protocol.figures import DEFERRED
from .protocol.handle import Handle, pack_handle
from .protocol.ledger import (
    CHUNKS_SHIFT,
    EXTENT,
    MAX_TICKETS,
    NBYTES_BITS,
    STATE_SHIFT,
    TICKETS_SHIFT,
)
from .protocol.sizing import STRATEGY_OF_KIND, SizeCategory, Strategy, categorize
from .protocol.states import CellState
from .seat.magazine import Slot
from .seat.windows import AT_REST
from .system.here import HERE, OURS

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

_DONE = CellState.DONE << STATE_SHIFT
_CELL_SHIFT = NBYTES_BITS


class Lease:
    """The right to write *nbytes* bytes. Made by `Pool.lease`, used by one thread at a
    time, best as a context manager: leaving the block without publishing gives it back.

    The buffer is given back when its last view is gone, never before. Arrays and slices of
    `view` that outlive the lease delay that; in strict mode they raise `LeakedView`.
    *nbytes* are the bytes asked for. *view* is writable, exactly as long, format "B", one piece
    even where the lease is scattered; its content is undefined until written: the last user's
    bytes or zeros.
    A forked child cannot use a lease of its parent (`LeaseReleased`), nor release it; an
    array that it inherited reads as zeros.
    """

    _slot: Slot

    if TYPE_CHECKING:  # for users; in `LiveLease` they are attributes

        @property
        def nbytes(self) -> int: ...

        @property
        def view(self) -> memoryview: ...

    else:  # checkers take what is named here for attributes
        __slots__ = ("__weakref__", "_slot", "nbytes", "view")

    @property
    def strategy(self) -> Strategy:
        """Where the memory came from; never ADAPTIVE."""
        return STRATEGY_OF_KIND[self._slot.tier.kind]

    @property
    def category(self) -> SizeCategory:
        """The size category of `nbytes`."""
        return categorize(self.nbytes, self._slot.session.sizing)

    @property
    def chunks(self) -> list[memoryview]:
        """The bytes of `view` as one memoryview for each extent."""
        view, sizes = self.view, [count * self._slot.tier.size for _, count in self._slot.spans]
        if len(sizes) == 1:
            return [view[:]]
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        return [view[start : start + size] for start, size in zip(starts, sizes, strict=True) if start < self.nbytes]

    def write(self, data: Payload) -> None:
        """Write the whole payload at once. *data* is any buffer or array of exactly `nbytes`
        bytes, in any layout; what is written are its elements in C order. ValueError for another
        length, TypeError for what has no bytes of its own; nothing is written then."""
        try:
            source = memoryview(data)  # type: ignore[arg-type]
        except (TypeError, ValueError, BufferError):
            source = layouts.buffer_of(data)
        if source.nbytes != self.nbytes:
            raise ValueError(f"write takes the whole payload, {self.nbytes} bytes, this is {source.nbytes}")
        self._write(source)

    def write_parts(self, parts: Iterable[tuple[int, Payload]]) -> None:
        """Write the payload in pieces: pairs of an offset in bytes and what `write` takes. What
        lies between them is zero. ValueError for a piece that lies outside or overlaps another,
        TypeError for what `write` refuses; nothing is written then."""
        self._write_placed(layouts.place(parts, self.nbytes))

    def _write_placed(self, parts: Iterable[tuple[int, memoryview]]) -> None:
        """The same for parts that are known to lie in order and within the lease; what lies between
        them stays as it was."""
        for offset, source in parts:
            self._write_part(offset, source)

    def _write(self, source: memoryview) -> None:
        if not HERE[OURS]:
            is_parents()
        if source.format == "B" and source.ndim == 1:
            self.view[:] = source
        else:
            layouts.copy(self.view, source)

    def _write_part(self, offset: int, source: memoryview) -> None:
        if not HERE[OURS]:
            is_parents()
        layouts.copy(self.view[offset : offset + source.nbytes], source)

    def ndarray(self, dtype: DTypeLike = "uint8", shape: int | Sequence[int] = -1) -> NDArray[Any]:
        """`view` as a numpy array to write to, of *dtype* and *shape*, which may have one -1.
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

        def __release_buffer__(self, view: memoryview, /) -> None:
            """Nothing. Without it numpy takes this object for the memory's owner and keeps no view."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Lease cannot be copied or pickled, since one buffer has one writer:"
            " publish it and send the handle that publish() returns"
        )

    def shorten(self, nbytes: int) -> None:
        """Make it a lease of the first *nbytes* bytes only: for what turned out smaller than was
        leased. A view that was taken before still shows all. Raises `InvalidSize` for more than
        there are, and nothing has changed then."""
        raise NotImplementedError

    def publish(self) -> Handle:
        """Make the buffer readable, once, for whoever has the handle. The lease is over
        and `view` with it. `LeakedView` in strict mode when a view is left: the lease goes
        on then."""
        raise NotImplementedError

    def publish_many(self, n: int) -> list[Handle]:
        """Like `publish`, for *n* readers (1 to 13): each handle opens once."""
        raise NotImplementedError

    def release(self) -> None:
        """Give the buffer back unpublished. On a lease that is over it does nothing."""
        raise NotImplementedError

    def _itself(self) -> Self:
        """For who has a weak proxy of it."""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Lease of {self.nbytes} bytes, {self.strategy.value}, row {self._slot.row}>"


def is_parents() -> NoReturn:
    """In a finalizer of a child that is not itself yet."""
    raise LeaseReleased("the lease belongs to the parent of this fork")


class LiveLease(Lease):
    """A lease that is not over."""

    __slots__ = ()

    if TYPE_CHECKING:
        nbytes: int
        view: memoryview

    def publish(self) -> Handle:
        slot = self._slot
        session = slot.session
        try:
            self.view.release()
        except BufferError:
            pass  # numpy holds it; the reference count tells below
        del self.view
        if getrefcount(slot.window) != AT_REST or session.is_over or not HERE[OURS]:
            return self._publish_with_views(1)[0]
        words, word, nbytes = session.words, slot.word, self.nbytes
        granted = slot.base | session.published
        words[slot.first_cell] = granted
        if session.barrier:
            session.barrier()
        words[word] = granted
        self.__class__ = EndedLease  # type: ignore[assignment]
        slot.last_cell = slot.first_cell
        slot.done = slot.base | _DONE
        slot.magazine.published.append(slot)  # type: ignore[union-attr]
        return Handle(pack_handle(session.pool_id, granted, slot.tail | nbytes))

    def shorten(self, nbytes: int) -> None:
        if type(nbytes) is not int or not 0 <= nbytes <= self.nbytes:
            raise InvalidSize(f"a lease of {self.nbytes} bytes cannot be shortened to {nbytes!r}")
        self._shorten_view(nbytes)
        slot = self._slot
        words, at, extent = slot.session.words, slot.word + EXTENT, slot.extent | nbytes
        # With no call between them nothing comes between: publish takes the extent word as it is.
        self.nbytes = nbytes
        words[at] = extent

    def _shorten_view(self, nbytes: int) -> None:
        whole = self.view
        self.view = whole[:nbytes]
        with suppress(BufferError):  # numpy holds it: it is found at publish like any other
            whole.release()

    def publish_many(self, n: int) -> list[Handle]:
        if type(n) is not int or not 1 <= n <= MAX_TICKETS:
            raise ValueError(f"a publication has 1 to {MAX_TICKETS} readers, not {n!r}")
        if not self._drop_view():
            raise LeaseReleased("the lease is being published or released by another thread")
        if self._slot.has_views or self._slot.session.is_over or not HERE[OURS]:
            return self._publish_with_views(n)
        await_readers = self._await_readers
        handles = self._store_publication(n)
        await_readers()
        return handles

    def _publish_with_views(self, tickets: int) -> list[Handle]:
        """The writer keeps a view: the handle may go, the slot is not used again before
        the view is gone. In strict mode an error, and the lease goes on."""
        slot, session = self._slot, self._slot.session
        if session.is_over or not HERE[OURS]:
            self.__class__ = EndedLease  # type: ignore[assignment]
            raise LeaseReleased("the lease's seat is gone: the pool was closed, or the broker came back with a new one")
        if session.strict:
            self._renew_view()
            raise LeakedView("an array or slice of lease.view is alive at publish; delete it first (strict mode)")
        try:
            if session.warned_of_views:
                session.words[session.counters + DEFERRED] += 1
            else:
                session.warn_of_view()
        except Warning:  # warnings are errors here: the handles would be lost, so the lease goes on
            self._renew_view()
            raise
        session.deferred.look_at_partings()  # what the writer let go of meanwhile is the next to be leased
        await_readers = self._await_readers
        handles = self._store_publication(tickets)
        session.deferred.add_slot(slot, await_readers)
        return handles

    def _store_publication(self, tickets: int) -> list[Handle]:
        slot, session, words = self._slot, self._slot.session, self._slot.session.words
        granted = self._granted()
        words[slot.word + EXTENT] = self.nbytes | tickets << TICKETS_SHIFT | slot.first_chunks << CHUNKS_SHIFT
        for cell in range(tickets):
            words[slot.first_cell + cell] = granted
        if session.barrier:
            session.barrier()
        words[slot.word] = granted
        slot.last_cell = slot.first_cell + tickets - 1
        slot.done = slot.base | _DONE
        self.__class__ = EndedLease  # type: ignore[assignment]
        if tickets == 1:
            return [Handle(pack_handle(session.pool_id, granted, slot.tail | self.nbytes))]
        cells = range(slot.row << 4, (slot.row << 4) + tickets)
        return [Handle(pack_handle(session.pool_id, granted, cell << _CELL_SHIFT | self.nbytes)) for cell in cells]

    def _granted(self) -> int:
        return self._slot.base | self._slot.session.published

    def _await_readers(self) -> None:
        slot = self._slot
        assert slot.magazine is not None
        slot.magazine.published.append(slot)

    def release(self) -> None:
        slot = self._slot
        session = slot.session
        try:
            view = self.view
            del self.view
        except AttributeError:  # its publish was interrupted: the slot is found (`recovery`)
            self.__class__ = EndedLease  # type: ignore[assignment]
            return
        try:
            view.release()
        except BufferError:
            pass  # numpy holds it; the reference count tells below
        if getrefcount(slot.window) != AT_REST or session.is_over or not HERE[OURS]:
            self._release_otherwise()
            return
        self.__class__ = EndedLease  # type: ignore[assignment]
        session.keep_or_return(slot)

    def release_unless_busy(self, *, is_collected: bool = False) -> bool:
        """Release it, unless a thread is just publishing it and goes on with it: who takes the
        view away has it."""
        if not self._drop_view(is_collected=is_collected):
            return False
        self._release_otherwise()
        return True

    def _release_otherwise(self) -> None:
        slot = self._slot
        if slot.session.is_over or not HERE[OURS]:
            self.__class__ = EndedLease  # type: ignore[assignment]
        elif not slot.has_views:
            give_back = self._give_back
            self.__class__ = EndedLease  # type: ignore[assignment]
            give_back()
        else:
            self._release_with_views()

    def _release_with_views(self) -> None:
        session, give_back = self._slot.session, self._give_back
        self.__class__ = EndedLease  # type: ignore[assignment]
        session.deferred.add_slot(self._slot, give_back)
        if session.is_at_exit:
            return
        if session.strict:
            raise LeakedView(
                "an array or slice of lease.view is alive at release (strict mode);"
                " the buffer is given back when it is gone"
            )
        session.warn_of_view()

    def _give_back(self) -> None:
        self._slot.session.keep_or_return(self._slot)

    def _drop_view(self, *, is_collected: bool = False) -> bool:
        """Take the view away from everybody else; False when somebody has. A lease that is
        collected leaves it to whoever has it."""
        try:
            view = self.view
            del self.view
        except AttributeError:
            return False
        if not is_collected:
            try:
                view.release()
            except BufferError:
                pass  # numpy holds it; the reference count tells
        return True

    def _renew_view(self) -> None:
        window = self._slot.session.window_for(self._slot)
        self.view = memoryview(window)[: self.nbytes]

    def __del__(self) -> None:
        slot = getattr(self, "_slot", None)  # none, when an exception came while it was made
        if slot is None or slot.session.is_over or not HERE[OURS]:
            return
        if self.release_unless_busy(is_collected=True) and not slot.session.is_at_exit:
            warnings.warn(
                f"a lease of {self.nbytes} bytes was neither published nor released; it is now",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )


class EndedLease(Lease):
    """A lease that is over: published, given back, or of a parent process."""

    __slots__ = ()

    def _is_over(self) -> NoReturn:
        raise LeaseReleased("the lease is over: it was published or released, or belongs to the parent of this fork")

    @property
    def view(self) -> memoryview:
        self._is_over()

    def _write(self, source: memoryview) -> None:
        self._is_over()

    def _write_placed(self, parts: Iterable[tuple[int, memoryview]]) -> None:
        self._is_over()

    def shorten(self, nbytes: int) -> None:
        self._is_over()

    def publish(self) -> Handle:
        self._is_over()

    def publish_many(self, n: int) -> list[Handle]:
        self._is_over()

    def release(self) -> None:
        pass

    def __repr__(self) -> str:
        return f"<Lease of {self.nbytes} bytes, over>"


def live_leases(slots: Iterable[Slot]) -> list[LiveLease]:
    """Those that have one of these slots and are not over."""
    found = []
    for slot in slots:
        with suppress(ReferenceError):  # it was collected
            if slot.lease is not None and isinstance(lease := slot.lease._itself(), LiveLease):
                found.append(lease)
    return found
