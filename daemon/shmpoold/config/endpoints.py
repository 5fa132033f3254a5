"""Where metrics are served: a unix socket, or a loopback address."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple


class Address(NamedTuple):
    """Where to listen: *path* of a unix socket, or *host* and *port*."""

    path: str = ""
    host: str = ""
    port: int = 0


def parse_address(text: str) -> Address:
    """``/run/shmpool/metrics.sock``, ``127.0.0.1:9464``, ``[::1]:9464``, ``localhost:9464``. Raises
    ValueError; other hosts than this one are refused."""
    if text.startswith("/"):
        return Address(path=text)
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is no address: write the path of a socket, or a loopback address as 127.0.0.1:9464")
    if host != "localhost" and not _is_loopback(host):
        raise ValueError(f"{host!r} is no loopback address: metrics are served to this host alone, as 127.0.0.1:{port}")
    return Address(host=host, port=int(port))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
