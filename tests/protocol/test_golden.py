"""Each version's bytes, as they are on the wire and in /dev/shm, and what happens when two meet.

`golden/version<n>.json` was written by that version and never changes once it is released
(``python tests/protocol/test_golden.py`` writes the one of the version in work): messages by name, the
header's words by index, in a pool of one small tier of each kind and 8 seats.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shmpool.protocol import header
from shmpool.protocol import messages as m
from shmpool.protocol.codes import Code
from shmpool.protocol.sizing import MIB, PAGE, Sizing, make_tiers, rows_of
from shmpoold.core.connections.seats import IN_USE
from shmpoold.core.header import format_header
from shmpoold.core.settings import Settings

SIZING = Sizing(PAGE, 2 * PAGE, 4 * PAGE, pooled_sizes=(PAGE,), chunk_sizes=(PAGE,))
TIERS, SEATS, POOL_ID = make_tiers(MIB, SIZING), 8, 0xC0FFEE
SETTINGS = Settings(MIB, SIZING, SEATS, checksums=True, tickets_file=(26, 1234), seats_file=(26, 1235))


def golden(version: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parent / f"golden/version{version}.json").read_text())
    return found


def described() -> dict[str, Any]:
    """This version, in the form of a golden file."""
    some = [[int(number), 1000 * number] for number in m.Setting]
    samples: list[m.Message] = [
        m.Hello(m.HELLO_MAGIC, m.PROTOCOL_VERSION, m.Role.WORKER, m.U64, 0, 0),
        m.Refill(1, 0, 1, 8, True),
        m.Direct(2, 2**30, False),
        m.Cancel(3),
        m.Return([1, 2, 70000]),
        m.Bell([1]),
        m.Query(4, m.Topic.LEASES),
        m.Goodbye(), m.Account([[7, True, "work.py:3 in work"]], False), m.Inquire([7, 8], True),
        m.Welcome(
            m.PROTOCOL_VERSION, POOL_ID, 3, 5, True, [tier.to_wire() for tier in TIERS], SEATS, header.CHECKSUMS,
            list(SETTINGS.tickets_file), list(SETTINGS.seats_file), some,
        ),
        m.Grant(1, [1, 2]),
        m.Refusal(1, Code.EXHAUSTED, "none"),
        m.Recall(),
        m.Answer(4, True, b"{}"),
        m.Fault(Code.STOPPING, "bye"),
        m.Settings([[int(m.Setting.LEASE_TIMEOUT_MS), 5]]),
        m.Share(5, 7, 6, 1500), m.Hold(7, 9, 2**40 - 1), m.LetGo([5, 7]), m.Holds([[5, 7, 1], [7, 9, 2]], True),
        m.Find(8, "näme", m.Purpose.MAKE, True), m.Drop(9, "näme"), m.Held(8, 7, m.U64, 4096, "näme"), m.Turn(8),
        m.Dropped(9), m.Take(10, 7, 12, 2**64 - 1, False), m.Taken(10),
    ]  # fmt: skip
    words = [0] * (header.header_bytes(SEATS) // 8)
    format_header(words, POOL_ID, TIERS, SEATS, SETTINGS)
    words[header.EPOCH], words[header.BROKER_PID] = 3, 4242
    at = header.seat_at(5)
    words[at : at + 7] = [101, 2000, 1000, 2**63, IN_USE, 4026531836, 4026531834]
    assert header.header_fault(words) is None
    return {
        "protocol": m.PROTOCOL_VERSION,
        "ledger": header.LEDGER_VERSION,
        "messages": {type(sample).__name__: m.encode(sample).hex() for sample in samples},
        "header": {str(at): f"{word:#x}" for at, word in enumerate(words) if word},
        "header_bytes": header.header_bytes(SEATS),
        "ledger_bytes": header.ledger_bytes(rows_of(TIERS), SEATS),
    }


def test_this_version_is_what_its_golden_file_says() -> None:
    now = described()
    assert set(now["messages"]) == {cls.__name__ for cls in m.KINDS}  # type: ignore[attr-defined]
    assert now == golden(m.PROTOCOL_VERSION)


def test_every_version_has_a_golden_file() -> None:
    assert [golden(version)["protocol"] for version in range(1, m.PROTOCOL_VERSION + 1)] == [1, 2]


@pytest.mark.parametrize("version", range(1, m.PROTOCOL_VERSION + 1))
@pytest.mark.parametrize("kind", ["Hello", "Fault"])
def test_hello_and_fault_of_every_version_can_be_read(version: int, kind: str) -> None:
    body = bytes.fromhex(golden(version)["messages"][kind])
    message = m.decode(body, m.FROM_CLIENT | m.FROM_BROKER)
    assert type(message).__name__ == kind
    if isinstance(message, m.Hello):
        assert message.version == version


def test_header_of_the_version_before_is_known_for_what_it_is() -> None:
    old = golden(1)
    words = [int(old["header"].get(str(at), "0"), 16) for at in range(old["header_bytes"] // 8)]
    assert header.is_of_another_version(words)
    assert header.header_fault(words) == "version is 1, this broker reads 2"
    assert not header.is_of_another_version([0] * 300)


if __name__ == "__main__":
    path = Path(__file__).parent / f"golden/version{m.PROTOCOL_VERSION}.json"
    path.write_text(json.dumps(described(), indent=1) + "\n")
