"""A stream's control page: what its writer says to its reader.

A stream is publications of chunks, each for one reader, and the page that names them: a publication
itself, of which the writer keeps its view and goes on writing. Its handle is the stream's. What the
publication says to hold is the constant part; behind that, in the same page, lie words that the
writer alone stores and that the reader, whose map is read-only, looks at. All that the reader says
to the writer, the cells say: it takes the tickets of the chunks, and stores DONE; with the page's own
it goes. So both deaths are settled by the broker's sweep, as for any publication.

======== ====================================================================
word     content
======== ====================================================================
0        what tells a stream from other publications
1        the publication's own grant word: a copy of the page is no stream
2        handles that the ring holds
3        bytes that the writer announced, all ones for none
(4-7)    zero; so far goes the publication
8        chunks handed in (grows by one store, the last of each hand-over)
9        bytes handed in
10       how it ended: 0 not yet, 1 by its close, 2 given up
11       1 while the writer sleeps at a chunk's cell
16-      the ring: grant word and tail of a handle, for each chunk on its way
======== ====================================================================
"""

from __future__ import annotations

import time
from enum import IntEnum
from typing import Final

MAGIC: Final = int.from_bytes(b"\x93shmstrm", "little")
#: What the publication holds, and the whole page, in bytes.
PREFIX_BYTES: Final = 64
PAGE_BYTES: Final = 4096

OWN_GRANT: Final = 1
CAPACITY: Final = 2
ANNOUNCED: Final = 3
HEAD: Final = 8
BYTES: Final = 9
ENDED: Final = 10
SLEEPS: Final = 11
RING: Final = 16

#: `ANNOUNCED` of a stream of unknown size.
UNKNOWN: Final = (1 << 64) - 1


class End(IntEnum):
    """How a stream ended."""

    NOT_YET = 0
    CLOSED = 1
    GIVEN_UP = 2


def deadline_of(timeout: float | None) -> float:
    """When a wait that begins now ends; None is never."""
    return float("inf") if timeout is None else time.monotonic() + timeout
