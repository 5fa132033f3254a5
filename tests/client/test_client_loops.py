"""An exception of a handler may come where a loop jumps back, and must meet what the loop lies in there as well.

Compilers of CPython leave it out in places. 3.13 makes two jumps of a condition that ends a loop's body, or is the
loop's own, and the second belongs to no `try` or `with`: forty alarms of forty in `while condition: ...` left the lock
around it locked. 3.11 and 3.12 look for signals when they have jumped already, and count that to the instruction that
lies before: before a loop that does nothing, or behind a `return`, that is outside. So loops of ours that lie in a
`try` or `with` are written as all of these cover them: `if not condition: break`, or `continue`, and the rest."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import shmpool

PACKAGE = Path(shmpool.__file__).parent
ENDS_WITH_ITS_PROCESS = {"cli", "demo", "_fast"}  # commands, and what builds: a Ctrl-C there ends all of it
LOOKS_BEFORE_IT_JUMPS = sys.version_info >= (3, 13)


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def clause(code: CodeType, instructions: list[dis.Instruction], offset: int) -> int | None:
    """Where the innermost clause of the source begins that gets what is raised at *offset*: what the compiler adds for
    comprehensions and generators only hands it on."""
    table = dis._parse_exception_table(code)  # type: ignore[attr-defined]
    while True:
        target = next((entry.target for entry in table if entry.start <= offset < entry.end), None)
        if target is None:
            return None
        behind = [instruction for instruction in instructions if instruction.offset >= target]
        if behind[0].opname in ("PUSH_EXC_INFO", "COPY"):
            return int(target)
        offset = next(instruction.offset for instruction in behind if instruction.opname == "RERAISE")


def uncovered(source: str, name: str) -> Iterator[str]:
    """The jumps back into a clause that are outside of all."""
    for code in codes(compile(source, name, "exec")):
        instructions = list(dis.get_instructions(code))
        for jump in instructions:
            if jump.opname == "JUMP_BACKWARD":
                looks_at = jump.offset if LOOKS_BEFORE_IT_JUMPS else jump.argval - 2
                if clause(code, instructions, jump.argval) and not clause(code, instructions, looks_at):
                    line = jump.positions.lineno if jump.positions else None
                    yield f"{name}:{line} in {code.co_qualname}"


def test_the_scan_finds_what_this_compiler_leaves_out() -> None:
    lock = "def f(lock, go_on):\n with lock:\n  while go_on():\n   pass\n"
    idle = "def f(end):\n try:\n  while True: pass\n finally:\n  end()\n"
    assert list(uncovered(lock if LOOKS_BEFORE_IT_JUMPS else idle, "example")) == ["example:3 in f"]


def test_no_loop_jumps_back_outside_of_what_it_lies_in() -> None:
    found: list[str] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] not in ENDS_WITH_ITS_PROCESS:
            found += uncovered(path.read_text(), str(path.relative_to(PACKAGE)))
    assert not found
