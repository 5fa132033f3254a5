"""``python -m tests.mutation [--only WORD]... [--tests PATH...] [--sample N] [--skip N] [--minutes M] [--seed S]``: a
table of mutants; exit 1 when one survives that `survivors.toml` does not explain, or that explains what there is not.
All of them take hours: of one seed, the next portion begins where the last one says that it has ended."""

from __future__ import annotations

import argparse
import random
import secrets
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from .mutants import Mutant, mutants_of
from .runner import Outcome, Runner

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (ROOT / "daemon" / "shmpoold" / "core", ROOT / "shmpool" / "protocol")
SURVIVORS = Path(__file__).with_name("survivors.toml")
#: Pure tests, and short ones: what kills the broker at every store or simulates for long would need most of the time.
TESTS = (
    *("tests/core", "tests/protocol", "--ignore=tests/core/test_scale.py", "--ignore=tests/core/test_simulation.py"),
    *("-k", "not killed_between_any_two_stores and not in_the_middle_of_a_flood"),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument(
        "--only", action="append", help="mutants whose file, function or change has this text; may be repeated"
    )
    parser.add_argument("--sample", type=int, help="so many of them, drawn at random, as many of each file")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first of those that are drawn")
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="begin no other after so long; the first run is extra"
    )
    parser.add_argument("--seconds-each", type=float, default=10.0, help="processor time of one mutant's tests")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="PATH", help="what judges them, instead of all")
    parser.add_argument(
        "--calls", type=Path, metavar="FILE", help="where it is kept for the next portion which tests call what"
    )
    parser.add_argument("--list", action="store_true", help="list the mutants, and run nothing")
    arguments = parser.parse_args()
    mutants = [mutant for room in ROOMS for path in sorted(room.rglob("*.py")) for mutant in mutants_of(path, ROOT)]
    known = tomllib.loads(SURVIVORS.read_text())["survivor"]
    there = {(mutant.where, mutant.what) for mutant in mutants}
    stale = [one for one in known if (one["where"], one["what"]) not in there]
    for one in stale:
        print(f"explained, but there is none: {one['where']}: {one['what']}")
    words = arguments.only or [""]
    mutants = [mutant for mutant in mutants if any(word in f"{mutant.where}: {mutant.what}" for word in words)]
    mutants = draw(mutants, arguments.sample or len(mutants), random.Random(arguments.seed))
    print(f"{len(mutants)} mutants, seed {arguments.seed}", flush=True)
    mutants = mutants[arguments.skip :]
    if arguments.list:
        print(*(f"{mutant.where}:{mutant.line}: {mutant.what}" for mutant in mutants), sep="\n")
        return 0
    counts: Counter[tuple[str, str]] = Counter()
    unexplained = 0

    def tell(mutant: Mutant, outcome: Outcome, by: str) -> None:
        nonlocal unexplained
        is_explained = any(explains(one, mutant) for one in known)
        counts[mutant.path.name, "explained" if outcome != "killed" and is_explained else outcome] += 1
        if outcome != "killed" and not is_explained:
            unexplained += 1
            print(f"{outcome.upper()} {mutant.where}:{mutant.line}: {mutant.what}", flush=True)
        elif outcome == "killed" and is_explained:
            print(f"explained, but killed by {by}: {mutant.where}: {mutant.what}", flush=True)

    runner = Runner(mutants, arguments.minutes * 60, arguments.seconds_each, tell, arguments.calls)
    status = pytest.main(["-q", "-p", "no:cacheprovider", *arguments.tests], plugins=[runner])
    _print_table(counts)
    print(f"the next portion: --seed {arguments.seed} --skip {arguments.skip + counts.total()}")
    return 1 if unexplained or stale or status not in (0, 5) else 0


def explains(survivor: dict[str, str], mutant: Mutant) -> bool:
    """Whether an entry is about a mutant. *at* is text of the line, where *where* and *what* are those of several."""
    line = mutant.path.read_text().splitlines()[mutant.line - 1]
    is_same = (survivor["where"], survivor["what"]) == (mutant.where, mutant.what)
    return is_same and survivor.get("at", "") in line


def draw(mutants: list[Mutant], count: int, chance: random.Random) -> list[Mutant]:
    """So many, one of each file by turns."""
    chance.shuffle(mutants)
    by_file: dict[Path, list[Mutant]] = {}
    for mutant in mutants:
        by_file.setdefault(mutant.path, []).append(mutant)
    drawn: list[Mutant] = []
    while by_file and len(drawn) < count:
        for path in list(by_file):
            drawn.append(by_file[path].pop())
            if not by_file[path]:
                del by_file[path]
    return drawn[:count]


def _print_table(counts: Counter[tuple[str, str]]) -> None:
    outcomes = ("killed", "explained", "survived", "not called")
    print(f"\n{'':16}" + "".join(f"{outcome:>12}" for outcome in outcomes))
    names = sorted({name for name, _ in counts})
    for name in names:
        print(f"{name:16}" + "".join(f"{counts[name, outcome]:12}" for outcome in outcomes))
    totals = [sum(counts[name, outcome] for name in names) for outcome in outcomes]
    print(f"{'together':16}" + "".join(f"{total:12}" for total in totals))


if __name__ == "__main__":
    sys.exit(main())
