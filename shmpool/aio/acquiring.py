"""What `async with` and `await` both take: something that is acquired, and released in the end."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Acquiring(Generic[T]):
    """``await`` it, and release what it gives; or ``async with`` it. Once."""

    def __init__(self, acquire: Callable[[], Coroutine[Any, Any, T]], release: Callable[[T], object]) -> None:
        self._acquire = acquire
        self._release = release
        self._acquired: T | None = None

    def __await__(self) -> Generator[Any, None, T]:
        return self._acquire().__await__()

    async def __aenter__(self) -> T:
        self._acquired = acquired = await self._acquire()
        return acquired

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        acquired, self._acquired = self._acquired, None
        if acquired is not None:
            self._release(acquired)
