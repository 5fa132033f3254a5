"""A shared publication, as users have it: a name for it, small and picklable.

The first open in a process asks the broker once; what is held there is opened without it. The
maker's `Shared` holds it until it is released or collected; one that was found, until it is opened; from
then on the views do.
"""

from __future__ import annotations

from zlib import crc32

from .buffer import SharedBuffer
from .errors import ChecksumError, StaleHandle
from .link.requests import Request
from .protocol.ledger import generation_of
from .protocol.messages import Held, Refusal
from .protocol.messages import Hold as HoldMessage
from .seat import private
from .seat.holds import Hold
from .seat.session import Session
from .system import frames
from .system.finalizers import ends_by
from .system.here import HERE, OURS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType
    from typing import Any, Protocol, Self

    class Opener(Protocol):
        """The pool of a shared publication."""

        _session: Session | None

        def _live_session(self, timeout: float | None = None) -> Session:
            """The session."""

        def _get_shared(
            self, buffer: SharedBuffer, writable: bool, copy: bool | None, allow: Collection[str] | None
        ) -> Any:
            """The object of what was just opened."""


def _release_collected(shared: Shared) -> None:
    if getattr(shared, "_pin", None) is not None:
        shared._unpin()


@ends_by(_release_collected)
class Shared:
    """A shared publication. Picklable; used by many threads and processes, also by forked children.

    It lives while its maker, or anybody, holds it (`keep` says what else keeps it). *name* is how
    `Pool.find` finds it, empty for one without.
    """

    __slots__ = ("__weakref__", "_granted", "_pin", "_pool", "_pool_id", "_row", "name", "nbytes")

    name: str
    nbytes: int

    def __init__(self, pool: Opener, pool_id: int, row: int, granted: int, nbytes: int, name: str) -> None:
        self._pool = pool
        self._pool_id = pool_id
        self._row = row
        self._granted = granted
        self.nbytes = nbytes
        self.name = name
        #: What it holds itself, and whether that ends with its first open.
        self._pin: tuple[Hold, bool] | None = None

    def get(self, *, writable: bool = False, copy: bool | None = None, allow: Collection[str] | None = None) -> Any:
        """The object, as `Pool.get` makes it, again at each call: its arrays lie in the pool's memory and
        keep it. Raises like `open`, and `FormatError`."""
        try:
            return self._pool._get_shared(self.open(), writable, copy, allow)
        except BaseException as error:
            frames.clear(error)  # somebody may keep it
            raise

    def open(self, *, writable: bool = False) -> SharedBuffer:
        """The bytes, read-only or (*writable*) private; any number of times. The first time in a process
        it asks the broker, later it takes some microseconds. Raises `StaleHandle` when nobody held it any
        more, `BrokerUnavailable` when it has to ask and there is no broker, and, in a pool with checksums
        and until its bytes were right once in this process, `ChecksumError`."""
        try:
            return self._open(writable)
        except BaseException as error:
            frames.clear(error)  # somebody may keep it
            raise

    def _open(self, writable: bool) -> SharedBuffer:
        session = self._pool._live_session()
        if session.pool_id != self._pool_id:
            raise StaleHandle(
                f"the shared publication is of pool {self._pool_id:016x}, this is pool {session.pool_id:016x}"
            )
        while (found := session.holds.look_through(self._row, self._granted)) is None:
            self._hold(session)
        hold, view = found
        if hold.checksum is not None:
            self._verify(hold, view)
        buffer = SharedBuffer.__new__(SharedBuffer)
        buffer._record, buffer._granted, buffer._fork = hold.record, self._granted, hold.fork
        buffer.nbytes, buffer.view = self.nbytes, view
        del view, found
        if self._pin is not None and self._pin[1]:
            self._unpin()
        if writable:
            buffer.view = private.show(private.reserve(buffer.nbytes), buffer, buffer.view)
        return buffer

    def _verify(self, hold: Hold, view: memoryview) -> None:
        stored, actual = hold.checksum, crc32(view)
        if stored is None or stored == actual:  # another thread may have been faster
            hold.checksum = None
            return
        view.release()
        raise ChecksumError.of(self.nbytes, self._row, actual, stored)

    def _hold(self, session: Session) -> None:
        message = HoldMessage(session.link.next_number(), self._row, generation_of(self._granted))
        asked: list[Request] = []
        try:
            request = session.holds.ask(message, None, what="open", asked=asked)
            if isinstance(request.refusal, Refusal):
                raise StaleHandle(request.refusal.text)
            assert isinstance(request.answer, Held)
            hold = session.holds.keep(request.answer)
        except BaseException:
            session.holds.let_go_of(asked)
            raise
        if hold.granted != self._granted:
            raise StaleHandle("the shared publication is gone, and its place was used again")

    def release(self) -> None:
        """Hold it no longer by this object; views live on, and hold it until the last is gone. It can be
        opened again as long as somebody holds it. Twice is fine."""
        try:
            self._unpin()
            session = self._pool._session
            if session is not None and not session.is_over and HERE[OURS]:
                session.holds.look(at_once=True)
        except BaseException as error:
            self._unpin()  # somebody may keep the exception, and with it this object
            frames.clear(error)
            raise

    def _unpin(self) -> None:
        pin = self._pin
        if pin is not None:
            pin[0].unpin(self)
            self._pin = None  # last: what an exception keeps from being done the next release does

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Shared, (self._pool, self._pool_id, self._row, self._granted, self.nbytes, self.name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Shared):
            return NotImplemented
        mine = self._pool_id, self._row, self._granted
        return mine == (other._pool_id, other._row, other._granted)

    def __hash__(self) -> int:
        return hash((self._pool_id, self._row, self._granted))

    def __repr__(self) -> str:
        named = f" {self.name!r}" if self.name else ""
        return f"<Shared{named} of {self.nbytes} bytes, row {self._row}>"
