"""Raises at the n-th place of the client's code where the interpreter looks for signals: at the begin
of a function, after each call, at each jump back."""

from __future__ import annotations

import dis
import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import shmpool

CLIENT = os.path.dirname(shmpool.__file__) + os.sep
#: After these the interpreter looks for signals.
LOOKS = ("CALL", "JUMP_BACKWARD", "RESUME")


class Interrupt(BaseException):
    """Nothing in the product knows it."""


class Interrupter:
    """Raises at the n-th place in this thread; *place* says where that was."""

    def __init__(self, n: int) -> None:
        self.left = n
        self.place = ""
        #: Frame -> the instruction that it has just done.
        self._last: dict[int, str] = {}

    def __enter__(self) -> Interrupter:
        sys._getframe().f_trace_opcodes = True  # CPython 3.12 looks at settrace whether any frame wants them
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _on_call(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if not self._is_traced(frame):
            return None
        frame.f_trace_opcodes = True
        if frame.f_lasti <= 0 or dis.opname[frame.f_code.co_code[frame.f_lasti]] == "RESUME":
            self._come_to(frame, "begin")  # no event comes for it: a generator that goes on has had its own
        return self._on_event

    def _is_traced(self, frame: FrameType) -> bool:
        return frame.f_code.co_filename.startswith(CLIENT)

    def _on_event(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        if event == "opcode":
            last = self._last.get(id(frame), "")
            self._last[id(frame)] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if last.startswith(LOOKS):
                self._come_to(frame, f"line {frame.f_lineno}")
        elif event in ("return", "exception"):  # behind a call that has raised nobody looks
            self._last.pop(id(frame), None)
        return self._on_event

    def _come_to(self, frame: FrameType, where: str) -> None:
        self.left -= 1
        if self.left == 0 and not self.place:
            self.place = f"{frame.f_code.co_qualname}, {where}"
            self._interrupt()

    def _interrupt(self) -> None:
        raise Interrupt
