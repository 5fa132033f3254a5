"""Where a broker is looked for: the order of the places."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmpool.addresses import SYSTEM_SOCKET, resolve


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SHMPOOL_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def users_socket(runtime: Path) -> str:
    (runtime / "shmpool").mkdir()
    (runtime / "shmpool" / "broker.sock").touch()
    return str(runtime / "shmpool" / "broker.sock")


def test_a_given_path_wins(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users_socket(runtime)
    monkeypatch.setenv("SHMPOOL_SOCKET", "/from/environment")
    assert resolve("/given") == "/given"
    assert resolve(Path("/given")) == "/given"


def test_the_environment_is_next(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users_socket(runtime)
    monkeypatch.setenv("SHMPOOL_SOCKET", "/from/environment")
    assert resolve(None) == "/from/environment"


def test_an_empty_variable_counts_as_unset(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMPOOL_SOCKET", "")
    assert resolve(None) == SYSTEM_SOCKET


def test_then_the_users_own_if_it_exists(runtime: Path) -> None:
    assert resolve(None) == SYSTEM_SOCKET
    own = users_socket(runtime)
    assert resolve(None) == own


def test_the_system_comes_last(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert resolve(None) == SYSTEM_SOCKET == "/run/shmpool/broker.sock"
