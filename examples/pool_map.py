"""multiprocessing.Pool, as it is used everywhere; one line has its arrays pass through shared memory.

python examples/pool_map.py
"""

import multiprocessing

import numpy as np

import shmpool


def gradient(frame: np.ndarray) -> np.ndarray:
    frame = frame.astype(np.float32)
    frame[:-1] -= frame[1:].copy()  # what arrives is writable, and nobody else's
    return frame[:-1]


def main() -> None:
    installed = shmpool.install()
    frames = (np.full((1080, 1920), at, np.uint8) + np.arange(1080, dtype=np.uint8)[:, None] for at in range(20))
    with multiprocessing.get_context("spawn").Pool(2) as workers:
        steepest = [float(np.abs(found).max()) for found in workers.imap(gradient, frames)]
    shmpool.uninstall()
    print(f"{len(steepest)} frames, steepest {max(steepest):.0f}, {installed.passed} went through the pool")


if __name__ == "__main__":
    main()
