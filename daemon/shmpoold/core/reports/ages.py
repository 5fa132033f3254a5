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
        if states != ages.states:
            for at in _differing(ages.states, states):
                ages.changed[at // ROW_WORDS] = now
            ages.states, self.has_changed = states, True
        if grants != ages.grants:
            for at in _differing(ages.grants, grants):
                if at % 8 >= _SEAT_BYTES:
                    ages.since[at // 8] = ages.changed[at // 8] = now
            ages.grants, self.has_changed = grants, True
        return ages

    def forget(self, first: int) -> None:
        """Nobody has anything in this slice."""
        self._slices.pop(first, None)

    def forget_all(self) -> None:
        """Nor in any other."""
        self._slices.clear()


def _differing(old: bytes, new: bytes) -> Iterator[int]:
    """Where two texts of one length differ."""
    difference = int.from_bytes(old, "little") ^ int.from_bytes(new, "little")
    return (found.start() for found in _CHANGED.finditer(difference.to_bytes(len(old), "little")))
