"""Scrubbing, where the configuration asks for it: a slot that moves between users gets new
pages, which read as zeros, before it is granted. The broker touches no payload for that.

Covers slots and chunks; direct segments are always new then, no spares are kept. Not covered: what one user's own
processes leave for each other.
"""

from __future__ import annotations

from .slots import Extent

#: The last user of a slot taken over from an earlier broker.
UNKNOWN = -1


class Scrubber:
    """Whose bytes an unused warm slot still holds, by row."""

    __slots__ = ("_users", "is_on")

    def __init__(self, is_on: bool) -> None:
        self.is_on = is_on
        self._users: dict[int, int] = {}

    def note(self, extents: tuple[Extent, ...], uid: int) -> None:
        """These rows hold what *uid* wrote."""
        if self.is_on:
            self._users.update((at, uid) for row, count in extents for at in range(row, row + count))

    def forget(self, row: int, count: int) -> None:
        """The pages of these rows are gone."""
        if self.is_on:
            for at in range(row, row + count):
                self._users.pop(at, None)

    def is_needed(self, extents: tuple[Extent, ...], uid: int) -> bool:
        """Whether any of these rows holds what another user wrote."""
        return self.is_on and any(
            self._users.get(at, uid) != uid for row, count in extents for at in range(row, row + count)
        )
