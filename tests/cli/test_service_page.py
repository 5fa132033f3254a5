"""docs/service.md: what it shows is sound."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from shmpool.addresses import ENVIRONMENT
from shmpoold.cli import main as shmpoold
from shmpoold.config import parse_assignment, read

PAGE = (Path(__file__).parents[2] / "docs/service.md").read_text()
COMPOSE, POD = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))


def settings_of(words: list[str]) -> dict[str, Any]:
    """Of a command line of shmpoold, each checked as the broker does."""
    assert words[0] == "shmpoold"
    settings = dict(parse_assignment(words[at + 1]) for at, word in enumerate(words) if word == "--set")
    return {**read(None, {}, settings).config.model_dump(), "socket": words[words.index("--socket") + 1]}


def test_the_compose_file_shares_memory_socket_and_pids() -> None:
    broker, worker = COMPOSE["services"]["broker"], COMPOSE["services"]["worker"]
    settings = settings_of(shlex.split(broker["command"]))
    assert settings["memory_limit"] < int(broker["shm_size"].rstrip("m")) << 20
    assert worker["environment"][ENVIRONMENT] == settings["socket"]
    assert worker["ipc"] == worker["pid"] == "service:broker" and broker["ipc"] == "shareable"
    [volume] = set(broker["volumes"]) & set(worker["volumes"])
    assert volume.split(":")[0] in COMPOSE["volumes"] and settings["socket"].startswith(volume.split(":")[1])


def test_the_pod_shares_them_too() -> None:
    spec = POD["spec"]
    broker, worker = spec["containers"]
    settings = settings_of(broker["command"])
    shm = next(volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "shm")
    assert shm["medium"] == "Memory" and settings["memory_limit"] < int(shm["sizeLimit"].removesuffix("Mi")) << 20
    assert broker["volumeMounts"] == worker["volumeMounts"] and spec["shareProcessNamespace"] is True
    assert {mount["mountPath"] for mount in broker["volumeMounts"]} == {"/dev/shm", "/run/shmpool"}
    assert worker["env"] == [{"name": ENVIRONMENT, "value": settings["socket"]}]


def test_the_settings_that_it_names_exist() -> None:
    for line in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL):
        key, value = parse_assignment(line.strip())
        assert read(None, {}, {key: value})


def test_the_exit_statuses_are_those_of_the_help() -> None:
    said = " ".join(CliRunner().invoke(shmpoold, ["--help"]).output.split())
    assert "Exit status: 0 after an orderly stop, 2 for a wrong option or setting" in said
    assert all(f"| {status} |" in PAGE for status in (0, 1, 2))
