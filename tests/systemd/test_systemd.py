"""The service under a real systemd: installed by its command, activated by its socket, reloaded, watched,
killed again and again, stopped."""

from __future__ import annotations

import re
import subprocess

import pytest
from systemd_host import ENV, OPT, PATIENCE, Host

pytestmark = pytest.mark.long

#: A client that keeps one lease and says what it is told to do with it, a line for a line.
CLIENT = """
import sys, shmpool
with shmpool.connect(timeout=30) as pool:
    lease = pool.lease(100_000)
    lease.view[:] = bytes([7]) * 100_000
    print("ready")
    for line in sys.stdin:
        if line.strip() == "check":
            assert bytes(lease.view) == bytes([7]) * 100_000
            with pool.lease(5_000) as other:
                other.write(b"x" * 5_000)
                handle = other.publish()
            with pool.open(handle) as buffer:
                assert bytes(buffer.view) == b"x" * 5_000
            print("right")
        else:
            print(pool.stats().epoch)
    lease.release()
print("ended")
"""


class Client:
    """A client process on the host."""

    def __init__(self, host: Host, user: str = "client") -> None:
        self.process = host.python(user, CLIENT)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.process.stdout.read()

    def say(self, text: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        out, _ = self.process.communicate(timeout=PATIENCE)
        assert out == "ended\n", out
        assert self.process.returncode == 0


@pytest.fixture
def service(host: Host) -> Host:
    """Installed by the command and its advice; the socket listens, and nothing runs yet."""
    said = host.run(f"{OPT}/bin/shmpool", "install-units")
    assert "systemd-sysusers" in said and "systemctl daemon-reload" in said
    host.run("systemd-sysusers")
    host.run("systemd-tmpfiles", "--create", "shmpool.conf")
    host.run("systemctl", "daemon-reload")
    host.run("useradd", "--no-create-home", "--groups", "shmpool", "client")
    host.run("useradd", "--no-create-home", "outsider")
    host.run("systemctl", "enable", "--now", "shmpoold.socket")
    return host


def test_it_is_activated_by_a_client_of_its_group_reloads_and_leaves_nothing(service: Host) -> None:
    assert service.show("shmpoold.service", "ActiveState") == "inactive"
    client = Client(service)
    assert service.show("shmpoold.service", "ActiveState") == "active"
    assert client.say("check") == "right"
    status = service.eventually(
        lambda: (text := service.show("shmpoold.service", "StatusText")).startswith("1 clients") and text, "a status"
    )
    assert re.fullmatch(r"1 clients; \d+ buffers out; .* of 256 MiB held", status)

    outsider = service.python("outsider", "import shmpool; shmpool.connect(timeout=1)")
    out, _ = outsider.communicate(timeout=PATIENCE)
    assert "shmpool.errors" in out and "Permission" in out
    assert "group shmpool" in out or "'shmpool'" in out, out

    config = "/etc/shmpool/shmpoold.toml"
    service.run("sed", "-i", 's/^on_stop = .*/on_stop = "remove"/', config)
    service.run("systemctl", "reload", "shmpoold.service")
    service.eventually(lambda: "reloaded: on_stop" in service.journal(), "a reload")
    assert client.say("epoch") == "1"
    client.end()
    service.run("systemctl", "stop", "shmpoold.socket", "shmpoold.service")
    assert service.show("shmpoold.service", "Result") == "success"
    assert service.run("ls", "/dev/shm") == ""


def test_a_broker_that_is_stopped_is_noticed_and_its_clients_go_on(service: Host) -> None:
    service.run("mkdir", "/run/systemd/system/shmpoold.service.d")
    drop_in = "/run/systemd/system/shmpoold.service.d/soon.conf"
    service.run("tee", drop_in, stdin="[Service]\nWatchdogSec=1s\n")
    service.run("systemctl", "daemon-reload")
    client = Client(service)
    pid = service.main_pid()
    service.run("kill", "-STOP", str(pid))
    service.eventually(lambda: service.main_pid() not in (0, pid), "another broker")
    assert client.say("check") == "right"
    service.eventually(lambda: client.say("epoch") == "2", "the next epoch")
    client.end()


def test_a_crash_loop_of_twenty_kills_leaves_leases_and_clients_alone(service: Host) -> None:
    client = Client(service)
    for _ in range(20):
        pid = service.eventually(service.main_pid, "a broker")
        service.run("kill", "-KILL", str(pid), check=False)
        assert client.say("check") == "right"
        service.eventually(lambda pid=pid: service.main_pid() not in (0, pid), "the next broker")  # type: ignore[misc]
    assert client.say("check") == "right"
    assert int(client.say("epoch")) > 2
    client.end()
    assert service.show("shmpoold.service", "ActiveState") in ("active", "activating")


def test_a_wrong_configuration_ends_it_for_good_and_says_why(service: Host) -> None:
    service.run("tee", "-a", "/etc/shmpool/shmpoold.toml", stdin="memory_limt = 7\n")
    service.run("systemctl", "start", "shmpoold.service", check=False)
    service.eventually(lambda: service.show("shmpoold.service", "ActiveState") == "failed", "an end")
    assert service.show("shmpoold.service", "ExecMainStatus") == "2"
    assert service.show("shmpoold.service", "NRestarts") == "0"
    assert "memory_limt" in service.journal()


def test_the_units_are_sound_and_expose_little(service: Host) -> None:
    units = ["/etc/systemd/system/shmpoold.service", "/etc/systemd/system/shmpoold.socket"]
    verified = service.run("systemd-analyze", "verify", "--man=no", *units)
    assert "shmpoold" not in verified, verified
    security = service.run("systemd-analyze", "security", "--no-pager", "--offline=true", units[0])
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", security)
    assert float(exposure) <= 1.0, security


def test_the_tests_see_the_built_wheel(service: Host) -> None:
    where = service.run(
        f"{OPT}/bin/python", "-c", "import shmpool, shmpoold; print(shmpool.__file__, shmpoold.__file__)"
    )
    assert all(path.startswith(f"{OPT}/lib/") for path in where.split()), where
    done = subprocess.run(service.command(f"{OPT}/bin/shmpoold", "--version"), env=ENV, capture_output=True, text=True)
    assert done.stdout.startswith("shmpoold, version ")
