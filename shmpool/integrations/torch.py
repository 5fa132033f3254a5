"""torch's DataLoader over a pool: batches are collated into leases, and read where they lie.

::

    loader = DataLoader(data, batch_size=64, num_workers=4, collate_fn=shmpool.torch.collate(pool))
    for batch in shmpool.torch.batches(loader):
        ...

A worker stacks its samples straight into one lease for each batch, memory that was used before; what goes through the
loader's queue is a handle and a few hundred bytes. It is opened as soon as it arrives, also where batches arrive out of
order, and where the pool is short of room copied out at once: so a worker that waits for room gets it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import default_collate

from .. import log
from ..errors import ShmpoolError
from ..lease import Lease
from ..link.waiting import check_ttl
from ..pools import Pool
from ..system.outside import own_or_called

#: Tensors begin at multiples of so many bytes.
_ALIGNED: Final = 64
#: A batch of which the pool holds fewer is copied out when it arrives: those that follow need its room.
_FEW: Final = 6


class Collate:
    """A ``collate_fn`` that collates into a pool. Made by `collate`; picklable, for the loader's workers."""

    def __init__(self, pool: Pool, ttl: float | None) -> None:
        self._pool = pool
        self._ttl = None if ttl is None else check_ttl(ttl)
        #: How many batches went through the loader's queue, since there was no room for them.
        self.spilled = 0

    def __call__(self, samples: list[Any]) -> Batch:
        """Collate as torch's `default_collate` does."""
        plan = _Plan()
        structure = plan.collated(samples)
        try:
            with self._pool.lease(max(plan.nbytes, 1)) as lease:
                found = _stacked(structure, lease)
                handle = lease.publish(ttl=self._ttl)
                return Batch(self._pool, plan.nbytes, bytes(handle), found, None)
        except own_or_called(ShmpoolError, MemoryError) as error:
            self.spilled += 1
            if self.spilled == 1:
                log.warning("batches go through the loader's queue, for now: %s", str(error))
            return Batch(self._pool, plan.nbytes, b"", _stacked(structure, None), None)


class Batch:
    """A collated batch on its way. `tensors` gives what `default_collate` would."""

    def __init__(self, pool: Pool, nbytes: int, handle: bytes, found: bytes, view: memoryview | None) -> None:
        self._pool, self.nbytes, self._handle, self._found, self._view = pool, nbytes, handle, found, view

    def tensors(self) -> Any:
        """The batch; each of its tensors keeps the memory until it dies. Writable, and nobody else's. Once."""
        if self._handle:
            self._open()
        return _Unpickler(io.BytesIO(self._found), self._view).load()

    def _open(self) -> None:
        """Take it out of the pipe: from here on it is this process's, and no ttl ends it."""
        handle, self._handle = self._handle, b""
        with self._pool.open(handle, writable=True) as buffer:
            if self.nbytes * _FEW > self._pool._live_session().memory_limit:
                self._view = memoryview(bytearray(buffer.view))
            else:
                self._view = buffer.view[:]
                buffer.release_to_views()

    def __reduce__(self) -> Any:
        return _arrived, (self._pool, self.nbytes, self._handle, self._found)

    def __repr__(self) -> str:
        return f"<shmpool.torch.Batch of {self.nbytes} bytes>"


def _arrived(pool: Pool, nbytes: int, handle: bytes, found: bytes) -> Batch:
    batch = Batch(pool, nbytes, handle, found, None)
    if handle:
        batch._open()
    return batch


def collate(pool: Pool, *, ttl: float | None = None) -> Collate:
    """A ``collate_fn`` for torch's DataLoader, which collates as `default_collate` does, into leases of *pool*. A
    batch that the pool has no room for waits in line, ``lease_timeout`` at most, and then goes through the loader's
    queue. What nobody has read within *ttl* seconds is given back (a loader that was left in the middle; when
    its workers have ended, so is what they left)."""
    return Collate(pool, ttl)


class batches:
    """The batches of a DataLoader whose ``collate_fn`` is `collate`'s, as tensors. ``len()`` is the loader's."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            if not isinstance(batch, Batch):
                raise TypeError(
                    f"the loader gives {type(batch).__name__}: its collate_fn has to be shmpool.torch.collate(pool)"
                )
            tensors = batch.tensors()
            del batch
            yield tensors
            del tensors  # while the next one is waited for, this is its user's alone


# --- collating ---------------------------------------------------------------------------------------------


class _Stack:
    """Tensors of one shape that are to lie behind one another."""

    __slots__ = ("at", "tensors")

    def __init__(self, tensors: list[torch.Tensor], at: int) -> None:
        self.tensors = tensors
        self.at = at


class _Plan:
    """Where the tensors of a batch are to lie; *nbytes* is what they need."""

    def __init__(self) -> None:
        self.nbytes = 0

    def collated(self, samples: list[Any]) -> Any:
        """What `default_collate` returns, with a `_Stack` for each tensor that it would stack."""
        first = samples[0]
        if isinstance(first, torch.Tensor):
            return self._stack(samples)
        if isinstance(first, np.ndarray) and first.dtype.kind in "biufc" and first.shape:
            return self._stack([torch.as_tensor(sample) for sample in samples])
        if isinstance(first, dict):
            return type(first)({key: self.collated([sample[key] for sample in samples]) for key in first})
        if isinstance(first, tuple) and hasattr(first, "_fields"):
            return type(first)(*(self.collated(list(column)) for column in zip(*samples, strict=True)))
        if isinstance(first, list | tuple) and type(first) in (list, tuple):
            return [self.collated(list(column)) for column in zip(*samples, strict=True)]
        return default_collate(samples)

    def _stack(self, tensors: list[torch.Tensor]) -> Any:
        first = tensors[0]
        is_plain = first.layout is torch.strided and first.device.type == "cpu" and not first.is_quantized
        if not is_plain or any(one.shape != first.shape or one.dtype != first.dtype for one in tensors):
            return default_collate(tensors)  # which says what is wrong
        stack = _Stack(tensors, -(-self.nbytes // _ALIGNED) * _ALIGNED)
        self.nbytes = stack.at + len(tensors) * first.nbytes
        return stack


def _stacked(structure: Any, lease: Lease | None) -> bytes:
    """Stack the tensors into a lease; what is left is pickled, and says where they are. Without a lease they are in
    the pickle."""
    file = io.BytesIO()
    pickler = _Pickler(file, lease)
    pickler.dump(structure)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, lease: Lease | None) -> None:
        super().__init__(file, protocol=5)
        self._lease = lease

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is _Stack:
            first, shape = obj.tensors[0], (len(obj.tensors), *obj.tensors[0].shape)
            if self._lease is None:
                return shape, first.dtype, _bytes_of(torch.stack(obj.tensors))
            if 0 not in shape:
                nbytes = len(obj.tensors) * first.nbytes
                room = torch.frombuffer(self._lease.view[obj.at : obj.at + nbytes], dtype=torch.uint8)
                torch.stack(obj.tensors, out=room.view(first.dtype).view(shape))
            return shape, first.dtype, obj.at
        if isinstance(obj, torch.Tensor):  # torch would share it by a descriptor
            return tuple(obj.shape), obj.dtype, _bytes_of(obj)
        return None


def _bytes_of(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    data: bytes = flat.numpy().tobytes()
    return data


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, view: memoryview | None) -> None:
        super().__init__(file)
        self._view = view

    def persistent_load(self, found: Any) -> torch.Tensor:
        shape, dtype, where = found
        if 0 in shape:
            return torch.empty(shape, dtype=dtype)
        if isinstance(where, bytes):
            return torch.frombuffer(bytearray(where), dtype=dtype).view(shape)
        assert self._view is not None
        length = int(np.prod(shape)) * dtype.itemsize
        return torch.frombuffer(self._view[where : where + length], dtype=torch.uint8).view(dtype).view(shape)
