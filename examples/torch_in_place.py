"""Torch works in place on what it got: a private copy of the pages that it writes, nobody else's.

python examples/torch_in_place.py
"""

import sys

import shmpool


def main() -> None:
    try:
        import torch
    except ImportError:
        sys.exit("this example needs torch")
    with shmpool.Broker(memory_limit="64MiB") as broker, broker.connect() as pool:
        shared = pool.share({"weights": torch.arange(300_000, dtype=torch.float32)})
        mine, theirs = shared.get(), shared.get()
        mine["weights"].mul_(2).add_(1)  # in place
        assert mine["weights"][5] == 11
        assert theirs["weights"][5] == 5  # not theirs
        array = pool.get(pool.put(theirs["weights"].numpy()), writable=True)
        torch.from_numpy(array).zero_()  # a numpy array: writable on demand
    print("tensors worked on in place, each reader's its own")


if __name__ == "__main__":
    main()
