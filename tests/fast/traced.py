"""What each verb of the hot path does to shared words, in order: told by a traced build of the twin, or, in the plain
client, by what stands in the place of its words, its locks and its swap. Prints both alike, as JSON."""

from __future__ import annotations

import gc
import json
import sys
import threading
import warnings
from typing import Any

import shmpool
from shmpool import _fast
from shmpool import pool as pools
from shmpool.protocol.ledger import ROW_WORDS
from shmpool.system.locks import UNLOCK_ALL

Step = tuple[str, str, int, int]
told: list[Step] = []


class Words:
    """Words that note what the main thread does to them."""

    def __init__(self, kind: str, words: Any) -> None:
        self._kind, self._words = kind, words

    def __getitem__(self, index: Any) -> Any:
        value = self._words[index]
        note("l", self._kind, index, value)
        return value

    def __setitem__(self, index: Any, value: Any) -> None:
        if type(index) is int and self._words[index] != value:  # else nothing changes
            note("s", self._kind, index, value)
        self._words[index] = value


def note(what: str, kind: str, index: Any, value: Any) -> None:
    if threading.current_thread() is threading.main_thread() and type(index) is int:
        told.append((what, kind, index, value))


def watch_plain(session: Any) -> None:
    swap, fcntl = session.swap, pools.fcntl  # type: ignore[attr-defined]

    def noted_swap(index: int, expected: int, wanted: int) -> bool:
        note("c", "row", index, wanted)
        return bool(swap(index, expected, wanted))

    def noted_fcntl(fd: Any, command: int, lock: bytes) -> Any:
        if lock == UNLOCK_ALL:
            note("u", "", 0, 0)
        else:
            note("k", "", int.from_bytes(lock[8:16], sys.byteorder), 0)
        return fcntl(fd, command, lock)

    pools.fcntl = noted_fcntl  # type: ignore[attr-defined]
    if swap is not None:
        session.swap = noted_swap
    rows, header = Words("row", session.words), Words("header", session.header)
    session.words, session.header = rows, header
    for magazine in {*session.pooled, *session.chunked.values()}:
        magazine.words = rows


def main(address: str) -> None:
    warnings.simplefilter("ignore")
    gc.disable()  # nothing comes in between
    with shmpool.connect(address) as pool:
        session: Any = pool._session
        sizes = (1000, 100_000, 300_000)
        for size in sizes:  # the ways are warm, all slots of a first batch were used, and a kept view was warned of
            for _ in range(8):
                lease = pool.lease(size)
                view = lease.view[:1]
                pool.open(lease.publish()).release()
                del view
        rows, header, counters = session.words, session.header, session.counters
        if _fast.COMPILED:
            from shmpool._fast import twin
        else:
            watch_plain(session)

        for size in sizes * 2:
            keep: list[Any] = []
            for verb in VERBS:
                session.deferred.look_at_all()
                told.clear()
                if _fast.COMPILED:
                    twin.traced(rows, header)
                verb(pool, size, keep)
                steps = [tuple(step) for step in twin.traced(rows, header) or ()] if _fast.COMPILED else list(told)
                kept = [step for step in steps if step[1] != "row" or step[2] < counters]
                first = min((step[2] for step in kept if step[1] == "row"), default=0) // ROW_WORDS * ROW_WORDS
                print(json.dumps([verb.__name__, size, [_relative(step, first) for step in kept]]))


def _relative(step: Step, first: int) -> Step:
    what, kind, index, value = step
    return (what, kind, index - first, value) if kind == "row" else step


def lease(pool: shmpool.Pool, size: int, keep: list[Any]) -> None:
    keep.append(pool.lease(size))


def publish(pool: shmpool.Pool, size: int, keep: list[Any]) -> None:
    keep.append(keep.pop().publish())


def open_(pool: shmpool.Pool, size: int, keep: list[Any]) -> None:
    keep.append(pool.open(keep.pop()))


def release(pool: shmpool.Pool, size: int, keep: list[Any]) -> None:
    keep.pop().release()


def open_and_keep(pool: shmpool.Pool, size: int, keep: list[Any]) -> None:
    with pool.open(keep.pop()) as buffer:
        keep.append(buffer.view[:1])


def publish_and_keep(pool: shmpool.Pool, size: int, keep: list[Any]) -> None:
    one = keep.pop()
    view = one.view[:1]
    keep += [one.publish(), view]


def forget(pool: shmpool.Pool, size: int, keep: list[Any]) -> None:
    keep.pop()


VERBS = (
    lease, release, lease, publish, open_, release, lease, publish, open_and_keep, forget, lease, publish, open_,
    release, lease, publish_and_keep, forget, open_, release, lease, release,
)  # fmt: skip

if __name__ == "__main__":
    main(sys.argv[1])
