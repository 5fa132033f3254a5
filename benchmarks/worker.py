"""The producer's process, which forks the consumer's: ``python -m benchmarks.worker PEER SETTINGS``.

Plans come as lines of JSON on stdin, laps go as lines of JSON to stdout. Runs in a peer's
own interpreter, so it imports the standard library and that peer only."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, TextIO

from .channel import Channel
from .cores import pin_to_core
from .loop import OtherSideGone, consuming, producing
from .peers.base import Absent, Peer
from .plan import Plan

#: Peer -> where it is, as "module:class".
PEERS = {
    "shmpool": "shmpool:Shmpool",
    "shmpool queue": "shmpool:ShmpoolQueue",
    "floor": "floor:Floor",
    "gauge": "gauge:Gauge",
    "fresh": "fresh:Fresh",
    "queue": "queue:Queue",
    "pipe": "pipe:Pipe",
    "zmq": "zmq:Zmq",
    "iceoryx2": "iceoryx2:Iceoryx2",
    "kickmsg": "kickmsg:Kickmsg",
    "cloudtoid": "cloudtoid:Cloudtoid",
    "plasma": "plasma:Plasma",
}


def main(name: str, settings: dict[str, Any]) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a peer prints goes to stderr
    try:
        pair = _Pair(name, settings)
    except Absent as reason:
        _reply(replies, {"absent": str(reason)})
        return
    _reply(replies, {"ready": True})
    for line in sys.stdin:
        try:
            seconds, samples = pair.run(Plan(**json.loads(line)))
        except Exception:
            _reply(replies, {"failed": pair.describe_failure()})
            os._exit(1)
        _reply(replies, {"seconds": seconds, "samples": samples})
    pair.close()


def _reply(replies: TextIO, document: dict[str, Any]) -> None:
    replies.write(json.dumps(document) + "\n")
    replies.flush()


class _Pair:
    """A peer, this process as its producer and a child as its consumer."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        module, kind = PEERS[name].split(":")
        self._peer: Peer = getattr(importlib.import_module(f".peers.{module}", __package__), kind)(**settings)
        self._there, self._back = Channel(), Channel()
        self._control, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(target=self._be_consumer, args=(theirs,))
        self._process.start()
        theirs.close()
        pin_to_core(0)
        self._there.keep_writer()
        self._back.keep_reader()
        self._peer.begin_producer()
        self._say(True)

    def run(self, plan: Plan) -> tuple[float, list[float]]:
        """One lap. The first objects, an eighth, are not counted: they find the caches as
        the other contestants left them."""
        self._back.set_spin(plan.spin)
        if not plan.prelude:
            self._run(plan, max(plan.in_flight, plan.objects // 8))
        return self._run(plan, plan.objects)

    def _run(self, plan: Plan, objects: int) -> tuple[float, list[float]]:
        plan = replace(plan, objects=objects)
        produce = producing(self._peer, plan, self._there, self._back)
        self._say(plan)
        lap = produce()
        if self._control.recv() is not True:
            raise RuntimeError("the bytes that arrived are not those that were sent")
        return lap

    def _say(self, what: Any) -> None:
        """Tell the consumer, and wait until it is ready for it."""
        self._control.send(what)
        if (answer := self._control.recv()) is not True:
            raise RuntimeError(answer)

    def describe_failure(self) -> str:
        """The last words of the consumer if it has any, else the producer's."""
        if sys.exc_info()[0] is OtherSideGone:
            try:
                return str(self._control.recv())
            except EOFError:
                return "the consumer died"
        return traceback.format_exc()

    def close(self) -> None:
        self._control.send(None)
        self._process.join()
        self._peer.end_producer()

    def _be_consumer(self, control: Connection) -> None:
        self._control.close()
        sys.stdin.close()
        pin_to_core(1)
        self._there.keep_reader()
        self._back.keep_writer()
        try:
            control.recv()
            self._peer.begin_consumer()
            control.send(True)
            while (plan := control.recv()) is not None:
                self._there.set_spin(plan.spin)
                consume = consuming(self._peer, plan, self._there, self._back)
                control.send(True)
                control.send(consume())
            self._peer.end_consumer()
        except (EOFError, OtherSideGone):
            pass  # the producer is gone, and so is what there was to tell
        except BaseException:
            control.send(traceback.format_exc())
            os._exit(1)
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
