"""What has one owner is not copied: two would give one buffer back, or write through one."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar, NoReturn


class Uncopied:
    """Refuses to be copied and pickled. `_why` says why, and what to send instead."""

    __slots__ = ()

    _why: ClassVar[str]

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be copied or pickled, since {self._why}")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self.__reduce__()
