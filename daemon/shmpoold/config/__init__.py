"""The configuration: what may be set (`declaration`), in which units (`units`), by which rules
(`rules`), read from where (`reading`), shown how (`texts`), handed to the core as what (`handover`).

One declaration is all there is: the example file, the documentation's table, ``--check`` and
the embedded broker's keywords are made from it. Clients never read it: they get what they need
in the welcome.
"""

from __future__ import annotations

from .declaration import Config, Scope, default_socket
from .handover import floors, to_settings
from .reading import Origin, Reading, load, parse_assignment, read
from .reload import Reload, reload

__all__ = [
    "Config",
    "Origin",
    "Reading",
    "Reload",
    "Scope",
    "default_socket",
    "floors",
    "load",
    "parse_assignment",
    "read",
    "reload",
    "to_settings",
]
