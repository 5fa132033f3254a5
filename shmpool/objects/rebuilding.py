"""What an object's pickle names: the functions that make arrays of buffers. Their names are part of
the format: a reader of another version looks them up."""

from __future__ import annotations

from typing import Any

from ..system.importing import door, explained


def array(buffer: Any, dtype: Any, shape: tuple[int, ...], order: str) -> Any:
    """A numpy array over *buffer*."""
    with door, explained:
        import numpy as np

    return np.frombuffer(buffer, np.uint8).view(dtype).reshape(shape, order=order)


def broadcast(compact: Any, shape: tuple[int, ...]) -> Any:
    """A numpy array that repeats *compact*, without its copies."""
    with door, explained:
        import numpy as np

    return np.broadcast_to(compact, shape)


def masked(data: Any, mask: Any, fill_value: Any, is_hard: bool) -> Any:
    """A masked numpy array."""
    with door, explained:
        import numpy as np

    return np.ma.MaskedArray(data, mask, fill_value=fill_value, hard_mask=is_hard, copy=False)


def table(stream: Any, kind: str) -> Any:
    """A pyarrow table, batch, array or chunked array out of an IPC stream."""
    with door, explained:
        import pyarrow as pa

    read = pa.ipc.open_stream(pa.py_buffer(stream)).read_all()
    if kind == "table":
        return read
    if kind == "batch":
        batches = read.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=read.schema)
    column = read.column(0)
    return column if kind == "chunked" else column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def tensor(flat: Any, dtype: Any, shape: tuple[int, ...], requires_grad: bool) -> Any:
    """A torch tensor over *flat*, a numpy array of bytes."""
    with door, explained:
        import torch

    made = torch.from_numpy(flat).view(dtype).reshape(shape)
    return made.requires_grad_() if requires_grad else made
