"""Clients that share: for the tests of shared publications."""

from __future__ import annotations

from typing import Any

from harness import CHUNKS, SMALL, Client, Process, Publication, Slot, World

from shmpool.protocol.codes import Code
from shmpool.protocol.ledger import (
    BROKER,
    CACHED,
    CHUNKS_SHIFT,
    EXTENT,
    FIRST_CELL,
    ROW_WORDS,
    SHARED,
    TICKETS_SHIFT,
    birth_of,
    generation_of,
    grant_word,
    nbytes_of,
    shared_cells,
)
from shmpool.protocol.messages import (
    Drop,
    Dropped,
    Find,
    Held,
    Hold,
    Holds,
    LetGo,
    Message,
    Purpose,
    Share,
    Turn,
    Welcome,
)
from shmpool.protocol.sizing import TierKind
from shmpool.protocol.states import State


class Sharer(Client):
    """A client that shares: what it holds it tells again to the next broker."""

    def __init__(self, world: World, process: Process) -> None:
        super().__init__(world, process)
        #: By number, what it holds and thinks that it is.
        self.holds: dict[int, tuple[int, int, Publication]] = {}
        self.turns: dict[int, str] = {}
        self.dropped: list[int] = []
        self.shadows: dict[int, Publication] = {}

    def _handle(self, message: Message) -> None:
        if isinstance(message, Held):
            asked = self.requests.pop(message.request, None)
            publication = self.world.publications[message.row]
            if asked is None:
                self.send(LetGo([message.request]))
                return
            assert generation_of(message.word) == self.world.generation(message.row), "what is held was freed"
            publication.taken[self._key(message.request)] = self.seat
            self.holds[message.request] = message.row, generation_of(message.word), publication
        elif isinstance(message, Turn):
            asked = self.requests.pop(message.request, None)
            assert isinstance(asked, Find)
            self.turns[message.request] = asked.name
        elif isinstance(message, Dropped):
            self.requests.pop(message.request, None)
            self.dropped.append(message.request)
        else:
            super()._handle(message)

    def _key(self, number: int) -> Any:
        return self.nonce, self.seat, number

    def _on_welcome(self, welcome: Welcome) -> None:
        if self.seat:
            self.send(Holds([[number, row, generation] for number, (row, generation, _) in self.holds.items()], True))
        super()._on_welcome(welcome)

    def share(
        self, slot: Slot, name: str = "", *, keep: int = 0, ttl: float = 0.0, turn: int = 0, tell: bool = True
    ) -> int:
        """As `objects.sharing.publish` does: cells, extent word, grant word, message."""
        world, at = self.world, slot.row * ROW_WORDS
        if slot in self.ready:
            self.lease(slot)
        self.leased.remove(slot)
        is_direct = slot.tier.kind is TierKind.DIRECT
        for cell, word in enumerate(shared_cells(name, 4711, round(ttl))):
            world.ledger[at + FIRST_CELL + cell] = word
        shape = self.seat if is_direct else slot.extents[0][1]
        nbytes = nbytes_of(world.ledger[at + EXTENT]) if is_direct else 4096
        world.ledger[at + EXTENT] = nbytes | (SHARED | keep) << TICKETS_SHIFT | shape << CHUNKS_SHIFT
        world.store(slot.row, grant_word(slot.generation, State.PUBLISHED, BROKER))
        self._disown(slot)
        name_of = (slot.row, birth_of(world.link_of(slot.row))) if is_direct else None
        publication = Publication(world.content[slot.row], slot.rows, name_of, set())
        for row in slot.rows:
            world.publications[row] = publication
        number = self._next_number()
        if tell:
            # A lease is its maker's until the broker has its word; from then on the hold is.
            self._ask(Share(number, slot.row, turn, round(ttl * 1000)))  # type: ignore[arg-type]
        return number

    def find(self, name: str, purpose: Purpose = Purpose.OPEN, *, queue: bool = False) -> int:
        return self._ask(Find(self._next_number(), name, purpose, queue))  # type: ignore[arg-type]

    def hold(self, row: int, generation: int) -> int:
        return self._ask(Hold(self._next_number(), row, generation))  # type: ignore[arg-type]

    def let_go(self, number: int) -> None:
        _, _, publication = self.holds.pop(number)
        del publication.taken[self._key(number)]
        self.send(LetGo([number]))

    def drop(self, name: str) -> int:
        return self._ask(Drop(self._next_number(), name))  # type: ignore[arg-type]

    def _forget(self) -> None:
        for number, (_, _, publication) in self.holds.items():
            publication.taken.pop(self._key(number), None)
        self.holds.clear()
        super()._forget()

    def goodbye(self) -> None:
        for number in list(self.holds):
            self.let_go(number)
        super().goodbye()

    def code(self, number: int) -> Code:
        """Why a request was refused."""
        return next(Code(refusal.code) for refusal in self.refusals if refusal.request == number)


def sharer(world: World, uid: int = 1000) -> Sharer:
    client = Sharer(world, Process(next(world._pids), next(world._tokens), uid=uid))
    world.clients.append(client)
    client.connect()
    world.run()
    return client


def shared(client: Sharer, name: str = "", **options: Any) -> tuple[int, int]:
    """One that is held by its maker: its number, its row."""
    (slot,) = client.get(SMALL)
    number = client.share(slot, name, **options)
    client.world.run()
    assert number in client.holds
    return number, slot.row


def is_there(world: World, row: int) -> bool:
    return world.state(row) is State.PUBLISHED


def cache(client: Sharer, name: str, tier: int = CHUNKS, chunks: int = 2, ttl: float = 0.0) -> int:
    (slot,) = client.get(tier, chunks)
    number = client.share(slot, name, keep=CACHED, ttl=ttl)
    client.world.run()
    client.let_go(number)
    client.world.run()
    return slot.row
