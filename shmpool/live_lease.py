"""A lease that is not over: it is published, or released, once.

It turns into an ended one by its class, so this one checks nothing and the ended one raises. The
order in `publish` is the protocol: the view goes, the cells are stored (and the extent word, where
the lease has not done it right already), the grant word last.
"""

from __future__ import annotations

import warnings
from functools import partial
from sys import getrefcount

from .errors import InvalidSize, LeakedView, LeaseReleased
from .lease import EndedLease, Lease, raise_passing
from .protocol.figures import DEFERRED
from .protocol.handle import Handle, pack_handle
from .protocol.ledger import CHUNKS_SHIFT, EXTENT, MAX_TICKETS, NBYTES_BITS, STATE_SHIFT, TICKETS_SHIFT
from .protocol.states import CellState, State
from .seat.slot import Keeper, Slot, ViewTaken
from .seat.windows import AT_REST
from .system import frames
from .system.finalizers import ends_by
from .system.here import COPIED, HERE, OURS
from .system.outside import own, own_or_called

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import MemberDescriptorType
    from typing import Any

_DONE = CellState.DONE << STATE_SHIFT
_CELL_SHIFT = NBYTES_BITS
_view: MemberDescriptorType = vars(Lease)["view"]


def _release_collected(lease: LiveLease) -> None:
    slot = getattr(lease, "_slot", None)  # none, when an exception came while it was made
    if not isinstance(lease, LiveLease) or slot is None or slot.session.is_over or not HERE[OURS]:
        return
    if lease.release_unless_busy(is_collected=True) and not slot.session.is_at_exit:
        warnings.warn(
            f"a lease of {lease.nbytes} bytes was neither published nor released; it is now",
            ResourceWarning,
            source=lease,
            stacklevel=3,
        )


@ends_by(_release_collected)
class LiveLease(Lease):
    """A lease that is not over."""

    __slots__ = ()

    if TYPE_CHECKING:
        nbytes: int
        view: memoryview
    else:

        def __getattr__(self, name):
            """Of what is not there: only the view goes before the lease does."""
            raise_passing()
            if name == "view":
                raise ViewTaken
            raise AttributeError(f"a Lease has no attribute {name!r}")

    def publish(self, *, ttl: float | None = None) -> Handle:
        if ttl is not None:
            return self._publish_expiring(1, ttl)[0]
        slot = self._slot
        session = slot.session
        try:
            self.view.release()
        except own(BufferError):
            pass  # numpy holds it; the reference count tells below
        del self.view
        try:
            if getrefcount(slot.window) != AT_REST or session.is_over or not HERE[COPIED]:
                return self._publish_viewed(slot, session)
            words, word, nbytes = session.words, slot.word, self.nbytes
            granted = slot.base | session.published
            # The bytes and the cell are there before the grant word says so, and the slot is waited for
            # only after it: whoever reaps finds either the last publication's DONE or this one's cell.
            words[slot.first_cell] = granted
            if session.barrier:
                session.barrier()
            words[word] = granted
            self.__class__ = EndedLease  # type: ignore[assignment]
            self._slot = slot.origin
            slot.last_cell = slot.first_cell
            slot.done = slot.base | _DONE
            slot.magazine.published.append(slot)  # type: ignore[union-attr]
            return Handle(pack_handle(session.pool_id, granted, slot.tail | nbytes))
        except BaseException as error:
            LiveLease._part_with_slot(self, error)  # it may have ended
            slot = None  # type: ignore[assignment]  # somebody may keep the exception
            raise

    def shorten(self, nbytes: int) -> None:
        check_shorter(self, nbytes)
        # Who has taken the view away has the lease: nobody ends it before it has its new one.
        whole = self.view
        try:
            del self.view
        except own(AttributeError):
            raise ViewTaken from None
        try:
            store_length(self, nbytes)
            self.view = whole[:nbytes]
            whole.release()
        except own(BufferError):  # numpy holds it: it is found at publish like any other
            pass
        except BaseException:
            whole = None  # type: ignore[assignment]  # somebody may keep the exception
            self._renew_view()  # it goes on
            raise

    def publish_many(self, n: int, *, ttl: float | None = None) -> list[Handle]:
        if type(n) is not int or not 1 <= n <= MAX_TICKETS:
            raise ValueError(f"a publication has 1 to {MAX_TICKETS} readers, not {n!r}")
        if ttl is not None:
            return self._publish_expiring(n, ttl)
        taken: list[None] = []
        try:
            if not self._take_view(taken):
                raise LeaseReleased("the lease is being published or released by another thread")
            if self._slot.has_views or self._slot.session.is_over or not HERE[COPIED]:
                return self._publish_slowly(n)
            await_readers = partial(self._await_readers, self._slot)
            handles = self._store_publication(n)
            await_readers()
            return handles
        except BaseException as error:
            if taken:
                LiveLease._part_with_slot(self, error)  # it may have ended
            await_readers = None  # somebody may keep the exception
            raise

    def publish_kept(self, prepare: Callable[[Slot], None] | None = None) -> tuple[Handle, Callable[[], None]]:
        taken: list[None] = []
        try:
            if not self._take_view(taken) or self._slot.session.is_over or not HERE[OURS]:
                raise LeaseReleased("the lease is over, or being published or released by another thread")
            if prepare is not None:
                prepare(self._slot)
            let_go = partial(self._await_readers, self._slot)
            return self._store_publication(1)[0], let_go
        except BaseException as error:
            if taken:
                LiveLease._part_with_slot(self, error)  # it may have ended
            let_go = None  # somebody may keep the exception
            raise

    def _publish_viewed(self, slot: Slot, session: Keeper) -> Handle:
        """As `publish`, where the writer keeps an array over its block, as most do, and was told once."""
        deferred, go_on = session.deferred, partial(self._await_readers, slot)
        deferred.look_at_partings()  # what the writer let go of meanwhile is the next to be leased
        if session.is_over or session.strict or not session.warned_of_views or not HERE[COPIED]:
            return self._publish_slowly(1)[0]
        words, nbytes, granted = session.words, self.nbytes, slot.base | session.published
        words[slot.first_cell] = granted
        if session.barrier:
            session.barrier()
        words[slot.word] = granted
        self.__class__ = EndedLease  # type: ignore[assignment]
        self._slot = slot.origin
        slot.last_cell = slot.first_cell
        slot.done = slot.base | _DONE
        if not session.is_over:  # as in `Seat.count`
            words[session.counters + DEFERRED] += 1
        deferred.add_slot(slot, go_on)  # behind the stores: who finds it there goes on with it
        return Handle(pack_handle(session.pool_id, granted, slot.tail | nbytes))

    def _publish_slowly(self, tickets: int) -> list[Handle]:
        """The writer keeps a view, or a child has yet to copy what it inherited: the handle may go, the
        slot is not used again before that. A writer's view is an error in strict mode, and the lease goes
        on."""
        slot, session = self._slot, self._slot.session
        if session.is_over or not HERE[OURS]:
            self.__class__ = EndedLease  # type: ignore[assignment]
            raise LeaseReleased("the lease's seat is gone: the pool was closed, or the broker came back with a new one")
        if not HERE[COPIED]:
            session.guards.settle()
        if slot.has_views:
            self._admit_views()
            session.deferred.look_at_partings()  # what the writer let go of meanwhile is the next to be leased
        # Before the slot has another state: a fork's end looks for what is leased, and for what ended
        # meanwhile.
        is_awaited = session.guards.note_release(slot.row)
        await_readers, is_kept = partial(self._await_readers, slot), is_awaited or slot.has_views
        handles = self._store_publication(tickets, is_kept=is_kept)
        if not is_kept:
            await_readers()
            return handles
        slot.done = slot.base | _DONE  # from here on it is never given back as one that nobody heard of
        session.deferred.add_slot(slot, await_readers)
        return handles

    def _admit_views(self) -> None:
        """The writer keeps views of what it publishes. Raises LeakedView in strict mode."""
        session = self._slot.session
        if session.strict:
            self._renew_view()
            raise LeakedView("an array or slice of lease.view is alive at publish; delete it first (strict mode)")
        try:
            if session.warned_of_views:
                session.count(DEFERRED)
            else:
                session.warn_of_view()
        except own_or_called(Warning):  # warnings are errors here: the handles would be lost, so the lease goes on
            self._renew_view()
            raise

    def _store_publication(self, tickets: int, *, is_kept: bool = False) -> list[Handle]:
        """*is_kept*: whoever looks through the slot keeps it, so that it stays this seat's."""
        slot, session, words = self._slot, self._slot.session, self._slot.session.words
        granted = self._granted(is_kept=is_kept)
        words[slot.word + EXTENT] = self.nbytes | tickets << TICKETS_SHIFT | slot.first_chunks << CHUNKS_SHIFT
        for cell in range(tickets):
            words[slot.first_cell + cell] = granted
        if session.barrier:
            session.barrier()
        self._store_grant(granted)
        slot.last_cell = slot.first_cell + tickets - 1
        self.__class__ = EndedLease  # type: ignore[assignment]
        self._slot = slot.origin
        if tickets == 1:
            return [Handle(pack_handle(session.pool_id, granted, slot.tail | self.nbytes))]
        cells = range(slot.row << 4, (slot.row << 4) + tickets)
        return [Handle(pack_handle(session.pool_id, granted, cell << _CELL_SHIFT | self.nbytes)) for cell in cells]

    def _store_grant(self, granted: int) -> None:
        """The publishing store."""
        slot = self._slot
        slot.session.words[slot.word] = granted

    def sum_payload(self) -> None:
        """Store the payload's checksum, in a pool that has them."""

    def _granted(self, *, is_kept: bool = False) -> int:
        return self._slot.base | self._slot.session.published

    def _return_shared(self) -> None:
        """Custody passes to the broker with this store, whatever views there are: they hold it, too."""
        slot, session = self._slot, self._slot.session
        if not HERE[COPIED]:
            session.guards.note_release(slot.row)  # what is held of it waits
        slot.prepare_return()
        session.return_soon(slot, State.PUBLISHED)
        self.__class__ = EndedLease  # type: ignore[assignment]
        self._slot = slot.origin
        session.keep_window(slot)

    @staticmethod
    def _await_readers(slot: Any) -> None:
        """Of a slot, since its lease is over, and may be anybody's or have let go of it."""
        assert slot.magazine is not None
        slot.done = slot.base | _DONE
        slot.magazine.published.append(slot)

    def release(self) -> None:
        slot = self._slot
        session = slot.session
        try:
            view = self.view
            del self.view
        except own(AttributeError, LeaseReleased):  # its publish was interrupted: the slot is found (`recovery`)
            self.__class__ = EndedLease  # type: ignore[assignment]
            return
        try:
            try:
                view.release()
            except own(BufferError):
                pass  # numpy holds it; the reference count tells below
            if getrefcount(slot.window) != AT_REST or session.is_over or not HERE[COPIED]:
                if HERE[OURS] and not HERE[COPIED]:
                    session.guards.settle()
                self._release_otherwise()
                return
            self.__class__ = EndedLease  # type: ignore[assignment]
            self._slot = slot.origin
            session.return_unpublished(slot)
        except BaseException as error:
            LiveLease._part_with_slot(self, error)  # it may have ended
            slot = view = None  # type: ignore[assignment]  # somebody may keep the exception
            raise

    def release_unless_busy(self, *, is_collected: bool = False) -> bool:
        """Release it, unless a thread is just publishing it and goes on with it: who takes the
        view away has it."""
        taken: list[None] = []
        try:
            if not self._take_view(taken, is_collected=is_collected):
                return False
            self._release_otherwise()
        except BaseException as error:
            if taken:
                LiveLease._part_with_slot(self, error)  # it may have ended
            raise
        return True

    def _part_with_slot(self, error: BaseException) -> None:
        """What was to end the lease was ended itself, by an exception. Whoever needs the slot finds it
        (`recovery`), also while somebody keeps this object. A lease that goes on, in strict mode, has its view
        again."""
        if isinstance(error, own_or_called(LeakedView, Warning)):
            return
        self.__class__ = EndedLease  # type: ignore[assignment]
        try:
            _view.__delete__(self)
        except own(AttributeError):  # it was taken away already
            pass
        self._slot = self._slot.origin
        frames.clear(error)

    def _release_otherwise(self) -> None:
        slot = self._slot
        if slot.session.is_over or not HERE[OURS]:
            self.__class__ = EndedLease  # type: ignore[assignment]
        elif (not HERE[COPIED] and slot.session.guards.note_release(slot.row)) or slot.has_views:
            self._release_later()
        else:
            returned = partial(self._return, slot)
            self.__class__ = EndedLease  # type: ignore[assignment]
            self._slot = slot.origin
            returned()

    def _release_later(self) -> None:
        """When the views are gone, or the child that has yet to copy what it inherited has done it."""
        slot = self._slot
        session, go_on, has_views = slot.session, partial(self._return, slot), slot.has_views
        self.__class__ = EndedLease  # type: ignore[assignment]
        self._slot = slot.origin
        session.deferred.add_slot(slot, go_on)
        if session.is_at_exit or not has_views:
            return
        if session.strict:
            raise LeakedView(
                "an array or slice of lease.view is alive at release (strict mode);"
                " the buffer is given back when it is gone"
            )
        session.warn_of_view()

    @staticmethod
    def _return(slot: Any) -> None:
        """The same."""
        slot.session.return_unpublished(slot)

    def _take_view(self, taken: list[None], *, is_collected: bool = False) -> bool:
        """Take the view away from everybody else; False when somebody has. A lease that is
        collected leaves it to whoever has it. *taken* has an item from the step on that takes it."""
        try:
            view = self.view
            del self.view
            taken.append(None)
        except own(AttributeError, LeaseReleased):
            return False
        if not is_collected:
            try:
                view.release()
            except own(BufferError):
                pass  # numpy holds it; the reference count tells
        return True

    def _renew_view(self) -> None:
        window = self._slot.session.window_for(self._slot)
        self.view = memoryview(window)[: self.nbytes]


def check_shorter(lease: LiveLease, nbytes: int) -> None:
    """Raises `InvalidSize` for what a lease cannot be shortened to."""
    if type(nbytes) is not int or not 0 <= nbytes <= lease.nbytes:
        raise InvalidSize(f"a lease of {lease.nbytes} bytes cannot be shortened to {nbytes!r}")


def store_length(lease: LiveLease, nbytes: int) -> None:
    """For who has the lease: another could publish or return its slot between these stores."""
    slot = lease._slot
    lease.nbytes = nbytes
    slot.session.words[slot.word + EXTENT] = slot.extent_word | nbytes


def live_leases(slots: Iterable[Slot]) -> list[LiveLease]:
    """Those that have one of these slots and are not over."""
    found = []
    for slot in slots:
        try:
            if slot.lease is not None and isinstance(lease := slot.lease._itself(), LiveLease):
                found.append(lease)
        except own(ReferenceError):
            pass  # it was collected
    return found
