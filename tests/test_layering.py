"""The arrows of the architecture, read from the source: protocol <- core <- shell and
protocol <- client. Also what `import shmpool` costs a worker, and what it exports.

Every import statement counts, also those inside functions and under TYPE_CHECKING:
an arrow is an arrow. Imports by name (importlib) are not seen.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmpool

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {"shmpool": ROOT / "shmpool", "shmpoold": ROOT / "daemon" / "shmpoold"}


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file, for *package* ("shmpool.protocol") and all below it."""
    top, *rest = package.split(".")
    base = SOURCES[top].joinpath(*rest)
    found = {}
    for path in sorted(base.rglob("*.py")):
        parts = [*package.split("."), *path.relative_to(base).with_suffix("").parts]
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(name: str, path: Path) -> Iterator[str]:
    """The absolute dotted names of what a module imports. ``from .a import b`` gives both
    ``a`` and ``a.b``, since only an import could tell whether b is a module."""
    is_package = path.name == "__init__.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = name.split(".")
            above = node.level - is_package
            base = parents[: len(parents) - above] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield stem
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def below(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def is_stdlib(name: str) -> bool:
    return name.split(".")[0] in sys.stdlib_module_names


def offences(package: str, allowed: object) -> list[str]:
    assert callable(allowed)
    return [
        f"{module} imports {imported}"
        for module, path in modules(package).items()
        for imported in imports(module, path)
        if not allowed(imported)
    ]


def test_the_walk_sees_every_kind_of_import(tmp_path: Path) -> None:
    source = "import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\ndef h():\n    import i\n"
    path = tmp_path / "mod.py"
    path.write_text(source)
    found = set(imports("top.sub.mod", path))
    assert found >= {"a.b", "c", "c.d", "top.sub.e", "top.f", "top.f.g", "i"}
    package = tmp_path / "__init__.py"
    package.write_text(source)
    assert set(imports("top.sub.pack", package)) >= {"top.sub.pack.e", "top.sub.f.g"}


def test_the_walk_finds_both_packages() -> None:
    assert {"shmpool", "shmpool.errors", "shmpool.protocol.ledger"} <= set(modules("shmpool"))
    assert {"shmpoold", "shmpoold.core"} <= set(modules("shmpoold"))


def test_the_protocol_needs_only_errors_msgpack_and_the_standard_library() -> None:
    def allowed(name: str) -> bool:
        return below(name, "shmpool.protocol", "shmpool.errors", "msgpack") or is_stdlib(name)

    assert offences("shmpool.protocol", allowed) == []


#: The names' prefix is the one thing that the protocol reads from its surroundings.
THE_PREFIX = [f"shmpool.protocol.names imports {name}" for name in ("os", "os.environ")]


@pytest.mark.parametrize("module", ["asyncio", "socket", "mmap", "os", "time", "threading", "selectors", "datetime"])
def test_the_protocol_has_no_io_and_no_clock(module: str) -> None:
    found = offences("shmpool.protocol", lambda name: not below(name, module))
    assert [line for line in found if line not in THE_PREFIX] == []


def test_the_client_never_imports_the_broker() -> None:
    assert offences("shmpool", lambda name: not below(name, "shmpoold")) == []


PURE = ("shmpoold.core", "shmpool.protocol", "shmpool.errors")
IMPURE = (
    "asyncio", "datetime", "fcntl", "io", "logging", "mmap", "multiprocessing", "os", "pathlib", "random",
    "secrets", "select", "selectors", "signal", "socket", "subprocess", "tempfile", "threading", "time",
)  # fmt: skip


def test_the_core_is_pure() -> None:
    """It knows the protocol and itself; no IO, no clock, no chance, nothing of the shell."""

    def allowed(name: str) -> bool:
        return below(name, *PURE) or (is_stdlib(name) and not below(name, *IMPURE))

    wrong = offences("shmpoold.core", allowed)
    assert [line for line in wrong if line.split()[-1] != "shmpool"] == []


def test_only_the_commands_use_click_and_rich() -> None:
    for package in ("shmpool.protocol", "shmpoold.core"):
        assert offences(package, lambda name: not below(name, "click", "rich")) == []
    outside = offences("shmpool", lambda name: not below(name, "click", "rich"))
    assert [line for line in outside if not line.startswith("shmpool.cli.")] == []


def test_configuration_stays_in_the_broker() -> None:
    assert offences("shmpool", lambda name: not below(name, "pydantic")) == []


# --- what a worker pays ---------------------------------------------------------------------

HEAVY = ("click", "rich", "pydantic", "numpy", "psutil", "asyncio", "multiprocessing", "hypothesis")


def test_importing_shmpool_loads_nothing_heavy() -> None:
    script = "import shmpool, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "shmpool" in loaded
    assert loaded.isdisjoint(HEAVY), loaded & set(HEAVY)


def test_the_commands_module_loads_nothing_heavy_until_main_runs() -> None:
    """A spawned demo process imports it again as its __main__."""
    script = "import shmpool.cli, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()}.isdisjoint({"click", "rich", "psutil"})


# --- what it exports ------------------------------------------------------------------------

EXPORTS = {
    "Broker", "BrokerUnavailable", "Buffer", "ChecksumError", "ChunkedTeeReader", "ConfigError", "FormatError",
    "Handle",
    "HandleUsed", "InvalidHandle", "InvalidSize", "LeakedView", "Lease", "LeaseReleased", "LeaseTimeout",
    "LocalProtocolError", "Pool", "PoolClosed", "PoolingRefused", "ProtocolError", "QuotaExceeded",
    "RemoteProtocolError", "SharedMemoryFull", "ShmpoolError", "SizeCategory", "Sizing", "StaleHandle", "Stats",
    "Strategy", "TeeError", "categorize", "connect", "copy", "optimal_chunk_size", "register_reducer",
    "select_strategy",
}  # fmt: skip


def test_the_exports_are_pinned() -> None:
    assert set(shmpool.__all__) == EXPORTS
    assert len(shmpool.__all__) == len(EXPORTS)


def test_every_export_exists_and_says_what_it_is() -> None:
    for name in shmpool.__all__:
        exported = getattr(shmpool, name)
        assert exported.__doc__, name


def test_every_error_is_exported_and_below_the_root() -> None:
    from shmpool import errors

    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert getattr(shmpool, name) is value
            assert issubclass(value, shmpool.ShmpoolError)
