"""Since when a row has said what it says: noted by looks at the ledger, now and then.

Clients lease and publish without a message, so an age is the broker's: since the first look
that saw it so, and in truth a little longer. A look compares bytes; only rows in which
something has changed cost more. Of a part of the ledger where nobody has anything, nothing is kept.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from shmpool.protocol.ledger import ROW_WORDS, STATE_SHIFT

_CHANGED = re.compile(rb"[^\0]")
#: Bytes of a grant word before those that say what it is granted for: whose seat it is may
#: pass to the broker.
_SEAT_BYTES = STATE_SHIFT // 8


@dataclass(slots=True)
class SliceAges:
    """The rows of one slice, by index. The times are those of the looks."""

    #: As the last look saw them: the grant words, and the states of all words.
    grants: bytes
    states: bytes
    #: Since when the grant word says so; since when none of the row's tickets has changed.
    since: array[float]
    changed: array[float]
    #: In how many rows the last look saw anything new; those count twice whose grant word it is.
    differing: int = 0


class Ages:
    """What the looks have noted, by the first row of a slice."""

    def __init__(self) -> None:
        self._slices: dict[int, SliceAges] = {}
        #: Anything has changed since this was last set to False.
        self.has_changed = False

    def look(self, first: int, raw: bytes, now: float) -> SliceAges:
        """Note what is new in a slice of the ledger, and return its ages."""
        grants, states = memoryview(raw).cast("Q")[::ROW_WORDS].tobytes(), raw[STATE_SHIFT // 8 :: 8]
        ages = self._slices.get(first)
        if ages is None:
            times = array("d", [now]) * (len(grants) // 8)
            self._slices[first] = ages = SliceAges(grants, states, times, times[:])
            self.has_changed = True
            return ages
        ages.differing = 0
        if states != ages.states:
            for row in _differing(ages.states, states, ROW_WORDS):
                ages.changed[row] = now
                ages.differing += 1
            ages.states, self.has_changed = states, True
        if grants != ages.grants:
            for row in _differing(ages.grants, grants, 8, _SEAT_BYTES):
                ages.since[row] = ages.changed[row] = now
                ages.differing += 1
            ages.grants, self.has_changed = grants, True
        return ages

    def forget(self, first: int) -> None:
        """Nobody has anything in this slice."""
        self._slices.pop(first, None)

    def forget_all(self) -> None:
        """Nor in any other."""
        self._slices.clear()


def _differing(old: bytes, new: bytes, width: int, skipped: int = 0) -> Iterator[int]:
    """Which groups of *width* bytes differ in two texts of one length, but for the first *skipped* of a group."""
    difference = (int.from_bytes(old, "little") ^ int.from_bytes(new, "little")).to_bytes(len(old), "little")
    search, at = _CHANGED.search, 0
    while found := search(difference, at):
        group, byte = divmod(found.start(), width)
        if byte >= skipped:
            yield group
            at = (group + 1) * width
        else:
            at = group * width + skipped
