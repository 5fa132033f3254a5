"""What the core has decided within one event: every part adds to it, the broker hands it out."""

from __future__ import annotations

from collections.abc import Callable

from shmpool.protocol.messages import Message

from .actions import Action, Send


class Outbox:
    """The actions of one event, in the order in which they are to be carried out. What an event
    had added before an error in it goes out with the next: it was decided, and the ledger says so."""

    __slots__ = ("_actions", "add")

    def __init__(self) -> None:
        self._actions: list[Action] = []
        #: Add one action.
        self.add: Callable[[Action], None] = self._actions.append

    def send(self, connection: int, message: Message) -> None:
        """Add a message."""
        self.add(Send(connection, message))

    def take(self) -> list[Action]:
        """All of them; the outbox is empty then."""
        actions = self._actions[:]
        self._actions.clear()  # in place: `add` is its method
        return actions
