"""handoff: How long does one object take to another process, and the answer back, beside the peers?"""

from __future__ import annotations

from collections.abc import Iterator

from . import sidebyside
from .contest import COMPILED, COMPILED_CHUNKED, FRESH, ICEORYX2, ICEORYX2_EVENT, OURS, PIPE, PLASMA
from .options import Options
from .report import Bar, Column, Report
from .sidebyside import Comparison, Outcome
from .units import KIB, MIB

PARAMETERS = sidebyside.PARAMETERS

#: Up to which size -> how many times faster than Plasma.
THAN_PLASMA = {256 * KIB: 4.0, 768 * KIB: 2.5, MIB: 2.0, 4 * MIB: 1.5, 10 * MIB: 1.3}
#: At which size -> how many times faster than a fresh segment; from 1 MiB on with direct segments.
THAN_FRESH = {256 * KIB: 6.0, 512 * KIB: 4.0, MIB: 1.5, 10 * MIB: 1.3}
SMALL = 16 * KIB
THAN_PIPE = 1 / 1.5
THAN_ICEORYX2_EVENT = 1.0
#: The compiled one, where objects are small, with a pipe for its tokens and with a queue: Pipe and iceoryx2 have a
#: channel of their own. And direct beside chunked, as small as direct ones are.
COMPILED_THAN_PIPE = 1.2
COMPILED_THAN_ICEORYX2 = 0.95
DIRECT_THAN_CHUNKED = 1 / 1.5


def run(options: Options) -> Report:
    return _comparison().run(Report.of(__doc__, options), options)


def comparisons(options: Options) -> int:
    return _comparison().count(options)


def _comparison() -> Comparison:
    return Comparison(
        in_flight=1,
        title="one in flight",
        columns=lambda mode: (Column("p50", "s"), Column("p99", "s")),
        figures=lambda series, plan: (series.percentile(50), series.percentile(99)),
        bars=_bars,
    )


def _bars(outcome: Outcome) -> Iterator[Bar]:
    nbytes = outcome.plan.nbytes
    if outcome.mode != "copy":
        return
    yield from outcome.bar(THAN_ICEORYX2_EVENT, outcome.ours, ICEORYX2_EVENT)
    if not outcome.plan.spin:
        return
    if nbytes <= max(THAN_PLASMA):
        required = next(required for most, required in THAN_PLASMA.items() if nbytes <= most)
        yield from outcome.bar(required, outcome.ours, PLASMA)
    if nbytes in THAN_FRESH:
        yield from outcome.bar(THAN_FRESH[nbytes], OURS, FRESH)
    if nbytes <= SMALL:
        yield from outcome.bar(THAN_PIPE, OURS, PIPE)
    for compiled in (COMPILED, outcome.queued):
        if compiled in outcome.series and nbytes <= SMALL:
            yield from outcome.bar(COMPILED_THAN_PIPE, compiled, PIPE)
            yield from outcome.bar(COMPILED_THAN_ICEORYX2, compiled, ICEORYX2)
    if COMPILED in outcome.series and nbytes == MIB:
        yield from outcome.bar(DIRECT_THAN_CHUNKED, COMPILED, COMPILED_CHUNKED)
