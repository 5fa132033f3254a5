# Forks. What a hook raises is thrown away, Ctrl-C too. Here no handler comes in between: it runs behind the fork.

cdef int FORKING = _FORKING, FORKS_BEGUN = _FORKS, GUARDED = _GUARDED, WORKING = _WORKING, IMPORTING = _IMPORTING
cdef object plain_before, first_filter, warns


def before_fork():
    """As `life.forks._before`, which does the rest where something is to be waited for or made ready."""
    cdef uint64_t me = PyThread_get_thread_ident()
    if not here[FORKING] or here[FORKING] == me:
        here[FORKING] = me
        here[FORKS_BEGUN] += 1
        here[UNSHARED] = here[COPIED] = here[FORKS_NOTED] = 0
        if not here[IMPORTING] and not here[WORKING] and here[GUARDED] and _is_asked_first():
            return
    plain_before()


cdef bint _is_asked_first():
    """Whether there is nothing to be put among the filters of warnings (`life.counted`)."""
    if first_filter is None:
        return True
    filters = getattr(warns, "filters", None)
    return PyList_CheckExact(<PyObject *>filters) and PyList_GET_SIZE(<PyObject *>filters) and (
        PyList_GET_ITEM(<PyObject *>filters, 0) == <PyObject *>first_filter
    )


def install_before_fork():
    """In the place of the plain one, where both have the same idea of a thread (gevent's have another)."""
    global plain_before, first_filter, warns
    from ..life import counted, forks
    if type(forks.get_ident) is not type(len):
        return
    plain_before, warns = forks._before, counted.warnings
    first_filter = counted._filter if counted.COUNTS else None
    forks.before.__setstate__((before_fork, (), {}, None))


cdef object OF_A_PAGE = (-1, mmap.PAGESIZE)
cdef object OUT_OF_REACH = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, "prot": 0}


def hold_anew(page, bytes path, offset):
    """As `system.heirs.hold_anew`; None where that one is to say why it cannot be."""
    return hold_byte(page, OF_A_PAGE, OUT_OF_REACH, PyBytes_AS_STRING(path), offset)
