"""The pool's segments: made, adopted, warmed, cooled and removed.

Covers header, ledger, one sparse segment for each tier, and direct segments. Knows
nothing of rows' states. It never touches payload (a queue's first words it reads by a system call): anybody who may
write a segment may also truncate it, and touching it then would kill the broker.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from shmpool.protocol.header import (
    POOL_ID,
    SEATS,
    SEATS_FILE,
    TICKETS_FILE,
    header_bytes,
    header_fault,
    is_of_another_version,
    ledger_bytes,
    read_tiers,
)
from shmpool.protocol.names import (
    SHM_DIR,
    direct_name,
    header_name,
    ledger_name,
    parse_direct_name,
    queue_name,
    tier_name,
)
from shmpool.protocol.sizing import Tier, TierKind, format_bytes, rows_of
from shmpool.system import libc, memory
from shmpool.system.locks import FileId

from ..core.memory.holding import Holding
from ..core.memory.spares import Spare
from .leftovers import names_of, remove_names
from .untracked import UntrackedSharedMemory, is_own, unlink_segment


class DamagedPool(Exception):
    """What an earlier broker left cannot be adopted; says why."""


class OtherVersion(Exception):
    """It is of an earlier or later shmpool; says which and what to do."""


class PoolIsServed(Exception):
    """A living broker serves the pool; says which."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use the pool's files: the owner, and a group if there is one."""

    gid: int | None = None

    @property
    def write_mode(self) -> int:
        """For what clients write."""
        return 0o600 if self.gid is None else 0o660

    @property
    def read_mode(self) -> int:
        """For what only the broker writes."""
        return 0o600 if self.gid is None else 0o640

    @property
    def directory_mode(self) -> int:
        """For a directory that clients pass through."""
        return 0o700 if self.gid is None else 0o750


class SegmentStore:
    """All segments of one pool; `create` or `adopt` make one.

    *ledger* and *header* are the words of their segments. Not thread-safe, and not for
    use after a fork.
    """

    def __init__(self, pool_id: int, access: Access) -> None:
        self.pool_id: Final = pool_id
        self.access: Final = access
        self.tiers: tuple[Tier, ...] = ()
        self.seats = 0
        self.header: memoryview[int] = memoryview(b"").cast("Q")
        self.ledger: memoryview[int] = memoryview(b"").cast("Q")
        self._segments: dict[str, UntrackedSharedMemory] = {}
        self._data: dict[int, UntrackedSharedMemory] = {}
        #: The open file whose lock makes us the only broker of this pool.
        self._lock = -1
        self._groups = memory.memory_groups()
        #: (tier, row, count) of what kept its pages though it should have lost them.
        self._uncooled: set[tuple[int, int, int]] = set()
        #: Up to where direct segments that are being removed have lost their pages.
        self._emptied: dict[tuple[int, int], int] = {}

    # --- making and adopting ---------------------------------------------------------------

    @classmethod
    def create(cls, pool_id: int, tiers: tuple[Tier, ...], seats: int, access: Access) -> SegmentStore:
        """Make a new pool's segments, all zeros. Raises OSError, and then nothing is left
        of it: FileExistsError when a name is taken, ENOSPC when header and ledger do not fit."""
        store = cls(pool_id, access)
        memory.require(ledger_bytes(rows_of(tiers), seats) + header_bytes(seats), store._groups)
        try:
            store._build(tiers, seats, cls._create)
            store._lock_pool()
        except BaseException:
            remove_names(store._segments)  # and not by prefix: a name that was taken is another's
            store.close()
            raise
        return store

    @classmethod
    def adopt(cls, pool_id: int, access: Access) -> SegmentStore:
        """Take over a pool that an earlier broker left. Raises DamagedPool when anything
        of it is missing, somebody else's, or not what its header says; OSError when this
        process cannot tell (no descriptors, no memory); OtherVersion and PoolIsServed. Nothing
        is changed then."""
        store = cls(pool_id, access)
        try:
            store._lock_pool()
            store._build(*store._read_geometry(), cls._attach)
        except (FileNotFoundError, PermissionError, ValueError) as error:
            store.close()
            raise DamagedPool(f"pool {pool_id:016x} cannot be adopted: {error}") from error
        except BaseException:
            store.close()
            raise
        return store

    def _build(
        self,
        tiers: tuple[Tier, ...],
        seats: int,
        add: Callable[[SegmentStore, str, int, int], UntrackedSharedMemory],
    ) -> None:
        self.tiers, self.seats = tiers, seats
        for tier in tiers:
            if tier.kind is not TierKind.DIRECT:
                name = tier_name(self.pool_id, tier.index)
                self._data[tier.index] = add(self, name, tier.size * tier.capacity, self.access.write_mode)
        ledger = add(self, ledger_name(self.pool_id), ledger_bytes(rows_of(tiers), seats), self.access.write_mode)
        header = add(self, header_name(self.pool_id), header_bytes(seats), self.access.read_mode)
        _fallocate(ledger, 0, ledger.size)  # of an adopted one too: somebody may have punched holes
        _fallocate(header, 0, header.size)
        self.ledger, self.header = ledger.words(), header.words()

    def _lock_pool(self) -> None:
        """Whatever path a broker came by, only one has a pool. Raises PoolIsServed."""
        self._lock = os.open(f"{SHM_DIR}/{header_name(self.pool_id)}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PoolIsServed(f"pool {self.pool_id:016x} is served by a living broker") from None

    @property
    def header_fd(self) -> int:
        """A descriptor of the header's segment, in which clients lock their readers' bytes."""
        return self._lock

    @property
    def tickets_file(self) -> FileId:
        """The file that its clients lock for tickets."""
        return FileId(*self.header[TICKETS_FILE : TICKETS_FILE + 2])

    @property
    def seats_file(self) -> FileId:
        """The file that its clients lock for seats."""
        return FileId(*self.header[SEATS_FILE : SEATS_FILE + 2])

    def _create(self, name: str, nbytes: int, mode: int) -> UntrackedSharedMemory:
        segment = self._segments[name] = UntrackedSharedMemory(name, nbytes)
        segment.secure(mode, self.access.gid)
        return segment

    def _attach(self, name: str, nbytes: int, mode: int) -> UntrackedSharedMemory:
        segment = self._segments[name] = UntrackedSharedMemory(name)
        if not segment.is_own(nbytes):
            raise ValueError(f"{name} is not a segment of {nbytes} bytes that belongs to this user")
        segment.secure(mode, self.access.gid)
        return segment

    def _read_geometry(self) -> tuple[tuple[Tier, ...], int]:
        """Tiers and seats by the header's word. It is read, not mapped: its length is not
        yet known to be right."""
        raw = os.pread(self._lock, header_bytes((1 << 16) - 1), 0)
        words = memoryview(raw[: len(raw) // 8 * 8]).cast("Q").tolist()
        fault = header_fault(words)
        if is_of_another_version(words):
            raise OtherVersion(
                f"pool {self.pool_id:016x} is of another shmpool: its ledger's {fault}. It is left as it is. Restart"
                " the processes that still use it, then remove it with `shmpoold --cleanup`"
            )
        if fault is None and words[POOL_ID] != self.pool_id:
            fault = f"it is of pool {words[POOL_ID]:016x}"
        if fault is not None:
            raise ValueError(f"its header is damaged: {fault}")
        return read_tiers(words), words[SEATS]

    # --- memory ----------------------------------------------------------------------------------

    def warm(self, tier: int, row: int, count: int) -> None:
        """Reserve the pages of *count* rows of a tier. Raises OSError when they cannot be
        had, with the numbers in its message, and then none of them was."""
        segment, offset, nbytes = self._range(tier, row, count)
        for late in list(self._uncooled):  # its next user must not read what the last one wrote
            if late[0] == tier and late[1] < row + count and row < late[1] + late[2]:
                self._cool(late)
        memory.require(nbytes, self._groups)
        _fallocate(segment, offset, nbytes)

    def cool(self, tier: int, row: int, count: int) -> None:
        """Give the pages of *count* rows of a tier back to the host. Raises OSError; then
        it is tried again with the next ones, and before these rows are warmed."""
        self._uncooled.add((tier, row, count))
        for late in list(self._uncooled):
            self._cool(late)

    def _cool(self, rows: tuple[int, int, int]) -> None:
        segment, offset, nbytes = self._range(*rows)
        segment.cool(offset, nbytes)
        self._uncooled.discard(rows)

    def create_direct(self, row: int, generation: int, nbytes: int, spare: Spare | None = None) -> None:
        """Make the direct segment of a row, without reserving its pages, or of a spare, with
        those that it has: one of this very name serves as it lies. Raises OSError, ENOSPC where /dev/shm has
        no room for the others, and then there is neither."""
        name = direct_name(self.pool_id, row, generation)
        if spare is not None and (spare.row, spare.generation) == (row, generation):
            self._check_spare(name, nbytes)
            return
        try:
            # Its writer reserves what is missing and is charged for it; it is asked for here, so that
            # who finds no room waits in line for what comes back.
            memory.require(nbytes - (spare.nbytes if spare else 0), [])
        except OSError:
            if spare is not None:
                self.remove_direct(spare.row, spare.generation)
            raise
        if spare is not None and self._rename(spare, name, nbytes):
            return
        segment = UntrackedSharedMemory(name, nbytes)
        try:
            segment.secure(self.access.write_mode, self.access.gid)
        except BaseException:
            segment.unlink()
            raise
        finally:
            segment.close()

    def _check_spare(self, name: str, nbytes: int) -> None:
        """Remove one that is not what we kept any more, and raise OSError: another of its name would be taken
        for it by whoever still maps it."""
        try:
            is_sound = is_own(os.stat(f"{SHM_DIR}/{name}", follow_symlinks=False), nbytes)
        except FileNotFoundError:
            is_sound = False
        if not is_sound:
            unlink_segment(name)
            raise OSError(errno.ESTALE, f"somebody has changed {name}, which was spare")

    def _rename(self, spare: Spare, name: str, nbytes: int) -> bool:
        """Give a spare another name and more length; False when it is not what we kept any more, and
        then it is removed."""
        path, old_name = f"{SHM_DIR}/{name}", direct_name(self.pool_id, spare.row, spare.generation)
        try:
            if not is_own(os.stat(f"{SHM_DIR}/{old_name}", follow_symlinks=False), spare.nbytes):
                return False
            os.link(f"{SHM_DIR}/{old_name}", path, follow_symlinks=False)  # rename would replace a squatter's file
            try:
                os.truncate(path, nbytes)
            except BaseException:
                unlink_segment(name)
                raise
        except FileNotFoundError:
            return False
        finally:
            unlink_segment(old_name)
        return True

    def remove_direct(self, row: int, generation: int) -> None:
        """Unlink the direct segment of a row; missing is fine."""
        unlink_segment(direct_name(self.pool_id, row, generation))

    def remove_bell(self, row: int, generation: int) -> None:
        """Unlink the bell of a queue; missing is fine."""
        unlink_segment(queue_name(self.pool_id, row, generation))

    def empty_direct(self, row: int, generation: int, nbytes: int) -> bool:
        """Give *nbytes* bytes of a direct segment that nobody uses back to the host, also where it is
        mapped: readers keep their maps. False when nothing of it is left, or it is missing."""
        start = self._emptied.pop((row, generation), 0)
        path = f"{SHM_DIR}/{direct_name(self.pool_id, row, generation)}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):
                return False
            raise
        try:
            status = os.fstat(fd)
            if not is_own(status, status.st_size) or status.st_blocks == 0:
                return False
            if 512 * status.st_blocks <= nbytes or start + nbytes >= status.st_size:
                libc.punch(fd, 0, status.st_size)
                return False
            libc.punch(fd, start, nbytes)
        finally:
            os.close(fd)
        self._emptied[row, generation] = start + nbytes
        return True

    def head_of(self, holding: Holding, nbytes: int) -> bytes:
        """The first bytes of what lies somewhere; fewer when they cannot be had. Read, not mapped: see above."""
        if holding.tier.kind is TierKind.DIRECT:
            path = f"{SHM_DIR}/{direct_name(self.pool_id, holding.row, holding.birth)}"
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                return b""
            try:
                return os.pread(fd, nbytes, 0)
            finally:
                os.close(fd)
        found = b""
        for row, count in holding.extents:
            segment, offset, length = self._range(holding.tier.index, row, count)
            found += os.pread(segment.fileno(), min(nbytes - len(found), length), offset)
            if len(found) >= nbytes:
                break
        return found

    def direct_segments(self) -> list[tuple[int, int]]:
        """(row, generation) of the direct segments that exist."""
        parsed = (parse_direct_name(name) for name in names_of(self.pool_id))
        return [(row, generation) for _, row, generation in filter(None, parsed)]

    def direct_bytes(self) -> dict[tuple[int, int], int]:
        """What each direct segment holds of the host's memory, in bytes."""
        held: dict[tuple[int, int], int] = {}
        for row, generation in self.direct_segments():
            with suppress(FileNotFoundError):
                name = direct_name(self.pool_id, row, generation)
                held[row, generation] = 512 * os.stat(f"{SHM_DIR}/{name}", follow_symlinks=False).st_blocks
        return held

    def _range(self, tier: int, row: int, count: int) -> tuple[UntrackedSharedMemory, int, int]:
        size, base = self.tiers[tier].size, self.tiers[tier].base
        return self._data[tier], (row - base) * size, count * size

    # --- the end ---------------------------------------------------------------------------------------

    def close(self) -> None:
        """Unmap everything and leave it in place. May be called twice."""
        self.ledger.release()
        self.header.release()
        for segment in self._segments.values():
            segment.close()
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def remove_all(self) -> None:
        """Unlink every segment of the pool, direct ones too, and unmap. Processes that
        have them mapped keep what they have."""
        try:
            remove_names(names_of(self.pool_id))
        finally:
            self.close()


def _fallocate(segment: UntrackedSharedMemory, offset: int, nbytes: int) -> None:
    """Reserve pages, all of them or none."""
    try:
        os.posix_fallocate(segment.fileno(), offset, nbytes)  # Python retries it after EINTR
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = memory.shm_free()
        has = "the kernel refuses" if free is None else f"{SHM_DIR} has {format_bytes(free)} free"
        raise memory.no_space(nbytes, has) from error
