"""`shmpool.torch`: torch's DataLoader over a pool. What it does is in `shmpool.integrations.torch`."""

from .integrations.torch import Batch, Collate, batches, collate

__all__ = ["Batch", "Collate", "batches", "collate"]
