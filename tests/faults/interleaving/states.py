"""A state of the world: numbers for its parts, and the parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .machines import Node

if TYPE_CHECKING:
    from .world import World

State_ = tuple[int, ...]


class Conn(NamedTuple):
    """A connection: frames on their way to the broker and to the client."""

    party: int
    up: tuple[bytes, ...] = ()
    down: tuple[bytes, ...] = ()
    is_client_there: bool = True
    is_broker_there: bool = True


class Step(NamedTuple):
    """One step: "step", "time" or "fault"; who did what, for `World.text`; where it leads."""

    kind: str
    party: int
    what: tuple[Any, ...]
    state: State_


class Draft:
    """A state taken apart. Its parts are shared with other states: they are replaced, never
    changed in place, but for the list of nodes."""

    __slots__ = ("alive", "budget", "buffers", "conns", "files", "inodes", "last_conn", "locks", "memory", "nodes",
                 "origin", "pages", "paused", "post", "state", "watches")  # fmt: skip

    def __init__(self, world: World, state: State_) -> None:
        self.state = state
        processors, nets = world._processors.parts[state[1]], world._nets.parts[state[2]]
        fates = world._fates.parts[state[3]]
        self.memory: tuple[int, ...] = world._memories.parts[state[0]]
        #: Byte -> party.
        self.locks: dict[int, int]
        #: For each party what it has stored and nobody else sees yet.
        self.buffers: tuple[tuple[tuple[int, int], ...], ...]
        #: (byte, party): who maps a page of the open file that has the byte locked.
        self.pages: frozenset[tuple[int, int]]
        self.locks, self.buffers, self.pages = processors
        self.conns: dict[int, Conn]
        #: Handles that were sent, to whoever wants one.
        self.post: tuple[bytes, ...]
        self.last_conn: int
        self.watches: frozenset[tuple[int, int]]
        #: Direct segments: (name, inode, length); and the last inode's number.
        self.files: tuple[tuple[str, int, int], ...]
        self.inodes: int
        self.conns, self.post, self.last_conn, self.watches, self.files, self.inodes = nets
        self.alive: int
        self.paused: int
        #: Deaths and pauses left, restarts had.
        self.budget: tuple[int, int]
        self.alive, self.paused, self.budget = fates
        self.nodes: list[Node] = [world.nodes[number] for number in state[4:]]
        self.origin = (self.memory, processors, nets, fates)

    def copy(self) -> Draft:
        """Another one of the same state, before anything was changed in this one."""
        made = object.__new__(Draft)
        made.state, made.origin = self.state, self.origin
        made.memory, made.locks, made.buffers, made.pages = self.memory, self.locks, self.buffers, self.pages
        made.conns, made.post, made.last_conn, made.watches = self.conns, self.post, self.last_conn, self.watches
        made.files, made.inodes = self.files, self.inodes
        made.alive, made.paused, made.budget, made.nodes = self.alive, self.paused, self.budget, self.nodes.copy()
        return made

    def set_buffer(self, party: int, buffer: tuple[tuple[int, int], ...]) -> None:
        if self.buffers[party] != buffer:
            self.buffers = (*self.buffers[:party], buffer, *self.buffers[party + 1 :])

    def set_conn(self, number: int, conn: Conn) -> None:
        self.conns = {**self.conns, number: conn}


class Interned:
    """Parts of states, numbered by what they are equal to."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self.parts: list[Any] = []

    def number(self, key: Any, part: Any) -> int:
        number = self._numbers.setdefault(key, len(self.parts))
        if number == len(self.parts):
            self.parts.append(part)
        return number
