"""Copies files into a folder ("uploads" them) while it computes their checksums on the way: each byte
is read once, through one leased chunk.

    python examples/tee_upload.py TARGET FILE [FILE ...]
"""

import hashlib
import sys
from pathlib import Path

import shmpool


class Hashing:
    """A writer that keeps a checksum only."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data) -> None:
        self.digest.update(data)


def upload(source: Path, target: Path, pool: shmpool.Pool) -> str:
    hashing = Hashing()
    with (
        source.open("rb", buffering=0) as reader,
        target.open("wb", buffering=0) as writer,
        shmpool.ChunkedTeeReader(reader, hashing, pool, source.stat().st_size) as tee,
    ):
        shmpool.copy(tee, writer, pool)
        print(f"{source.name}: {tee.bytes_read} bytes in {tee.elapsed * 1000:.1f} ms", file=sys.stderr)
    return hashing.digest.hexdigest()


def main(target: str, *sources: str) -> None:
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    with shmpool.Broker(memory_limit="16MiB") as broker, broker.connect() as pool:
        for source in map(Path, sources):
            print(upload(source, folder / source.name, pool), source)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
