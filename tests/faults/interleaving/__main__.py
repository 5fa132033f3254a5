"""``python -m tests.faults.interleaving [--large] [--whole] [--only WORD] [--max-states N] [--mutants]``."""

from __future__ import annotations

import argparse
import sys

from .explorer import explore
from .mutants import MUTANTS
from .scenarios import LARGE, SCENARIOS, WHOLE


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.interleaving", description=__doc__)
    parser.add_argument("--whole", action="store_true", help="everybody at once instead of the pairwise scenarios")
    parser.add_argument("--large", action="store_true", help="those of three parties that take minutes, instead")
    parser.add_argument("--only", default="", help="scenarios whose name has this word")
    parser.add_argument("--mode", choices=("sc", "tso", "both"), default="both")
    parser.add_argument("--max-states", type=int, help="go depth first and stop there")
    parser.add_argument("--seed", type=int, default=0, help="the order of a search with a bound")
    parser.add_argument("--mutants", action="store_true", help="the seeded mistakes instead, each in its scenario")
    options = parser.parse_args()
    modes = {"sc": (False,), "tso": (True,), "both": (False, True)}[options.mode]
    if options.mutants:
        return _show_mutants(options.only, modes)
    failures = 0
    for scenario in (WHOLE,) if options.whole else LARGE if options.large else SCENARIOS:
        if options.only not in scenario.name:
            continue
        for is_tso in modes:
            result = explore(scenario, is_tso=is_tso, max_states=options.max_states, seed=options.seed)
            print(result, *result.story, sep="\n      ", flush=True)
            failures += result.violation is not None
    return 1 if failures else 0


def _show_mutants(word: str, modes: tuple[bool, ...]) -> int:
    missed = 0
    for mutant in MUTANTS:
        if word in mutant.name:
            for is_tso in modes:
                with mutant.make():
                    result = explore(mutant.scenario, is_tso=is_tso)
                print(f"{mutant.name}\n  {result}", flush=True)
                missed += result.mode in mutant.modes and result.violation is None
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
