"""memcpy: What does copying a byte cost here, source and target warm?"""

from __future__ import annotations

from .contest import SIZES
from .measure import Contestant, interleave, timed
from .options import Options
from .plan import paged, payload
from .report import Column, Plot, Report, Table

ROUNDS = 7
SECONDS = 0.03


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    table = Table(
        "one process, the same two buffers again and again",
        [Column("size", "B"), Column("time", "s"), Column("rate", "B/s"), Column("cost", "s/B")],
        plot=Plot("size", ("cost",), title="cost of a copied byte"),
    )
    for nbytes in options.sizes or SIZES:
        series = interleave(
            {"memcpy": copying(nbytes)}, rounds=options.rounds or ROUNDS, seconds=options.seconds or SECONDS
        )["memcpy"]
        table.rows.append([nbytes, series.median, nbytes / series.median, series.median / nbytes])
    report.tables.append(table)
    return report


def copying(nbytes: int) -> Contestant:
    """Copies an object of so many bytes, again and again."""
    source, target = payload(nbytes), paged(nbytes)

    def body(objects: int) -> None:
        for _ in range(objects):
            target[:] = source

    return timed(body)
