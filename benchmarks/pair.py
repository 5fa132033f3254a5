"""A pair of processes of one peer, as the runner sees it: laps are asked for and come."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import plasma_environment
from .measure import Lap
from .peers.base import Absent
from .plan import Plan

ROOT = Path(__file__).resolve().parent.parent
#: A pair that says nothing for so long is given up. Seconds.
PATIENCE = 60.0


class PairFailed(Exception):
    """A pair died, hung, or delivered the wrong bytes."""

    def __init__(self, label: str, reason: str) -> None:
        super().__init__(reason)
        self.label = label


@dataclass(frozen=True)
class Entry:
    """One contestant: a peer with its settings."""

    label: str
    peer: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Smallest size it is asked for.
    from_nbytes: int = 0
    #: It polls by nature, so there is no blocking column for it.
    only_spins: bool = False
    #: It moves all the bytes whatever the mode, so the mixed ones would tell nothing.
    moves_all: bool = False

    def takes(self, plan: Plan) -> bool:
        """Whether it is measured with that plan."""
        if plan.nbytes < self.from_nbytes or (self.moves_all and plan.fills != plan.drains):
            return False
        return plan.spin > 0 or not self.only_spins


class Pair:
    """A context manager. Raises `Absent` when the peer cannot be had."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        python = plasma_environment.interpreter() if entry.peer == "plasma" else sys.executable
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 (kept as long as the pair)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", entry.peer, json.dumps(dict(entry.settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env={**os.environ, "PYTHONPATH": path, **entry.environment},
            start_new_session=True,
        )
        try:
            answer = self._answer()
        except PairFailed as error:
            raise Absent(str(error)) from error
        if "absent" in answer:
            self.close()
            raise Absent(answer["absent"])

    def lap(self, plan: Plan, objects: int) -> Lap:
        """Run it once. Raises `PairFailed`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asdict(replace(plan, objects=objects))).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says why
        answer = self._answer()
        if "failed" in answer:
            raise self._failure(_last_line(answer["failed"]))
        return Lap(answer["seconds"], answer["samples"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            raise self._failure(f"no answer within {PATIENCE:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            self._complaints.seek(0)
            raise self._failure(_last_line(self._complaints.read()))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failure(self, reason: str) -> PairFailed:
        self.kill()
        return PairFailed(self.entry.label, reason)

    def close(self) -> None:
        """Let both processes end, and wait for it."""
        self._close_streams()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End all processes of the pair at once."""
        self._close_streams()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()

    def _close_streams(self) -> None:
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it died without a word"
