from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell_helpers import ENV, new_pool_id, segments_of

from shmpool.protocol.header import BROKER_PID, MAGIC, header_bytes, ledger_bytes
from shmpool.protocol.names import direct_name, header_name, ledger_name, pool_prefix, tier_name
from shmpool.protocol.sizing import KIB, MIB, Sizing, make_tiers, rows_of
from shmpool.system import memory
from shmpoold.core.header import format_header
from shmpoold.core.memory.spares import Spare
from shmpoold.core.settings import Settings
from shmpoold.shell.segments import Access, DamagedPool, SegmentStore
from shmpoold.shell.untracked import UntrackedSharedMemory

TIERS = make_tiers(8 * MIB, Sizing(pooled_sizes=(64 * KIB, 256 * KIB), chunk_sizes=(64 * KIB,)))
SEATS = 4


@pytest.fixture
def store() -> Iterator[SegmentStore]:
    store = SegmentStore.create(new_pool_id(), TIERS, SEATS, Access())
    yield store
    store.remove_all()


def on_host(name: str) -> os.stat_result:
    return os.stat(f"/dev/shm/{name}")


def held(name: str) -> int:
    return on_host(name).st_blocks * 512


def test_tables_are_reserved_whole_and_tiers_are_sparse(store: SegmentStore) -> None:
    assert held(ledger_name(store.pool_id)) == ledger_bytes(rows_of(TIERS), SEATS)
    assert held(header_name(store.pool_id)) == header_bytes(SEATS)
    for tier in TIERS[:-1]:
        assert on_host(tier_name(store.pool_id, tier.index)).st_size == tier.size * tier.capacity
        assert held(tier_name(store.pool_id, tier.index)) == 0


def test_nobody_else_may_open_them(store: SegmentStore) -> None:
    assert {on_host(name).st_mode & 0o777 for name in segments_of(store.pool_id)} == {0o600}


def test_group_may_write_all_but_the_header() -> None:
    old = os.umask(0o077)
    try:
        store = SegmentStore.create(new_pool_id(), TIERS, SEATS, Access(os.getgid()))
        store.create_direct(3, 1, 8192)
    finally:
        os.umask(old)
    modes = {name: on_host(name).st_mode & 0o777 for name in segments_of(store.pool_id)}
    store.remove_all()
    assert modes.pop(header_name(store.pool_id)) == 0o640
    assert set(modes.values()) == {0o660}


def test_warm_reserves_and_cool_gives_back(store: SegmentStore) -> None:
    tier = TIERS[1]
    name = tier_name(store.pool_id, tier.index)
    store.warm(tier.index, tier.base + 3, 4)
    assert held(name) == 4 * tier.size
    store.cool(tier.index, tier.base + 4, 2)
    assert held(name) == 2 * tier.size
    store.warm(tier.index, tier.base + 3, 4)
    assert held(name) == 4 * tier.size


def test_cool_survives_a_peer_that_truncated_the_segment(store: SegmentStore) -> None:
    tier = TIERS[0]
    store.warm(tier.index, tier.base, 2)
    os.truncate(f"/dev/shm/{tier_name(store.pool_id, tier.index)}", 0)
    store.cool(tier.index, tier.base, 2)


def test_full_shm_is_an_error_with_the_numbers(store: SegmentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "shm_free", lambda: 100 * KIB)
    with pytest.raises(OSError, match=r"256 KiB.*100 KiB free") as caught:
        store.warm(1, TIERS[1].base, 1)
    assert caught.value.errno == errno.ENOSPC
    assert held(tier_name(store.pool_id, 1)) == 0


@pytest.mark.parametrize("version", [1, 2])
def test_cgroup_limit_is_respected_before_the_kernel_kills(tmp_path: Path, version: int) -> None:
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    group = memory.MemoryGroup(str(tmp_path), *names, ("inactive_file", "active_file"))
    assert group.room() is None
    (tmp_path / names[0]).write_text("max\n" if version == 2 else "9223372036854771712\n")
    assert group.room() is None
    (tmp_path / names[0]).write_text(f"{64 * MIB}\n")
    (tmp_path / names[1]).write_text(f"{60 * MIB}\n")
    assert group.room() == 4 * MIB - memory.MARGIN
    with pytest.raises(OSError, match="under its limit of 64 MiB"):
        memory.require(8 * MIB, [group])
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {20 * MIB}\n")  # the kernel takes that back first
    memory.require(8 * MIB, [group])


def test_squatter_s_name_is_refused_and_left_alone() -> None:
    pool_id = new_pool_id()
    squatter = UntrackedSharedMemory(ledger_name(pool_id), 4096)
    try:
        with pytest.raises(FileExistsError):
            SegmentStore.create(pool_id, TIERS, SEATS, Access())
        assert segments_of(pool_id) == {ledger_name(pool_id)}
        assert on_host(ledger_name(pool_id)).st_size == 4096
    finally:
        squatter.unlink()
        squatter.close()


def test_creation_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pool_id = new_pool_id()

    def full(fd: int, offset: int, nbytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="no room"):
        SegmentStore.create(pool_id, TIERS, SEATS, Access())
    assert segments_of(pool_id) == set()


def test_direct_segment_is_made_unreserved_listed_and_removed(store: SegmentStore) -> None:
    row = TIERS[-1].base
    store.create_direct(row, 7, MIB)
    name = direct_name(store.pool_id, row, 7)
    assert (on_host(name).st_size, held(name)) == (MIB, 0)
    assert store.direct_segments() == [(row, 7)]
    assert store.direct_bytes() == {(row, 7): 0}
    with pytest.raises(FileExistsError):
        store.create_direct(row, 7, MIB)
    store.remove_direct(row, 7)
    store.remove_direct(row, 7)
    assert store.direct_segments() == []


# --- spares ---------------------------------------------------------------------------------------


def spare_of(store: SegmentStore, nbytes: int) -> Spare:
    """A direct segment with all its pages."""
    row = TIERS[-1].base
    store.create_direct(row, 7, nbytes)
    with open(f"/dev/shm/{direct_name(store.pool_id, row, 7)}", "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, nbytes)
    return Spare(row, 7, nbytes, 0.0)


def test_the_next_broker_is_told_what_each_segment_holds(store: SegmentStore) -> None:
    """Not how long the object in it is: a producer keeps a segment with all of its pages."""
    spare = spare_of(store, MIB)
    assert store.direct_bytes() == {(spare.row, spare.generation): MIB}


@pytest.mark.parametrize(("generation", "nbytes"), [(7, MIB), (8, 2 * MIB)])
def test_a_spare_serves_as_it_lies_or_becomes_longer_under_another_name(
    store: SegmentStore, generation: int, nbytes: int
) -> None:
    spare = spare_of(store, MIB)
    inode = on_host(direct_name(store.pool_id, spare.row, 7)).st_ino
    store.create_direct(spare.row, generation, nbytes, spare)
    name = direct_name(store.pool_id, spare.row, generation)
    status = on_host(name)
    assert (status.st_ino, status.st_size, status.st_nlink, held(name)) == (inode, nbytes, 1, MIB)
    assert store.direct_segments() == [(spare.row, generation)]


WAYS = ["gone", "truncated", "extended", "a link"]


@pytest.mark.parametrize("what", WAYS)
def test_a_spare_that_is_not_as_it_was_left_is_not_extended(store: SegmentStore, what: str, tmp_path: Path) -> None:
    spare = spare_of(store, MIB)
    meddle(store, spare, what, tmp_path)
    store.create_direct(spare.row, 8, MIB, spare)
    name = direct_name(store.pool_id, spare.row, 8)
    assert (on_host(name).st_size, held(name)) == (MIB, 0)
    assert store.direct_segments() == [(spare.row, 8)]


@pytest.mark.parametrize("what", WAYS)
def test_a_spare_that_is_not_as_it_was_left_does_not_serve_as_it_lies(
    store: SegmentStore, what: str, tmp_path: Path
) -> None:
    """Nor does another one of its name: who maps the one would take it for the other."""
    spare = spare_of(store, MIB)
    meddle(store, spare, what, tmp_path)
    with pytest.raises(OSError, match="somebody has changed"):
        store.create_direct(spare.row, 7, MIB, spare)
    assert store.direct_segments() == []


def meddle(store: SegmentStore, spare: Spare, what: str, tmp_path: Path) -> None:
    """As a peer could."""
    path = f"/dev/shm/{direct_name(store.pool_id, spare.row, 7)}"
    if what in ("truncated", "extended"):
        os.truncate(path, 0 if what == "truncated" else 2 * MIB)
    else:
        os.unlink(path)
    if what == "a link":
        (tmp_path / "mine").write_bytes(bytes(MIB))
        os.symlink(tmp_path / "mine", path)


@pytest.mark.parametrize("failing", ["link", "truncate"])
def test_a_spare_that_cannot_be_used_leaves_nothing(
    store: SegmentStore, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    spare = spare_of(store, MIB)
    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        store.create_direct(spare.row, 8, 2 * MIB, spare)
    assert store.direct_segments() == []


def test_a_spare_does_not_replace_a_squatter(store: SegmentStore) -> None:
    spare = spare_of(store, MIB)
    store.create_direct(spare.row, 8, 4096)
    with pytest.raises(FileExistsError):
        store.create_direct(spare.row, 8, MIB, spare)
    assert on_host(direct_name(store.pool_id, spare.row, 8)).st_size == 4096
    assert store.direct_segments() == [(spare.row, 8)]


def test_a_large_segment_is_given_back_in_slices(store: SegmentStore) -> None:
    spare = spare_of(store, 3 * MIB)
    name = direct_name(store.pool_id, spare.row, 7)
    sizes = []
    while store.empty_direct(spare.row, 7, MIB):
        sizes.append((on_host(name).st_size, held(name)))
    assert sizes == [(3 * MIB, 2 * MIB), (3 * MIB, MIB)]
    assert held(name) == 0
    store.remove_direct(spare.row, 7)
    assert not store.empty_direct(spare.row, 7, MIB)  # it is gone


def test_the_memory_of_a_segment_goes_back_although_it_is_mapped(store: SegmentStore) -> None:
    spare = spare_of(store, 3 * MIB)
    name = direct_name(store.pool_id, spare.row, 7)
    with open(f"/dev/shm/{name}", "r+b") as file, mmap.mmap(file.fileno(), 3 * MIB) as mapped:
        mapped[:] = b"\1" * len(mapped)
        while store.empty_direct(spare.row, 7, MIB):
            pass
        store.remove_direct(spare.row, 7)
        assert os.fstat(file.fileno()).st_blocks == 0
        assert mapped[3 * MIB - 1] == 0  # and whoever looks all the same dies of nothing


def test_a_length_without_pages_is_not_worth_slices(store: SegmentStore) -> None:
    store.create_direct(TIERS[-1].base, 7, 4096)
    os.truncate(f"/dev/shm/{direct_name(store.pool_id, TIERS[-1].base, 7)}", 1 << 40)
    assert not store.empty_direct(TIERS[-1].base, 7, MIB)


def formatted(store: SegmentStore) -> int:
    format_header(store.header, store.pool_id, TIERS, SEATS, Settings())  # type: ignore[arg-type]
    store.ledger[5] = 99
    return store.pool_id


def test_what_is_left_is_adopted_as_it_was(store: SegmentStore) -> None:
    pool_id = formatted(store)
    store.close()
    again = SegmentStore.adopt(pool_id, Access())
    assert (again.tiers, again.seats, again.header[0], again.ledger[5]) == (TIERS, SEATS, MAGIC, 99)
    again.close()


@pytest.mark.parametrize("damage", ["magic", "crc", "short ledger", "missing tier", "long tier", "empty header"])
def test_damaged_pool_is_not_adopted_and_not_touched(store: SegmentStore, damage: str) -> None:
    pool_id = formatted(store)
    store.header[BROKER_PID] = 1  # may change without damage
    if damage == "magic":
        store.header[0] += 1
    elif damage == "crc":
        store.header[17] += 4096
    store.close()
    path = {"short ledger": ledger_name(pool_id), "empty header": header_name(pool_id)}.get(damage)
    if path:
        os.truncate(f"/dev/shm/{path}", 0 if damage == "empty header" else 4096)
    elif damage == "missing tier":
        os.unlink(f"/dev/shm/{tier_name(pool_id, 1)}")
    elif damage == "long tier":
        os.truncate(f"/dev/shm/{tier_name(pool_id, 1)}", 64 * MIB)
    before = segments_of(pool_id)
    with pytest.raises(DamagedPool):
        SegmentStore.adopt(pool_id, Access())
    assert segments_of(pool_id) == before


def test_exit_and_kill_of_the_creator_leave_the_segments() -> None:
    """No resource tracker knows of them, whatever Python's version."""
    for ending in ("", "os.kill(os.getpid(), 9)"):
        pool_id = new_pool_id()
        code = (
            "import os\nfrom shmpoold.shell.untracked import UntrackedSharedMemory\n"
            f"a = UntrackedSharedMemory({ledger_name(pool_id)!r}, 4096)\n"
            f"b = UntrackedSharedMemory({ledger_name(pool_id)!r})\n{ending}"
        )
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=ENV, capture_output=True, text=True)
        left = segments_of(pool_id)
        for name in left:
            os.unlink(f"/dev/shm/{name}")
        assert left == {ledger_name(pool_id)}
        assert done.stderr == ""


def test_attaching_to_what_cannot_be_mapped_does_not_unlink_it() -> None:
    name = pool_prefix(new_pool_id()) + "tier0"
    Path(f"/dev/shm/{name}").touch()
    try:
        with pytest.raises(ValueError, match="empty"):
            UntrackedSharedMemory(name)
        assert os.path.exists(f"/dev/shm/{name}")
    finally:
        os.unlink(f"/dev/shm/{name}")
