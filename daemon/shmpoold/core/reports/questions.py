"""Queries: asked at any time, answered a slice at a time.

A report looks at everything that is granted, so it is a chore. Whoever asks while one is
made waits for the next, and that one serves all who wait: asking costs the broker a report,
not one for each question. (How many questions a peer has under way is the shell's to bound.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from shmpool.protocol.messages import (
    MAX_BLOB,
    Answer,
    Query,
    Topic,
)

from ..actions import Send
from ..chores import Chore, Lane
from ..recovery import invariants

if TYPE_CHECKING:
    from ..broker import Broker

#: Sending a part of an answer, in units; and the bytes of it that cost one more.
SENDING, SENT_PER_UNIT = 8, 4096
#: Lines of a report that are written as JSON in one step, and the bytes that cost a unit.
WRITTEN_PER_STEP, WRITTEN_PER_UNIT = 32, 96


class Questions:
    """Who asks what."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        #: By topic, (connection, request) of those whom the next report serves.
        self._waiting: dict[Topic, list[tuple[int, int]]] = {}

    def ask(self, connection: int, query: Query, now: float) -> None:
        """Somebody asks."""
        topic = Topic(query.topic)
        asking = self._waiting.setdefault(topic, [])
        asking.append((connection, query.request))
        if len(asking) == 1:
            self._broker.chores.begin(self._answer(topic), now, Lane.QUESTIONS)

    def _answer(self, topic: Topic) -> Chore:
        asking = self._waiting.pop(topic)
        if topic is Topic.INVARIANTS:
            report = yield from invariants.report(self._broker)
        else:
            report = yield from self._broker.reports.make(topic)
        parts, text = [], bytearray()
        for piece in write(report):
            text += piece
            while len(text) > MAX_BLOB:
                parts.append(bytes(text[:MAX_BLOB]))
                del text[:MAX_BLOB]
            yield 1 + len(piece) // WRITTEN_PER_UNIT
        parts.append(bytes(text))
        for connection, request in asking:
            for index, part in enumerate(parts):
                if connection not in self._broker.clients:
                    break
                answer = Answer(request, index == len(parts) - 1, part)
                self._broker.outbox.add(Send(connection, answer))
                yield SENDING + len(part) // SENT_PER_UNIT


def write(report: dict[str, Any]) -> Iterator[bytes]:
    """A report as JSON, in pieces of some lines; a line that is bytes is JSON already."""
    text = b"{"
    for index, (key, value) in enumerate(report.items()):
        text += (b"," if index else b"") + to_json(key) + b":"
        if not isinstance(value, list):
            text += to_json(value)
            continue
        text += b"["
        for at in range(0, len(value), WRITTEN_PER_STEP):
            lines = value[at : at + WRITTEN_PER_STEP]
            text += (b"," if at else b"") + b",".join(map(to_json, lines))
            yield text
            text = b""
        text += b"]"
    yield text + b"}"


def to_json(value: Any) -> bytes:
    """Without a blank."""
    return value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
