"""``shmpool install-units``: what is written where, and what is left alone. How it runs: tests/systemd."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from cli_helpers import shmpool_command

from shmpool.cli import install_units
from shmpool.errors import ConfigError


def files_below(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_the_system_s_files_name_the_real_daemon_and_keep_the_pool_over_restarts(tmp_path: Path) -> None:
    done = shmpool_command("install-units", "--root", str(tmp_path))
    assert done.returncode == 0, done.stderr
    files = files_below(tmp_path)
    assert set(files) == {
        "etc/systemd/system/shmpoold.service", "etc/systemd/system/shmpoold.socket", "etc/sysusers.d/shmpool.conf",
        "etc/tmpfiles.d/shmpool.conf", "etc/shmpool/shmpoold.toml",
    }  # fmt: skip
    daemon = Path(sys.executable).with_name("shmpoold")
    assert f"ExecStart={daemon} --config" in files["etc/systemd/system/shmpoold.service"]
    set_lines = [line for line in files["etc/shmpool/shmpoold.toml"].splitlines() if line and not line.startswith("#")]
    assert set_lines == ['on_stop = "keep"', 'group = "shmpool"']


def test_an_operator_s_configuration_stays_and_units_are_renewed(tmp_path: Path) -> None:
    shmpool_command("install-units", "--root", str(tmp_path))
    config, unit = tmp_path / "etc/shmpool/shmpoold.toml", tmp_path / "etc/systemd/system/shmpoold.service"
    config.write_text("# mine\n")
    renewed = unit.read_text()
    unit.write_text("[Unit]\n")
    done = shmpool_command("install-units", "--root", str(tmp_path))
    assert config.read_text() == "# mine\n" and f"kept     {config}" in done.stdout
    assert unit.read_text() == renewed
    shmpool_command("install-units", "--root", str(tmp_path), "--remove")
    assert set(files_below(tmp_path)) == {"etc/shmpool/shmpoold.toml"}


def test_a_dry_run_shows_and_writes_nothing(tmp_path: Path) -> None:
    done = shmpool_command("install-units", "--root", str(tmp_path), "--dry-run")
    assert done.returncode == 0 and "WatchdogSec=" in done.stdout and "ExecStart=" in done.stdout
    assert not files_below(tmp_path)


def test_the_user_s_own_need_no_root(tmp_path: Path) -> None:
    done = shmpool_command("install-units", "--user", XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 0 and "systemctl --user" in done.stdout, done.stderr
    files = files_below(tmp_path)
    assert set(files) == {"systemd/user/shmpoold.service", "systemd/user/shmpoold.socket", "shmpool/shmpoold.toml"}
    assert "%t/shmpool/broker.sock" in files["systemd/user/shmpoold.socket"]


def test_a_daemon_in_a_home_folder_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    daemon = closed / "shmpoold"
    daemon.touch(mode=0o755)
    monkeypatch.setattr(install_units, "_HIDDEN", ())
    with pytest.raises(ConfigError, match=r"is not for others\. Install shmpool where all may read it"):
        install_units.plan(daemon, for_user=False)
    monkeypatch.setattr(install_units, "_HIDDEN", (f"{tmp_path}{os.sep}",))
    with pytest.raises(ConfigError, match="--user"):
        install_units.plan(daemon, for_user=False)


def test_a_path_with_blanks_and_percents_is_quoted(tmp_path: Path) -> None:
    files = install_units.plan(tmp_path / "my pool" / "100%" / "shmpoold", for_user=False, root=tmp_path)
    service = next(file.text for file in files if file.path.name == "shmpoold.service")
    assert f'ExecStart="{tmp_path}/my pool/100%%/shmpoold" --config' in service
