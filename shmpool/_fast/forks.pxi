# Forks. What a hook raises is thrown away, Ctrl-C too. Here no handler comes in between: it runs behind the fork.

cdef int FORKING = _FORKING, FORKS_BEGUN = _FORKS, GUARDED = _GUARDED, WORKING = _WORKING, IMPORTING = _IMPORTING
cdef int HELPERS = _HELPERS
cdef object plain_before, first_filter, asked, of_a_fork, of_nothing, warns


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
    """As `life.counted.before_fork`; False where its filter is to be put before others."""
    cdef long threads
    if first_filter is None:
        return True
    threads = threads_here()
    asked.match = of_a_fork if 0 < threads <= 1 + <long>here[HELPERS] else of_nothing
    filters = getattr(warns, "filters", None)
    return PyList_CheckExact(<PyObject *>filters) and PyList_GET_SIZE(<PyObject *>filters) and (
        PyList_GET_ITEM(<PyObject *>filters, 0) == <PyObject *>first_filter
    )


cdef object OF_A_PAGE = (-1, mmap.PAGESIZE)
cdef object OUT_OF_REACH = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, "prot": 0}


def hold_anew(page, bytes path, offset):
    """As `system.heirs.hold_anew`; None where that one is to say why it cannot be."""
    return hold_byte(page, OF_A_PAGE, OUT_OF_REACH, PyBytes_AS_STRING(path), offset)


def abandon_leases(session):
    """As `life.forks.abandon_leases`."""
    cdef PyObject *slot
    cdef PyObject *lease
    cdef object held, one
    for one in list(session._owned.values()):
        slot = <PyObject *>one
        if not is_a(slot, Slot):
            continue
        set_member(slot, SLOT_WINDOW, NONE)
        lease = behind_proxy(get_member(slot, SLOT_LEASE))
        if lease == NULL:
            continue
        held = <object>lease
        forget(lease)
        if is_a(lease, LiveLease):
            switch_class(lease, <PyObject *>EndedLease)
            set_member(lease, LEASE_VIEW, NULL)
    session._returned.clear()


def cover(uint64_t address, uint64_t length):
    """As `system.libc.cover`."""
    cover_bytes(address, length)


def install_forks():
    """In the place of the plain ones; that before a fork where both have the same idea of a thread (gevent's have
    another)."""
    global plain_before, first_filter, asked, of_a_fork, of_nothing, warns
    from ..life import counted, forks
    heirs.compiled, forks.abandon_leases, libc.cover = hold_anew, abandon_leases, cover
    if type(forks.get_ident) is not type(len) or forks.get_ident() != PyThread_get_thread_ident():
        return
    plain_before, warns = forks.unbroken_before, counted.warnings
    asked, of_a_fork, of_nothing = counted.asked, counted.OF_A_FORK, counted.OF_NOTHING
    first_filter = counted._filter if counted.COUNTS else None
    forks.before.__setstate__((before_fork, (), {}, None))
