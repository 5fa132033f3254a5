"""SIGHUP: the configuration is read again, and taken over as far as a running broker may."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from shmpool.errors import ConfigError

from ..config import Config, Reload, reload, to_settings
from . import systemd
from .listener import Admission
from .server import Server

log = logging.getLogger(__name__)


class Reloading:
    """One that is wrong changes nothing, and nobody is disconnected. *follow* is told of each
    configuration that is in force."""

    def __init__(
        self, config: Config, read_again: Callable[[], Config], server: Server, follow: Callable[[Config], None]
    ) -> None:
        self._config = config
        self._read_again = read_again
        self._server = server
        self._follow = follow

    def reload(self) -> None:
        """Read and take over."""
        systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            # The socket is the one that we serve, wherever it came from.
            read = self._read_again().model_copy(update={"socket": self._config.socket})
            self._take_over(reload(self._config, read))
        except ConfigError as error:
            log.error("the configuration stays as it was: %s", error)
        systemd.notify("READY=1")

    def _take_over(self, change: Reload) -> None:
        self._config = config = change.config
        # Of these settings the files' identities are not the configuration's, and stay.
        settings = to_settings(config, (0, 0), (0, 0))
        self._server.reconfigure(settings, Admission.of(config.allow_uids, config.allow_gids, config.group))
        logging.getLogger().setLevel(config.log_level.upper())
        self._follow(config)
        log.info("reloaded: %s", ", ".join(change.applied) or "nothing that has changed may change now")
        for key, scope in change.later.items():
            log.warning("%s has changed: it takes effect with %s", key, scope.value)
