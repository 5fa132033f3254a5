"""``python -m tests.soak``: run, print the account, exit 1 when it does not close."""

from __future__ import annotations

import argparse
import resource
import secrets
import sys

from . import sharing
from .disturbances import KINDS
from .engine import Options, Soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=6, help="worker processes at a time (2 or more)")
    parser.add_argument("--kill-workers", action="store_true", help="kill and stop workers; they die by themselves too")
    parser.add_argument("--kill-broker", action="store_true", help="kill the broker, and start it again")
    parser.add_argument("--worker-interval", type=float, default=0.2, metavar="S", help="mean time between kills")
    parser.add_argument("--broker-interval", type=float, default=5.0, metavar="S", help="mean time between kills")
    parser.add_argument(
        "--objects",
        choices=("mixed", "pooled", "chunked", "direct", "checksummed", "shared"),
        default="mixed",
        help="shared: put, get, share, find and get_or_share, with kills (tests.soak.sharing)",
    )
    parser.add_argument("--checksums", action="store_true", help="with shared: in a pool that has them")
    parser.add_argument(
        "--disturb", nargs="*", choices=KINDS, metavar="KIND", help=f"from within: {', '.join(KINDS)}; none named: all"
    )
    parser.add_argument(
        "--at-least", nargs="*", default=(), metavar="NAME=N", help="go on until there were so many of a deed or figure"
    )
    parser.add_argument("--memory-limit", help="by default 12 MiB for each worker, 192 MiB at least")
    parser.add_argument("--seed", type=int, help="of the random choices; what the kernel makes of them differs")
    parser.add_argument("--json", action="store_true", help="print the account as one JSON object")
    arguments = parser.parse_args()
    if arguments.workers < 2:
        parser.error("--workers must be 2 or more: they read what others write")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if arguments.objects == "shared":
        seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
        seconds, kill_broker = arguments.minutes * 60, arguments.kill_broker
        return sharing.report(seconds, arguments.workers, seed, kill_broker=kill_broker, checksums=arguments.checksums)
    options = Options(
        seconds=arguments.minutes * 60,
        workers=arguments.workers,
        seed=secrets.randbits(32) if arguments.seed is None else arguments.seed,
        kill_workers=arguments.kill_workers,
        kill_broker=arguments.kill_broker,
        worker_interval=arguments.worker_interval,
        broker_interval=arguments.broker_interval,
        memory_limit=arguments.memory_limit or f"{max(192, 12 * arguments.workers)}MiB",
        objects=arguments.objects,
        disturbances=() if arguments.disturb is None else tuple(arguments.disturb) or KINDS,
        at_least=tuple((name, int(count)) for name, _, count in (text.partition("=") for text in arguments.at_least)),
        is_talkative=not arguments.json,
    )
    account = Soak(options).run()
    print(account.to_json() if arguments.json else account.to_text())
    return 0 if account.is_closed else 1


if __name__ == "__main__":
    sys.exit(main())
