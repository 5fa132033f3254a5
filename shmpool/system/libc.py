"""The few calls that the standard library lacks: fixed maps, page-table population,
memory barriers, long socket options. Each wrapper raises OSError with the errno that the C call left."""

from __future__ import annotations

import ctypes
import mmap
import os

from ..errors import ConfigError
from .outside import own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

PROT_NONE: Final = 0
_MAP_FIXED: Final = 0x10
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
#: Linux 5.14; older kernels answer EINVAL and pages are faulted in one by one. Filled in for
#: reading, the pages of a writable shared map of a tmpfs can be written too, and sixteen
#: cost one fault: a third of what MADV_POPULATE_WRITE takes.
_MADV_POPULATE_READ: Final = 22
_POPULATED_AT_ONCE: Final = 128 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.close.argtypes = (ctypes.c_int,)
#: close(2) as a C callable, which raises nothing.
close: Final = _libc.close
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class _PyBuffer(ctypes.Structure):
    """CPython's Py_buffer (stable since 3.0; part of the limited API from 3.11)."""

    _fields_ = (
        ("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t), ("readonly", ctypes.c_int), ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p),
    )  # fmt: skip


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_PyBuffer),)


def address_of(exporter: Any) -> int:
    """Where an object's buffer lies; works for read-only buffers, which ctypes refuses."""
    buffer = _PyBuffer()
    where = ctypes.byref(buffer)
    # An exception behind the call must find the clause that ends it, and no other call before its own: what exports for
    # ever is never unmapped, and its seat never leaves. To release none is nothing.
    try:
        _get_buffer(exporter, where, 0)
        address: int = buffer.buf or 0
        return address
    finally:
        _release_buffer(where)


def map_over(address: int, length: int, protection: int, fd: int, offset: int, *, private: bool = False) -> None:
    """Replace *length* bytes of this process's memory at *address* by a map of a file, shared or
    *private* (copied as it is written). Only ever over memory that the caller owns whole."""
    _map_fixed(address, length, protection, mmap.MAP_PRIVATE if private else mmap.MAP_SHARED, fd, offset)


def map_anywhere(length: int, protection: int, fd: int) -> int:
    """A shared map of a file's beginning that no object owns; `unmap` is the caller's."""
    address = _libc.mmap(None, length, protection, mmap.MAP_SHARED, fd, 0)
    if address == _MAP_FAILED:
        raise _failure(f"mmap of {length} bytes")
    return int(address)


def unmap(address: int, length: int) -> None:
    """Undo `map_anywhere`."""
    if _libc.munmap(address, length) != 0:
        raise _failure("munmap")


def advise(address: int, length: int, advice: int) -> None:
    """madvise(2) for memory that no object owns."""
    if _libc.madvise(address, length, advice) != 0:
        raise _failure("madvise")


def _failure(call: str) -> OSError:
    errno = ctypes.get_errno()
    return OSError(errno, f"{call} failed: {os.strerror(errno)}")


def cover(address: int, length: int) -> None:
    """Replace memory by private zeros: whatever was mapped there is out of reach."""
    _map_fixed(address, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)


def _map_fixed(address: int, length: int, protection: int, flags: int, fd: int, offset: int) -> None:
    if _libc.mmap(address, length, protection, flags | _MAP_FIXED, fd, offset) != address:
        raise _failure(f"mmap of {length} bytes")


def populate(region: mmap.mmap) -> None:
    """Fill in the page tables at once, instead of a fault for each page, in slices: a signal is
    answered between two. A kernel that cannot leaves it to the faults."""
    try:
        for start in range(0, len(region), _POPULATED_AT_ONCE):
            region.madvise(_MADV_POPULATE_READ, start, min(_POPULATED_AT_ONCE, len(region) - start))
    except own(OSError) as error:
        if error.errno != 22:  # EINVAL: before Linux 5.14
            raise


_PUNCH_HOLE_KEEP_SIZE: Final = 3
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


def punch(fd: int, offset: int, length: int) -> None:
    """Free the pages of a part of a tmpfs file, also under those who map it; its size stays."""
    if _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, length) != 0:
        raise _failure(f"fallocate of {length} bytes")


_ERANGE: Final = 34


def socket_option(fd: int, level: int, option: int) -> bytes:
    """A socket's option, however long: Python's own call refuses more than 1,024 bytes."""
    length = ctypes.c_uint(1024)
    while True:
        value = ctypes.create_string_buffer(length.value)
        if _libc.getsockopt(fd, level, option, value, ctypes.byref(length)) == 0:
            return value.raw[: length.value]
        errno = ctypes.get_errno()
        if errno != _ERANGE or length.value <= len(value):
            raise OSError(errno, os.strerror(errno))


_libc.sem_init.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint)
#: Whether this is the library that lets semaphores be closed which it has not opened.
IS_GLIBC: Final = hasattr(_libc, "gnu_get_libc_version")


def make_semaphore(address: int, value: int) -> None:
    """A semaphore that processes share, in 32 bytes of memory that they share."""
    if _libc.sem_init(address, 1, value) != 0:
        raise _failure("sem_init")


# --- memory barriers --------------------------------------------------------------------------

_SYS_MEMBARRIER: Final = {"aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356, "armv7l": 389}
_REGISTER_PRIVATE_EXPEDITED: Final = 1 << 4
_PRIVATE_EXPEDITED: Final = 1 << 3


def needs_barrier() -> bool:
    """Whether plain stores may be seen out of order here: everywhere but on x86, whose
    store order is what the ledger protocol needs."""
    return os.uname().machine not in ("x86_64", "AMD64", "i686", "i386")


def barrier() -> None:
    """A full barrier for this thread, by membarrier(2) (0.5 us)."""
    if _libc.syscall(_membarrier_number(), _PRIVATE_EXPEDITED, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "membarrier failed")


def register_barrier() -> None:
    """Prepare this process for `barrier`. Raises ConfigError where there is none."""
    if _libc.syscall(_membarrier_number(), _REGISTER_PRIVATE_EXPEDITED, 0, 0) != 0:
        raise ConfigError(f"this kernel lacks the membarrier that shmpool needs on {os.uname().machine}")


def _membarrier_number() -> int:
    try:
        return _SYS_MEMBARRIER[os.uname().machine]
    except own(KeyError):
        raise ConfigError(f"shmpool does not know this processor: {os.uname().machine}") from None
