"""The random simulation: one seed, one course of events; everything goes wrong in it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from types import ModuleType
from typing import Any
from unittest.mock import patch

from harness import Client, Crash, Link, Ticket, World, small_settings

from shmpool.protocol.messages import Bell, Query, Return, Role, Topic
from shmpool.protocol.sizing import KIB, TierKind
from shmpoold.core import chores, looks
from shmpoold.core.events import Disconnected, MemoryRead, Received, Started, Ticked
from shmpoold.core.lending import lending, recalls, sweep
from shmpoold.core.memory import inventory
from shmpoold.core.memory.pressure import Room
from shmpoold.core.objects import custody
from shmpoold.core.settings import Allocation, Floor, UnderPressure

#: How much is done in one turn: what is small here takes several turns, like what is large there.
BOUNDS: tuple[tuple[ModuleType, str, tuple[int, ...]], ...] = (
    (chores, "STEPS_PER_TURN", (1, 2, 10, 128)),
    (looks, "LOOKED_AT_PER_TURN", (1, 128)),
    (recalls, "RECALLED_PER_TURN", (1, 32)),
    (inventory, "SEARCHED_PER_STEP", (7, 4096)),
    (custody, "SWEPT_PER_TURN", (1, 5, 512)),
    (custody, "CLOSED_PER_TURN", (1, 5, 128)),
    (lending, "SERVED_PER_TURN", (1, 3, 64)),
    (sweep, "SWEPT_PER_STEP", (5, 256)),
)
#: What is kept warm in some courses.
FLOORS = (Floor(TierKind.POOLED, 4 * KIB, 6), Floor(TierKind.CHUNK, 8 * KIB, 4))
MOST_CLIENTS = 9
MOST_TICKETS = 60


class Simulation:
    """Chooses what happens next. `run` ends with everybody gone and all memory back."""

    def __init__(self, seed: int, *, check_every: int = 1, as_lists: bool = False) -> None:
        self.random = random.Random(seed)
        settings = small_settings(
            memory_limit=self.random.choice((320, 500, 900)) * KIB,
            handle_ttl=20.0,
            buffer_lifetime=5.0,
            max_concurrent_large_ops=self.random.choice((0, 0, 1, 3, 8)),
            fallback=self.random.random() < 0.5,
            client_quota_bytes=self.random.choice((0, 0, 0, 0, 64 * KIB)),
            client_quota_buffers=self.random.choice((0, 0, 0, 0, 10)),
            uid_quota_bytes=self.random.choice((0, 0, 0, 0, 200 * KIB)),
            max_buffer_age=self.random.choice((None, None, 3.0)),
            allocation=self.random.choice((Allocation.ON_DEMAND, Allocation.HYBRID)),
            floors=FLOORS,
            under_pressure=self.random.choice(list(UnderPressure)),
        )
        if settings.allocation is Allocation.ON_DEMAND:
            settings = replace(settings, floors=())
        self.world = World(settings, check_every=check_every, as_lists=as_lists)
        self.world.dispatch(Started())
        self.mail: list[Ticket] = []
        self.done: Counter[str] = Counter()
        self._moves: list[Callable[[], Any]] = []
        self._weights: list[float] = []
        for move, weight in WEIGHTS.items():
            self._moves.append(getattr(self, move))
            self._weights.append(weight)

    def run(self, events: int) -> None:
        with ExitStack() as stack:
            for module, name, values in BOUNDS:
                stack.enter_context(patch.object(module, name, self.random.choice(values)))
            self._run(events)
            self.world.wind_down()

    def _run(self, events: int) -> None:
        world, choices = self.world, self.random.choices
        while world.events < events:
            for move in choices(self._moves, self._weights, k=256):
                if move() is not False:
                    self.done[move.__name__] += 1

    # --- choosing -----------------------------------------------------------------------------------

    def _living(self) -> list[Client]:
        return [client for client in self.world.clients if client.process.is_alive and not client.is_over]

    def _client(self) -> Client | None:
        clients = self._living()
        return self.random.choice(clients) if clients else None

    def _seated(self) -> Client | None:
        client = self._client()
        return client if client is not None and client.seat else None

    def _link(self) -> Link | None:
        links = [link for link in self.world.links.values() if link.outbox]
        return self.random.choice(links) if links else None

    # --- what happens on the way ----------------------------------------------------------------------

    def deliver(self) -> bool:
        link = self._link()
        return link is not None and self.world.deliver(link)

    def read(self) -> bool:
        client = self._client()
        return client is not None and client.read()

    def answer(self) -> bool:
        return bool(self.world.shell) and self.world.answer(self.random.randrange(len(self.world.shell)))

    def hear_news(self) -> bool:
        if not self.world.news:
            return False
        self.world.dispatch(self.world.news.popleft())
        return True

    def tick(self) -> None:
        world, deadline = self.world, self.world.broker.next_deadline()
        world.now += self.random.choice((0.0, 0.001, 0.01, 0.1, 1.0))
        if deadline is not None and deadline <= world.now:
            world.dispatch(Ticked())

    # --- what clients do ------------------------------------------------------------------------------

    def new_client(self) -> bool:
        world = self.world
        gone = [client for client in world.clients if not client.process.is_alive or client.is_over]
        for client in gone[:-10]:
            world.clients.remove(client)
        if len(self._living()) >= MOST_CLIENTS:
            return False
        other = self._client()
        process = other.process if other is not None and self.random.random() < 0.2 else None
        client = world.client(process=process, is_connected=False)
        client.nonce = self.random.getrandbits(64)
        client.connect()
        return True

    def new_operator(self) -> None:
        client = self.world.client(is_connected=False)
        client.connect(Role.OPERATOR)
        client.send(Query(1, self.random.choice(list(Topic))))
        client.disconnect()
        client.is_over = True

    def ask(self) -> bool:
        client = self._seated()
        if client is None or len(client.requests) > 4:
            return False
        tier = self.random.choice(self.world.tiers)
        queue = self.random.random() < 0.7
        if tier.kind is TierKind.DIRECT:
            client.ask_direct(self.random.choice((0, 1, 4096, 50_000, 100_000)), queue=queue)
        elif tier.kind is TierKind.CHUNK:
            chunks = self.random.choice((1, 2, 3, 5, 8, 12))
            client.refill(tier.index, chunks, self.random.choice((1, 1, 2)), queue=queue)
        else:
            client.refill(tier.index, 1, self.random.choice((1, 2, 4, 8)), queue=queue)
        return True

    def cancel(self) -> bool:
        client = self._seated()
        if client is None or not client.requests:
            return False
        client.cancel(self.random.choice(list(client.requests)))
        return True

    def write(self) -> bool:
        client = self._seated()
        if client is None or not client.ready:
            return False
        slot = client.lease(self.random.choice(client.ready))
        if self.random.random() < 0.8:
            self._publish(client, slot)
        return True

    def _publish(self, client: Client, slot: Any) -> None:
        tickets = client.publish(slot, self.random.choice((1, 1, 1, 2, 3, 13)))
        self.mail += tickets
        while len(self.mail) > MOST_TICKETS:  # lost on the way: only the broker can close it
            self.mail.pop(self.random.randrange(len(self.mail)))

    def publish(self) -> bool:
        client = self._seated()
        if client is None or not client.leased:
            return False
        self._publish(client, self.random.choice(client.leased))
        return True

    def put_back(self) -> bool:
        client = self._seated()
        if client is None or not client.leased:
            return False
        client.put_back(self.random.choice(client.leased))
        return True

    def open(self) -> bool:
        client = self._seated()
        if client is None or not self.mail:
            return False
        at = self.random.randrange(len(self.mail))
        # Some handles are delivered twice.
        ticket = self.mail[at] if self.random.random() < 0.1 else self.mail.pop(at)
        was_pending = ticket.cell in ticket.publication.pending
        if client.why_not(ticket) is None:
            assert was_pending, f"{ticket} can be opened twice"
        return client.open(ticket)

    def discard(self) -> bool:
        client = self._seated()
        if client is None or not self.mail:
            return False
        return client.discard(self.mail.pop(self.random.randrange(len(self.mail))))

    def release(self) -> bool:
        client = self._seated()
        if client is None or not client.buffers:
            return False
        client.release(self.random.choice(client.buffers), ring=self.random.random() < 0.9)
        return True

    def reap(self) -> bool:
        client = self._seated()
        if client is not None:
            client.reap()
        return client is not None

    def give_back(self) -> bool:
        client = self._seated()
        if client is None or not client.ready:
            return False
        slots = self.random.sample(client.ready, self.random.randint(1, len(client.ready)))
        client.give_back(*slots, tell=self.random.random() < 0.9)
        return True

    def disconnect(self) -> bool:
        client = self._client()
        if client is None or not client.seat:
            return False
        client.disconnect()
        return True

    def reconnect(self) -> bool:
        """At times over a connection that still works: it is replaced."""
        client = self._client()
        if client is None or (client.link is not None and client.link.is_served and self.random.random() < 0.9):
            return False
        client.disconnect()
        client.connect()
        return True

    def goodbye(self) -> bool:
        client = self._seated()
        if client is None or not client.is_welcome or client.requests:
            return False
        if client.link is None or not client.link.is_served:
            return False
        client.goodbye()
        return True

    def die(self) -> bool:
        client = self._client()
        if client is None:
            return False
        client.die()
        return True

    # --- what else goes wrong -------------------------------------------------------------------------

    def ring_at_random(self) -> bool:
        client = self._seated()
        if client is None or not client.is_welcome:
            return False
        rows = [self.random.randrange(1, self.world.tiers[-1].end) for _ in range(5)]
        client.send(self.random.choice((Bell, Return))(rows))
        return True

    def change_the_host(self) -> None:
        world, limit = self.world, self.world.settings.memory_limit
        world.host_room = self.random.choice((None, None, None, limit // 2, limit // 4, limit // 8))
        fails = self.random.choice((0.0, 0.0, 0.1))
        world.fail_on = lambda action: self.random.random() < fails

    def press(self) -> None:
        """The host is short of memory, or no longer."""
        free = self.random.choice((0.5, 0.5, 0.07, 0.01))
        self.world.dispatch(MemoryRead((Room("the host's memory", 1000, int(1000 * free), bounds_pool=False),), None))

    def restart(self) -> None:
        self.world.restart(finish_shell=self.random.random() < 0.5)
        self.world.dispatch(Started())

    def crash(self) -> bool:
        """The broker dies between two stores of whatever comes next."""
        world, link = self.world, self._link()
        if world.news and self.random.random() < 0.5:
            event: Any = world.news.popleft()
        elif link is not None:
            event = link.outbox.popleft()
            if isinstance(event, Disconnected):
                world.links.pop(link.number, None)
        else:
            return False
        if isinstance(event, Received) and link is not None and not link.is_served:
            return False
        if world.crash_during(event, self.random.randrange(12)):
            try:
                world.restart(crash_after=self.random.randrange(300))
            except Crash:
                world.restart()
        return True


WEIGHTS = {
    "deliver": 40, "read": 30, "answer": 15, "hear_news": 4, "tick": 6, "new_client": 0.6, "new_operator": 0.05,
    "ask": 8, "cancel": 1, "write": 14, "publish": 4, "put_back": 2, "open": 16, "discard": 1, "release": 16, "reap": 4,
    "give_back": 2, "disconnect": 0.3, "reconnect": 3, "goodbye": 0.15, "die": 0.2, "ring_at_random": 0.5,
    "change_the_host": 0.2, "press": 0.3, "restart": 0.1, "crash": 0.2,
}  # fmt: skip
