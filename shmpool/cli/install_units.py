"""``shmpool install-units``: the systemd units, with the paths of this installation.

What is to be written is decided first (`plan`), each file with its reason; then it is written, or
only shown. An operator's configuration is never overwritten. Nothing is started or enabled here:
the command ends by saying what does.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shlex
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import click

from ..errors import ConfigError

#: What the shipped units run; it is replaced by where `shmpoold` really is.
_SHIPPED: Final = "/usr/bin/shmpoold"
#: Places that a hardened service does not see, or that the next boot or cleaning empties.
_HIDDEN: Final = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")


class File(NamedTuple):
    """One to write: *keep* it if it is there already."""

    path: Path
    text: str
    keep: bool = False


@click.command("install-units", short_help="Install the broker's systemd units.")
@click.option("--user", "for_user", is_flag=True, help="For this user's own service manager, not for the host's.")
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
@click.option("--remove", is_flag=True, help="Remove the units again; the configuration stays.")
@click.option("--root", "root", type=click.Path(path_type=Path), default=Path("/"), show_default=True,
              help="Write below this folder, for a package or an image.")  # fmt: skip
def command(for_user: bool, dry_run: bool, remove: bool, root: Path) -> None:
    """Install the broker's systemd units, its user and a commented configuration."""
    files = plan(find_daemon(), for_user=for_user, root=root)
    if remove:
        _remove([file for file in files if not file.keep], dry_run=dry_run)
        return
    for file in files:
        _install(file, dry_run=dry_run)
    if root == Path("/"):
        click.echo("\nNow:\n" + "\n".join(f"  {line}" for line in _next(for_user=for_user)))


def find_daemon() -> Path:
    """The `shmpoold` command of this installation."""
    beside = Path(sys.executable).with_name("shmpoold")
    found = beside if os.access(beside, os.X_OK) else shutil.which("shmpoold")
    if found is None:
        raise ConfigError(f"there is no shmpoold beside {sys.executable}, nor on PATH: install shmpool with pip first")
    return Path(os.path.abspath(found))


def shipped() -> Path:
    """The folder of the units: within the package when it is installed, beside it in a source tree."""
    spec = importlib.util.find_spec("shmpoold")  # found, not imported
    if spec is None or spec.origin is None:
        raise ConfigError("the package shmpoold is missing: install shmpool with pip")
    package = Path(spec.origin).parent
    return next(path for path in (package / "units", package.parent / "units") if path.is_dir())


def plan(daemon: Path, *, for_user: bool, root: Path = Path("/")) -> list[File]:
    """What to write where. Raises ConfigError when the service could not run *daemon*."""
    units = shipped()
    if for_user:
        config = _user_config()
        target = config / "systemd/user"
        settings = File(config / "shmpool/shmpoold.toml", _configuration(units, group=False), keep=True)
        return [*_units(units / "user", target, daemon), settings]
    if root == Path("/"):
        _check_reach(daemon)
    etc = root / "etc"
    return [
        *_units(units, etc / "systemd/system", daemon),
        File(etc / "sysusers.d/shmpool.conf", (units / "shmpool.sysusers.conf").read_text()),
        File(etc / "tmpfiles.d/shmpool.conf", (units / "shmpool.tmpfiles.conf").read_text()),
        File(etc / "shmpool/shmpoold.toml", _configuration(units, group=True), keep=True),
    ]


def _units(source: Path, target: Path, daemon: Path) -> Iterator[File]:
    executable = str(daemon).replace("%", "%%")
    quoted = executable if shlex.quote(executable) == executable else f'"{executable}"'
    for name in ("shmpoold.service", "shmpoold.socket"):
        text = (source / name).read_text().replace(_SHIPPED, quoted)
        yield File(target / name, text)


def _configuration(units: Path, *, group: bool) -> str:
    """The commented example; what a service needs is set: its pool outlives a restart, and the
    members of the group may connect."""
    text = (units / "shmpoold.toml").read_text()
    wanted = {'#on_stop = "remove"': 'on_stop = "keep"'}
    if group:
        wanted['#group = "shmpool"'] = 'group = "shmpool"'
    for commented, line in wanted.items():
        assert commented in text, commented
        text = text.replace(commented, line)
    return text


def _user_config() -> Path:
    configured = os.environ.get("XDG_CONFIG_HOME")
    return Path(configured) if configured else Path(pwd.getpwuid(os.getuid()).pw_dir, ".config")


def _check_reach(daemon: Path) -> None:
    """The service runs as a user of its own, and sees no home folders."""
    real = {daemon, daemon.resolve(), Path(sys.executable), Path(sys.executable).resolve()}
    for path in sorted(real):
        hidden = next((place for place in _HIDDEN if str(path).startswith(place)), None)
        closed = hidden or next((str(above) for above in path.parents if not above.stat().st_mode & stat.S_IXOTH), None)
        if closed:
            raise ConfigError(
                f"the service's user cannot run {path}: {closed} is not for others. Install shmpool where all may"
                " read it (python3 -m venv /opt/shmpool && /opt/shmpool/bin/pip install shmpool) and run"
                " /opt/shmpool/bin/shmpool install-units, or install it for yourself alone with --user"
            )


def _install(file: File, *, dry_run: bool) -> None:
    there = file.path.read_text() if file.path.exists() else None
    if there is not None and (file.keep or there == file.text):
        click.echo(f"kept     {file.path}")
        return
    if dry_run:
        click.echo(f"would write  {file.path}")
        if not file.keep:
            click.echo("".join(f"    {line}\n" for line in file.text.splitlines()))
        return
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        beside = file.path.with_name(f".{file.path.name}.new")
        beside.write_text(file.text)
        beside.chmod(0o644)
        beside.replace(file.path)
    except OSError as error:
        raise ConfigError(
            f"cannot write {file.path}: {error.strerror}. Run this as root, or with --user for your own service manager"
        ) from error
    click.echo(f"wrote  {file.path}")


def _remove(files: list[File], *, dry_run: bool) -> None:
    for file in files:
        if file.path.exists():
            if not dry_run:
                _unlink(file.path)
            click.echo(f"{'would remove' if dry_run else 'removed'}  {file.path}")


def _unlink(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise ConfigError(f"cannot remove {path}: {error.strerror}. Run this as root") from error


def _next(*, for_user: bool) -> list[str]:
    if for_user:
        return [
            "systemctl --user daemon-reload",
            "systemctl --user enable --now shmpoold.socket shmpoold.service",
            f"loginctl enable-linger {pwd.getpwuid(os.getuid()).pw_name}   # else logind removes the pool at logout",
        ]
    return [
        "systemd-sysusers && systemd-tmpfiles --create shmpool.conf",
        "systemctl daemon-reload",
        "systemctl enable --now shmpoold.socket shmpoold.service",
        "usermod -aG shmpool USER   # for each user whose processes are clients",
    ]
