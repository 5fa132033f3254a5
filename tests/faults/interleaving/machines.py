"""Parties as automata: real code that runs in a greenlet from one shared access to the next.

A party is deterministic: what it asks for next depends on the answers that it had. So its
local states form a tree, answers are its edges, and the real code runs only for an edge that
is new; the explorer's states are then tuples of small numbers. A party that comes to the same
local state on two ways (its `cut` says so: a fingerprint of all its objects) is one node, so
that loops end. A node that has no greenlet any more gets one by replay.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from greenlet import GreenletExit, getcurrent, greenlet

if TYPE_CHECKING:
    from .start import Start

#: Greenlets kept for nodes whose next answer may be new; others are replayed.
MAX_LIVE = 4000

Request = tuple[Any, ...]
#: To read, to write or to copy; the grant word; the inode.
Holds = tuple[str, int, int] | None


class Context:
    """The one party that runs just now, as the patches of the product's code see it.

    *lease* and *buffer* are what it holds, *won* the tickets that it ever opened, *seat* its
    seat, *marks* what the world wants to know of its local state.
    """

    current: Context | None = None

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.index = machine.index
        self.hub = getcurrent()
        self.is_dead = False
        #: Until the first step, memory is this list and steps are not seen by anybody.
        self.memory: list[int] | None = None
        self.inbox: list[bytes] = []
        self.now = 0.0
        #: By descriptor: the bytes that are locked through it.
        self.locking: dict[int, list[int]] = {}
        self.lease: Any = None
        self.buffer: Any = None
        self.won: frozenset[tuple[int, int]] = frozenset()
        self.seat: int | None = None
        self.marks: tuple[Any, ...] = ()
        self.session: Any = None
        self.client: Any = None
        self.fingerprint: Any = None
        #: What is global in a process that forks (`forking.Process`), and what a child has of its
        #: parent's: whether it reads or copies it, and its grant word.
        self.process: Any = None
        self.inherited: Holds = None
        #: Bytes whose pages went with their last reference, and the world does not know yet.
        self.unmapped: list[int] = []
        #: Who may come in the middle of what goes on here (`nesting`), what he holds, and whether he is here.
        self.visit: Any = None
        self.visitor: Any = None
        self.is_visited = False

    def ask(self, *request: Any) -> Any:
        """One step: the world answers when its turn comes."""
        if self.visit is not None and not self.is_dead and request[0] != "pass":
            self.visit.may_come()
        while self.unmapped and not self.is_dead:
            self.hub.switch(("unmap", self.unmapped.pop()))
        if self.is_dead:
            raise GreenletExit
        return self.hub.switch(request)

    @property
    def asks(self) -> bool:
        """Whether this party has the broker swap for it: where any does, all but the publisher."""
        return self.machine.start.by == "asks" and self.index > 0

    def read(self, number: int) -> int:
        if self.memory is not None:
            return self.memory[number]
        return self.ask("read", number)  # type: ignore[no-any-return]

    def store(self, number: int, value: int) -> None:
        if self.memory is not None:
            self.memory[number] = value
        else:
            self.ask("store", number, value)

    def swap(self, number: int, expected: int, value: int) -> bool:
        return bool(self.ask("swap", number, expected, value))

    def cut(self, fingerprint: Any) -> None:
        """All that this party does from here on depends on this alone."""
        self.fingerprint = fingerprint

    def holds(self) -> Holds:
        """The right that its user has just now: a view to write or to read."""
        if self.inherited is not None:
            return self.inherited
        lease, buffer = self.lease, self.buffer
        if self.visitor is not None:  # in the same slot, if both have any
            lease, buffer = self.visitor, self.visitor
        if type(lease).__name__ == "DirectLease" and lease._slot.claim:  # its view is made when it is asked for
            return "W", lease._slot.base, 0
        if type(lease).__name__ == "LiveLease" and hasattr(lease, "view"):
            return "W", lease._slot.base, 0
        if type(buffer).__name__ == "LiveBuffer" and hasattr(buffer, "view"):
            return "R", buffer._granted, buffer._record.window.inode
        return None


class Node:
    """A local state: the party waits for the answer to *request*."""

    __slots__ = ("answer", "edges", "holds", "machine", "marks", "number", "parent", "request", "seat", "won")

    def __init__(self, machine: Machine, parent: Node | None, answer: Any, request: Request, context: Context) -> None:
        self.machine = machine
        self.parent = parent
        self.answer = answer
        self.edges: dict[Any, Node] = {}
        self.request = request
        self.holds = context.holds()
        self.won = context.won
        self.seat = context.seat
        self.marks = context.marks
        self.number = machine.number_of(self)

    def __repr__(self) -> str:
        return f"<{self.machine.name} at {self.request}>"


class Run:
    """One execution of a party's code."""

    def __init__(self, machine: Machine) -> None:
        self.context = Context(machine)
        self._greenlet = greenlet(self._body)

    def _body(self) -> Request:
        try:
            self.context.machine.body(self.context)
        except GreenletExit:
            raise
        except Exception as error:
            return ("error", f"{type(error).__name__}: {error}")
        return ("end",)

    def step(self, answer: Any = None) -> Request:
        """Run to the next request."""
        context = Context.current = self.context
        if context.process is not None:
            context.process.enter()
        request: Request = self._greenlet.switch(answer) if self._greenlet else self._greenlet.switch()
        if context.process is not None:
            context.process.leave()
        Context.current = None
        return request

    def kill(self) -> None:
        """Forget it, without a further step of the real code."""
        context = self.context
        context.is_dead = True
        if context.session is not None:
            context.session.is_over = True  # finalizers do nothing then
        if self._greenlet:
            Context.current = context
            self._greenlet.throw(GreenletExit)
            Context.current = None


class Machine:
    """One party of a scenario and all local states that were found."""

    def __init__(self, index: int, name: str, body: Callable[[Context], None], start: Start, nodes: list[Node]) -> None:
        self.index = index
        self.name = name
        self.body = body
        self.start = start
        self.replays = 0
        self._nodes = nodes
        self._cuts: dict[Any, Node] = {}
        self._live: OrderedDict[int, Run] = OrderedDict()
        self._root: Node | None = None

    def number_of(self, node: Node) -> int:
        """A new node's number among all nodes of all parties."""
        self._nodes.append(node)
        return len(self._nodes) - 1

    @property
    def root(self) -> Node:
        if self._root is None:
            run = Run(self)
            self._root = self._node(None, None, run.step(), run)
        return self._root

    def advance(self, node: Node, answer: Any) -> Node:
        """The local state after an answer."""
        child = node.edges.get(answer)
        if child is None:
            run = self._live.pop(node.number, None) or self._replay(node)
            child = node.edges[answer] = self._node(node, answer, run.step(answer), run)
        return child

    def still(self, node: Node, what: str) -> Node:
        """A node without a future: dead ones have no rights left, paused ones keep theirs."""
        key = (what, node.won, node.seat, node.holds if what == "paused" else None)
        found = self._cuts.get(key)
        if found is None:
            context = Context(self)
            gives_back = what == "dead" and self.start.settings.give_back  # another may win what was its
            context.won, context.seat = frozenset() if gives_back else node.won, node.seat
            found = self._cuts[key] = Node(self, None, None, (what,), context)
            found.holds = key[3]
        return found

    def close(self) -> None:
        """Forget all greenlets."""
        while self._live:
            self._live.popitem()[1].kill()

    def _node(self, parent: Node | None, answer: Any, request: Request, run: Run) -> Node:
        context = run.context
        fingerprint, context.fingerprint = context.fingerprint, None
        key = None
        if fingerprint is not None:
            key = (fingerprint, request, context.holds(), context.won, context.seat, context.marks)
            found = self._cuts.get(key)
            if found is not None:
                self._keep(found, run)
                return found
        node = Node(self, parent, answer, request, context)
        if key is not None:
            self._cuts[key] = node
        self._keep(node, run)
        return node

    def _keep(self, node: Node, run: Run) -> None:
        if node.number in self._live:
            run.kill()
            return
        self._live[node.number] = run
        if len(self._live) > MAX_LIVE:
            self._live.popitem(last=False)[1].kill()

    def _replay(self, node: Node) -> Run:
        self.replays += 1
        path = []
        at: Node | None = node
        while at is not None:
            path.append(at)
            at = at.parent
        run = Run(self)
        for at in reversed(path):
            request = run.step(at.answer)
            assert request == at.request, f"{self.name} is not deterministic: {request} after {at.request}"
        run.context.fingerprint = None
        return run
