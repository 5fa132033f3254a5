"""torch's DataLoader: its workers collate into shared memory that was used before.

python examples/data_loader.py        # needs torch
"""

import torch
from torch.utils.data import DataLoader, Dataset

import shmpool


class Images(Dataset):
    """Made up: each is as bright as its number."""

    def __len__(self) -> int:
        return 200

    def __getitem__(self, at: int) -> dict:
        return {"image": torch.full((3, 128, 128), float(at)), "label": at % 2}


def main() -> None:
    with shmpool.Broker(memory_limit="64MiB") as broker, broker.connect() as pool:
        loader = DataLoader(Images(), batch_size=20, num_workers=2, collate_fn=shmpool.torch.collate(pool))
        brightness = 0.0
        for batch in shmpool.torch.batches(loader):
            batch["image"][batch["label"] == 1] = 0  # in place: it is nobody else's
            brightness += float(batch["image"].mean())
        print(f"{len(loader)} batches, brightness {brightness / len(loader):.1f}")


if __name__ == "__main__":
    main()
