"""What `system.outside` tells from what our own calls raise."""

from __future__ import annotations

import ast
import errno
import functools
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest
from interrupter import Interrupter

import shmpool
from shmpool.system import outside
from shmpool.system.outside import own, own_or_called

NOWHERE = "/nowhere/at/all"


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


def is_caught(call: Callable[[], object], *kinds: type[BaseException], way: object = own) -> bool:
    try:
        call()
    except way(*kinds):  # type: ignore[operator]
        return True
    except BaseException:
        return False
    raise AssertionError("nothing was raised")


def raising(error: BaseException) -> Callable[..., NoReturn]:
    def handle(*_: object) -> NoReturn:
        raise error

    return handle


def rings() -> None:
    signal.raise_signal(signal.SIGUSR1)
    for _ in range(2):
        pass


def test_what_the_kernel_and_we_raise_is_caught() -> None:
    assert is_caught(functools.partial(os.stat, NOWHERE), OSError)
    assert is_caught([].pop, IndexError)
    assert is_caught(functools.partial(shmpool.connect, NOWHERE, timeout=0), shmpool.ShmpoolError)
    assert not is_caught([].pop, KeyError)


def test_a_wrapper_around_the_kernel_s_call_is_none_from_outside() -> None:
    """gevent's, a profiler's, a test's."""
    assert is_caught(raising(BlockingIOError(errno.EAGAIN, "not now")), BlockingIOError)


class Handler:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, _: int, frame: FrameType | None) -> None:
        raise self.error

    def method(self, *_: object) -> None:
        raise self.error


def opens_what_is_missing(*_: object) -> None:
    os.stat(NOWHERE)


def connects_to_nobody(*_: object) -> None:
    shmpool.connect(NOWHERE, timeout=0)


WAYS: dict[str, Callable[[BaseException], Callable[..., object]]] = {
    "function": raising,
    "object": Handler,
    "method": lambda error: Handler(error).method,
    "partial": lambda error: functools.partial(raising(error), 1),
}
ERRORS = [
    TimeoutError("an alarm"),
    OSError(errno.EAGAIN, "the handler's"),
    shmpool.LeaseTimeout("the handler's"),
    IndexError("the handler's"),
]


@pytest.mark.parametrize("way", [own, own_or_called], ids=lambda way: way.__name__)
@pytest.mark.parametrize("make", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_a_handler_raises_is_not_caught(
    error: Exception, make: Callable[[BaseException], Callable[..., object]], way: object
) -> None:
    signal.signal(signal.SIGUSR1, make(error))
    assert not is_caught(rings, Exception, way=way)


@pytest.mark.parametrize("handle", [opens_what_is_missing, connects_to_nobody])
def test_what_a_handler_s_own_calls_raise_is_not_caught(handle: Callable[..., None]) -> None:
    signal.signal(signal.SIGUSR1, handle)
    assert not is_caught(rings, Exception)


def test_a_handler_that_is_no_longer_set_when_it_raises_is_told() -> None:
    def once(*_: object) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise TimeoutError("an alarm")

    signal.signal(signal.SIGUSR1, once)
    assert not is_caught(rings, OSError)


def test_what_users_code_raises_is_caught_where_it_is_called() -> None:
    assert is_caught(raising(ValueError("a __buffer__'s")), ValueError, way=own_or_called)


SOURCES = Path(shmpool.__file__).parent
#: Commands, and what runs when the package is built: there is no caller.
NO_CLIENT = ("cli/", "demo/", "_fast/build.py")
#: What no handler raises: private, or for the interpreter.
NOBODY_S = {"GeneratorExit", "KeyboardInterrupt", "Suspended"}
#: Clauses for all that there is, and handled: what came is passed on otherwise, or nobody calls.
HANDS_ON = ("link/helper.py", "integrations/crew.py", "integrations/workers.py", "aio/pool.py", "system/hooks.py")
#: The protocol does not know the client: the first two of no handler's kinds, a check of its own, and who decodes lets
#: it through. Modules that are imported by users.
WITHOUT = {
    ("protocol/messages.py", "UnicodeEncodeError"), ("protocol/ledger.py", "UnicodeDecodeError"),
    ("protocol/handle.py", "TypeError"), ("protocol/messages.py", "_FAILURES"),
    ("integrations/joblib.py", "ImportError"), ("exposition.py", "ImportError"),
}  # fmt: skip
#: No Python runs there; and it is raised anew.
COMPILED_WITHOUT = {("twin.pyx", "BufferError"), ("objects.pxi", "MemoryError")}


def test_who_catches_asks_whose_it_is() -> None:
    beside = []
    for path in SOURCES.rglob("*.py"):
        name = str(path.relative_to(SOURCES))
        if name.startswith(NO_CLIENT):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                is_wrong = not asks(name, node)
            else:
                is_wrong = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress")
            if is_wrong:
                beside.append(f"{name}:{node.lineno}")
    assert beside == []


#: These catch what comes in the middle of them: `system.outside` has others.
CATCHES_ITSELF = re.compile(r"os\.path\.(exists|lexists|isdir|isfile|islink|realpath)\(|environ\.get\(|os\.getenv\(")
#: At the import of the package; and the other itself.
BEFORE_ALL = ("protocol/names.py", "_fast/__init__.py", "system/outside.py")


def test_nobody_calls_what_takes_a_handler_s_exception_for_its_own() -> None:
    beside = [
        f"{path.relative_to(SOURCES)}: {call[0]}"
        for path in SOURCES.rglob("*.py")
        if not str(path.relative_to(SOURCES)).startswith((*NO_CLIENT, *BEFORE_ALL))
        for call in CATCHES_ITSELF.finditer(path.read_text())
    ]
    assert beside == []


def test_calls_of_the_standard_library_s_let_a_handler_s_exception_through(tmp_path: Path) -> None:
    """At each of their places."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    calls: list[tuple[Callable[[], object], object, BaseException]] = [
        (lambda: outside.exists(str(link)), True, FileNotFoundError("the handler's")),
        (lambda: outside.exists(f"{link}/no"), False, FileNotFoundError("the handler's")),
        (lambda: outside.real_path(str(link)), str(tmp_path.resolve()), OSError("the handler's")),
        (lambda: outside.variable("PATH"), os.environ["PATH"], KeyError("the handler's")),
        (lambda: outside.variable("NO_SUCH_ONE"), "", KeyError("the handler's")),
    ]
    for call, expected, error in calls:
        whole = AtAPlace(-1, error)
        with whole:
            assert call() == expected
        for n in range(1, -whole.left):
            with AtAPlace(n, error):
                came = None
                try:
                    call()
                except type(error) as caught:
                    came = caught
            error.__traceback__ = error.__context__ = None
            assert came is error, n


class AtAPlace(Interrupter):
    """By a handler, also in the standard library's code."""

    def __init__(self, n: int, error: BaseException) -> None:
        super().__init__(n)
        signal.signal(signal.SIGUSR1, raising(error))

    def _is_traced(self, frame: FrameType) -> bool:
        return (
            "posixpath" in frame.f_code.co_filename
            or "genericpath" in frame.f_code.co_filename
            or (frame.f_code.co_filename in (outside.__file__, os.__file__))
        )

    def _interrupt(self) -> None:
        signal.raise_signal(signal.SIGUSR1)


def asks(name: str, clause: ast.ExceptHandler) -> bool:
    kind = "BaseException" if clause.type is None else ast.unparse(clause.type)
    if ast.unparse(clause.body[0]) == "raise" or kind in NOBODY_S or (name, kind) in WITHOUT:
        return True
    if kind in ("Exception", "BaseException"):
        return name in HANDS_ON or any(isinstance(node, ast.Raise) for node in ast.walk(clause))
    return isinstance(clause.type, ast.Call) and kind.removeprefix("outside.").startswith(("own(", "own_or_called("))


def test_a_compiled_clause_asks_whose_it_is() -> None:
    """There the exception that is just being caught is set no earlier than in the clause."""
    beside = []
    for path in [*SOURCES.glob("_fast/*.pyx"), *SOURCES.glob("_fast/*.pxi")]:
        for kind, clause in re.findall(r"except \(?([A-Z]\w*)[^:\n]*:[^\n]*\n((?:.*\n){2})", path.read_text()):
            if kind != "BaseException" and (path.name, kind) not in COMPILED_WITHOUT:
                beside += [(path.name, kind)] if "is_from_outside(error)" not in clause else []
    assert beside == []
