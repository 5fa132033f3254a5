"""Buffers: published objects as a reader sees them, read-only, without a copy.

Opening takes a ticket under its byte lock (`tickets`); releasing stores DONE when the
last view is gone (`seat.deferred`, where one lives on). The window stays with its cell's
record (`seat.openings`) for the next object there.
"""

from __future__ import annotations

import sys
from sys import getrefcount

from . import layouts
from .errors import LeakedView, LeaseReleased
from .protocol.figures import DEFERRED
from .protocol.ledger import GENERATION_FIELD, SEAT_MASK, STATE_SHIFT
from .protocol.states import CellState
from .seat.records import GivenBack, Ticket
from .seat.tickets import ring
from .seat.windows import AT_REST
from .system import frames
from .system.here import HERE, OURS, UNSHARED
from .system.outside import own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import MemberDescriptorType, TracebackType
    from typing import Any, NoReturn, Self

    from numpy.typing import DTypeLike, NDArray

_DONE = CellState.DONE << STATE_SHIFT


class Buffer(Ticket):
    """A published object. Made by `Pool.open`, used by one thread at a time, best as a
    context manager. It is given back when its last view is gone: arrays and slices of
    `view` that outlive it delay that (`LeakedView` in strict mode); so is one that nobody keeps,
    ``np.frombuffer(pool.open(handle).view)`` is good until the array dies. Not usable in a forked
    child (`LeaseReleased`), where an inherited array stays right for as long as it is kept."""

    _left: Callable[[], object]

    if TYPE_CHECKING:  # for users; in `LiveBuffer` they are attributes

        @property
        def nbytes(self) -> int: ...

        @property
        def view(self) -> memoryview: ...

    else:  # checkers take what is named here for attributes
        __slots__ = ("__weakref__", "_left", "nbytes", "view")

    @property
    def chunks(self) -> list[memoryview]:
        """The bytes of `view` as one memoryview for each extent."""
        view, at = self.view, 0
        parts: list[memoryview] = []
        for size in self._record.sizes:
            if at < self.nbytes or not parts:
                parts.append(view[at : at + size])
            at += size
        return parts

    def ndarray(self, dtype: DTypeLike = "uint8", shape: int | Sequence[int] = -1) -> NDArray[Any]:
        """`view` as a numpy array of *dtype* and *shape*, which may have one -1.
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
            "a Buffer cannot be copied or pickled, since its ticket is used up: send its bytes(), or have its"
            " publisher make a handle for each reader (lease.publish_many)"
        )

    def release(self) -> None:
        """Give the buffer back. On a buffer that is over it does nothing."""
        raise NotImplementedError

    def release_to_views(self) -> None:
        """Leave the buffer to the views of it that live: it is given back with the last one, and in
        strict mode too that is no error. On a buffer that is over it does nothing."""
        raise NotImplementedError

    def give_back(self) -> None:
        """Release the buffer and leave its ticket open: the same handle opens again, for a task that
        failed here and is tried again elsewhere. With views of it that live, it does so when the last
        one is gone; `LeakedView` in strict mode, as for `release`. On a buffer that is over it does
        nothing."""
        raise NotImplementedError

    def _release_slowly(self, *, to_views: bool = False, ticket: Ticket | None = None) -> None:
        """A direct segment that is used once, whose map goes with it, a view that lives on, or a child
        that may have one. What was opened before a fork is nothing but its views in the child."""
        record, session = self._record, self._record.session
        if session.is_over or not HERE[OURS]:
            self.__class__ = EndedBuffer
            return
        if isinstance(self, EndedBuffer):
            return  # by a handler, in the middle of this
        is_leaked, deferred = getrefcount(record.window) != AT_REST, session.deferred
        # Not this object itself: somebody may keep it when the ticket has long been settled.
        waiting = Ticket.of(record, self._granted, self._fork) if ticket is None else ticket
        try:
            deferred.look()
            deferred.add(waiting)
            self.__class__ = EndedBuffer
            self._record = record.ended
        except BaseException:  # its view is gone: somebody may keep this object, and never come back
            if not deferred.has(waiting):
                deferred.add(waiting)
            self.__class__ = EndedBuffer
            self._record = record.ended
            raise
        if not is_leaked:
            deferred.look()
        deferred.tell()
        if is_leaked and not to_views:
            session.count(DEFERRED)
            if session.strict and not session.is_at_exit:
                raise LeakedView(
                    "an array or slice of buffer.view is alive at release (strict mode);"
                    " the buffer is given back when it is gone"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release_after(kind)

    def _release_after(self, kind: type[BaseException] | None) -> None:
        """Release it. An exception of the block, which keeps the block's views, is not hidden by what strict mode
        says of these."""
        try:
            self.release()
        except own(LeakedView):
            if kind is None:
                raise

    def __repr__(self) -> str:
        return f"<Buffer of {self.nbytes} bytes, row {self._record.row}>"


class LiveBuffer(Buffer):
    """A buffer that is not over. It ends last in a release, so that one that an exception ended
    half way is released again, or collected."""

    __slots__ = ()

    #: What lies in this slot runs when a live buffer is collected: a C callable.
    __del__: MemberDescriptorType = vars(Buffer)["_left"]

    if TYPE_CHECKING:
        nbytes: int
        view: memoryview

    def release(self) -> None:
        record = self._record
        try:
            try:
                self.view.release()
                del self.view
            except own(BufferError):
                del self.view  # numpy holds it; the reference count tells below
            except own(AttributeError):  # a release was interrupted: this one ends it
                self._release_slowly()
                return
            granted = self._granted
            if (
                getrefcount(record.window) != AT_REST
                or not HERE[UNSHARED]
                or (record.is_direct and not granted & SEAT_MASK)
            ):
                self._release_slowly()
                return
            session = record.session
            words = session.words
            # The view is gone, then DONE, then the look who is custodian. A publisher that leaves stores the
            # broker's custody and then looks at the cells: one of the two sees what the other has stored.
            if session.barrier:
                session.barrier()
            if words[record.cell] == granted & GENERATION_FIELD | session.taken:  # else a handler has released it
                words[record.cell] = granted & GENERATION_FIELD | _DONE
            self.__class__ = EndedBuffer  # type: ignore[assignment]
            self._record = record.ended
            if words[record.word] != granted or session.header[record.wanted]:
                ring(record, granted)
        except BaseException as error:
            LiveBuffer._release_interrupted(self)  # it may have ended
            frames.clear(error)  # somebody may keep it
            raise

    def _release_interrupted(self) -> None:
        """Somebody may keep this object and never come back: what is left of its release waits as any
        other does, until somebody looks."""
        if isinstance(self, EndedBuffer):
            return
        try:
            self.view.release()
        except own(AttributeError, BufferError):
            pass
        try:
            del self.view
        except own(AttributeError):
            pass
        record = self._record
        record.session.deferred.add(Ticket.of(record, self._granted, self._fork))
        self.__class__ = EndedBuffer  # type: ignore[assignment]
        self._record = record.ended

    def release_to_views(self) -> None:
        try:
            del self.view  # with nobody else's eyes on it, it is gone
            self._release_slowly(to_views=True)
        except BaseException as error:
            LiveBuffer._release_interrupted(self)  # it may have ended
            frames.clear(error)  # somebody may keep it
            raise

    def give_back(self) -> None:
        ticket = GivenBack.of(self._record, self._granted, self._fork)
        try:
            try:
                self.view.release()
            except own(BufferError, AttributeError):  # a view lives, or a release was interrupted
                pass
            try:
                del self.view
            except own(AttributeError):
                pass
            self._release_slowly(ticket=ticket)
        except BaseException as error:
            LiveBuffer._release_interrupted(self)  # it may have ended
            frames.clear(error)  # somebody may keep it
            raise


class SharedBuffer(Buffer):
    """A shared publication that is open here; `Shared.open` makes it. It has no ticket: its view alone
    keeps what is held, so a forked child may go on with it, and nothing has to be said at its end."""

    __slots__ = ()

    if TYPE_CHECKING:
        nbytes: int
        view: memoryview

    def release(self) -> None:
        if self._release_view() and self._record.session.strict and not self._record.session.is_at_exit:
            raise LeakedView(
                "an array or slice of buffer.view is alive at release (strict mode); it holds the shared publication"
                " until it is gone"
            )

    def release_to_views(self) -> None:
        self._release_view()

    def give_back(self) -> None:
        self.release()

    def _release_view(self) -> bool:
        """Let go of the view; True when others live on it."""
        is_leaked = False
        try:
            self.view.release()
        except own(BufferError):
            is_leaked = True
        except own(AttributeError):
            pass  # a release was interrupted
        try:
            del self.view
        except own(AttributeError):
            pass
        self.__class__ = EndedBuffer  # type: ignore[assignment]
        return is_leaked


class EndedBuffer(Buffer):
    """A buffer that is over: released, or of a parent process. Of one that was released here its record is none of
    the session's (`EndedRecord`)."""

    __slots__ = ()

    @property
    def view(self) -> memoryview:
        _is_over()

    @property
    def chunks(self) -> list[memoryview]:
        _is_over()

    def release(self) -> None:
        pass

    def release_to_views(self) -> None:
        pass

    def give_back(self) -> None:
        pass

    def __repr__(self) -> str:
        return f"<Buffer of {self.nbytes} bytes, over>"


def _is_over() -> NoReturn:
    raise LeaseReleased("the buffer is over: it was released, or belongs to the parent of this fork")
