"""`shmpool.joblib`: a joblib backend over a pool. What it does is in `shmpool.integrations.joblib`."""

from .integrations.joblib import Backend, register

__all__ = ["Backend", "register"]
