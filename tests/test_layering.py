"""The arrows of the architecture, read from the source: protocol <- core <- shell and
protocol <- client; within the client, its rooms. Also what `import shmpool` costs a worker, and
what it exports.

Every import statement counts, also those inside functions and under TYPE_CHECKING:
an arrow is an arrow. Imports by name (importlib) are not seen.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
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
    for statement in statements(name, path):
        yield from statement


@cache
def statements(name: str, path: Path) -> list[tuple[str, ...]]:
    """The same for each statement: what it imports from, and each of what it imports of that."""
    found: list[tuple[str, ...]] = []
    is_package = path.name == "__init__.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = name.split(".")
            above = node.level - is_package
            base = parents[: len(parents) - above] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found.append((stem, *(f"{stem}.{alias.name}" for alias in node.names)))
    return found


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


# --- the client's rooms ---------------------------------------------------------------------

#: Each stands on those above it in this list. What calls upwards is given a callback, or asks what it
#: was made of (`Seat`, `Keeper`, `Reader` are a session as its parts see it).
STOREYS = (
    "errors log addresses layouts settings hints protocol system uncopied",
    "seat.windows seat.mapping seat.sites seat.references",
    "seat.seat",
    "seat.guards seat.slot seat.magazine seat.records seat.tickets",
    "seat.openings seat.outgoing seat.deferred seat.expiry seat.direct seat.segments seat.private seat.recovery",
    "seat.magazines seat.custody seat.recalls",
    "link",
    "seat.supply seat.holds seat.joining seat.ending seat.session stats",
    "lease live_lease direct_lease buffer shared",
    "pool traced checked detailed",
    "life objects streams",
    "queues",
    "_fast",
    "pools",
    "launch embedded",
    "connecting",
    "aio integrations",
    "joblib torch",
    "itself",
    "exposition unanswered",
    "cli demo",
    "__main__",
)
ROOMS = {
    "shmpool" if room == "itself" else f"shmpool.{room}": number
    for number, storey in enumerate(STOREYS)
    for room in storey.split()
}


def arrows() -> dict[str, set[str]]:
    """The client's modules -> those of them that each imports, anywhere and for types too."""
    known = modules("shmpool")
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        found[name] = set()
        for statement in statements(name, path):
            whole, *parts = statement
            targets = [part if part in known else whole for part in parts] or [whole]
            found[name].update(target for target in targets if target in known and target != name)
    return found


def room_of(module: str) -> str:
    """The longest of the rooms that a module is in; itself, if it is in none."""
    parts = module.split(".")
    paths = (".".join(parts[:end]) for end in range(len(parts), 1, -1))
    return next((path for path in paths if path in ROOMS), module)


def test_every_module_of_the_client_stands_on_one_storey() -> None:
    """`shmpool.seat` itself has none: it is where its rooms are."""
    assert [name for name in arrows() if room_of(name) not in ROOMS] == ["shmpool.seat"]


def test_the_client_s_arrows_point_down() -> None:
    upwards = [
        f"{module} imports {imported}"
        for module, others in arrows().items()
        for imported in others
        if ROOMS.get(room_of(module), 0) < ROOMS.get(room_of(imported), 0)
    ]
    assert upwards == []


def test_objects_streams_and_life_do_not_know_each_other() -> None:
    rooms = ("objects", "streams", "life")
    beside = [
        f"{module} imports {imported}"
        for module, others in arrows().items()
        for imported in others
        for room in rooms
        if below(module, f"shmpool.{room}") and below(imported, *(f"shmpool.{one}" for one in rooms if one != room))
    ]
    assert beside == []


def test_no_circle_of_imports_in_the_client() -> None:
    try:
        graphlib.TopologicalSorter(arrows()).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_circle_would_be_seen() -> None:
    """The walk is as good as what it sees: an arrow for types, and one within a function."""
    found = arrows()
    assert "shmpool.seat.session" in found["shmpool.life.forks"]
    assert "shmpool.embedded" in found["shmpool.connecting"]


# --- one word for one thing -----------------------------------------------------------------

#: What was said besides the verbs of the table in `shmpool`'s docstring.
OTHER_VERBS = re.compile(
    "_*(leave|finish|end|abort|drop|dismiss|give_up|put_aside|pass_on|give_back|keep_or|hand_over|forget_parent|disown)(_.*)?"
)
#: Those that users know by a name of their own.
PUBLIC_VERBS = {"drop", "give_back", "abort_everything"}


def verbs_of_the_table() -> set[str]:
    assert shmpool.__doc__
    return set(re.findall(r"^(\w+) {2,}\w", shmpool.__doc__.split("=\nword")[1].split("==\n\n")[0], re.MULTILINE))


def methods() -> list[tuple[str, str]]:
    """The functions and methods of the client's library, each with its module. The vocabulary that
    both sides share does nothing, so it ends nothing."""
    return [
        (node.name, name)
        for name, path in modules("shmpool").items()
        if not below(name, "shmpool.cli", "shmpool.demo", "shmpool.protocol")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]


def test_what_ends_is_said_with_the_words_of_the_table() -> None:
    table, said = verbs_of_the_table(), methods()
    assert table == {"release", "return", "discard", "close", "abandon"}
    unsaid = [verb for verb in table if not any(re.fullmatch(f"_*{verb}(_.*)?", name) for name, _ in said)]
    assert unsaid == []
    others = [f"{module}: {name}" for name, module in said if OTHER_VERBS.fullmatch(name)]
    assert [line for line in others if line.split()[-1] not in PUBLIC_VERBS] == []


def test_the_tour_of_the_code_names_what_is_there() -> None:
    known = modules("shmpool")
    rows = re.findall(r"^\|.*\| (`.*`) \|$", (ROOT / "docs/internals.md").read_text(), re.MULTILINE)
    assert len(rows) > 10
    for name in re.findall("`([^`]*)`", " ".join(rows)):
        path, *inside = name.split(".")
        source = known[f"shmpool.{path.replace('/', '.')}"].read_text()
        assert all(re.search(rf"(class|def) {one}\b", source) for one in inside), name


# --- what a worker pays ---------------------------------------------------------------------

HEAVY = {
    "click", "rich", "pydantic", "numpy", "psutil", "asyncio", "multiprocessing", "hypothesis",
    "dataclasses", "inspect", "platform", "pickle", "subprocess",
}  # fmt: skip
#: What a worker that has connected and leased has not loaded either: of the standard library what a tenth of the time
#: of its start would go to (annotations are not evaluated, so `typing` is for the type checker alone), and of ours what
#: few need.
UNLOADED = {
    "typing", "re", "contextlib", "logging", "weakref", "queue", "traceback",
    "shmpool.aio", "shmpool.checked", "shmpool.embedded", "shmpool.integrations", "shmpool.objects.exchange",
    "shmpool.protocol.transitions", "shmpool.queues.queue", "shmpool.stats", "shmpool.streams.writing",
}  # fmt: skip


def test_a_worker_that_leases_has_loaded_nothing_heavy() -> None:
    script = """if True:
        import shmpool, sys
        with shmpool.connect(sys.argv[1]) as pool:
            with pool.lease(1000) as lease:
                handle = lease.publish()
            pool.open(handle).release()
        print(sys.version_info >= (3, 13), *sys.modules)
    """
    with shmpool.Broker(memory_limit="64 MiB") as broker:
        done = subprocess.run(
            [sys.executable, "-c", script, broker.address], capture_output=True, text=True, check=True
        )
    is_newer, *loaded = done.stdout.split()
    assert {"shmpool", "shmpool.pools"} <= set(loaded)
    unwanted = UNLOADED - ({"queue"} if is_newer == "True" else set())  # whose `queue` has an error for ours
    assert not unwanted & set(loaded)
    assert HEAVY.isdisjoint(name.partition(".")[0] for name in loaded)


IMPORTS = (ast.Import, ast.ImportFrom)
DOOR = re.compile("_?door")
#: What is imported in a function while no thread of ours can be, or by brokers and commands alone.
BESIDE_THE_DOOR = {"shmpool.errors", "shmpool._fast", "shmpool._fast.build", "shmpool.protocol.names"}


#: What is imported there is there.
UNSAID = {"shmpool.log"}


def test_what_a_call_imports_goes_through_the_door() -> None:
    """`system.importing`: a fork in the middle of it by another thread would leave the child half a module, and who has
    no descriptor to read it by is told so in an error of ours."""
    beside, unsaid = list[str](), list[str]()
    for name, path in modules("shmpool").items():
        if name in BESIDE_THE_DOOR or below(name, "shmpool.cli", "shmpool.demo"):
            continue
        tree = ast.parse(path.read_text())
        functions = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
        late = {one for function in functions for one in ast.walk(function) if isinstance(one, IMPORTS)}
        doors = [
            one for one in ast.walk(tree) if isinstance(one, ast.With) and DOOR.fullmatch(ast.unparse(one.items[0]))
        ]
        behind = {one for door in doors for one in ast.walk(door)}
        beside += [f"{name}:{one.lineno}" for one in late - behind]
        unsaid += [f"{name}:{one.lineno}" for one in doors if len(one.items) == 1 and name not in UNSAID]
    assert beside == []
    assert unsaid == []


def test_the_commands_module_loads_nothing_heavy_until_main_runs() -> None:
    """A spawned demo process imports it again as its __main__."""
    script = "import shmpool.cli, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in done.stdout.split()}.isdisjoint({"click", "rich", "psutil"})


# --- what it exports ------------------------------------------------------------------------

EXPORTS = {
    "Broker", "BrokerUnavailable", "Buffer", "ChecksumError", "ChunkedTeeReader", "ConfigError", "Executor",
    "FormatError", "Handle", "HandleUsed", "InvalidHandle", "InvalidSize", "JoinableQueue", "LeakedView", "Lease",
    "LeaseReleased", "LeaseTimeout", "LocalProtocolError", "NameTaken", "NotFound", "Pool", "PoolClosed",
    "PoolingRefused", "ProtocolError", "Queue", "QueueShutDown", "QuotaExceeded", "RemoteProtocolError", "Shared",
    "SharedMemoryFull", "ShmpoolError", "SizeCategory", "Sizing", "StaleHandle", "Stats", "Strategy", "StreamBroken",
    "StreamTimeout", "TeeError", "categorize", "connect", "copy", "install", "optimal_chunk_size", "register_reducer",
    "select_strategy", "uninstall",
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


def test_a_lease_that_another_thread_ends_is_asked_nothing_of_its_class() -> None:
    """It may be an `EndedLease` by then: ``super()`` would be a TypeError in the place of `LeaseReleased`."""
    for module, ends in (
        ("live_lease", "Lease"),
        ("direct_lease", "Lease"),
        ("checked", "Lease"),
        ("buffer", "Buffer"),
    ):
        for node in ast.parse((ROOT / "shmpool" / f"{module}.py").read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith(ends):
                names = [one.id for one in ast.walk(node) if isinstance(one, ast.Name)]
                assert "super" not in names, f"{module}.{node.name}"
