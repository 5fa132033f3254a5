"""One peer's hand-overs, with something counted in the producer's process and in the consumer's."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection

from .channel import Channel
from .loop import consuming, producing
from .peers.base import Peer
from .plan import SPIN, Plan

#: Counts while the context is entered; the function says how many there were.
Count = Callable[[], AbstractContextManager[Callable[[], int]]]


def count_on_both_sides(peer: Peer, plans: Sequence[Plan], count: Count) -> tuple[int, int]:
    """Run the plans, count during the last of them: by the producer, by the consumer. Ends the peer."""
    there, back = Channel(SPIN), Channel(SPIN)
    control, theirs = multiprocessing.Pipe()
    arguments = (peer, plans, count, there, back, theirs)
    process = multiprocessing.get_context("fork").Process(target=_consume, args=arguments)
    process.start()
    peer.begin_producer()
    for plan in plans:
        run = producing(peer, plan, there, back)
        control.recv()
        with count() as counted:
            run()
            by_producer = counted()
    by_consumer = control.recv()
    process.join()
    peer.end_producer()
    there.close()
    back.close()
    return by_producer, by_consumer


def _consume(
    peer: Peer, plans: Sequence[Plan], count: Count, there: Channel, back: Channel, control: Connection
) -> None:
    peer.begin_consumer()
    for plan in plans:
        run = consuming(peer, plan, there, back)
        with count() as counted:
            control.send("ready")
            run()
            by_consumer = counted()
    control.send(by_consumer)
    peer.end_consumer()
    os._exit(0)
