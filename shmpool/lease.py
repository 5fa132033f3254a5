"""Leases: the right to write one buffer, until it is published or released (`live_lease`)."""

from __future__ import annotations

import sys
from _thread import get_ident
from functools import wraps
from itertools import accumulate

from . import layouts
from .errors import LeakedView, LeaseReleased
from .layouts import COPIED_ASIDE
from .link.waiting import check_ttl
from .protocol.handle import Handle
from .protocol.sizing import STRATEGY_OF_KIND, SizeCategory, Strategy, categorize
from .seat.slot import Slot, ViewTaken
from .system import filling, frames
from .system.here import HERE, OURS
from .system.outside import is_from_outside, own, own_or_called

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Any, Literal, NoReturn, Self, TypeVar

    from numpy.typing import DTypeLike, NDArray

    from .layouts import Payload
    from .shared import Shared

    _S = TypeVar("_S")
    _T = TypeVar("_T")


#: By thread: what came in the middle of a property.
_passing: dict[int, BaseException] = {}


def passing_on(get: Callable[[_S], _T]) -> Callable[[_S], _T]:
    """For a property of a class that has a `__getattr__`: CPython takes an AttributeError in its middle, a handler's
    too, for its absence, forgets it, and asks that one, which has it from here (`raise_passing`)."""

    @wraps(get)
    def getter(lease: _S) -> _T:
        try:
            got = get(lease)
        except BaseException as error:
            if isinstance(error, AttributeError) and is_from_outside(error) and hasattr(type(lease), "__getattr__"):
                _passing[get_ident()] = error
            raise
        return got

    return getter


def raise_passing() -> None:
    """Raise what came in the middle of a property, if anything did."""
    if _passing and (error := _passing.pop(get_ident(), None)) is not None:
        raise error


class Lease:
    """The right to write *nbytes* bytes. Made by `Pool.lease`, used by one thread at a
    time, best as a context manager: leaving the block without publishing gives it back.

    The buffer is given back when its last view is gone, never before. Arrays and slices of
    `view` that outlive the lease delay that; in strict mode they raise `LeakedView`.
    *nbytes* are the bytes asked for. *view* is writable, exactly as long, format "B", one piece
    even where the lease is scattered; its content is undefined until written: the last user's
    bytes or zeros.
    A forked child cannot use a lease of its parent (`LeaseReleased`), nor release it; an
    array that it inherited is a copy, made in its first moments.
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
    @passing_on
    def strategy(self) -> Strategy:
        """Where the memory came from; never ADAPTIVE."""
        return STRATEGY_OF_KIND[self._slot.tier.kind]

    @property
    @passing_on
    def category(self) -> SizeCategory:
        """The size category of `nbytes`."""
        return categorize(self.nbytes, self._slot.session.sizing)

    @property
    @passing_on
    def chunks(self) -> list[memoryview]:
        """The bytes of `view` as one memoryview for each extent."""
        view, sizes = self.view, [count * self._slot.tier.size for _, count in self._slot.extents]
        if len(sizes) == 1:
            return [view[:]]
        starts = accumulate(sizes, initial=0)
        return [view[start : start + size] for start, size in zip(starts, sizes) if start < self.nbytes]  # noqa: B905

    def write(self, data: Payload) -> None:
        """Write the whole payload at once. *data* is any buffer or array of exactly `nbytes`
        bytes, in any layout; what is written are its elements in C order. ValueError for another
        length, TypeError for what has no bytes of its own; nothing is written then."""
        try:
            source = memoryview(data)  # type: ignore[arg-type]
        except own_or_called(TypeError, ValueError, BufferError):
            source = layouts.buffer_of(data)
        if source.nbytes != self.nbytes:
            raise ValueError(f"write takes the whole payload, {self.nbytes} bytes, this is {source.nbytes}")
        try:
            self._write(source)
        except BaseException as error:
            frames.clear(error)  # somebody may keep it, and with it arrays over the view
            raise

    def write_parts(self, parts: Iterable[tuple[int, Payload]]) -> None:
        """Write the payload in pieces: pairs of an offset in bytes and what `write` takes. What
        lies between them is zero. ValueError for a piece that lies outside or overlaps another,
        TypeError for what `write` refuses; nothing is written then."""
        try:
            self._write_placed(layouts.place(parts, self.nbytes))
        except BaseException as error:
            frames.clear(error)
            raise

    def readinto_from(self, fd: int, offset: int | None = None) -> int:
        """Fill the lease straight from a file descriptor, from its beginning on: from *offset* bytes
        into the file, or, with None, from where the descriptor is, which moves on. Returns how many
        bytes were filled: fewer than `nbytes` where the file ends before, or a descriptor that does
        not block has no more just now (`BlockingIOError` when it has nothing at all). The rest stays
        as it was; `shorten` cuts it off. OSError as from `os.preadv`; the lease goes on."""
        filling.check(fd, offset)
        return self._fill(fd, offset)

    def _fill(self, fd: int, offset: int | None) -> int:
        if not HERE[OURS]:
            is_parents()
        return filling.fill(self.view, fd, offset)

    def _write_placed(self, parts: Iterable[tuple[int, memoryview]]) -> None:
        """The same for parts that are known to lie in order and within the lease; what lies between
        them stays as it was."""
        if not HERE[OURS]:
            is_parents()
        view = self.view
        try:
            for offset, source in parts:
                nbytes = source.nbytes
                if nbytes < COPIED_ASIDE and source.format == "B" and source.ndim == 1:
                    view[offset : offset + nbytes] = source
                else:
                    layouts.copy(view[offset : offset + nbytes], source)
        except own_or_called(ValueError):
            _raise_if_taken(view)
            raise

    def _write(self, source: memoryview) -> None:
        if not HERE[OURS]:
            is_parents()
        view = self.view
        try:
            if source.nbytes < COPIED_ASIDE and source.format == "B" and source.ndim == 1:
                view[:] = source
            else:
                layouts.copy(view, source)
        except own_or_called(ValueError):
            _raise_if_taken(view)
            raise

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

    def publish(self, *, ttl: float | None = None) -> Handle:
        """Make the buffer readable, once, for whoever has the handle. The lease is over
        and `view` with it. What nobody has opened within *ttl* seconds is closed (`HandleUsed`), and
        given back, while this process lives; None: it waits for its reader. `LeakedView` in strict mode
        when a view is left: the lease goes on then."""
        raise NotImplementedError

    def publish_many(self, n: int, *, ttl: float | None = None) -> list[Handle]:
        """Like `publish`, for *n* readers (1 to 13): each handle opens once."""
        raise NotImplementedError

    def publish_kept(self, prepare: Callable[[Slot], None] | None = None) -> tuple[Handle, Callable[[], None]]:
        """Like `publish`, for who keeps a view of its window and goes on writing what the publication
        does not hold: the slot is not used again before the callable was called, last of all. *prepare* is
        called with the slot when nobody else can end the lease any more, before it is published."""
        raise NotImplementedError

    def publish_shared(
        self, name: str | None = None, *, keep: bool | Literal["cache"] = False, ttl: float | None = None
    ) -> Shared:
        """Make the buffer readable for any number of processes, any number of times: see `Pool.share`.
        The lease is over. Asks the broker, once, or twice with a name. Raises `NameTaken` and
        `BrokerUnavailable`: the lease goes on then, unless the broker went away in the very moment."""
        shared: Shared = self._slot.session.share_lease(self, name, keep, ttl)
        return shared

    def _publish_expiring(self, n: int, ttl: float) -> list[Handle]:
        """`publish_many`, where there is a ttl."""
        seconds, session = check_ttl(ttl), self._slot.session
        handles = self.publish_many(n)
        session.discard_in(seconds, handles)
        return handles

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
        return f"<Lease of {self.nbytes} bytes, {self.strategy.value}, row {self._slot.row}>"


def _raise_if_taken(view: memoryview) -> None:
    """Say so where a view was released by another thread."""
    try:
        view.nbytes  # noqa: B018
    except own(ValueError):
        raise ViewTaken from None


def is_parents() -> NoReturn:
    """In a finalizer of a child that is not itself yet."""
    raise LeaseReleased("the lease belongs to the parent of this fork")


class EndedLease(Lease):
    """A lease that is over: published, given back, or of a parent process. Its slot it knows no more, in this process:
    only what kind it was (`Origin`)."""

    __slots__ = ()

    def _is_over(self) -> NoReturn:
        raise LeaseReleased("the lease is over: it was published or released, or belongs to the parent of this fork")

    def __getattr__(self, name: str) -> NoReturn:
        """What only a live one has is asked for by a thread under which another has ended it."""
        raise_passing()
        if name.startswith("_") and not name.endswith("__"):
            raise ViewTaken
        raise AttributeError(f"a Lease has no attribute {name!r}")

    @property
    def view(self) -> memoryview:
        self._is_over()

    @view.setter
    def view(self, view: memoryview) -> None:
        raise ViewTaken

    @view.deleter
    def view(self) -> None:
        raise ViewTaken

    def _write(self, source: memoryview) -> None:
        self._is_over()

    def _write_placed(self, parts: Iterable[tuple[int, memoryview]]) -> None:
        self._is_over()

    def _fill(self, fd: int, offset: int | None) -> int:
        self._is_over()

    def shorten(self, nbytes: int) -> None:
        self._is_over()

    def publish(self, *, ttl: float | None = None) -> Handle:
        self._is_over()

    def publish_many(self, n: int, *, ttl: float | None = None) -> list[Handle]:
        self._is_over()

    def publish_kept(self, prepare: Callable[[Slot], None] | None = None) -> tuple[Handle, Callable[[], None]]:
        self._is_over()

    def publish_shared(
        self, name: str | None = None, *, keep: bool | Literal["cache"] = False, ttl: float | None = None
    ) -> Shared:
        self._is_over()

    def release(self) -> None:
        pass

    def __repr__(self) -> str:
        return f"<Lease of {self.nbytes} bytes, over>"
