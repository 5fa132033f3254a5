"""What takes memory overtakes what gives it back, where both fit under the limit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shmpool.protocol.header import header_bytes, ledger_bytes
from shmpool.protocol.messages import HELLO_MAGIC, PROTOCOL_VERSION, Hello, Message, Refill, Role
from shmpool.protocol.sizing import KIB, MIB, Sizing, make_tiers, rows_of
from shmpoold.core.actions import Action, Cool, CreateDirect, RemoveDirect, Warm
from shmpoold.core.broker import Broker
from shmpoold.core.events import Connected, DirectCreated, Event, Peer, Received, Warmed, WarmFailed
from shmpoold.core.memory.inventory import Inventory
from shmpoold.core.settings import Settings
from shmpoold.shell.pages import COOL_SLICE, Pages
from shmpoold.shell.repeats import SAID_EVERY, Repeats
from shmpoold.shell.segments import SegmentStore

SIZE = 64 * KIB
TIERS = make_tiers(64 * MIB, Sizing(pooled_sizes=(SIZE,), chunk_sizes=(SIZE,)))
BASE = TIERS[0].base


class Host:
    """A store that notes in which order it was asked, with *room* bytes left, or no end of them."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []
        self.room: float = float("inf")

    def warm(self, tier: int, row: int, count: int) -> None:
        if count * SIZE > self.room:
            raise OSError("no room")
        self.asked.append(("warm", row, count))

    def cool(self, tier: int, row: int, count: int) -> None:
        self.room += count * SIZE
        self.asked.append(("cool", row, count))

    def create_direct(self, row: int, generation: int, nbytes: int, spare: object = None) -> None:
        self.asked.append(("create", row, nbytes))

    def empty_direct(self, row: int, generation: int, nbytes: int) -> bool:
        return False

    def remove_direct(self, row: int, generation: int) -> None:
        self.asked.append(("remove", row, 0))


def play(act: Callable[[Pages, Host, list[Event], Any], Awaitable[None]], *, held: int = 0) -> None:
    async def run() -> None:
        host, heard = Host(), list[Event]()
        inventory = SimpleNamespace(tiers=TIERS, held=held, limit=64 * MIB)
        pages = Pages(cast(SegmentStore, host), cast(Inventory, inventory), heard.append)
        await act(pages, host, heard, inventory)

    asyncio.run(run())


async def until_idle(pages: Pages) -> None:
    async with asyncio.timeout(10):
        while pages._giving or pages._taking:
            await asyncio.sleep(0)


def test_the_first_miss_after_an_adoption_does_not_wait_for_what_a_crash_may_have_left() -> None:
    async def act(pages: Pages, host: Host, heard: list[Event], inventory: Any) -> None:
        pages.cool(Cool(0, BASE, 1000, had_pages=False))
        inventory.held = inventory.limit  # however full the pool is: these rows count for nothing
        pages.warm(Warm(0, BASE + 1010, 2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert Warmed(0, BASE + 1010, 2) in heard
        assert len(host.asked) <= 2
        await until_idle(pages)
        assert sum(count for what, _, count in host.asked if what == "cool") == 1000

    play(act)


def test_the_first_miss_in_a_large_pool_that_was_adopted_comes_before_its_cooling() -> None:
    """64 GiB, of which nothing is known but the ledger: thousands of slices are to be cooled."""
    settings = Settings(memory_limit=64 * 1024 * MIB, max_clients=4)
    tiers = make_tiers(settings.memory_limit, settings.sizing)
    words: list[Any] = [
        memoryview(bytearray(nbytes)).cast("Q") for nbytes in (ledger_bytes(rows_of(tiers), 4), header_bytes(4))
    ]
    Broker(*words, settings, pool_id=1, epoch=1, broker_pid=1)
    core = Broker(*words, settings, pool_id=1, epoch=2, broker_pid=1)

    async def run() -> None:
        host, heard = Host(), list[Event]()
        pages = Pages(cast(SegmentStore, host), core.inventory, heard.append)
        obey = {Cool: pages.cool, Warm: pages.warm}

        def carry_out(actions: list[Action]) -> None:
            for action in actions:
                obey.get(type(action), lambda action: None)(action)  # type: ignore[operator]

        carry_out(core.adopt(0.0))
        assert len(pages._giving) > 2000
        carry_out(core.handle(Connected(1, Peer(1, 0, 0, 1, "")), 0.0))
        messages: list[Message] = [Hello(HELLO_MAGIC, PROTOCOL_VERSION, Role.WORKER, 1, 0, 0)]
        messages += [Refill(number, number % 5, 1, 1, True) for number in range(10)]
        for message in messages:
            carry_out(core.handle(Received(1, message), 0.0))
            turns = 0
            while pages._taking:
                await asyncio.sleep(0)
                turns += 1
            assert turns <= 2, "one slice may be under way"
        assert sum(type(event) is Warmed for event in heard) == 10
        assert len(pages._giving) > 2000
        pages.stop()

    asyncio.run(run())


def test_rows_that_are_warmed_again_are_cooled_before() -> None:
    async def act(pages: Pages, host: Host, heard: list[Event], inventory: Any) -> None:
        pages.cool(Cool(0, BASE, 1000, had_pages=False))
        pages.warm(Warm(0, BASE + 900, 2))
        await until_idle(pages)
        warmed = host.asked.index(("warm", BASE + 900, 2))
        before = [(row, count) for what, row, count in host.asked[:warmed] if what == "cool"]
        assert any(row <= BASE + 900 and row + count >= BASE + 902 for row, count in before)
        assert sum(count for what, _, count in host.asked if what == "cool") == 1000
        assert all(count * SIZE <= COOL_SLICE for what, _, count in host.asked if what == "cool")

    play(act)


@pytest.mark.parametrize("room", [0, 2 * MIB])
def test_under_the_limit_pages_are_given_back_before_others_are_taken(room: int) -> None:
    async def act(pages: Pages, host: Host, heard: list[Event], inventory: Any) -> None:
        pages.cool(Cool(0, BASE, 16))  # 1 MiB
        pages.warm(Warm(0, BASE + 100, 2))
        await until_idle(pages)
        assert [what for what, _, _ in host.asked] == (["warm", "cool"] if room else ["cool", "warm"])

    play(act, held=64 * MIB - room)


def test_a_removal_is_not_overtaken() -> None:
    async def act(pages: Pages, host: Host, heard: list[Event], inventory: Any) -> None:
        pages.remove(RemoveDirect(TIERS[-1].base, 1))
        pages.create(CreateDirect(TIERS[-1].base + 1, 1, 4096))
        await until_idle(pages)
        assert [what for what, _, _ in host.asked] == ["remove", "create"]
        assert heard == [DirectCreated(TIERS[-1].base + 1)]

    play(act)


@pytest.mark.parametrize("has_room_then", [True, False])
def test_a_full_host_is_tried_again_once_all_was_given_back(has_room_then: bool) -> None:
    async def act(pages: Pages, host: Host, heard: list[Event], inventory: Any) -> None:
        host.room = 0 if has_room_then else float("-inf")
        pages.cool(Cool(0, BASE, 16))
        pages.warm(Warm(0, BASE + 100, 2))
        await until_idle(pages)
        assert host.asked[0] == ("cool", BASE, 16)
        assert [type(event) for event in heard] == [Warmed if has_room_then else WarmFailed]

    play(act)


def test_what_happens_again_and_again_is_said_once_and_then_with_its_count(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        timers: list[tuple[float, Any]] = []
        loop = asyncio.get_running_loop()
        log = logging.getLogger("shmpoold.test")

        def call_later(delay: float, callback: Any, *args: Any) -> Any:
            timers.append((delay, lambda: callback(*args)))
            return SimpleNamespace(cancel=lambda: None)

        monkeypatch.setattr(loop, "call_later", call_later)
        repeats = Repeats(log)
        for number in range(100):
            repeats.warning("warming failed: %s", number)
        repeats.warning("something else")
        assert caplog.messages == ["warming failed: 0", "something else"]
        assert [delay for delay, _ in timers] == [SAID_EVERY] * 2
        timers[0][1]()
        assert caplog.messages[2:] == ["warming failed: 99 (99 times within 60 s)"]
        timers[2][1]()  # nothing more happened: the next is said at once again
        repeats.warning("warming failed: %s", "anew")
        assert caplog.messages[3:] == ["warming failed: anew"]
        repeats.warning("warming failed: %s", "last")
        repeats.close()
        assert caplog.messages[4:] == ["warming failed: last (1 times within 60 s)"]
        monkeypatch.undo()

    caplog.set_level(logging.WARNING)
    asyncio.run(run())
