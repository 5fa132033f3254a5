"""The mistakes: what may be done to the syntax tree of a function, and the code that comes of it."""

from __future__ import annotations

import ast
import copy
import itertools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Change = Callable[[], None]

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_OPERATIONS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}  # fmt: skip
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}
#: A bound that is not there.
UNBOUNDED = 10**9


@dataclass(frozen=True)
class Mutant:
    """One mistake. *where* is file and function, *what* the code before and after: together they name
    it, also when its line has moved."""

    path: Path
    where: str
    what: str
    line: int
    #: Its place among the mutants of its file.
    number: int
    #: The function's qualified name and first line, or the constant's qualified name and value.
    function: tuple[str, int] | None = None
    constant: tuple[str, int] | None = None

    def code(self) -> types.CodeType:
        """The function's code with the mistake in it."""
        assert self.function is not None
        tree = ast.parse(self.path.read_text())
        for other in _mutate(tree, self.path, ""):
            if other.number == self.number:
                code = compile(ast.fix_missing_locations(tree), str(self.path), "exec", dont_inherit=True)
                return _find(code, *self.function)
        raise ValueError(f"{self.path} has changed meanwhile")


def mutants_of(path: Path, root: Path) -> list[Mutant]:
    """All mutants of one module."""
    return list(_mutate(ast.parse(path.read_text()), path, str(path.relative_to(root))))


def _mutate(tree: ast.Module, path: Path, named: str) -> Iterator[Mutant]:
    """Mutant by mutant: the tree has the mistake until the next is asked for."""
    number = itertools.count()
    for node, owner in _statements(tree):
        for name, value, other in _bounds_of(node):
            what = f"{owner}{name} = {value} -> {other}"
            yield Mutant(path, named, what, node.lineno, next(number), constant=(f"{owner}{name}", other))
    for qualname, function in _functions(tree, ""):
        first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
        for node, change in _changes_of(function):
            before, text = copy.deepcopy(node), _short(node)
            change()
            if _short(node) != text:
                what = f"{text} -> {_short(node)}"
                yield Mutant(path, f"{named} {qualname}", what, before.lineno, next(number), (qualname, first))
            _restore(node, before)


def _find(code: types.CodeType, qualname: str, first: int) -> types.CodeType:
    """The code of one function in a module's."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    while inner:
        code = inner.pop()
        if (code.co_qualname, code.co_firstlineno) == (qualname, first):
            return code
        inner += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    raise LookupError(f"no {qualname} in line {first}")


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and child.name not in ("__repr__", "__str__"):
            yield f"{prefix}{child.name}", child


def _statements(tree: ast.Module) -> Iterator[tuple[ast.stmt, str]]:
    """Those of the module, and of its classes that derive from nothing (an enumeration's members are no bounds)."""
    for node in tree.body:
        yield node, ""
        if isinstance(node, ast.ClassDef) and not node.bases:
            for inner in node.body:
                yield inner, f"{node.name}."


def _bounds_of(node: ast.stmt) -> Iterator[tuple[str, str, int]]:
    """Numbers by their names, as they are written, and one more, and as if they were not there."""
    if isinstance(node, ast.Assign):
        target, value = node.targets[0], node.value
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        target, value = node.target, node.value
    else:
        return
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        pairs = list(zip(target.elts, value.elts, strict=True))
    else:
        pairs = [(target, value)]
    for name, number in pairs:
        if not isinstance(name, ast.Name) or not name.id.isupper():
            continue
        if isinstance(number, ast.Constant) and type(number.value) is int:
            yield name.id, str(number.value), number.value + 1
            yield name.id, str(number.value), UNBOUNDED
        elif isinstance(number, ast.Name | ast.BinOp) and _names_in(number) <= {"KIB", "MIB"}:
            yield name.id, ast.unparse(number), UNBOUNDED


def _names_in(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


# --- what may be done ------------------------------------------------------------------------------


def _changes_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[ast.AST, Change]]:
    """Node by node: each change is made, and undone, before the next is asked for."""
    for statement in function.body:
        for node in _nodes(statement):
            for change in _changes(node):
                yield node, change


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """What runs: no docstrings, no annotations, no asserts, no texts for people, no exceptions' texts."""
    if isinstance(node, ast.Assert | ast.Raise | ast.JoinedStr):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _nodes(child)


def _changes(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        yield lambda: node.ops.__setitem__(0, _COMPARISONS[type(node.ops[0])]())
    elif isinstance(node, ast.BoolOp):
        yield lambda: setattr(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
        for which in range(len(node.values)):
            yield lambda which=which: _become(node, node.values[which])  # type: ignore[misc]
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _OPERATIONS:
        yield lambda: setattr(node, "op", _OPERATIONS[type(node.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield lambda: _become(node, node.operand)
    elif isinstance(node, ast.IfExp):
        yield lambda: _become(node, node.body)
        yield lambda: _become(node, node.orelse)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield lambda: setattr(node, "value", not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield lambda: setattr(node, "value", node.value + 1)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
        yield lambda: setattr(node, "func", ast.Name(_CALLS[node.func.id], ast.Load()))  # type: ignore[attr-defined]
    elif isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.Constant | ast.NamedExpr):
        yield lambda: setattr(node, "test", ast.Constant(value=False))
    elif isinstance(node, ast.Break):
        yield lambda: _become(node, ast.Continue())
    if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield lambda: _become(node, ast.Pass())
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript):
        yield lambda: _become(node, ast.Pass())
    if isinstance(node, ast.Return) and node.value is not None:
        yield lambda: setattr(node, "value", ast.Constant(value=None))


def _become(node: ast.AST, other: ast.AST) -> None:
    """Make a node another one, in its place."""
    place = {name: getattr(node, name) for name in ("lineno", "col_offset", "end_lineno", "end_col_offset")}
    fields = dict(vars(other))
    node.__dict__.clear()
    node.__class__ = other.__class__
    node.__dict__.update(fields | place)


def _restore(node: ast.AST, before: ast.AST) -> None:
    node.__dict__.clear()
    node.__class__ = before.__class__
    node.__dict__.update(vars(before))


def _short(node: ast.AST) -> str:
    """The code of an expression or of a statement's first line."""
    return ast.unparse(node).splitlines()[0]
