"""Queries: asked at any time, answered a slice at a time.

A report looks at everything that is granted, so it is a chore. Whoever asks while one is
made waits for the next, and that one serves all who wait: asking costs the broker a report,
not one for each question. (How many questions a peer has under way is the shell's to bound.)
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from shmpool.protocol.messages import MAX_BLOB, Answer, Query, Topic

from . import reports
from .actions import Send
from .chores import Chore

if TYPE_CHECKING:
    from .broker import Broker

#: Sending an answer, in units; and the bytes of answers that cost one more.
SENDING, SENT_PER_UNIT = 8, 4096


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
            self._broker.chores.begin(self._answer(topic), now, is_urgent=False)

    def _answer(self, topic: Topic) -> Chore:
        asking = self._waiting.pop(topic)
        report = yield from reports.make(self._broker, topic)
        payload = json.dumps(report, separators=(",", ":")).encode()
        yield len(payload) // SENT_PER_UNIT
        parts = [payload[at : at + MAX_BLOB] for at in range(0, len(payload), MAX_BLOB)]
        for connection, request in asking:
            if connection in self._broker.clients:
                for index, part in enumerate(parts):
                    answer = Answer(request, index == len(parts) - 1, part)
                    self._broker.outbox.add(Send(connection, answer))
                yield SENDING + len(payload) // SENT_PER_UNIT
