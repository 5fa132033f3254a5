"""Fixtures of the booted host; see `systemd_host`."""

from __future__ import annotations

from systemd_host import host, installed

__all__ = ["host", "installed"]
