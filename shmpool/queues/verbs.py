"""The verb of queues. What it needs is imported when it is first used."""

from __future__ import annotations

from ..objects.verbs import ObjectVerbs
from ..protocol.ledger import EXTENT, QUEUE, ROW_WORDS, tickets_of
from ..system.importing import door, explained

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .queue import OnDeadConsumer, Overflow, Queue


class QueueVerbs(ObjectVerbs):
    """A pool of queues."""

    def queue(
        self,
        name: str | None = None,
        *,
        maxsize: int = 0,
        on_dead_consumer: OnDeadConsumer = "drop",
        overflow: Overflow = "block",
        keep: bool = False,
    ) -> Queue:
        """The queue of that name, made by who asks first; of all processes that ask for it, related or not.
        Without a name a new one. Raises NameTaken for the name of something else, ValueError for a queue that
        was made otherwise, and like `lease`."""
        with door, explained:
            from .queue import Queue

        return Queue(maxsize, pool=self, name=name, on_dead_consumer=on_dead_consumer, overflow=overflow, keep=keep)

    def drop(self, name: str) -> None:
        """As for all that is shared; a queue is shut down with it, and what is in it is freed."""
        with door, explained:
            from ..objects.sharing import find_present

        shared = find_present(self, name)
        try:
            super().drop(name)
            if tickets_of(self._live_session().words[shared._row * ROW_WORDS + EXTENT]) & QUEUE:
                with door, explained:
                    from .queue import shut

                shut(self, shared)
        finally:
            shared.release()
