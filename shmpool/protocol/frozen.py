"""Values: what is set once when they are made. `Frozen` is in the place of dataclasses, and `NamedTuple` in that of
typing's: these modules are a tenth of what importing shmpool would cost a worker, and each of typing's named tuples
is a piece of source that is compiled when it is made, in every process anew."""

from __future__ import annotations

from operator import itemgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
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


if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:

    class _Fields(type):
        def __new__(meta, name, bases, namespace):
            fields = tuple(namespace.get("__annotations__", ()))
            defaults = {field: namespace[field] for field in fields if field in namespace}
            getters = {field: property(itemgetter(index)) for index, field in enumerate(fields)}
            said = {"__slots__": (), "_fields": fields, "_field_defaults": defaults, "__match_args__": fields}
            return super().__new__(meta, name, bases, {**namespace, **getters, **said})

    class NamedTuple(tuple, metaclass=_Fields):
        """A tuple whose places have names, those of its class's annotations: `typing.NamedTuple`, as far as it is
        used here."""

        def __new__(cls, *values, **named):
            if named or len(values) != len(cls._fields):
                values = cls._complete(values, named)
            return tuple.__new__(cls, values)

        @classmethod
        def _complete(cls, values, named):
            fields = cls._fields[len(values) :]
            missing = [field for field in fields if field not in named and field not in cls._field_defaults]
            unknown = [field for field in named if field not in fields]
            if missing or unknown or len(values) > len(cls._fields):
                raise TypeError(f"a {cls.__name__} has {', '.join(cls._fields)}, not {values} and {named}")
            return (*values, *(named[field] if field in named else cls._field_defaults[field] for field in fields))

        def __getnewargs__(self):
            return tuple(self)

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, **named):
            return type(self)(**{**self._asdict(), **named})

        def __repr__(self):
            return f"{type(self).__name__}({', '.join(f'{name}={one!r}' for name, one in self._asdict().items())})"
