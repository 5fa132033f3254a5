"""The configuration: one typed declaration with bounds, units and words for people.

:class:`Config` is all there is; the example file, ``--check`` and the embedded broker's
keywords are made from it. Reading goes through :func:`load`, which turns every mistake
into a ConfigError that names key, value and bound. Clients never read this: they get
what they need in the hello.
"""

from __future__ import annotations

import difflib
import grp
import os
import pwd
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from shmpool.errors import ConfigError
from shmpool.protocol.header import header_bytes, ledger_bytes
from shmpool.protocol.ledger import MAX_NBYTES, MAX_SEATS
from shmpool.protocol.sizing import MIB, PAGE, Sizing, Tier, make_tiers, rows_of

from .core.settings import Settings

#: sockaddr_un holds so many bytes of a path.
MAX_SOCKET_PATH: Final = 107

_QUANTITY: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")
_BYTES: Final = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SECONDS: Final = {"": 1, "ms": 0.001, "s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86400}


def default_socket() -> str:
    """Where a broker listens that is told nothing: root's is the system's."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if os.geteuid() == 0 or not runtime:
        return "/run/shmpool/broker.sock"
    return os.path.join(runtime, "shmpool", "broker.sock")


def _in_units(units: Mapping[str, float], example: str) -> Callable[[Any], Any]:
    """A parser for numbers with a unit; what is no string is passed on as it is."""

    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = _QUANTITY.fullmatch(value)
        if match is None or match[2].lower() not in units:
            known = ", ".join(unit for unit in units if unit)
            raise ValueError(f"write a number with one of the units {known}, like {example}")
        number = float(match[1]) * units[match[2].lower()]
        return int(number) if number == int(number) else number

    return parse


def _number_of(kind: str, find: Callable[[str], int]) -> Callable[[Any], Any]:
    """A parser that takes a user's or group's name for its number."""

    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return int(value) if value.isdecimal() else find(value)
        except KeyError:
            raise ValueError(f"this host has no {kind} of that name") from None

    return parse


Size = Annotated[int, BeforeValidator(_in_units(_BYTES, '"256MiB"')), Field(strict=True)]
Seconds = Annotated[float, BeforeValidator(_in_units(_SECONDS, '"300s" or "5min"')),
                    Field(strict=True, allow_inf_nan=False)]  # fmt: skip
Uid = Annotated[int, BeforeValidator(_number_of("user", lambda name: pwd.getpwnam(name).pw_uid)),
                Field(strict=True, ge=0, lt=2**32 - 1)]  # fmt: skip
Gid = Annotated[int, BeforeValidator(_number_of("group", lambda name: grp.getgrnam(name).gr_gid)),
                Field(strict=True, ge=0, lt=2**32 - 1)]  # fmt: skip

_DAY: Final = 86400
_DEFAULT: Final = Sizing()


class Config(BaseModel):
    """All settings, checked and in base units: bytes and seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    socket: str = Field(
        default_factory=default_socket,
        description="Path of the socket, at most 107 bytes. The lock files lie beside it.",
    )
    memory_limit: Size = Field(
        default=256 * MIB,
        ge=MIB,
        le=MAX_NBYTES,
        description="The most memory the pool may hold, its tables counted (bytes).",
    )
    medium_object_threshold: Size = Field(
        default=_DEFAULT.medium_object_threshold,
        ge=1,
        le=MAX_NBYTES,
        description="Objects from this size on are medium (bytes).",
    )
    large_object_threshold: Size = Field(
        default=_DEFAULT.large_object_threshold,
        ge=1,
        le=MAX_NBYTES,
        description="Objects from this size on are large, and chunked (bytes).",
    )
    very_large_object_threshold: Size = Field(
        default=_DEFAULT.very_large_object_threshold,
        ge=1,
        le=MAX_NBYTES,
        description="Objects from this size on are very large, and get a segment of their own (bytes).",
    )
    pooled_sizes: tuple[Size, ...] = Field(
        default=_DEFAULT.pooled_sizes,
        description="Slot sizes for small and medium objects, rising, multiples of 4 KiB (bytes).",
    )
    chunk_sizes: tuple[Size, ...] = Field(
        default=_DEFAULT.chunk_sizes,
        description="Chunk sizes for large objects, rising, multiples of 4 KiB (bytes).",
    )
    max_clients: int = Field(
        default=1024,
        strict=True,
        ge=1,
        le=MAX_SEATS,
        description="The most connections with a seat at a time.",
    )
    lease_timeout: Seconds = Field(
        default=30.0,
        ge=0,
        le=30 * _DAY,
        description="How long a lease waits for memory when it names no timeout (seconds).",
    )
    handle_ttl: Seconds = Field(
        default=300.0,
        gt=0,
        le=365 * _DAY,
        description="Unread handles of a publisher that is gone are closed after this (seconds).",
    )
    magazine_bytes: Size = Field(
        default=MIB,
        ge=PAGE,
        le=MAX_NBYTES,
        description="A client holds ready at most so much of each slot size (bytes).",
    )
    magazine_idle: Seconds = Field(
        default=1.0,
        gt=0,
        le=_DAY,
        description="What a client held ready and did not use for so long goes back (seconds).",
    )
    buffer_lifetime: Seconds = Field(
        default=60.0,
        gt=0,
        le=365 * _DAY,
        description="Memory that nobody used for so long is given back to the host (seconds).",
    )
    scrub: bool = Field(
        default=False,
        description="A slot that moves between users gets new, zeroed pages first.",
    )
    checksums: bool = Field(
        default=False,
        description="Clients sum what they publish and verify what they open (12 readers at most).",
    )
    on_stop: Literal["remove", "keep"] = Field(
        default="remove",
        description='What an orderly stop does with the pool: "remove", or "keep" for the next broker.',
    )
    allow_uids: tuple[Uid, ...] = Field(
        default=(),
        description="Users (names or numbers) who may connect besides the broker's own and root. Needs group.",
    )
    allow_gids: tuple[Gid, ...] = Field(
        default=(),
        description="Groups (names or numbers) who may connect. With neither list: the members of group.",
    )
    group: Gid | None = Field(
        default=None,
        description="Group (name or number) that owns socket and segments: 0660 and not 0600.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="The least important lines that are logged to stderr.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _check(self) -> Config:
        path = os.fsencode(self.socket)
        if not path or b"\0" in path or self.socket.startswith("@"):
            raise ValueError(f"socket must be the path of a file, not {self.socket!r}")
        if len(path) > MAX_SOCKET_PATH:
            raise ValueError(
                f"socket is {len(path)} bytes long, a socket's path has at most {MAX_SOCKET_PATH}: {self.socket!r}"
            )
        if (self.allow_uids or self.allow_gids) and self.group is None:
            raise ValueError("allow_uids and allow_gids need group: without one nobody else can reach the segments")
        self._check_room()
        return self

    def _check_room(self) -> None:
        overhead, largest = self.overhead_bytes, max(*self.pooled_sizes, *self.chunk_sizes)
        if overhead + largest > self.memory_limit:
            raise ValueError(
                f"memory_limit is {self.memory_limit} bytes; the pool's tables take {overhead} of it and the largest"
                f" slot {largest}: raise it to at least {overhead + largest}, or lower max_clients"
            )

    @property
    def sizing(self) -> Sizing:
        """Thresholds and slot sizes. Raises ConfigError when they do not fit together."""
        return Sizing(
            medium_object_threshold=self.medium_object_threshold,
            large_object_threshold=self.large_object_threshold,
            very_large_object_threshold=self.very_large_object_threshold,
            pooled_sizes=self.pooled_sizes,
            chunk_sizes=self.chunk_sizes,
        )

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The tiers of a pool made with this configuration."""
        return make_tiers(self.memory_limit, self.sizing)

    @property
    def overhead_bytes(self) -> int:
        """What header and ledger take of the limit, in bytes."""
        return header_bytes(self.max_clients) + ledger_bytes(rows_of(self.tiers), self.max_clients)


def load(path: str | None, overrides: Mapping[str, Any]) -> Config:
    """The configuration of a TOML file (None: of no file), with *overrides* on top.

    Raises ConfigError, and nothing else, for anything that is wrong with either.
    """
    values = {**(_read(path) if path is not None else {}), **overrides}
    try:
        return Config(**values)
    except ValidationError as error:
        _refuse(error, path)


def to_settings(config: Config, tickets_file: tuple[int, int], seats_file: tuple[int, int]) -> Settings:
    """What the core needs of it, with device and inode of the files of the byte locks."""
    return Settings(
        memory_limit=config.memory_limit,
        sizing=config.sizing,
        max_clients=config.max_clients,
        lease_timeout=config.lease_timeout,
        handle_ttl=config.handle_ttl,
        magazine_bytes=config.magazine_bytes,
        magazine_idle=config.magazine_idle,
        buffer_lifetime=config.buffer_lifetime,
        scrub=config.scrub,
        checksums=config.checksums,
        tickets_file=tickets_file,
        seats_file=seats_file,
    )


def parse_override(assignment: str) -> tuple[str, Any]:
    """KEY=VALUE of the command line; the value is TOML, or else a plain string."""
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes KEY=VALUE, not {assignment!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text.strip()


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error


def _refuse(error: ValidationError, path: str | None) -> NoReturn:
    where = f"{path}: " if path else ""
    raise ConfigError(where + "; ".join(_explain(dict(fault)) for fault in error.errors())) from None


def _explain(fault: dict[str, Any]) -> str:
    key = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Config.model_fields, 1)
        return f"{key} is no setting" + (f"; did you mean {near[0]}?" if near else "")
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not key:  # a rule over several keys, which names them itself
        return message
    value, bounds = fault["input"], _bounds_of(str(fault["loc"][0]))
    return f"{key} = {value!r}: {message[0].lower()}{message[1:]}{bounds}"


def _bounds_of(key: str) -> str:
    """The bounds that a key is declared with, for messages."""
    field = Config.model_fields.get(key)
    limits = {name: getattr(rule, name) for rule in (field.metadata if field else ()) for name in ("ge", "gt", "le")
              if getattr(rule, name, None) is not None}  # fmt: skip
    if not limits:
        return ""
    low = f"from {limits['ge']}" if "ge" in limits else f"above {limits.get('gt')}"
    return f" ({low} to {limits['le']})"
