"""A call in the middle of another one of the same thread: what a finalizer or a signal handler does.

It may come before every access of shared memory and every lock, and, in the functions of `VISITED`, before every
statement: whether it comes there is a step of the party's. A step that nobody else can tell, so no other party has
one in between (`World.successors`).
"""

from __future__ import annotations
import __future__

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

from shmpool.buffer import LiveBuffer
from shmpool.live_lease import LiveLease
from shmpool.pool import BasePool
from shmpool.seat import deferred, tickets
from shmpool.seat.deferred import DeferredReleases
from shmpool.seat.ending import Ending
from shmpool.seat.magazine import Magazine
from shmpool.seat.mapping import GateUse
from shmpool.seat.openings import Openings

from .machines import Context

#: Where a visit may come before each statement, not only before what others can see.
VISITED: Final[tuple[tuple[Any, str], ...]] = (
    (BasePool, "lease"), (BasePool, "open"), (BasePool, "_open_otherwise"), (BasePool, "discard"),
    (LiveLease, "publish"), (LiveBuffer, "release"), (LiveBuffer, "_release_slowly"),
    (tickets, "take"), (tickets, "discard"), (tickets, "_change"), (tickets, "_locked"), (tickets, "_locked_within"),
    (tickets, "_under_lock"),
    (tickets, "release"), (deferred, "release"), (GateUse, "__enter__"), (GateUse, "__exit__"),
    (DeferredReleases, "look_at_recent"), (DeferredReleases, "_settle"), (Openings, "_forget"), (Openings, "_orphan"),
    (Magazine, "take"), (Magazine, "reap"), (Ending, "say_goodbye"), (Ending, "_close_tickets"),
)  # fmt: skip


class Visit:
    """*act* comes once, somewhere in the block, or not at all."""

    def __init__(self, context: Context, act: Callable[[], None]) -> None:
        self._context = context
        self._act = act

    def __enter__(self) -> Visit:
        self._context.visit = self
        return self

    def __exit__(self, *_: object) -> None:
        self._context.visit = None

    def may_come(self) -> None:
        """The world decides."""
        context = self._context
        context.visit = None
        if context.ask("visit"):
            context.is_visited = True
            try:
                self._act()
            finally:
                context.is_visited = False
        else:
            context.visit = self


def _visit() -> None:
    context = Context.current
    if context is not None and not context.is_dead and context.visit is not None:
        context.visit.may_come()


class _Visited(ast.NodeTransformer):
    """A call of `_visit` before every statement, and at the end of every block."""

    _CALL: Final = ast.Expr(ast.Call(ast.Name("_visit", ast.Load()), [], []))
    _LEAVES: Final = (ast.Return, ast.Raise, ast.Continue, ast.Break)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list) and statements:
                visited = [step for statement in statements for step in (self._CALL, statement)]
                setattr(node, name, visited if isinstance(statements[-1], self._LEAVES) else [*visited, self._CALL])
        return node


def _with_visits(function: Any) -> Any:
    """The plain function, or a mutant of it, that may be visited."""
    function = inspect.unwrap(function)
    source = getattr(function, "source", None) or textwrap.dedent(inspect.getsource(function))
    tree = ast.parse(source)
    definition: Any = tree.body[0]
    definition.decorator_list = []
    _Visited().visit(definition)
    code = compile(
        ast.fix_missing_locations(tree), f"<{function.__qualname__} with visits>", "exec",
        __future__.annotations.compiler_flag,
    )  # fmt: skip
    made: dict[str, Any] = {}
    exec(code, function.__globals__, made)
    return made[function.__name__]


@contextmanager
def visited() -> Iterator[None]:
    """The product's code with places for visits, while an exploration runs."""
    with ExitStack() as stack:
        for owner, name in VISITED:
            made = _with_visits(getattr(owner, name))
            made.__globals__["_visit"] = _visit
            stack.enter_context(patch.object(owner, name, made))
        yield
