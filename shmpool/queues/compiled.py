"""What the compiled part puts in the place of a queue's short ways, where it is there."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


#: Puts it there, once that has been imported.
install: Callable[[], None] | None = None
#: Made of a queue (`Ring`): what it needs of it; None of one that is not for it.
short_way: Callable[[Any], Any] | None = None
