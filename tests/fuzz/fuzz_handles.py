"""Atheris: any bytes into `Pool.open` of a real pool, on a private broker. See README.md."""

from __future__ import annotations

import atexit
import sys

import atheris

with atheris.instrument_imports(
    include=["shmpool.protocol.handle", "shmpool.seat.records", "shmpool.seat.tickets", "shmpool.pool"]
):
    import shmpool
    from shmpool.protocol.handle import HANDLE_BYTES, Handle

SIZES = (0, 1, 100, 4096, 70_000, 300_000, 1_200_000)

broker = shmpool.Broker(memory_limit="64MiB", max_clients=4)
atexit.register(broker.close)
pool = broker.connect()
atexit.register(pool.close)
#: Handle -> what was published, of tickets that nobody has opened.
contents: dict[bytes, bytes] = {}


def publish() -> None:
    """One publication of each size, with as many tickets as there may be."""
    for nbytes in SIZES:
        lease = pool.lease(nbytes)
        payload = (nbytes.to_bytes(4, "little") * (nbytes // 4 + 1))[:nbytes]
        lease.write(payload)
        contents.update(dict.fromkeys(map(bytes, lease.publish_many(13)), payload))


def run(data: bytes) -> None:
    """24 bytes of its own, or (one more) a valid handle with its bytes over it."""
    if len(contents) < 40:
        publish()
    raw = data
    if len(data) > HANDLE_BYTES:
        handle = list(contents)[data[0] % len(contents)]
        raw = bytes(own ^ other for own, other in zip(handle, data[1:], strict=False)).ljust(HANDLE_BYTES, b"\0")
    try:
        buffer = pool.open(Handle.from_bytes(raw))
    except (shmpool.StaleHandle, shmpool.HandleUsed):  # InvalidHandle is a StaleHandle
        assert raw not in contents, "a sound handle was refused"
        return
    with buffer:
        assert bytes(buffer.view) == contents.pop(raw)


if __name__ == "__main__":
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()
