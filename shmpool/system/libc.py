"""The few calls that the standard library lacks: fixed maps, page-table population,
memory barriers. Each wrapper raises OSError with the errno that the C call left."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from typing import Any, Final

from ..errors import ConfigError

_MAP_FIXED: Final = 0x10
#: Linux 5.14; older kernels answer EINVAL and pages are faulted in one by one. Filled in for
#: reading, the pages of a writable shared map of a tmpfs can be written too, and sixteen
#: cost one fault: a third of what MADV_POPULATE_WRITE takes.
_MADV_POPULATE_READ: Final = 22

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip


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
    _get_buffer(exporter, ctypes.byref(buffer), 0)
    try:
        return int(buffer.buf or 0)
    finally:
        _release_buffer(ctypes.byref(buffer))


def map_over(address: int, length: int, protection: int, fd: int, offset: int) -> None:
    """Replace *length* bytes of this process's memory at *address* by a shared map of a
    file. Only ever over memory that the caller owns whole."""
    _map_fixed(address, length, protection, mmap.MAP_SHARED, fd, offset)


def cover(address: int, length: int) -> None:
    """Replace memory by private zeros: whatever was mapped there is out of reach."""
    _map_fixed(address, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)


def _map_fixed(address: int, length: int, protection: int, flags: int, fd: int, offset: int) -> None:
    if _libc.mmap(address, length, protection, flags | _MAP_FIXED, fd, offset) != address:
        errno = ctypes.get_errno()
        raise OSError(errno, f"mmap of {length} bytes failed: {os.strerror(errno)}")


def populate(region: mmap.mmap) -> None:
    """Fill in the page tables at once, instead of a fault for each page. A kernel that
    cannot leaves it to the faults."""
    try:
        region.madvise(_MADV_POPULATE_READ)
    except OSError as error:
        if error.errno != 22:  # EINVAL: before Linux 5.14
            raise


# --- memory barriers --------------------------------------------------------------------------

_SYS_MEMBARRIER: Final = {"aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356, "armv7l": 389}
_REGISTER_PRIVATE_EXPEDITED: Final = 1 << 4
_PRIVATE_EXPEDITED: Final = 1 << 3


def needs_barrier() -> bool:
    """Whether plain stores may be seen out of order here: everywhere but on x86, whose
    store order is what the ledger protocol needs."""
    return platform.machine() not in ("x86_64", "AMD64", "i686", "i386")


def barrier() -> None:
    """A full barrier for this thread, by membarrier(2) (0.5 us)."""
    if _libc.syscall(_membarrier_number(), _PRIVATE_EXPEDITED, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "membarrier failed")


def register_barrier() -> None:
    """Prepare this process for `barrier`. Raises ConfigError where there is none."""
    if _libc.syscall(_membarrier_number(), _REGISTER_PRIVATE_EXPEDITED, 0, 0) != 0:
        raise ConfigError(f"this kernel lacks the membarrier that shmpool needs on {platform.machine()}")


def _membarrier_number() -> int:
    try:
        return _SYS_MEMBARRIER[platform.machine()]
    except KeyError:
        raise ConfigError(f"shmpool does not know this processor: {platform.machine()}") from None
