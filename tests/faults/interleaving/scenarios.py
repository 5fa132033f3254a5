"""What is explored: who takes part, what they do, and what may befall them.

The pairwise scenarios can be explored whole, each within half a minute; those of `LARGE` take some minutes, on demand;
`WHOLE` is all at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from .brokers import BrokerProcess
from .clients import Client, Gone
from .machines import Context
from .start import GONE_QUEUE, LIVING_QUEUE, LONG_NBYTES, NBYTES, NO_CHORES, Chores, Start

Role = Callable[[Client], None]
#: Bytes of direct objects.
SHORT, LONG = NBYTES, LONG_NBYTES


@dataclass(frozen=True)
class Scenario:
    """*roles* are by name; the first has the slot at the start. Those in *joining* connect
    once something is published. *faults* is how many of them die (*mortal*) or stop for ever
    (*pausable*), *restarts* how often the broker dies; *is_abroad*: the next one is in
    another namespace and sees no client's process. *bells_suffice* in these modes: there the
    sweep has nothing to find."""

    name: str
    roles: tuple[tuple[str, Role], ...]
    mortal: frozenset[str] = frozenset()
    pausable: frozenset[str] = frozenset()
    joining: frozenset[str] = frozenset()
    tickets: int = 1
    faults: int = 0
    restarts: int = 0
    is_abroad: bool = False
    expiry: bool = False
    gives_back: bool = False
    timeouts: bool = False
    bells_suffice: tuple[str, ...] = ()
    #: The child that one of them forks, if any.
    child: str = ""
    #: How tickets are taken: under "locks", by "swaps", or so that readers have the broker swap for them ("asks").
    by: str = "locks"
    #: The row is of direct segments.
    is_direct: bool = False
    #: Somebody calls the pool in the middle of a call of his own (`nesting`).
    has_visits: bool = False
    #: What the broker does beside its clients.
    chores: Chores = NO_CHORES

    @property
    def forks(self) -> bool:
        return bool(self.child)

    @property
    def connected(self) -> int:
        return len(self.roles) - len(self.joining)

    @property
    def seats(self) -> int:
        return len(self.roles)

    def start(self) -> Start:
        """How it begins."""
        return Start(
            self.connected, self.seats, self.tickets, gives_back=self.gives_back, forks=self.forks, by=self.by,
            is_direct=self.is_direct, chores=self.chores,
        )  # fmt: skip

    def bodies(self) -> list[tuple[str, Callable[[Context], None]]]:
        bodies = [(name, self._body(name, role)) for name, role in self.roles]
        return [*bodies, (self.child, inherit)] if self.child else bodies

    def _body(self, name: str, role: Role) -> Callable[[Context], None]:
        def body(context: Context) -> None:
            if name in self.joining:
                context.ask("fetch", 0)
            with contextlib.suppress(Gone):
                role(Client(context, context.machine.start, joins=name in self.joining))

        return body

    def broker(self, epoch: int) -> Callable[[Context], None]:
        is_abroad = self.is_abroad and epoch > 1
        return lambda context: BrokerProcess(context, context.machine.start, epoch, is_abroad=is_abroad).run()


# --- roles -----------------------------------------------------------------------------------------


def produce(times: int = 1, *, then: Callable[[Client], None] = Client.serve, tickets: int = 1) -> Role:
    """Lease, write and publish, asking the broker for what the magazine does not have."""

    def role(client: Client) -> None:
        client.produce(times, tickets)
        then(client)

    return role


def wait_and_produce(client: Client) -> None:
    """Want a slot once something is published in the only one."""
    client.receive(0)
    client.produce(1)
    client.serve()


def recycle(client: Client) -> None:
    """Publish, and publish again in the same slot once its reader is done."""
    client.produce(1)
    client.produce_from_own(1)
    client.serve()


def recycle_for_two(client: Client) -> None:
    client.produce(1, tickets=2)
    client.produce_from_own(1, tickets=2)
    client.serve()


def discard_and_recycle(client: Client) -> None:
    client.produce(1)
    client.discard()
    client.produce_from_own(1)
    client.serve()


def put(*queues: int) -> Role:
    """Publish into these queues, 0 for none, each time in the same slot; what is in it names its queue."""

    def role(client: Client) -> None:
        client.produce(1, queue=queues[0])
        for queue in queues[1:]:
            client.produce_from_own(1, queue=queue)
        client.serve()

    return role


def read_last(count: int) -> Role:
    """Read so many handles, of which only the last must not be refused."""

    def role(client: Client) -> None:
        for number in range(count):
            client.consume(number, is_good=number == count - 1)
        client.serve()

    return role


def produce_direct(*sizes: int, then: Callable[[Client], None] = Client.serve) -> Role:
    """Objects of so many bytes that follow one another, each in a segment of its own or in one that was kept."""

    def role(client: Client) -> None:
        client.produce_direct(*sizes)
        then(client)

    return role


def discard_direct(client: Client) -> None:
    """A segment that is kept; its first object is discarded, maybe in vain."""
    client.produce_direct(SHORT)
    client.discard()
    client.produce_direct(SHORT)
    client.serve()


def rest_direct(client: Client) -> None:
    """A segment that is kept, and given back as nobody uses it; and one more object."""
    client.produce_direct(SHORT)
    for _ in range(2):
        client.turn()
    client.produce_direct(SHORT)
    client.serve()


def give_up(client: Client) -> None:
    """Lease, write, release unpublished, and leave."""
    if client.lease():
        client.write()
        client.release_lease()
    client.close()


def come_and_go(client: Client) -> None:
    """Release unpublished and give the slot back, and want one again, and again."""
    for _ in range(2):
        if client.lease():
            client.release_lease()
        client.return_idle()
    client.produce(1)
    client.serve()


def read(*numbers: int) -> Role:
    """Open and release the handles that were posted as these."""

    def role(client: Client) -> None:
        for number in numbers:
            client.consume(number)
        client.serve()

    return role


def read_good(*numbers: int) -> Role:
    """The same, where nothing is a reason to refuse any."""

    def role(client: Client) -> None:
        for number in numbers:
            client.consume(number, is_good=True)
        client.serve()

    return role


def give_back(number: int) -> Role:
    """Open what was posted as this, give it back, and go on."""

    def role(client: Client) -> None:
        client.give_back(number)
        client.serve()

    return role


def read_and_fork(*numbers: int) -> Role:
    """Fork while the first of these handles is open, go on, and read the others."""

    def role(client: Client) -> None:
        client.receive(numbers[0])
        if client.open():
            client.fork()
            client.release()
        client.turn()
        for number in numbers[1:]:
            client.consume(number)
        client.serve()

    return role


def fork_and_recycle(client: Client) -> None:
    """Fork with a lease that is written, publish it, and publish again in the same slot."""
    if client.lease():
        client.write()
        client.fork()
        client.publish()
        client.turn()
        client.produce_from_own(1)
    client.serve()


def fork_and_leave(client: Client) -> None:
    """Fork with a lease that is written, release it unpublished, give back what is idle, and leave."""
    if client.lease():
        client.write()
        client.fork()
        client.release_lease()
    client.return_idle()
    client.serve()


# A finalizer or a signal handler comes in the middle of a call, or not.


def open_visited(*numbers: int, by: Callable[[Client], Callable[[], None]]) -> Role:
    """Open the last of these handles, in the middle of which comes what *by* makes."""

    def role(client: Client) -> None:
        for number in numbers:
            client.receive(number)
        if client.open(by(client)):
            client.look()
            client.release()
        client.turn()
        client.serve()

    return role


def reads_earlier(client: Client) -> Callable[[], None]:
    return lambda: client.read_within(client.earlier)


def reads_same(client: Client) -> Callable[[], None]:
    return lambda: client.read_within(client.handle)


def discards_earlier(client: Client) -> Callable[[], None]:
    return lambda: client.discard_within(client.earlier)


def closes(client: Client) -> Callable[[], None]:
    return client.close_within


def discards_and_closes(client: Client) -> Callable[[], None]:
    def act() -> None:
        client.discard_within(client.earlier)
        client.close_within()

    return act


def release_within_open(client: Client) -> None:
    """Open one, and then the next, in the middle of which the first is released."""
    client.receive(0)
    is_open = client.open()
    client.receive(1)
    if client.open_next(client.release if is_open else None):
        client.release_next()
    if is_open and client.has_buffer:
        client.release()
    client.turn()
    client.serve()


def open_within_release(client: Client) -> None:
    """Release what is open, in the middle of which the next is read."""
    client.receive(0)
    is_open = client.open()
    client.receive(1)
    if is_open:
        client.release(lambda: client.read_within(client.handle))
    client.turn()
    client.serve()


def open_within_discard(client: Client) -> None:
    """Discard a ticket, in the middle of which the other is read."""
    client.receive(1)
    client.receive(0)
    client.discard(lambda: client.read_within(client.earlier))
    client.serve()


def lease_visited(client: Client) -> None:
    """Lease, write and publish, in the middle of each of which another is published, if there is one."""
    if client.lease(client.produce_within):
        client.write()
        client.publish(act=client.produce_within)
    client.turn()
    client.serve()


def inherit(context: Context) -> None:
    """A child: reads what was open at its fork, or copies what was leased, and goes."""
    letter, granted, copies = context.ask("born")
    context.inherited = letter, granted, 0
    if letter == "R":
        context.ask("unmap", copies)
    context.ask("pass")  # it takes a while: the payload is looked at in every state
    context.inherited = None
    context.ask("unmap", copies)
    context.ask("let go")


def both(*names: str) -> dict[str, frozenset[str]]:
    """These may die, or stop for ever."""
    return {"mortal": frozenset(names), "pausable": frozenset(names)}


# --- pairs, under locks -------------------------------------------------------------------------------------------

_UNDER_LOCKS: tuple[Scenario, ...] = (
    Scenario(
        "publisher x reader",
        (("publisher", produce(2)), ("reader", read(0, 1))),
        **both("publisher", "reader"), faults=1,
    ),
    Scenario(
        "reader x reader, one handle",
        (("publisher", recycle), ("reader1", read(0)), ("reader2", read(0))),
        **both("reader1"), faults=1,
    ),
    Scenario(
        "readers of two tickets",
        (("publisher", recycle_for_two), ("reader1", read(0)), ("reader2", read(1))),
        tickets=2,
    ),
    Scenario(
        "reader that gives back x reader",
        (("publisher", recycle), ("reader1", give_back(0)), ("reader2", read(0))),
        mortal=frozenset({"reader1"}), faults=1,
    ),
    Scenario(
        "dead reader's ticket x reader",
        (("publisher", produce()), ("reader1", read(0)), ("reader2", read(0))),
        mortal=frozenset({"reader1"}), faults=1, gives_back=True,
    ),
    Scenario(
        "reader x discard",
        (("publisher", discard_and_recycle), ("reader", read(0, 1))),
        **both("publisher", "reader"), faults=1,
    ),
    Scenario(
        "reader x expiry",
        (("publisher", produce(then=Client.exit)), ("reader", read(0))),
        **both("reader"), faults=1, expiry=True,
    ),
    Scenario(
        "reader x expiry x waiter",
        (("publisher", produce(then=Client.exit)), ("reader", read(0)), ("heir", wait_and_produce)),
        expiry=True,
    ),
    Scenario(
        "publisher's death x sweep",
        (("publisher", produce()), ("reader", read(0)), ("heir", produce())),
        mortal=frozenset({"publisher"}), faults=1,
    ),
    Scenario(
        "reader's death x sweep",
        (("publisher", recycle), ("reader", read(0, 1))),
        **both("reader"), faults=1,
    ),
    Scenario(
        "restart x publisher",
        (("publisher", produce()), ("reader", read(0))),
        restarts=1,
    ),
    Scenario(
        "restart x leaving publisher",
        (("publisher", give_up), ("heir", produce())),
        restarts=1,
    ),
    Scenario(
        "restart abroad x leaving publisher",
        (("publisher", give_up), ("heir", produce())),
        mortal=frozenset({"publisher"}), faults=1, restarts=1, is_abroad=True,
    ),
    Scenario(
        "restart x return",
        (("publisher", come_and_go), ("heir", produce())),
        restarts=1,
    ),
    Scenario(
        "restart x reader",
        (("publisher", produce(then=Client.exit)), ("reader", read(0))),
        **both("reader"), faults=1, restarts=1,
    ),
    Scenario(
        "restart x sweep",
        (("publisher", recycle), ("reader", read(0))),
        mortal=frozenset({"publisher", "reader"}), faults=1, restarts=1,
    ),
    Scenario(
        "newcomer x sweep",
        (("publisher", recycle), ("reader", read(0)), ("newcomer", read(1))),
        mortal=frozenset({"reader"}), faults=1, joining=frozenset({"newcomer"}),
    ),
    Scenario(
        "restart x newcomer",
        (("publisher", produce(then=Client.exit)), ("newcomer", read(0))),
        restarts=1, joining=frozenset({"newcomer"}),
    ),
    Scenario(
        "close x reader's bell",
        (("publisher", produce(then=Client.close)), ("reader", read(0))),
        bells_suffice=("SC",),
    ),
    Scenario(
        "idle publisher x waiter",
        (("publisher", produce()), ("reader", read(0)), ("heir", produce())),
    ),
    Scenario(
        "fork x publisher",
        (("publisher", recycle), ("reader", read_and_fork(0))),
        mortal=frozenset({"reader"}), faults=1, child="child",
    ),
    Scenario(
        "fork x waiter",
        (("publisher", produce(then=Client.exit)), ("reader", read_and_fork(0)), ("heir", produce())),
        child="child",
    ),
    Scenario(
        "fork of a writer x reader",
        (("writer", fork_and_recycle), ("reader", read(0))),
        child="child",
    ),
    Scenario(
        "fork of a writer x waiter",
        (("writer", fork_and_leave), ("heir", produce())),
        child="child",
    ),
    Scenario(
        "fork of a writer x its death",
        (("writer", fork_and_leave), ("heir", produce())),
        mortal=frozenset({"writer"}), faults=1, child="child",
    ),
    Scenario(
        "fork x restart",
        (("publisher", recycle), ("reader", read_and_fork(0))),
        mortal=frozenset({"reader"}), faults=1, restarts=1, child="child",
    ),
)  # fmt: skip

# --- direct segments, which are kept and lie spare ------------------------------------------------------

produce_and_close = produce_direct(SHORT, then=Client.close)

_DIRECT: tuple[Scenario, ...] = (
    Scenario(
        "kept segment x reader",
        (("producer", produce_direct(SHORT, SHORT)), ("reader", read(0, 1))),
        **both("producer", "reader"), faults=1, is_direct=True,
    ),
    Scenario(
        "kept segment x newcomer",
        (("producer", produce_direct(SHORT, SHORT)), ("reader", read_good(0)), ("other", read_good(1))),
        is_direct=True,
    ),
    Scenario(
        "kept segment x discard",
        (("producer", discard_direct), ("reader", read(0, 1))),
        is_direct=True,
    ),
    Scenario(
        "kept segment x its look",
        (("producer", rest_direct), ("reader", read(0, 1))),
        is_direct=True,
    ),
    Scenario(
        "kept segment x close",
        (("producer", produce_and_close), ("reader", read_good(0, 1)), ("heir", produce_direct(SHORT))),
        is_direct=True,
    ),
    Scenario(
        "kept segment x longer object",
        (("producer", produce_direct(SHORT)), ("reader", read_good(0, 1)), ("heir", produce_direct(LONG))),
        is_direct=True,
    ),
    Scenario(
        "producer's death x heir",
        (("producer", produce_direct(SHORT)), ("reader", read(0, 1)), ("heir", produce_direct(SHORT))),
        mortal=frozenset({"producer"}), faults=1, is_direct=True,
    ),
    Scenario(
        "reader's death x heir",
        (("producer", produce_direct(SHORT)), ("reader", read(0)), ("heir", produce_direct(SHORT))),
        mortal=frozenset({"reader"}), faults=1, is_direct=True,
    ),
    Scenario(
        "restart x kept segment",
        (("producer", produce_direct(SHORT, SHORT)), ("reader", read(0, 1))),
        restarts=1, is_direct=True,
    ),
    Scenario(
        "restart x spare segment",
        (("producer", produce_and_close), ("reader", read_good(0, 1)), ("heir", produce_direct(SHORT))),
        restarts=1, is_direct=True,
    ),
)  # fmt: skip

# --- a finalizer or a handler in the middle of a call --------------------------------------------------


def _nested(what: str, visited: Role, *others: Role, publisher: Role | None = None) -> Scenario:
    readers = [(f"reader{number}", role) for number, role in enumerate(others)]
    roles = ("publisher", publisher or produce(tickets=2)), ("visited", visited), *readers
    return Scenario(what, roles, tickets=2, has_visits=True)


_NESTED: tuple[Scenario, ...] = (
    _nested("open within open", open_visited(1, 0, by=reads_earlier)),
    _nested("open within open x reader", open_visited(1, 0, by=reads_earlier), read(0)),
    _nested("open within open x its reader", open_visited(1, 0, by=reads_earlier), read(1)),
    _nested("open of the same within open x reader", open_visited(0, by=reads_same), read(0)),
    _nested("release within open", release_within_open, publisher=recycle_for_two),
    _nested("open within release", open_within_release, publisher=recycle_for_two),
    _nested("discard within open x reader", open_visited(1, 0, by=discards_earlier), read(0)),
    _nested("open within discard x reader", open_within_discard, read(0)),
    _nested("close within open", open_visited(0, by=closes)),
    _nested("discard and close within open", open_visited(1, 0, by=discards_and_closes)),
    Scenario("lease within lease", (("publisher", lease_visited), ("reader", read(0))), has_visits=True),
)  # fmt: skip

# --- the broker's chores beside clients that work on ------------------------------------------------------

_LOST_BELLS = Chores(sweeps=True, loses_bells=True)

_CHORES: tuple[Scenario, ...] = (
    Scenario(
        "lost bells x waiter",
        (("publisher", come_and_go), ("heir", produce())),
        pausable=frozenset({"publisher"}), faults=1, chores=_LOST_BELLS,
    ),
    Scenario(
        "lost bells x reader",
        (("publisher", produce(2)), ("reader", read(0, 1)), ("heir", produce())),
        chores=_LOST_BELLS,
    ),
    Scenario(
        "lost bells x direct",
        (("producer", produce_direct(SHORT)), ("reader", read(0))),
        **both("producer"), faults=1, is_direct=True, chores=_LOST_BELLS,
    ),
    Scenario(
        "gone queue x publisher",
        (("publisher", put(GONE_QUEUE, LIVING_QUEUE)), ("reader", read_last(2))),
        chores=Chores(clearings=1),
    ),
    Scenario(
        "gone queue x publisher of what is queued nowhere",
        (("publisher", put(GONE_QUEUE, 0)), ("reader", read_last(2))),
        chores=Chores(clearings=2),
    ),
    Scenario(
        "gone queue x deaths",
        (("publisher", put(GONE_QUEUE, LIVING_QUEUE)), ("reader", read(0, 1))),
        **both("publisher", "reader"), faults=1, chores=Chores(clearings=1),
    ),
    Scenario(
        "cooling x waiter",
        (("publisher", come_and_go), ("heir", produce())),
        mortal=frozenset({"publisher"}), faults=1, chores=Chores(cools=True),
    ),
    Scenario(
        "cooling x restart",
        (("publisher", come_and_go), ("heir", produce())),
        restarts=1, chores=Chores(cools=True),
    ),
    Scenario(
        "old slots x reader",
        (("publisher", produce(then=Client.exit)), ("reader", read(0, 1)), ("heir", produce())),
        chores=Chores(cools=True, retires=True),
    ),
)  # fmt: skip

# --- the same by compare-and-swap -----------------------------------------------------------------------


def by_swaps(scenario: Scenario) -> Scenario:
    return replace(scenario, name=f"{scenario.name}, by swaps", by="swaps")


def by_asking(scenario: Scenario) -> Scenario:
    return replace(scenario, name=f"{scenario.name}, by asking", by="asks")


#: Who takes tickets there races with somebody.
_RACES = (
    "publisher x reader", "reader x reader, one handle", "reader that gives back x reader",
    "dead reader's ticket x reader", "reader x discard", "reader x expiry", "reader's death x sweep",
    "restart x reader", "restart x sweep", "close x reader's bell",
)  # fmt: skip
#: Or is in the middle of it when something else happens.
_MORE = (
    "readers of two tickets", "publisher's death x sweep", "newcomer x sweep", "restart x newcomer",
    "fork x publisher", "fork x waiter", "fork x restart",
)  # fmt: skip

SCENARIOS: tuple[Scenario, ...] = (
    *_UNDER_LOCKS,
    *_DIRECT,
    *_NESTED,
    *_CHORES,
    *(by_swaps(scenario) for scenario in _CHORES if scenario.chores.clearings),
    *(by_swaps(scenario) for scenario in _NESTED),
    *(by_swaps(scenario) for scenario in _UNDER_LOCKS if scenario.name in _RACES + _MORE),
    *(by_asking(scenario) for scenario in _UNDER_LOCKS if scenario.name in _RACES),
)

SCENARIO = {scenario.name: scenario for scenario in SCENARIOS}

# --- three, and faults ---------------------------------------------------------------------------------

_EXPIRY = Scenario(
    "reader's death x expiry x waiter",
    (("publisher", produce(then=Client.exit)), ("reader", read(0)), ("heir", produce())),
    **both("reader"), faults=1, expiry=True,
)  # fmt: skip

LARGE: tuple[Scenario, ...] = (_EXPIRY, by_swaps(_EXPIRY), by_asking(_EXPIRY))

# --- everybody ---------------------------------------------------------------------------------------


def publish_discard_and_close(client: Client) -> None:
    """Two tickets, of which one is discarded in vain or not; then the slot again; then the end."""
    client.produce(1, tickets=2)
    client.discard()
    client.produce(1, tickets=2)
    client.close()


#: The first handle is delivered twice.
WHOLE = Scenario(
    "whole",
    (("publisher", publish_discard_and_close), ("reader1", read(0, 2)), ("reader2", read(0, 1))),
    **both("publisher", "reader1", "reader2"), faults=2, restarts=1, expiry=True, tickets=2,
)  # fmt: skip
