# `Windows._make` of one piece that is no larger than what may be filled in while other threads wait.

cdef Py_ssize_t MAPPED_AT_ONCE = 1 << 20
cdef Py_ssize_t WINDOW_OWNER = member(Window, "owner"), WINDOW_EVIDENCE = member(Window, "evidence")
cdef Py_ssize_t WINDOW_IS_SPARSE = member(Window, "is_sparse"), WINDOW_IS_WRITABLE = member(Window, "is_writable")
cdef object RESERVED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
cdef object forget_window = all_alive.discard
cdef int WRITABLE = mmap.PROT_WRITE

plain_make_window = Windows._make


def make_window(self, pieces, length, protection, populate):
    if populate and PyList_CheckExact(<PyObject *>pieces) and PyList_GET_SIZE(<PyObject *>pieces) == 1 and length <= MAPPED_AT_ONCE:
        return _make_window(self, pieces[0], length, protection)
    return plain_make_window(self, pieces, length, protection, populate)


cdef object _make_window(object owner, object piece, Py_ssize_t length, int protection):
    """What is mapped is looked at by who forks: so its place is known, and it is listed, before it shows the pool's."""
    cdef Py_buffer buffer
    cdef int error, fd = piece[0]
    cdef uint64_t offset = piece[1], address
    cdef object lies_at, is_sparse = False, is_writable = bool(protection & WRITABLE)
    window = Window(-1, length, flags=RESERVED, prot=protection)
    PyObject_GetBuffer(window, &buffer, PyBUF_SIMPLE)
    lies_at = address = <uint64_t>buffer.buf
    PyBuffer_Release(&buffer)
    set_member(<PyObject *>window, WINDOW_ADDRESS, <PyObject *>lies_at)
    set_member(<PyObject *>window, WINDOW_OWNER, <PyObject *>owner)
    set_member(<PyObject *>window, WINDOW_EVIDENCE, NONE)
    set_member(<PyObject *>window, WINDOW_IS_SPARSE, <PyObject *>is_sparse)
    set_member(<PyObject *>window, WINDOW_IS_WRITABLE, <PyObject *>is_writable)
    all_alive.add(PyWeakref_NewRef(window, forget_window))
    error = map_whole(address, length, protection, fd, offset)
    if error:
        raise OSError(error, f"mmap of {length} bytes failed: {strerror(error)}")
    return window
