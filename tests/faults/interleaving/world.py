"""The world that parties live in: memory, store buffers, locks, connections, life and death.

`World.successors` gives every state that one step of anybody leads to, and raises or yields
`Violation` for what must never happen:

- two parties that may write the slot, or one that may while another reads it;
- a reader with an open buffer, or its child, whose payload is not what it opened; a writer's child
  that has yet to copy what it inherited, and finds something else;
- two parties that opened one ticket, ever;
- a word stored by anybody but the holder of its token (`memory.Judge`);
- an error in a party's code, or a row that the broker had to quarantine.

Death frees locks and loses the messages that were not sent; what is still in a store buffer is
lost too, which is no other than a death before those stores. A pause is for ever and keeps all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from operator import is_
from typing import Any

from shmpool.protocol.ledger import GENERATION_FIELD, SEAT_LOCKS, birth_of, state_of
from shmpool.protocol.states import State
from shmpool.system.heirs import READERS, copies_at

from .brokers import RECALL
from .machines import Machine, Node
from .memory import NO_PAGES, Judge, Layout, Violation, describe
from .rest import complaint
from .scenarios import Scenario
from .start import party_of, peer_of
from .states import Conn, Draft, Interned, State_, Step

#: Requests that others may have to answer; every other one is answered at once, in one way.
WAITING = frozenset({"receive", "born", "fetch", "until", "free", "await"})
AT_ONCE: list[tuple[str, Any]] = [("step", None)]
#: The open file that a party has for a call in the middle of another is told from its own by so much.
BESIDE = 1 << 16


class World:
    """All states of one scenario. *is_tso*: stores go through a buffer of their processor."""

    #: A system call shows all earlier stores to everybody, those for locks too, and so does a swap.
    are_barriers = True
    #: What may pass when nothing else happens; and what parties, and who judges stores.
    timers: tuple[str, ...] = ("timeout", "retry", "tick", "expiry")
    machine, judge = Machine, Judge
    #: What stands in for the product's kernel, besides `clients.patched`.
    patched: Callable[[], AbstractContextManager[None]] = nullcontext

    def __init__(self, scenario: Scenario, *, is_tso: bool) -> None:
        self.scenario = scenario
        self.is_tso = is_tso
        self.start = scenario.start()
        self.layout: Layout = self.start.layout
        self.nodes: list[Node] = []
        self.machines = [
            self.machine(index, name, body, self.start, self.nodes)
            for index, (name, body) in enumerate(scenario.bodies())
        ]
        self.brokers = [
            Machine(len(self.machines), f"broker{epoch}", scenario.broker(epoch), self.start, self.nodes)
            for epoch in range(1, scenario.restarts + 2)
        ]
        self.broker_at = len(self.machines)
        self._judge = self.judge(self.layout)
        #: Custody of a direct segment may pass to the broker, behind the writing.
        self._told_by_payload = GENERATION_FIELD if self.layout.is_direct else ~0
        self._memories, self._processors, self._nets, self._fates = Interned(), Interned(), Interned(), Interned()

    def close(self) -> None:
        for machine in self.machines + self.brokers:
            machine.close()

    # --- states ------------------------------------------------------------------------------------

    def initial(self) -> State_:
        parties, clients = self.broker_at + 1, self.start.clients
        draft = object.__new__(Draft)
        draft.memory = tuple(self.start.memory)
        draft.locks = {SEAT_LOCKS + index + 1: index for index in range(clients)}
        draft.buffers = ((),) * parties
        readers = range(clients if self.scenario.forks else 0)
        draft.pages = frozenset((READERS + index + 1, index) for index in readers)
        draft.conns = {index + 1: Conn(index) for index in range(clients)}
        draft.post, draft.last_conn, draft.watches = (), clients, self.start.watches
        draft.files, draft.inodes = (), 0
        draft.alive, draft.paused = (1 << parties) - 1, 0
        draft.budget = (self.scenario.faults, 0)
        draft.nodes = [machine.root for machine in self.machines] + [self.brokers[0].root]
        draft.state, draft.origin = (-1,) * 4, (None,) * 4  # type: ignore[assignment]
        return self._freeze(draft)

    def _freeze(self, draft: Draft) -> State_:
        (memory, processors, nets, fates), state = draft.origin, draft.state
        one, two, three, four = state[:4]
        if draft.memory is not memory:
            one = self._memories.number(draft.memory, draft.memory)
        # By identity: parts are replaced, never changed.
        locks, buffers, pages = draft.locks, draft.buffers, draft.pages
        if processors is None or not (locks is processors[0] and buffers is processors[1] and pages is processors[2]):
            two = self._processors.number((tuple(sorted(locks.items())), buffers, pages), (locks, buffers, pages))
        conns, post, last_conn, watches = draft.conns, draft.post, draft.last_conn, draft.watches
        net = (conns, post, last_conn, watches, draft.files, draft.inodes)
        if nets is None or not all(map(is_, net, nets)):
            three = self._nets.number((tuple(sorted(conns.items())), *net[1:]), net)
        if fates is None or not (draft.alive == fates[0] and draft.paused == fates[1] and draft.budget == fates[2]):
            fate = (draft.alive, draft.paused, draft.budget)
            four = self._fates.number(fate, fate)
        return (one, two, three, four, *[node.number for node in draft.nodes])

    # --- steps ---------------------------------------------------------------------------------------

    def successors(self, state: State_) -> Iterator[Step]:
        """Every next state. Raises Violation when a step leads to none that may be."""
        before = Draft(self, state)
        if self.scenario.has_visits and (visited := self._visited(before)) is not None:
            yield from self._visits(before, visited)
            return
        for party, node in enumerate(before.nodes):
            if self.is_tso and before.buffers[party]:
                draft = before.copy()
                (number, value), *rest = draft.buffers[party]
                draft.set_buffer(party, tuple(rest))
                yield self._finish(draft, "step", party, ("drain", number, value), self._commit, number, value)
            if not before.alive >> party & 1 or before.paused >> party & 1:
                continue
            for kind, choice in self._choices(before, party, node.request):
                what = node.request if choice is None else (*node.request, choice)
                yield self._finish(before.copy(), kind, party, what, self._perform, choice)
            if node.request[0] != "read":
                yield from self._fates_of(before, party, node)

    def _visited(self, draft: Draft) -> int | None:
        """Who asks whether he has a visit. Nobody else can tell, so nobody goes on before he knows."""
        for party, node in enumerate(draft.nodes):
            if node.request[0] == "visit" and draft.alive >> party & 1:
                return party
        return None

    def _visits(self, draft: Draft, party: int) -> Iterator[Step]:
        """The visit comes at one of the places that follow one another, or goes by until others can tell."""
        count = 0
        while draft.nodes[party].request[0] == "visit":
            count += 1
            yield self._finish(draft.copy(), "step", party, ("visit", f"at the place {count}"), self._follow, True)
            draft = draft.copy()
            self._follow(draft, party, False)
        yield self._finish(draft, "step", party, ("visit", "not yet"), lambda *_: None)

    def _finish(
        self, draft: Draft, kind: str, party: int, what: tuple[Any, ...], act: Callable[..., None], *args: Any
    ) -> Step:
        try:
            act(draft, party, *args)
            self._check(draft)
        except Violation as violation:
            raise Violation(f"{self.text(party, what)}: {violation}") from None
        return Step(kind, party, what, self._freeze(draft))

    def _fates_of(self, before: Draft, party: int, node: Node) -> Iterator[Step]:
        """Death, pause and restart. Only before something that others can see: earlier ones
        make no difference."""
        faults, restarts = before.budget
        if party == self.broker_at:
            if restarts < self.scenario.restarts:
                draft = before.copy()
                self._restart(draft)
                yield Step("fault", party, ("die", "and the next one starts"), self._freeze(draft))
            return
        name = self.machines[party].name
        if not faults:
            return
        if name in self.scenario.mortal and node.request[0] != "pass":
            draft = before.copy()
            draft.budget = (faults - 1, restarts)
            draft.set_buffer(party, ())
            self._end_process(draft, party)
            yield Step("fault", party, ("die",), self._freeze(draft))
        if name in self.scenario.pausable:
            draft = before.copy()
            draft.budget = (faults - 1, restarts)
            draft.paused |= 1 << party
            draft.nodes[party] = self.machines[party].still(node, "paused")
            yield Step("fault", party, ("stop", "for ever"), self._freeze(draft))

    def _choices(self, draft: Draft, party: int, request: tuple[Any, ...]) -> list[tuple[str, Any]]:
        """What may come of a request now; nothing while it has to wait."""
        what = request[0]
        if what not in WAITING:
            return AT_ONCE
        if what == "receive":
            conn = draft.conns[request[1]]
            choices: list[tuple[str, Any]] = [("step", "message")] if conn.down else []
            if not conn.is_broker_there:
                choices.append(("step", "end"))
            if self.scenario.timeouts and draft.nodes[party].marks == ("waiting",) and not choices:
                choices.append(("time", "timeout"))
            if len(request) > 2 and not all(self._is_mapped(draft, offset) for offset in request[2]):
                choices.append(("step", "freed"))
            return choices
        if what == "born":
            return []  # its parent's fork answers
        if what == "fetch":
            return [("step", None)] if len(draft.post) > request[1] else []
        if what == "free":
            return [] if request[1] in draft.locks else [("step", None)]
        if what == "until":
            return [("step", None)] if draft.memory[request[1]] != request[2] else []
        return self._events(draft, *request[1:])

    def _events(
        self, draft: Draft, is_due: bool, has_custody: bool, has_timers: bool, may_clear: bool
    ) -> list[tuple[str, Any]]:
        events: list[tuple[str, Any]] = []
        for number, conn in draft.conns.items():
            if conn.is_broker_there and conn.up:
                events.append(("step", ("message", number, peer_of(conn.party).pid, conn.up[0])))
            elif conn.is_broker_there and not conn.is_client_there:
                events.append(("step", ("hangup", number)))
        for seat, pid in draft.watches:
            if not draft.alive >> party_of(pid) & 1:
                events.append(("step", ("died", seat)))
        if may_clear:
            events.append(("step", ("clear",)))
        if has_timers:
            events.append(("time", ("retry",)))
        if is_due:
            events.append(("time", ("tick",)))
        if is_due and has_custody and self.scenario.expiry and not has_timers:
            events.append(("time", ("expiry",)))
        return events

    def _perform(self, draft: Draft, party: int, choice: Any) -> None:
        """Answer a party's request and let it go on to its next."""
        what, *args = draft.nodes[party].request
        if what == "store":
            answer: Any = None
            if self.is_tso:
                draft.set_buffer(party, (*draft.buffers[party], (args[0], args[1])))
            else:
                self._commit(draft, party, args[0], args[1])
        elif what == "read":
            answer = self._read(draft, party, args[0])
        elif what in ("pass", "until", "free"):
            answer = None
        else:
            if self.are_barriers or what not in ("lock", "unlock", "swap"):
                for number, value in draft.buffers[party]:
                    self._commit(draft, party, number, value)
                draft.set_buffer(party, ())
            if what == "end":
                return self._end_process(draft, party)
            answer = getattr(self, f"_on_{what.replace(' ', '_')}")(draft, party, choice, *args)
        return self._follow(draft, party, answer)

    def _follow(self, draft: Draft, party: int, answer: Any) -> None:
        """To the next step of which the others can tell when it is done: what only the party
        itself sees, and what others can only wait for, is done at once."""
        node = draft.nodes[party]
        while True:
            after = node.machine.advance(node, answer)
            if after.won is not node.won and after.won != node.won:
                draft.nodes[party] = after
                self._check_won(draft, party)
            node = after
            draft.nodes[party] = node
            what = node.request[0]
            if what == "error":
                raise Violation(f"an error: {node.request[1]}")
            if what == "read":
                number = node.request[1]
                is_own = party == self.broker_at and number in self.layout.broker_only
                if is_own or any(number == stored for stored, _ in draft.buffers[party]):
                    answer = self._read(draft, party, number)
                else:
                    return
            elif what == "store" and self.is_tso:
                draft.set_buffer(party, (*draft.buffers[party], node.request[1:]))
                answer = None
            elif what == "fetch" and len(draft.post) > node.request[1]:
                answer = draft.post[node.request[1]]
            elif what in ("watch", "unwatch") or (
                what in ("send", "post") and not draft.buffers[party] and not self._may_fall(draft, party)
            ):
                answer = getattr(self, f"_on_{what}")(draft, party, None, *node.request[1:])
            else:
                return

    def _may_fall(self, draft: Draft, party: int) -> bool:
        """Whether it may still die or stop."""
        faults, restarts = draft.budget
        if party == self.broker_at:
            return restarts < self.scenario.restarts
        name = self.machines[party].name
        return faults > 0 and (name in self.scenario.mortal or name in self.scenario.pausable)

    def _read(self, draft: Draft, party: int, number: int) -> int:
        for stored, value in reversed(draft.buffers[party]):
            if stored == number:
                return value
        return draft.memory[number]

    def _commit(self, draft: Draft, party: int, number: int, value: int) -> None:
        seat = draft.nodes[party].seat
        self._judge.check(draft.memory, number, value, seat, lambda holder: self.is_living(draft, holder))
        draft.memory = (*draft.memory[:number], value, *draft.memory[number + 1 :])

    def is_living(self, draft: Draft, seat: int) -> bool:
        return any(node.seat == seat and draft.alive >> party & 1 for party, node in enumerate(draft.nodes))

    # --- the kernel -------------------------------------------------------------------------------------

    def _on_lock(self, draft: Draft, party: int, choice: Any, offset: int, is_beside: bool = False) -> bool:
        """Two open files exclude each other, one party's too."""
        owner = party + BESIDE * is_beside
        if offset not in draft.locks:
            draft.locks = {**draft.locks, offset: owner}
        return draft.locks[offset] == owner

    def _on_unlock(
        self, draft: Draft, party: int, choice: Any, offsets: tuple[int, ...], is_beside: bool = False
    ) -> None:
        owner = party + BESIDE * is_beside
        draft.locks = {at: holder for at, holder in draft.locks.items() if holder != owner or at not in offsets}

    def _on_swap(self, draft: Draft, party: int, choice: Any, number: int, expected: int, value: int) -> bool:
        """It is a barrier, too: a processor's own stores come before it."""
        if draft.memory[number] != expected:
            return False
        self._commit(draft, party, number, value)
        return True

    # Pages that hold a byte's lock, in whatever processes map them.

    def _is_mapped(self, draft: Draft, offset: int) -> bool:
        return any(offset == mapped for mapped, _ in draft.pages)

    def _on_hold(self, draft: Draft, party: int, choice: Any, offset: int) -> None:
        draft.pages |= {(offset, party)}

    def _on_unmap(self, draft: Draft, party: int, choice: Any, offset: int) -> None:
        draft.pages -= {(offset, party)}

    def _on_held(self, draft: Draft, party: int, choice: Any, offset: int) -> bool:
        return self._is_mapped(draft, offset)

    def _on_copied(self, draft: Draft, party: int, choice: Any, seat: int) -> bool:
        first, end = copies_at(seat, 0), copies_at(seat + 1, 0)
        return not any(first <= offset < end for offset, _ in draft.pages)

    def _on_let_go(self, draft: Draft, party: int, choice: Any) -> None:
        draft.pages = frozenset(page for page in draft.pages if page[1] != party)

    # A slot's pages.

    def _on_cool(self, draft: Draft, party: int, choice: Any) -> None:
        """They go, whoever looks at them."""
        grant = draft.memory[self.layout.grant]
        if state_of(grant) != State.COLD:
            raise Violation(f"pages go that a row has: {describe(grant)}")
        self._set_pages(draft, NO_PAGES)

    def _on_warm(self, draft: Draft, party: int, choice: Any) -> None:
        if draft.memory[self.layout.payloads[0]] == NO_PAGES:
            self._set_pages(draft, 0)

    def _set_pages(self, draft: Draft, payload: int) -> None:
        at = self.layout.payloads[0]
        draft.memory = (*draft.memory[:at], payload, *draft.memory[at + 1 :])

    # Direct segments, by their names.

    def _on_find(self, draft: Draft, party: int, choice: Any, name: str) -> int:
        """The inode, 0 for none."""
        return next((inode for known, inode, _ in draft.files if known == name), 0)

    def _on_length(self, draft: Draft, party: int, choice: Any, inode: int) -> int:
        return next((length for _, known, length in draft.files if known == inode), 0)

    def _on_make(self, draft: Draft, party: int, choice: Any, name: str, spare: str, length: int) -> None:
        """A new one; or, of a spare, as it lies, or longer, by another name."""
        inode = self._on_find(draft, party, choice, spare)
        if not inode:
            inode = draft.inodes = draft.inodes + 1
        others = tuple(file for file in draft.files if file[1] != inode)
        draft.files = (*others, (name, inode, length))

    def _on_remove(self, draft: Draft, party: int, choice: Any, name: str) -> None:
        """Its pages go, whoever maps them."""
        inode, layout = self._on_find(draft, party, choice, name), self.layout
        if inode:
            grant, birth = draft.memory[layout.grant], birth_of(draft.memory[layout.link])
            if state_of(grant) in (State.IDLE, State.LEASED, State.PUBLISHED) and name.endswith(f"-{birth}"):
                raise Violation(f"a segment is removed that a row has: {describe(grant)}")
            draft.files = tuple(file for file in draft.files if file[1] != inode)
            at = layout.payloads[inode]
            draft.memory = (*draft.memory[:at], 0, *draft.memory[at + 1 :])

    def _on_remove_others(self, draft: Draft, party: int, choice: Any, names: frozenset[str]) -> None:
        for name, _, _ in draft.files:
            if name not in names:
                self._on_remove(draft, party, choice, name)

    def _on_fork(self, draft: Draft, party: int, choice: Any, *inherited: Any) -> None:
        """The child has all maps that its parent has, and sees what is open or leased there."""
        child = len(self.machines) - 1
        draft.pages |= {(offset, child) for offset, owner in draft.pages if owner == party}
        draft.nodes[child] = self.machines[child].advance(draft.nodes[child], inherited)

    def _on_send(self, draft: Draft, party: int, choice: Any, number: int, frame: bytes) -> None:
        conn = draft.conns.get(number)
        if conn is None:
            return
        if party != self.broker_at:
            if conn.is_broker_there:
                draft.set_conn(number, conn._replace(up=(*conn.up, frame)))
        elif conn.is_client_there and conn.is_broker_there and not (frame == RECALL and conn.down[-1:] == (RECALL,)):
            draft.set_conn(number, conn._replace(down=(*conn.down, frame)))

    def _on_receive(self, draft: Draft, party: int, choice: str, number: int, *_: Any) -> Any:
        if choice != "message":
            return choice
        conn = draft.conns[number]
        draft.set_conn(number, conn._replace(down=conn.down[1:]))
        return conn.down[0]

    def _on_unread(self, draft: Draft, party: int, choice: Any, number: int) -> bytes | None:
        return self._on_receive(draft, party, "message", number) if draft.conns[number].down else None

    def _on_ended(self, draft: Draft, party: int, choice: Any, number: int) -> bool:
        return not draft.conns[number].is_broker_there

    def _on_connect(self, draft: Draft, party: int, choice: Any) -> int:
        draft.last_conn += 1
        draft.set_conn(draft.last_conn, Conn(party))
        return draft.last_conn

    def _on_close(self, draft: Draft, party: int, choice: Any, number: int) -> None:
        self._change(draft, number, down=(), is_client_there=False)

    def _on_drop(self, draft: Draft, party: int, choice: Any, number: int) -> None:
        self._change(draft, number, up=(), is_broker_there=False)

    def _change(self, draft: Draft, number: int, **changes: Any) -> None:
        conn = draft.conns.get(number)
        if conn is not None:
            conn = conn._replace(**changes)
            draft.set_conn(number, conn)
            if not (conn.is_client_there or conn.is_broker_there):
                self._forget(draft, number)

    def _forget(self, draft: Draft, number: int) -> None:
        draft.conns = {at: conn for at, conn in draft.conns.items() if at != number}

    def _on_post(self, draft: Draft, party: int, choice: Any, handle: bytes) -> None:
        draft.post += (handle,)

    def _on_fetch(self, draft: Draft, party: int, choice: Any, number: int) -> bytes:
        return draft.post[number]

    def _on_await(self, draft: Draft, party: int, choice: Any, *flags: bool) -> Any:
        if choice[0] == "message":
            conn = draft.conns[choice[1]]
            draft.set_conn(choice[1], conn._replace(up=conn.up[1:]))
        elif choice[0] == "hangup":
            self._forget(draft, choice[1])
        return choice

    def _on_watch(self, draft: Draft, party: int, choice: Any, seat: int, pid: int) -> None:
        draft.watches |= {(seat, pid)}

    def _on_unwatch(self, draft: Draft, party: int, choice: Any, seat: int) -> None:
        draft.watches = frozenset(watch for watch in draft.watches if watch[0] != seat)

    def _on_is_dead(self, draft: Draft, party: int, choice: Any, pid: int) -> bool:
        return not draft.alive >> party_of(pid) & 1

    def _end_process(self, draft: Draft, party: int) -> None:
        draft.alive &= ~(1 << party)
        self._free_locks(draft, party)
        self._on_let_go(draft, party, None)
        for number, conn in list(draft.conns.items()):
            if conn.party == party and conn.is_client_there:
                self._change(draft, number, down=(), is_client_there=False)
        draft.nodes[party] = self.machines[party].still(draft.nodes[party], "dead")

    def _free_locks(self, draft: Draft, party: int) -> None:
        draft.locks = {offset: holder for offset, holder in draft.locks.items() if holder % BESIDE != party}

    def _restart(self, draft: Draft) -> None:
        faults, restarts = draft.budget
        draft.budget = (faults, restarts + 1)
        self._free_locks(draft, self.broker_at)
        draft.set_buffer(self.broker_at, ())
        draft.watches = frozenset()
        for number in list(draft.conns):
            self._change(draft, number, up=(), is_broker_there=False)
        draft.nodes[self.broker_at] = self.brokers[restarts + 1].root

    # --- what must hold ------------------------------------------------------------------------------------

    def complaint(self, state: State_) -> str | None:
        """What is wrong with a state in which nothing happens any more."""
        return complaint(self, Draft(self, state))

    def complaint_of_bells(self, state: State_) -> str | None:
        """The same before time has passed, where bells suffice."""
        return self.complaint(state)

    def _check(self, draft: Draft) -> None:
        for node in draft.nodes:
            if node.holds is not None:
                break
        else:
            return
        holders = [
            (party, node.holds)
            for party, node in enumerate(draft.nodes)
            if node.holds is not None and draft.alive >> party & 1
        ]
        writers = [party for party, holds in holders if holds[0] == "W"]
        if (writers and any(holds[0] == "R" for _, holds in holders)) or len(writers) > 1:
            story = ", ".join(f"{self._name(party)} has {holds}" for party, holds in holders)
            raise Violation(f"a writer is not alone: {story}")
        for party, (letter, granted, inode) in holders:
            payload = draft.memory[self.layout.payloads[inode]]
            if letter != "W" and (payload ^ granted) & self._told_by_payload:
                name, did = self._name(party), "opened" if letter == "R" else "inherited"
                raise Violation(f"{name} {did} {describe(granted)} and reads the bytes of {describe(payload)}")

    def _check_won(self, draft: Draft, party: int) -> None:
        for other, node in enumerate(draft.nodes):
            if other != party and (both := node.won & draft.nodes[party].won):
                names = f"{self._name(party)} and {self._name(other)}"
                raise Violation(f"a double grant: {names} both opened {describe(min(both)[0])}")

    # --- words for people --------------------------------------------------------------------------------------

    def _name(self, party: int) -> str:
        return "broker" if party == self.broker_at else self.machines[party].name

    def text(self, party: int, what: tuple[Any, ...]) -> str:
        """A step for people."""
        verb, *args = what
        words = [str(arg) for arg in args]
        if verb in ("read", "store", "drain", "swap"):
            words[0] = self.layout.names[args[0]]
        if verb in ("store", "drain"):
            words[1] = f"= {describe(args[1])}"
        if verb == "swap":
            words[1:] = f"{describe(args[1])} for {describe(args[2])}", *words[3:]
        return " ".join([self._name(party), verb, *words])
