"""Values: what is set once when they are made. In the place of dataclasses, whose module is a twentieth of
what importing shmpool costs a worker."""

from __future__ import annotations

from typing import Any, NoReturn, Self


class Frozen:
    """A value of the attributes in its class's `__slots__`, which `__init__` takes by these names and
    gives to `_set`. Equal, hashable and picklable by them."""

    __slots__: tuple[str, ...] = ()

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def but(self, **values: Any) -> Self:
        """Another one that differs in these."""
        return type(self)(**{**self._values(), **values})

    def __eq__(self, other: object) -> bool:
        return other is self or (type(other) is type(self) and other._values() == self._values())

    def __hash__(self) -> int:
        return hash(tuple(self._values().values()))

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in self._values().items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (type(self), self._values())

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} does not change: make another one instead of setting {name}")

    def __delattr__(self, name: str) -> NoReturn:
        self.__setattr__(name, None)


def _make(kind: type[Frozen], values: dict[str, Any]) -> Frozen:
    return kind(**values)
