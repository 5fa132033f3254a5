"""The metrics endpoint: Prometheus' text format over HTTP, on a unix socket or a loopback address.

A thread of its own, off the event loop: each scrape asks the broker as any operator does, over its
own socket, so that it costs what `shmpool stats` costs. It holds nothing up for longer than the interpreter
lets a thread go on when another one wants to: with an endpoint that is shorter than usual. Only who may reach
the socket, or a process of this host, can ask; there is nothing to write.
"""

from __future__ import annotations

import logging
import os
import socket
import socketserver
import stat
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from shmpool.errors import ConfigError, ShmpoolError
from shmpool.stats import query

from ..config.endpoints import Address, parse_address
from .segments import Access

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

#: Seconds that the broker has for an answer, and a peer for its request.
PATIENCE: Final = 5.0
#: Seconds after which this thread lets the event loop go on; usually 5 ms, which each of a client's misses would wait.
SWITCH_INTERVAL: Final = 0.0002

log = logging.getLogger(__name__)


class Exporter:
    """The endpoint, from `start` to `stop`."""

    def __init__(self, address: str, broker: str, access: Access) -> None:
        self._address: Address = parse_address(address)
        self._broker = broker
        self._access = access
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen. Raises ConfigError."""
        # Only whoever wants an endpoint needs the library, which this says.
        from prometheus_client import make_wsgi_app

        from shmpool.exposition import registry

        try:
            self._server = self._listen()
        except OSError as error:
            raise ConfigError(f"metrics_address: cannot listen there: {error.strerror}") from error
        self._server.set_app(_answering(make_wsgi_app(registry(lambda: query(self._broker, timeout=PATIENCE)))))
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.5,), name="metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        if self._address.path:
            with suppress(OSError):
                os.unlink(self._address.path)
        self._server = None

    def _listen(self) -> WSGIServer:
        if not self._address.path:
            family = socket.AF_INET6 if ":" in self._address.host else socket.AF_INET
            server_class = type("_Loopback", (_Server,), {"address_family": family})
            return server_class((self._address.host, self._address.port), _Handler)  # type: ignore[no-any-return]
        _remove_stale(self._address.path)
        before = os.umask(0o177)
        try:
            server = _UnixServer(self._address.path, _Handler)  # type: ignore[arg-type]
        finally:
            os.umask(before)
        if self._access.gid is not None:
            os.chown(self._address.path, -1, self._access.gid)
        os.chmod(self._address.path, self._access.write_mode)
        return server


def _answering(app: WSGIApplication) -> WSGIApplication:
    """The same, and where the broker gives no answer (it stops just now) whoever asked is told so, and nobody else."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            return app(environ, start_response)
        except ShmpoolError as error:
            start_response("503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{error}\n".encode()]

    return answer


def _remove_stale(path: str) -> None:
    """A socket that nobody listens at any more; anything else is somebody's."""
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise ConfigError(f"metrics_address: {path} is there already, and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise ConfigError(f"metrics_address: somebody serves {path} already")


class _Handler(WSGIRequestHandler):
    """Says nothing of each scrape, and waits for nobody for ever."""

    timeout = PATIENCE

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def address_string(self) -> str:
        return "a peer"


class _Server(WSGIServer):
    """One scrape at a time."""

    request_queue_size = 16

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a scrape failed", exc_info=True)


class _UnixServer(_Server):
    """The same on a unix socket, which has no names to look up."""

    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()

    def get_request(self) -> tuple[Any, Any]:
        request, _ = super().get_request()
        return request, ("local", 0)
