"""What is explored of a queue: who puts and gets what, and what may befall them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from shmpool.errors import QueueShutDown
from shmpool.protocol.queues import Flag

from .queue_clients import LARGE, QueueClient
from .queue_world import QueueRole, QueueScenario


def put(*batches: Any) -> QueueRole:
    """Put them, one after the other; a tuple at once."""

    def role(client: QueueClient) -> None:
        for batch in batches:
            client.put(*batch if isinstance(batch, tuple) else (batch,))

    return role


def get(total: int, most: int = 1) -> QueueRole:
    """Get so many items, up to *most* at once."""
    return lambda client: client.get_all(total, most)


def both(*names: str) -> frozenset[str]:
    return frozenset(names)


def put_and_shut(*batches: Any, immediate: bool = False) -> QueueRole:
    """Put them, and shut the queue down."""

    def role(client: QueueClient) -> None:
        put(*batches)(client)
        client.shut(immediate=immediate)

    return role


def get_until_shut(client: QueueClient) -> None:
    """Get whatever comes."""
    with suppress(QueueShutDown):
        while True:
            client.get()


def put_until_shut(*items: Any) -> QueueRole:
    """Put them, as far as that is possible."""

    def role(client: QueueClient) -> None:
        with suppress(QueueShutDown):
            put(*items)(client)

    return role


ONE = (("putter", put(b"a0", b"a1")), ("getter", get(2)))
BELLS = ("SC", "TSO")

QUEUE_SCENARIOS = (
    QueueScenario("one puts, one gets", ONE, bells_suffice=BELLS),
    QueueScenario("a full queue", ONE, granules=2, capacity=1, bells_suffice=BELLS),
    QueueScenario("one place", ONE, granules=1, capacity=1),
    QueueScenario("two put, one gets", (("putter1", put(b"a0")), ("putter2", put(b"b0")), ("getter", get(2)))),
    QueueScenario(
        "one puts, two get", (("putter", put((b"a0", b"a1"))), ("getter1", get(1)), ("getter2", get(1))),
        bells_suffice=BELLS,
    ),
    QueueScenario(
        "two put in a full queue", (("putter1", put(b"a0")), ("putter2", put(b"b0")), ("getter", get(2))),
        granules=2, capacity=1,
    ),
    QueueScenario("batches", (("putter", put((b"a0", b"a1"), b"a2")), ("getter", get(3, 2)))),
    QueueScenario(
        "a putter's death x putter", (("putter1", put(b"a0")), ("putter2", put(b"b0"))),
        mortal=both("putter1"), faults=1,
    ),
    QueueScenario("a putter's death x getter", ONE, mortal=both("putter"), faults=1),
    QueueScenario(
        "a getter's death x putter", ONE, mortal=both("getter"), faults=1, most_lost=1, capacity=1, granules=2,
    ),
    QueueScenario(
        "a getter's death x getter", (("putter", put((b"a0", b"a1"))), ("getter1", get(1)), ("getter2", get(1))),
        mortal=both("getter1"), faults=1, most_lost=1,
    ),
    QueueScenario(
        "deaths of batches", (("putter", put((b"a0", b"a1"), b"a2")), ("getter", get(3, 2))),
        mortal=both("putter", "getter"), faults=1, most_lost=2,
    ),
    QueueScenario(
        "two deaths x putter", (("putter1", put(b"a0")), ("putter2", put(b"b0")), ("putter3", put(b"c0"))),
        mortal=both("putter1", "putter2"), faults=2, granules=4, capacity=3,
    ),
    QueueScenario(
        "a death x two putters", (("putter1", put(b"a0")), ("putter2", put(b"b0", b"b1")), ("putter3", put(b"c0"))),
        mortal=both("putter1"), faults=1, granules=4, capacity=4,
    ),
    QueueScenario(
        "a death x each putter", (("putter1", put(b"a0")), ("putter2", put(b"b0")), ("putter3", put(b"c0"))),
        mortal=both("putter1"), faults=1, granules=4, capacity=4,
    ),
    QueueScenario(
        "a stop x putter", (("putter1", put(b"a0")), ("putter2", put(b"b0"))), pausable=both("putter1"), faults=1,
        may_be_stuck=True,
    ),
    QueueScenario("shutdown x getter", (("putter", put_and_shut(b"a0")), ("getter", get_until_shut))),
    QueueScenario(
        "shutdown at once", (("putter", put_and_shut(b"a0", immediate=True)), ("getter", get_until_shut)),
        mortal=both("putter"), faults=1,
    ),
    QueueScenario(
        "shutdown x putter in a full queue", (("putter", put_until_shut(b"a0", b"a1")), ("other", put_and_shut())),
        granules=2, capacity=1,
    ),
    QueueScenario("newest dropped", ONE, granules=2, capacity=1, flags=Flag.DROP_NEWEST, drops=True),
    QueueScenario(
        "oldest dropped", (("putter", put(b"a0", b"a1")), ("getter", get(1))), granules=2, capacity=1,
        flags=Flag.DROP_OLDEST, drops=True, mortal=both("getter", "putter"), faults=1, most_lost=1,
    ),
    # Objects in leases.
    QueueScenario("a lease", (("putter", put(LARGE, b"a1")), ("getter", get(2)))),
    QueueScenario(
        "a lease's putter's death", (("putter", put(LARGE)), ("other", put(b"b0")), ("getter", get(1))),
        mortal=both("putter"), faults=1, has_broker=True,
    ),
    QueueScenario(
        "a lease's putter's death x putter", (("putter", put(LARGE)), ("other", put(b"b0"))),
        mortal=both("putter"), faults=1,
    ),
    QueueScenario("a lease's getter's death alone", (("putter", put(LARGE)), ("getter", get(1))),
        mortal=both("getter"), faults=1, most_lost=1,
    ),
    QueueScenario(
        "a lease's getter's death", (("putter", put(LARGE, b"a1")), ("getter1", get(1)), ("getter2", get(1))),
        mortal=both("getter1"), faults=1, most_lost=1, has_broker=True,
    ),
    QueueScenario("a lease dropped", (("putter", put_and_shut(LARGE, immediate=True)), ("getter", get_until_shut))),
    # What gives back.
    QueueScenario(
        "hands", ONE, flags=Flag.REQUEUE, hands=1,
    ),
    QueueScenario(
        "a death with hands full", (("putter", put(b"a0")), ("getter1", get(1)), ("getter2", get(1))),
        flags=Flag.REQUEUE, hands=2, mortal=both("getter1"), faults=1, has_broker=True, gives_back=True,
    ),
    QueueScenario(
        "a death with hands full x more", (("putter", put(b"a0")), ("getter1", get(1)), ("getter2", get(2))),
        flags=Flag.REQUEUE, hands=2, mortal=both("getter1"), faults=1, has_broker=True, gives_back=True,
    ),
)  # fmt: skip
QUEUE_SCENARIO = {scenario.name: scenario for scenario in QUEUE_SCENARIOS}
