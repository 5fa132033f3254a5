"""Making shared publications, and finding them by their names: what is told to the broker, and in which order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from ..errors import BrokerUnavailable, LeakedView, LeaseReleased
from ..link.requests import Request
from ..link.waiting import check_timeout, check_ttl
from ..live_lease import LiveLease
from ..protocol.ledger import (
    CACHED,
    CHUNKS_SHIFT,
    EXTENT,
    KEPT,
    NAME_BYTES,
    SHARED,
    STATE_SHIFT,
    TICKETS_SHIFT,
    shared_cells,
)
from ..protocol.messages import Drop, Dropped, Find, Held, Purpose, Share, Turn
from ..protocol.states import State
from ..seat.holds import refused
from ..shared import Shared
from ..system.here import HERE, OURS
from ..system.outside import own
from .encoding import PicklerClass, encode

if TYPE_CHECKING:
    from ..pool import BasePool
    from ..seat.session import Session
    from ..seat.windows import Window

Keep = bool | Literal["cache"]

_KEEP: Final = {False: 0, True: KEPT, "cache": CACHED}


def _made(pool: BasePool, session: Session, held: Held, written: Window | None = None, *, until_opened: bool) -> Shared:
    """A Shared that holds by itself what the broker holds for us."""
    shared = Shared(pool, session.pool_id, held.row, held.word, held.nbytes, held.name)
    shared._pin = session.holds.keep(held, written, holder=shared), until_opened
    return shared


# --- making ----------------------------------------------------------------------------------------------


def share(
    pool: BasePool,
    obj: Any,
    name: str | None,
    keep: Keep,
    ttl: float | None,
    timeout: float | None,
    pickler: PicklerClass | None,
    turn: int = 0,
) -> Shared:
    """Pickle first: what cannot be pickled claims no name and leases nothing."""
    check(pool, name, keep, ttl)
    until = None if timeout is None else time.monotonic() + check_timeout(timeout)
    encoded = encode(obj, pickler)
    session = pool._live_session()
    await_broker(session, _left(until))
    asked: list[Request] = []
    try:
        number = turn or claim(session, name, asked, _left(until))
        with pool.lease(encoded.nbytes, timeout=_left(until)) as lease:
            lease._write_placed(encoded.parts)
            return publish(lease, pool, name, keep, ttl, number, timeout=_left(until))  # type: ignore[arg-type]
    except BaseException:
        session.holds.let_go_of(asked)
        raise


def _left(until: float | None) -> float | None:
    """Of a timeout, in seconds; None is what each step has by itself."""
    return None if until is None else max(0.0, until - time.monotonic())


def await_broker(session: Session, timeout: float | None) -> None:
    """What is shared has to be told. Raises BrokerUnavailable while there is nobody to tell, and nothing is published;
    behind this it is published, and told when there is a connection again."""
    if not session.link.await_connection(timeout):
        raise BrokerUnavailable(f"the broker at {session.address} is away, and a shared publication needs it")


def claim(session: Session, name: str | None, asked: list[Request] | None = None, timeout: float | None = None) -> int:
    """Have the turn to make what is to have a name: its number. Raises NameTaken."""
    if name is None:
        return 0
    message = Find(session.link.next_number(), name, Purpose.CLAIM, False)
    request = session.holds.ask(message, timeout, what=f"share {name!r}", asked=asked)
    if request.refusal is not None:
        raise refused(request.refusal)
    assert isinstance(request.answer, Turn)
    return request.answer.request


def publish_shared(
    pool: BasePool, lease: LiveLease, name: str | None, keep: Keep, ttl: float | None, *, mark: int = 0
) -> Shared:
    """What `Lease.publish_shared` does; *mark* says what else it is (`QUEUE`)."""
    check(pool, name, keep, ttl)
    session = pool._live_session()
    asked: list[Request] = []
    try:
        return publish(lease, pool, name, keep, ttl, claim(session, name, asked), mark)
    except BaseException:
        session.holds.let_go_of(asked)
        raise


class Announced(NamedTuple):
    """A publication that is the broker's already; *written* is the window through which its maker may still see it."""

    session: Session
    granted: int
    written: Window | None


def publish(
    lease: LiveLease,
    pool: BasePool,
    name: str | None,
    keep: Keep,
    ttl: float | None,
    turn: int,
    mark: int = 0,
    *,
    timeout: float | None = None,
) -> Shared:
    """Custody passes to the broker with the publishing store; then it is told, and holds it for us."""
    session, asked = pool._live_session(), list[Request]()
    until = None if timeout is None else time.monotonic() + timeout
    await_broker(session, timeout)  # an exception may have ended the connection, and that was seen just now
    message = share_message(session, lease, ttl, turn)
    try:
        announced = announce(message, lease, pool, name, keep, ttl, mark)
        return made(pool, announced, session.holds.ask(message, _left(until), what="share", asked=asked))
    except BaseException:
        session.holds.let_go_of(asked)
        session.holds.discard_sharing(message)
        raise


def share_message(session: Session, lease: LiveLease, ttl: float | None, turn: int) -> Share:
    """What is to be asked of the broker once the lease is published."""
    seconds = float(ttl or 0)
    milliseconds = ceil(seconds * 1000) if seconds != float("inf") else 0
    return Share(session.link.next_number(), lease._slot.row, turn, milliseconds)


def announce(
    message: Share, lease: LiveLease, pool: BasePool, name: str | None, keep: Keep, ttl: float | None, mark: int = 0
) -> Announced:
    """The publishing store. Nobody holds it yet: the message is to be asked, and discarded where this or that fails."""
    slot, session = lease._slot, pool._live_session()
    if slot.session is not session or not HERE[OURS]:
        raise LeaseReleased("the lease's seat is gone: the pool was closed, or the broker came back with a new one")
    taken: list[None] = []
    try:
        if not lease._take_view(taken):
            raise LeaseReleased("the lease is being published or released by another thread")
        if slot.has_views and session.strict:
            lease._renew_view()
            raise LeakedView("an array or slice of lease.view is alive at publish; delete it first (strict mode)")
        written = slot.window if slot.has_views else None
        words, cells = session.words, shared_cells(name or "", _uid(), ceil(ttl) if ttl and ttl != float("inf") else 0)
        for at, word in enumerate(cells):
            words[slot.first_cell + at] = word
        if not mark:  # a queue's bytes change
            lease.sum_payload()
        words[slot.word + EXTENT] = (
            lease.nbytes | (SHARED | _KEEP[keep] | mark) << TICKETS_SHIFT | slot.first_chunks << CHUNKS_SHIFT
        )
        granted = slot.base | State.PUBLISHED << STATE_SHIFT
        session.holds.begin_sharing(message, granted)  # first: what an exception comes behind is found there
        lease._return_shared()
        return Announced(session, granted, written)
    except BaseException as error:
        if taken:
            LiveLease._part_with_slot(lease, error)  # it may have ended
        slot = written = None  # type: ignore[assignment]  # somebody may keep the exception
        raise


def made(pool: BasePool, announced: Announced, request: Request) -> Shared:
    """What was announced, when the broker has answered."""
    if request.refusal is not None:
        raise refused(request.refusal)
    assert isinstance(request.answer, Held)
    assert request.answer.word == announced.granted
    return _made(pool, announced.session, request.answer, announced.written, until_opened=False)


# --- finding ---------------------------------------------------------------------------------------------


def find(pool: BasePool, name: str, timeout: float | None) -> Shared:
    """Hold what has a name, waiting for it to come."""
    check_name(pool, name)
    timeout = None if timeout is None else check_timeout(timeout)
    return _find(pool, name, timeout, awaits_name=timeout != 0)


def find_present(pool: BasePool, name: str) -> Shared:
    """Hold what has a name already, else NotFound. For the broker's word it waits as long as a lease does: one that
    is busy, or just restarts, delays it."""
    check_name(pool, name)
    return _find(pool, name, None, awaits_name=False)


def _find(pool: BasePool, name: str, timeout: float | None, *, awaits_name: bool) -> Shared:
    session = pool._live_session()
    message = Find(session.link.next_number(), name, Purpose.OPEN, awaits_name)
    asked: list[Request] = []
    try:
        request = session.holds.ask(message, timeout, what=f"find {name!r}", asked=asked)
        if request.refusal is not None:
            raise refused(request.refusal)
        assert isinstance(request.answer, Held)
        return _made(pool, session, request.answer, until_opened=True)
    except BaseException:
        session.holds.let_go_of(asked)
        raise


def get_or_share(
    pool: BasePool,
    name: str,
    make: Callable[[], Any],
    timeout: float | None,
    keep: Keep,
    ttl: float | None,
    pickler: PicklerClass | None,
) -> Shared:
    """Hold what has a name, or have the turn to make it."""
    if not callable(make):
        raise TypeError(f"make is a function that returns the object to share, not {make!r:.80}")
    session, asked = pool._live_session(), list[Request]()
    try:
        found = find_or_turn(pool, name, keep, ttl, timeout, asked)
        if isinstance(found, Shared):
            return found
        session, number = found
        return share(pool, make(), name, keep, ttl, timeout, pickler, turn=number)
    except BaseException:
        session.holds.let_go_of(asked)  # the next in line makes it
        raise


def find_or_turn(
    pool: BasePool, name: str, keep: Keep, ttl: float | None, timeout: float | None, asked: list[Request] | None = None
) -> Shared | tuple[Session, int]:
    """Hold what has a name, or have the turn to make it, by its number: it has to be shared, or let go."""
    check_name(pool, name)
    check(pool, name, keep, ttl)
    timeout = None if timeout is None else check_timeout(timeout)
    session = pool._live_session()
    message = Find(session.link.next_number(), name, Purpose.MAKE, timeout != 0)
    request = session.holds.ask(message, timeout, what=f"get_or_share {name!r}", asked=asked)
    if request.refusal is not None:
        raise refused(request.refusal)
    if isinstance(request.answer, Held):
        return _made(pool, session, request.answer, until_opened=True)
    assert isinstance(request.answer, Turn)
    return session, request.answer.request


def drop(pool: BasePool, name: str) -> None:
    """Free a name."""
    check_name(pool, name)
    session = pool._live_session()
    request = session.holds.ask(Drop(session.link.next_number(), name), None, what=f"drop {name!r}")
    if request.refusal is not None:
        raise refused(request.refusal)
    assert isinstance(request.answer, Dropped)


# --- checks ----------------------------------------------------------------------------------------------


def check_name(pool: BasePool, name: Any) -> None:
    """Refuse what is no name. Raises TypeError, ValueError."""
    if not isinstance(name, str):
        raise TypeError(f"a name is a str, not {type(name).__name__}")
    try:
        length = len(name.encode())
    except own(UnicodeEncodeError) as error:
        raise ValueError(f"a name is Unicode, {name!r} is not: {error}") from None
    most = pool.most_name_bytes
    if not 0 < length <= most:
        why = ", in a pool with checksums" if most < NAME_BYTES else ""
        raise ValueError(f"a name is 1 to {most} bytes of UTF-8{why}, this one has {length}")


def check(pool: BasePool, name: str | None, keep: Keep, ttl: float | None) -> None:
    """Refuse what no publication can have. Raises TypeError, ValueError."""
    if name is not None:
        check_name(pool, name)
    if not (keep is True or keep is False or keep == "cache"):
        raise ValueError(f"keep is False, True or 'cache', not {keep!r}")
    if keep is True and name is None:
        raise ValueError("what is kept until it is dropped needs a name: that is how it is dropped")
    if ttl is not None:
        check_ttl(ttl)


def _uid() -> int:
    return os.geteuid()
