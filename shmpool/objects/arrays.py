"""Arrays born in shared memory: a lease that lies as `put` would lay its array out, from the first."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from math import prod
from operator import index
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from ..errors import LeaseReleased
from ..protocol.sizing import check_nbytes
from ..system.importing import door, explained
from ..system.outside import own, own_or_called
from ..uncopied import Uncopied
from . import layout, rebuilding

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from ..lease import Lease
    from ..pool import BasePool
    from ..protocol.handle import Handle

_ORDERS = ("C", "F")


class ArrayLease(Uncopied):
    """A leased array. Made by `Pool.empty`, used by one thread at a time, like a `Lease`."""

    __slots__ = ("__weakref__", "_lease", "array")

    _why = "one buffer has one writer: publish it and send the handle that publish() returns"

    #: Writable, over the leased memory; gone once it is published or released. Arrays and slices of it
    #: that live on delay the next use of the memory, as views of a lease do.
    array: NDArray[Any]

    def __init__(self, lease: Lease, array: NDArray[Any]) -> None:
        self._lease = lease
        self.array = array

    def publish(self, *, ttl: float | None = None) -> Handle:
        """Make the array readable, once, for whoever has the handle: `Pool.get` gives it. What
        nobody has opened within *ttl* seconds is closed."""
        return self.publish_many(1, ttl=ttl)[0]

    def publish_many(self, n: int, *, ttl: float | None = None) -> list[Handle]:
        """The same for *n* readers (1 to 13)."""
        array = self._release_array()
        try:
            return self._lease.publish_many(n, ttl=ttl)
        except BaseException:
            if array is not None:  # in strict mode, or with a wrong number, the lease goes on
                try:
                    self.array = array()
                except own(LeaseReleased):
                    pass
            raise

    def release(self) -> None:
        """Give the memory back unpublished. After the end it does nothing."""
        self._release_after(None)

    def _release_after(self, kind: type[BaseException] | None) -> None:
        self._release_array()
        self._lease._release_after(kind)

    def _release_array(self) -> Any:
        """Drop our own array, which is a view like any other; returns what makes it anew."""
        try:
            shape, dtype, strides = self.array.shape, self.array.dtype, self.array.strides
            del self.array
        except own(AttributeError):
            return None
        np, lease = _numpy(), self._lease
        at = lease.nbytes - prod(shape) * dtype.itemsize
        return lambda: np.ndarray(shape, dtype, lease.view, at, strides)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release_after(kind)

    def __repr__(self) -> str:
        return f"<ArrayLease over {self._lease!r}>"


class _Prototype:
    """Pickles like the array will: by its buffer, which is not there yet."""

    def __init__(self, dtype: Any, shape: tuple[int, ...], order: str) -> None:
        self._arguments = dtype, shape, order

    def __reduce__(self) -> Any:
        return rebuilding.array, (pickle.PickleBuffer(bytearray()), *self._arguments)


def empty(
    pool: BasePool, shape: int | Sequence[int], dtype: DTypeLike, order: Literal["C", "F"], timeout: float | None
) -> ArrayLease:
    """Lease, lay out, and write all but the array's bytes."""
    np = _numpy()
    element = np.dtype(dtype)
    dimensions = _dimensions(shape) + element.shape
    element = element.base
    if element.hasobject:
        raise TypeError(
            f"an array of {element} holds Python objects, which cannot lie in shared memory; put() takes it"
        )
    if not element.itemsize or order not in _ORDERS:
        raise ValueError(f"an array needs elements with a size and the order 'C' or 'F', not {element} and {order!r}")
    nbytes = prod(dimensions) * element.itemsize
    check_nbytes(nbytes)
    head = pickle.dumps(_Prototype(element, dimensions, order), protocol=5, buffer_callback=lambda buffer: None)
    laid_out = layout.plan(len(head), [nbytes], 0)
    lease = pool.lease(laid_out.nbytes, timeout=timeout)
    try:
        beginning = laid_out.prefix + head
        lease.view[: len(beginning)] = beginning
        return ArrayLease(lease, np.ndarray(dimensions, element, lease.view, laid_out.offsets[0], None, order))
    except BaseException:
        lease.release()
        raise


def _dimensions(shape: int | Sequence[int]) -> tuple[int, ...]:
    dimensions: tuple[int, ...]
    try:
        dimensions = (index(shape),)  # type: ignore[arg-type]
    except own_or_called(TypeError):
        try:
            dimensions = tuple(map(index, shape))  # type: ignore[arg-type]
        except own_or_called(TypeError):
            raise TypeError(f"a shape is a length or a sequence of lengths, not {shape!r:.80}") from None
    if any(length < 0 for length in dimensions):
        raise ValueError(f"an array has no negative dimensions: {shape!r}")
    return dimensions


def _numpy() -> Any:
    with door, explained:
        import numpy as np

    return np
