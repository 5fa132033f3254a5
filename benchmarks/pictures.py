"""``python -m benchmarks.pictures FOLDER``: what the commands show of a broker under load, as SVG.

The pictures of the docs: each is a real run's output, drawn by rich. A private broker serves four
processes that lease, publish and read; one of them keeps what it reads.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

from rich.console import Console, RenderableType

import shmpool
from shmpool.addresses import resolve
from shmpool.cli import checks, doctor, leases, stats
from shmpool.cli.top import Screen
from shmpool.stats import query, query_leases

WIDTH = 80
#: What has been leased when the pictures are drawn.
LEASES = 5_000
SIZES = (1_000, 20_000, 100_000, 400_000, 1_500_000)


def work(address: str, number: int, kept: int, end: Event) -> None:
    """Lease, publish, open; keep so many open."""
    chance = random.Random(number)
    held: list[shmpool.Buffer] = []
    with shmpool.connect(address) as pool:
        while not end.is_set():
            with pool.lease(chance.choice(SIZES)) as lease:
                lease.view[:8] = b"pictured"
                held.append(pool.open(lease.publish()))
            while len(held) > kept:
                held.pop(0).release()
            time.sleep(0.001)
        for buffer in held:
            buffer.release()


def draw(name: str, shown: list[RenderableType], folder: Path) -> None:
    """One picture; its title is the command."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, highlight=False, force_terminal=True)
        for part in shown:
            console.print(part)
        text = console.export_svg(title=f"shmpool {name}", unique_id=name)
    (folder / f"{name}.svg").write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")


def main(folder: Path) -> None:
    """Run the load, and draw all."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    end = context.Event()
    with shmpool.Broker(memory_limit="96MiB") as broker:
        crew = [context.Process(target=work, args=(broker.address, n, 40 if n == 3 else 5, end)) for n in range(4)]
        for process in crew:
            process.start()
        while len(query(broker.address).clients) < len(crew) or query(broker.address).total_gets < LEASES:
            time.sleep(0.5)
        screen = Screen()
        for _ in range(3):
            time.sleep(2)
            screen.look(broker.address)
        draw("stats", [stats.render(query(broker.address))], folder)
        draw("top", [screen.render(28)], folder)
        held = query_leases(broker.address)
        leases.leave_out_idle(held)
        draw("leases", [leases.render(held["leases"])], folder)
        found = checks.examine(None, resolve(broker.address))
        draw("doctor", [doctor.render(finding, WIDTH) for finding in found], folder)
        end.set()
        for process in crew:
            process.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
