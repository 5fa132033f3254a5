# `Pool.get` of an array whose like was seen here before: opened, known by its first bytes, made.

cdef object C_ORDER = sys.intern("C")
cdef object by_head = None, array_type = None, take_apart = None
cdef Py_ssize_t COPIED_BELOW, SMALLEST_TEMPLATE, PICKLE_NBYTES_AT
cdef uint64_t FIXED_BYTES, LONGEST_TEMPLATE


cdef bint _find_objects() except -1:
    """What it takes of the modules that are imported when they are first used."""
    global by_head, take_apart, COPIED_BELOW, SMALLEST_TEMPLATE, PICKLE_NBYTES_AT, FIXED_BYTES, LONGEST_TEMPLATE
    from ..objects import exchange, layout, templates
    COPIED_BELOW, SMALLEST_TEMPLATE, PICKLE_NBYTES_AT = exchange.COPIED_BELOW, templates.SMALLEST, layout.PICKLE_NBYTES.start
    FIXED_BYTES, LONGEST_TEMPLATE = templates._FIXED, templates.LONGEST
    take_apart, by_head = exchange.take_apart, templates._by_head
    return True


def get(self, handle, *, writable=False, copy=None, allow=None):
    if not writable and allow is None and isinstance(self, BasePool) and _PyType_Lookup(Py_TYPE(<PyObject *>self), "open") == <PyObject *>open_twin:
        if by_head is None:
            _find_objects()
        lent = _open(<PyObject *>self, handle, True)
        if lent is not None:
            try:
                return _take_apart(lent, copy)
            except MemoryError:
                (<Lent>lent).undo()
                raise
            except BaseException as error:
                frames.clear(error)  # somebody may keep it
                raise
    return plain_get(self, handle, writable=writable, copy=copy, allow=allow)


cdef object _take_apart(Lent lent, object copy):
    """As `exchange.take_apart`."""
    cdef Py_ssize_t offset, nbytes = lent.nbytes
    cdef char *data = <char *>lent.address
    if not _find_template(data, nbytes):
        return take_apart(lent.as_buffer(), False, copy, None)
    template, offset = last, last_offset  # what *copy* is asked for may run anything
    if copy or (copy is None and nbytes < COPIED_BELOW):
        return _array(template, PyBytes_FromStringAndSize(data + offset, nbytes - offset), 0)
    return _array(template, lent, template[1])


cdef object _array(object template, object memory, object offset):
    """As `Template.array`."""
    global array_type
    cdef PyObject *one = <PyObject *>template
    if array_type is None:
        array_type = sys.modules["numpy"].ndarray
    if PyTuple_GET_ITEM(one, 5) == <PyObject *>C_ORDER:
        return array_type(<object>PyTuple_GET_ITEM(one, 3), <object>PyTuple_GET_ITEM(one, 4), memory, offset)
    return array_type(template[3], template[4], memory, offset, None, template[5])


#: The template that was found last, its head, and what it says.
cdef object last = None, last_head = None
cdef Py_ssize_t last_nbytes = 0, last_offset, last_length


cdef bint _find_template(char *data, Py_ssize_t nbytes) except -1:
    """As `templates.find`, into *last*. Objects are mostly like the one before."""
    cdef uint64_t pickled
    cdef PyObject *found
    global last, last_head, last_nbytes, last_offset, last_length
    if nbytes < SMALLEST_TEMPLATE:
        return False
    if nbytes == last_nbytes and not memcmp(data, PyBytes_AS_STRING(last_head), last_length):
        return True
    memcpy(&pickled, data + PICKLE_NBYTES_AT, 8)
    if pickled > LONGEST_TEMPLATE - FIXED_BYTES:
        return False
    head = PyBytes_FromStringAndSize(data, FIXED_BYTES + pickled)  # before it is looked at: a peer may write
    found = PyDict_GetItemWithError(by_head, head)
    if found == NULL or (<object>found)[2] != nbytes:
        return False
    last_nbytes = 0
    last, last_head, last_offset, last_length = <object>found, head, (<object>found)[1], len(head)
    last_nbytes = nbytes
    return True
