"""Recalls: what is idle goes back, since somebody waits for it, since it rests, or since the pool is closed."""

from __future__ import annotations

import time

from ..protocol.states import State
from . import recovery
from .custody import Custody

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: Seconds for which recalls leave a steady stream what it uses; a pause longer than this ends a series of them.
KEPT_FOR: Final = 1.0
RECALLS_PAUSE: Final = 0.25


class Recalls(Custody):
    """What one seat gives back unasked, and when it is asked; a base of `Session`. Thread-safe."""

    def __init__(self) -> None:
        super().__init__()
        #: When the last recall came, and when everything idle was returned, or a series of recalls began.
        self._recalled_at = self._all_returned_at = float("-inf")
        #: Under 0: who looks for what is lost.
        self._finder: dict[int, object] = {}

    def return_idle(self) -> None:
        """Somebody waits: reap, and return what is idle. What a steady stream goes on using stays
        here, for a second at most: then all goes back that is idle just then, so that neither
        the stream stands still beside who waits for much, nor who waits for little beside streams
        that have all there is."""
        now = time.monotonic()
        if now > self._recalled_at + RECALLS_PAUSE:
            self._all_returned_at = now  # the first one of a series
        self._recalled_at = now
        if now < self._all_returned_at + KEPT_FOR:
            self._return_all(everything=False)
        else:
            self.return_all()

    def return_all(self) -> None:
        """Reap, and return everything that is idle, or lost."""
        self._all_returned_at = time.monotonic()
        self._return_all(everything=True)

    def _return_all(self, *, everything: bool) -> None:
        self.deferred.recover()
        if self._untold:
            self._tell_untold()
        for magazine in self.all_magazines:
            magazine.newest = None  # it would keep a lost slot known
            magazine.reap_all()
            slots = magazine.idle(everything=everything)
            magazine.batch = 1
            if slots:
                self.return_to_broker(slots)
        self._return_left()

    def _return_left(self) -> None:
        """What nobody knows. Two must not both find one: who comes while another looks leaves it to him."""
        me, finder = object(), self._finder
        try:
            if finder.setdefault(0, me) is me:
                slots = recovery.left_slots(self, self._owned)
                if slots:
                    self.return_to_broker(slots)
        finally:
            if 0 in finder and finder[0] is me:
                del finder[0]

    def return_rested(self) -> bool:
        """Return what was not used; False when nothing idle is left."""
        for magazine in self.all_magazines:
            magazine.reap_rested()
            slots = magazine.rested()
            if slots:
                self.return_to_broker(slots)
        return any(magazine.ready or magazine.published for magazine in self.all_magazines)

    def close_magazines(self) -> None:
        """Return what is idle and hand the publications to the broker."""
        self.note_timed()
        self.return_all()
        rows = []
        for magazine in self.all_magazines:
            while magazine.published:
                slot = magazine.published.popleft()
                slot.window = None
                self._return_row(slot, State.PUBLISHED)  # the last store: the row is the broker's now
                rows.append(slot.row)
        self.ring_all(rows)
