"""stream: How many objects and bytes a second pass between two processes, beside the peers?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from . import sidebyside
from .contest import FLOOR, ICEORYX2, ICEORYX2_VIEWS, KICKMSG, OURS, PIPE
from .measure import Contestant, Series
from .memcpy import copying
from .options import Options
from .plan import Plan
from .report import Bar, Column, Report, Value
from .sidebyside import Comparison, Outcome
from .units import KIB, MIB, size_name

PARAMETERS = sidebyside.PARAMETERS

#: Touched, up to this size: so many objects a second, and this part of iceoryx2's.
TOUCHED_UP_TO = 256 * KIB
TOUCHED_A_SECOND = 200_000
OF_ICEORYX2 = 0.8
#: Copied, from which size on -> this part of the floor's bytes/s.
OF_THE_FLOOR = {MIB: 0.9, 512 * KIB: 0.8, 256 * KIB: 0.7, 64 * KIB: 0.5}
SMALL = 16 * KIB
THAN_PIPE = 1 / 1.5
#: Copied, from this size on: an object takes at most so many warm memcpys of its size.
MEMCPYS_FROM = 256 * KIB
MOST_MEMCPYS = 2.0
MEMCPY = "memcpy"

#: The compiled one, with the pipe that all have for their tokens: touched, up to this size, times iceoryx2's.
COMPILED_UP_TO = 512 * KIB
COMPILED_OF_ICEORYX2 = 2.0
#: With a queue for its tokens: filled by a copy and touched, at these sizes: times kickmsg's, and times iceoryx2's.
FILLED_OF_KICKMSG = {KIB: 0.7, 4 * KIB: 1.0, 16 * KIB: 1.0, 64 * KIB: 1.0, 128 * KIB: 1.0, 256 * KIB: 1.0, MIB: 1.5}
FILLED_OF_ICEORYX2 = {4 * KIB: 1.0, 16 * KIB: 1.0, 64 * KIB: 1.0, 128 * KIB: 1.0, 256 * KIB: 1.0}
#: With the pipe again: copied, at these sizes: this part of the floor's, and of iceoryx2's.
COPIED_OF_THE_FLOOR = {64 * KIB: 0.85, 256 * KIB: 0.85, 512 * KIB: 0.85, MIB: 0.9}
COPIED_OF_ICEORYX2 = {4 * MIB: 0.9, 10 * MIB: 0.9}


def run(options: Options) -> Report:
    return _comparison().run(Report.of(__doc__, options), options)


def comparisons(options: Options) -> int:
    return _comparison().count(options)


def _comparison() -> Comparison:
    return Comparison(
        in_flight=16,
        title="16 in flight",
        columns=_columns,
        figures=_rates,
        bars=_bars,
        others=_memcpy,
    )


def _columns(mode: str) -> tuple[Column, ...]:
    objects, data = Column("objects", "1/s"), Column("bytes", "B/s")
    return (objects,) if mode == "touch" else (objects, data)


def _rates(series: Series, plan: Plan) -> tuple[Value, ...]:
    """Bytes a second where bytes are moved."""
    objects, data = 1 / series.median, plan.nbytes / series.median
    return (objects, data) if plan.fills or plan.drains else (objects,)


def _memcpy(mode: str, plan: Plan) -> Mapping[str, Contestant]:
    return {MEMCPY: copying(plan.nbytes)} if mode == "copy" and plan.spin else {}


def _bars(outcome: Outcome) -> Iterator[Bar]:
    if outcome.plan.spin and outcome.mode == "touch":
        yield from _touched(outcome)
    elif outcome.plan.spin and outcome.mode == "copy":
        yield from _copied(outcome)
    if outcome.plan.spin:
        yield from _compiled(outcome)


def _compiled(outcome: Outcome) -> Iterator[Bar]:
    nbytes, ours, queued = outcome.plan.nbytes, outcome.compiled, outcome.queued
    wanted: dict[str, tuple[tuple[str, str, float | None], ...]] = {
        "touch": ((ours, ICEORYX2, COMPILED_OF_ICEORYX2 if nbytes <= COMPILED_UP_TO else None),),
        "fill": ((queued, KICKMSG, FILLED_OF_KICKMSG.get(nbytes)), (queued, ICEORYX2, FILLED_OF_ICEORYX2.get(nbytes))),
        "copy": ((ours, FLOOR, COPIED_OF_THE_FLOOR.get(nbytes)), (ours, ICEORYX2, COPIED_OF_ICEORYX2.get(nbytes))),
    }
    for mine, theirs, required in wanted.get(outcome.mode, ()):
        if required is not None and mine in outcome.series:
            yield from outcome.bar(required, mine, theirs)


def _touched(outcome: Outcome) -> Iterator[Bar]:
    if outcome.plan.nbytes > TOUCHED_UP_TO or OURS not in outcome.labels:
        return
    ours = outcome.series.get(OURS)
    name = f"touch {size_name(outcome.plan.nbytes)}: {OURS}"
    yield Bar(name, TOUCHED_A_SECOND, None if ours is None else 1 / ours.median, "1/s")
    yield from outcome.bar(OF_ICEORYX2, OURS, ICEORYX2)
    yield from outcome.bar(OF_ICEORYX2, OURS, ICEORYX2_VIEWS)


def _copied(outcome: Outcome) -> Iterator[Bar]:
    nbytes = outcome.plan.nbytes
    if nbytes <= SMALL:
        yield from outcome.bar(THAN_PIPE, OURS, PIPE)
    if nbytes >= min(OF_THE_FLOOR):
        required = next(required for least, required in OF_THE_FLOOR.items() if nbytes >= least)
        yield from outcome.bar(required, outcome.ours, FLOOR)
    if nbytes >= MEMCPYS_FROM and outcome.ours in outcome.labels:
        ours, memcpy = outcome.series.get(outcome.ours), outcome.series[MEMCPY]
        name = f"copy {size_name(nbytes)}: {outcome.ours}, in warm memcpys"
        yield Bar.of_ratio(name, MOST_MEMCPYS, memcpy, ours, is_most=True)
