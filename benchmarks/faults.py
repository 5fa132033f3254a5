"""Page faults of a hand-off, counted by the kernel in the producer and in the consumer."""

from __future__ import annotations

import multiprocessing
import os
import resource
from multiprocessing.connection import Connection
from typing import NamedTuple

from .channel import Channel
from .loop import consume, produce
from .peers.base import Peer
from .plan import SPIN, Plan


class Faults(NamedTuple):
    """Minor page faults for each object."""

    producer: float
    consumer: float


def count_faults(peer: Peer, nbytes: int, objects: int) -> Faults:
    """Of *objects* objects, one in flight, copied in and copied out, once a first half of
    them has made everything warm that stays. Ends the peer."""
    plans = [Plan(nbytes, objects=objects // 2), Plan(nbytes, objects=objects)]
    there, back = Channel(SPIN), Channel(SPIN)
    control, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_consume, args=(peer, plans, there, back, theirs))
    process.start()
    peer.begin_producer()
    by_producer = 0
    for plan in plans:
        control.recv()
        before = _faults_so_far()
        produce(peer, plan, there, back)
        by_producer = _faults_so_far() - before
    by_consumer = control.recv()
    process.join()
    peer.end_producer()
    there.close()
    back.close()
    return Faults(by_producer / objects, by_consumer / objects)


def _consume(peer: Peer, plans: list[Plan], there: Channel, back: Channel, control: Connection) -> None:
    peer.begin_consumer()
    by_consumer = 0
    for plan in plans:
        control.send("ready")
        before = _faults_so_far()
        consume(peer, plan, there, back)
        by_consumer = _faults_so_far() - before
    control.send(by_consumer)
    peer.end_consumer()
    os._exit(0)


def _faults_so_far() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
