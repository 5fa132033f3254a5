# cython: language_level=3, binding=True, always_allow_keywords=True, boundscheck=False, wraparound=False, emit_code_comments=False
"""The compiled twin of the hot paths: `lease`, `publish`, `open`, `release` and the ends of their blocks.

The plain methods are the reference, and serve whatever is not the usual case: each twin looks at all
that it needs before it does anything, and calls the plain method where something is otherwise. It works on the
same objects, whose `__slots__` it reads by their offsets, and stores the same words in the same order, so
plain and compiled clients share a pool.

What is gained besides speed: no signal handler runs in the middle. But an allocation may (it collects
garbage, and so runs finalizers and other threads), so all are made before the first store.
"""

cimport cython
from cpython.object cimport PyObject, PyTypeObject, PyObject_TypeCheck
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport Py_buffer, PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_SIMPLE, PyBUF_WRITABLE
from cpython.dict cimport PyDict_DelItem, PyDict_GetItemWithError, PyDict_SetItem, PyDict_Size
from cpython.set cimport PySet_Add, PySet_Discard, PySet_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy

# Found without a look-up in the module's names.
cdef object _MAX_NBYTES
cdef type BasePool, Buffer, DeferredReleases, EndedBuffer, EndedLease, Handle, Lease, LiveBuffer, LiveLease, Magazine
cdef type Descriptor, Mapping, ObjectVerbs, Record, Slot, Ticket, Window

import mmap
import sys
from collections import deque
from os import strerror

from ..buffer import Buffer, EndedBuffer, LiveBuffer
from ..errors import LeakedView
from ..lease import EndedLease, Lease
from ..live_lease import LiveLease
from ..objects.verbs import ObjectVerbs
from ..pool import BasePool
from ..protocol.figures import BUCKETS as _BUCKETS, COUNTER_WORDS as _COUNTER_WORDS, DEFERRED as _DEFERRED
from ..protocol.figures import HELD_BY_VIEWS as _HELD_BY_VIEWS, LATENCIES as _LATENCIES, LATENCY_WORDS as _LATENCY_WORDS
from ..protocol.figures import LEASES, SAMPLE_EVERY
from ..protocol.handle import Handle
from ..protocol.ledger import EXTENT as _EXTENT, GENERATION_FIELD as _GENERATION_FIELD
from ..protocol.ledger import MAX_NBYTES as _MAX_NBYTES, NBYTES_BITS as _NBYTES_BITS
from ..protocol.ledger import ONE_GENERATION as _ONE_GENERATION, ROW_WORDS as _ROW_WORDS
from ..protocol.ledger import SEAT_MASK as _SEAT_MASK, SHAPE_MASK as _SHAPE_MASK, STATE_SHIFT
from ..protocol.sizing import PAGE_SHIFT as _PAGE_SHIFT, Strategy
from ..protocol.states import CellState
from ..seat.deferred import DeferredReleases, FIRST_PAUSE, RECENT as _MOST_RECENT, SOON as _SOON
from ..seat.magazine import REAP_SCAN as _REAP_SCAN, TOGETHER as _TOGETHER, Magazine
from ..seat.slot import LAST_BASE as _LAST_BASE, Slot, ViewTaken
from ..seat.mapping import Mapping
from ..seat.records import Record, Ticket
from ..seat.tickets import ring
from ..seat.windows import Window, Windows, _all_alive as all_alive
from ..system import atomics, frames, heirs, libc
from ..system.descriptors import Descriptor
from ..system.here import COPIED as _COPIED, FORKING as _FORKING, FORKS as _FORKS, GUARDED as _GUARDED, HERE
from ..system.here import HELPERS as _HELPERS, IMPORTING as _IMPORTING, NOTED as _FORKS_NOTED, OURS as _OURS, UNSHARED as _UNSHARED
from ..system.here import WORKING as _WORKING
from ..system.outside import is_from_outside

cdef extern from "Python.h":
    object PyWeakref_NewProxy(object, PyObject *)
    object PyWeakref_NewRef(object, object)
    void PyErr_Clear()
    void PyErr_SetObject(object, object)
    int PyBuffer_FillInfo(Py_buffer *, PyObject *, void *, Py_ssize_t, bint, int)
    bint PyErr_ExceptionMatches(object)
    bint PyLong_CheckExact(object)
    Py_ssize_t PyLong_AsSsize_t(object) except? -1
    Py_ssize_t PyList_GET_SIZE(PyObject *)
    PyObject *PyList_GET_ITEM(PyObject *, Py_ssize_t)
    bint PyList_CheckExact(PyObject *)
    int PyList_Append(object, object) except -1
    bint PyTuple_CheckExact(PyObject *)
    bint PyAnySet_CheckExact(PyObject *)
    bint PyDict_CheckExact(PyObject *)
    Py_ssize_t PyTuple_GET_SIZE(PyObject *)
    PyObject *PyTuple_GET_ITEM(PyObject *, Py_ssize_t)
    int PyObject_GetBuffer(object, Py_buffer *, int)
    void PyBuffer_Release(Py_buffer *)
    Py_ssize_t PyObject_Size(PyObject *) except -1
    int PySequence_DelItem(PyObject *, Py_ssize_t) except -1
    bint PyObject_IsTrue(PyObject *) except -1
    uint64_t PyLong_AsUnsignedLongLong(object) except? 0xFFFFFFFFFFFFFFFF
    PyTypeObject *Py_TYPE(PyObject *)
    bint PyMemoryView_Check(PyObject *)
    Py_buffer *PyMemoryView_GET_BUFFER(PyObject *)
    PyObject *_PyType_Lookup(PyTypeObject *, object)
    bint PyDict_Next(PyObject *, Py_ssize_t *, PyObject **, PyObject **)
    object PyMethod_New(object, object)
    unsigned long PyThread_get_thread_ident()
    bint PyFloat_CheckExact(PyObject *)
    double PyFloat_AS_DOUBLE(PyObject *)

cdef extern from "slots.h":
    """
    #ifndef TWIN_DIGEST
    #define TWIN_DIGEST 0
    #endif
    """
    unsigned long TWIN_DIGEST
    Py_ssize_t slot_offset(object)
    PyObject *get_member(PyObject *, Py_ssize_t)
    void set_member(PyObject *, Py_ssize_t, PyObject *)
    bint word_of(PyObject *, uint64_t *)
    bint read_word(PyObject *, Py_ssize_t, uint64_t *)
    ctypedef struct Method:
        PyTypeObject *type
    bint is_a(PyObject *, object)
    Py_ssize_t items_in(PyObject *, PyTypeObject *) except -1
    int find_method(Method *, object, str, bint) except -1
    object call(Method *, PyObject *, PyObject *)
    object guard_member(object, Py_ssize_t, const char *, object, object (*)(PyObject *))
    int rotate(PyObject *, Py_ssize_t) except -1
    bint is_false(PyObject *, Py_ssize_t)
    bint is_true(PyObject *, Py_ssize_t)
    bint has_references(PyObject *, Py_ssize_t)
    bint words_of(PyObject *, uint64_t **, uint64_t *)
    object view_of(PyObject *, Py_ssize_t)
    bint is_alone(PyObject *)
    void announce(void *)
    void fetch(void *)
    uint64_t load(uint64_t *)
    void store(uint64_t *, uint64_t)
    void fence()
    bint swap_word(uint64_t *, uint64_t, uint64_t)
    bint lock_byte(int, uint64_t)
    void unlock_all(int)
    void switch_class(PyObject *, PyObject *)
    object new_instance(object)
    object new_handle(uint64_t, uint64_t, uint64_t)
    int keep_handles(object) except -1
    double nanoseconds()
    long threads_here()
    int map_whole(uint64_t, uint64_t, int, int, uint64_t)
    int bit_length(uint64_t)
    object take_trace()
    void copy_bytes(void *, const void *, Py_ssize_t)
    int fill(PyObject *, Py_buffer *, Py_ssize_t, bint) except -1
    int no_buffer() except -1
    object hold_byte(object, object, object, const char *, uint64_t)
    PyObject *behind_proxy(PyObject *)
    int cover_bytes(uint64_t, uint64_t) except -1
    void signal_eventfd(int)
    void give_buffers(object, int (*)(PyObject *, Py_buffer *, int) noexcept)

#: Of the sources that it was made from: see `sources.digest`.
DIGEST = TWIN_DIGEST

# --- what the protocol's modules say ------------------------------------------------------------------------

cdef uint64_t EXTENT = _EXTENT, GENERATION_FIELD = _GENERATION_FIELD, MAX_NBYTES = _MAX_NBYTES
cdef uint64_t ONE_GENERATION = _ONE_GENERATION, ROW_WORDS = _ROW_WORDS, SEAT_MASK = _SEAT_MASK
cdef uint64_t SHAPE_MASK = _SHAPE_MASK, LAST_BASE = _LAST_BASE, DONE = CellState.DONE << STATE_SHIFT
cdef uint64_t SAMPLE_MASK = SAMPLE_EVERY - 1, POOLED_SMALL = LEASES, POOLED_MEDIUM = LEASES + 1
cdef uint64_t CHUNKED_LARGE = LEASES + 4 + 2, DIRECT_VERY_LARGE = LEASES + 8 + 3
cdef int NBYTES_BITS = _NBYTES_BITS, PAGE_SHIFT = _PAGE_SHIFT
cdef Py_ssize_t PAGE_LESS_ONE = (1 << _PAGE_SHIFT) - 1, REAP_SCAN = _REAP_SCAN
cdef uint64_t TOGETHER = _TOGETHER
cdef int OURS = _OURS, UNSHARED = _UNSHARED, COPIED = _COPIED, FORKS_NOTED = _FORKS_NOTED
cdef uint64_t LATENCIES = _LATENCIES, LATENCY_WORDS = _LATENCY_WORDS, BUCKETS = _BUCKETS
cdef uint64_t COUNTER_WORDS = _COUNTER_WORDS, DEFERRED = _DEFERRED, HELD_BY_VIEWS = _HELD_BY_VIEWS
cdef Py_ssize_t MOST_RECENT = _MOST_RECENT
cdef double LONG_PAUSE = _SOON
cdef object NO_FORK = -1
cdef object ADAPTIVE = Strategy.ADAPTIVE

#: What is as large goes past the caches when it is written; and what is smaller, where readers are so many bytes
#: behind (docs/compiled.md says how that was measured).
cdef uint64_t PAST_CACHES = 8 << 20, PAST_CACHES_BEHIND = 4 << 20, FAR_BEHIND = 24 << 20

#: The page that a fork wipes: it stays where it is, in a child too, and when the interpreter ends, as arrays do then.
cdef object the_page = HERE
cdef uint64_t *here
cdef uint64_t here_words
if not words_of(<PyObject *>the_page, &here, &here_words):
    raise ImportError("the page that a fork wipes is not of words")

# --- where the members lie ----------------------------------------------------------------------------------

cdef Py_ssize_t member(type cls, str name) except -1:
    """The offset of one of a class's `__slots__`."""
    cdef Py_ssize_t offset = slot_offset(vars(cls).get(name))
    if offset < 0:
        raise ImportError(f"{cls.__name__}.{name} is not a member that __slots__ made")
    return offset

cdef Py_ssize_t POOL_SESSION = member(BasePool, "_session")

cdef Py_ssize_t IS_OVER = member(Mapping, "is_over"), HAS_DETAILS = member(Mapping, "has_details")
cdef Py_ssize_t POOLED_BELOW = member(Mapping, "pooled_below"), POOLED = member(Mapping, "pooled")
cdef Py_ssize_t CHUNKED_BELOW = member(Mapping, "chunked_below"), CHUNKED = member(Mapping, "chunked")
cdef Py_ssize_t SHELVES = member(Mapping, "shelves")
cdef Py_ssize_t MEDIUM_FROM = member(Mapping, "medium_from"), COUNTERS = member(Mapping, "counters")
cdef Py_ssize_t WORDS = member(Mapping, "words"), HEADER = member(Mapping, "header")
cdef Py_ssize_t IDLE = member(Mapping, "idle"), LEASED = member(Mapping, "leased")
cdef Py_ssize_t PUBLISHED = member(Mapping, "published"), TAKEN = member(Mapping, "taken")
cdef Py_ssize_t POOL_ID = member(Mapping, "pool_id"), IS_WATCHED = member(Mapping, "is_watched")
cdef Py_ssize_t RECORDS = member(Mapping, "records"), LEFT = member(Mapping, "left"), FORKS = member(Mapping, "forks")
cdef Py_ssize_t TICKETS_FD = member(Mapping, "tickets_fd"), IS_GATE_USED = member(Mapping, "is_gate_used")
cdef Py_ssize_t SWAP = member(Mapping, "swap"), RELEASES = member(Mapping, "deferred"), STRICT = member(Mapping, "strict")
cdef Py_ssize_t WARNED_OF_VIEWS = member(Mapping, "warned_of_views")

cdef Py_ssize_t RECENT = member(DeferredReleases, "_recent"), OLD = member(DeferredReleases, "_old")
cdef Py_ssize_t PARTINGS = member(DeferredReleases, "_partings"), NUMBERS = member(DeferredReleases, "_numbers")
cdef Py_ssize_t NOTED = member(DeferredReleases, "_noted"), PAUSE = member(DeferredReleases, "_pause")
cdef Py_ssize_t LENT = member(DeferredReleases, "_lent")

cdef Py_ssize_t READY = member(Magazine, "ready"), PUBLICATIONS = member(Magazine, "published")
cdef Py_ssize_t TURNS = member(Magazine, "turns"), MAGAZINE_SIZE = member(Magazine, "size")

cdef Py_ssize_t SLOT_SESSION = member(Slot, "session"), SLOT_BASE = member(Slot, "base"), SLOT_WORD = member(Slot, "word")
cdef Py_ssize_t SLOT_EXTENT_WORD = member(Slot, "extent_word"), SLOT_TAIL = member(Slot, "tail")
cdef Py_ssize_t SLOT_FIRST_CELL = member(Slot, "first_cell"), SLOT_LAST_CELL = member(Slot, "last_cell")
cdef Py_ssize_t SLOT_DONE = member(Slot, "done"), SLOT_WANTED = member(Slot, "wanted"), SLOT_LEASE = member(Slot, "lease")
cdef Py_ssize_t SLOT_WINDOW = member(Slot, "window"), SLOT_MAGAZINE = member(Slot, "magazine")
cdef Py_ssize_t SLOT_ORIGIN = member(Slot, "origin")

cdef Py_ssize_t LEASE_SLOT = member(Lease, "_slot"), LEASE_NBYTES = member(Lease, "nbytes"), LEASE_VIEW = member(Lease, "view")

cdef Py_ssize_t TICKET_RECORD = member(Ticket, "_record"), TICKET_GRANTED = member(Ticket, "_granted")
cdef Py_ssize_t TICKET_FORK = member(Ticket, "_fork"), TICKET_LAST_FORK = member(Ticket, "_last_fork")
cdef Py_ssize_t BUFFER_LEFT = member(Buffer, "_left")
cdef Py_ssize_t BUFFER_NBYTES = member(Buffer, "nbytes"), BUFFER_VIEW = member(Buffer, "view")

cdef Py_ssize_t RECORD_SESSION = member(Record, "session"), RECORD_WINDOW = member(Record, "window")
cdef Py_ssize_t RECORD_WORD = member(Record, "word"), RECORD_CELL = member(Record, "cell"), RECORD_SHAPE = member(Record, "shape")
cdef Py_ssize_t RECORD_LINKS = member(Record, "links"), RECORD_WANTED = member(Record, "wanted")
cdef Py_ssize_t RECORD_IS_DIRECT = member(Record, "is_direct"), RECORD_LEFT = member(Record, "left")
cdef Py_ssize_t RECORD_ENDED = member(Record, "ended")

cdef Py_ssize_t WINDOW_ADDRESS = member(Window, "address")

cdef Method append, appendleft, pop, popleft
find_method(&append, deque, "append", True)
find_method(&appendleft, deque, "appendleft", True)
find_method(&pop, deque, "pop", False)
find_method(&popleft, deque, "popleft", False)

cdef PyObject *NONE = <PyObject *>None

plain_lease, plain_open, plain_write = BasePool.lease, BasePool.open, Lease.write
plain_publish, plain_release_lease, plain_release_buffer = LiveLease.publish, LiveLease.release, LiveBuffer.release
part_with_slot, release_interrupted = LiveLease._part_with_slot, LiveBuffer._release_interrupted
plain_release_to_views, plain_get, await_readers = LiveBuffer.release_to_views, ObjectVerbs.get, LiveLease._await_readers


cdef inline bint is_row(uint64_t word, uint64_t count):
    """Whether the words of a row that begins there are among so many."""
    return count >= ROW_WORDS and word <= count - ROW_WORDS


cdef inline bint is_cell(uint64_t cell, uint64_t word):
    """Whether a word is one of the row that begins at another, but not its first."""
    return cell > word and cell - word < ROW_WORDS


cdef inline PyObject *living_session(PyObject *holder, Py_ssize_t offset):
    """The session of a pool, a slot or a record, of this process and not over; NULL for any other."""
    cdef PyObject *session = get_member(holder, offset)
    if not is_a(session, Mapping) or not is_false(session, IS_OVER):
        return NULL
    return session if here[OURS] else NULL


# --- lease --------------------------------------------------------------------------------------------------

def lease(self, nbytes, *, strategy=ADAPTIVE, timeout=None):
    if timeout is None and strategy is ADAPTIVE and PyLong_CheckExact(nbytes) and is_a(<PyObject *>self, BasePool):
        made = _lease(<PyObject *>self, nbytes)
        if made is not None:
            return made
    return plain_lease(self, nbytes, strategy=strategy, timeout=timeout)


cdef object _lease(PyObject *pool, object nbytes):
    """A lease of a slot that is ready or comes back, through a window that is there. None for any other case."""
    cdef PyObject *session = living_session(pool, POOL_SESSION)
    cdef PyObject *magazine
    cdef PyObject *table
    cdef PyObject *window
    cdef PyObject *slot
    cdef uint64_t *words
    cdef uint64_t count, counter, latencies, below, medium_from, leased, base, word, extent_word
    cdef object taken, made, proxy, held, shelf
    cdef Py_ssize_t size, category
    cdef bint is_timed
    cdef double started = 0
    cdef uint64_t asked
    if session == NULL or not word_of(<PyObject *>nbytes, &asked) or asked > MAX_NBYTES:
        return None
    size = <Py_ssize_t>asked
    is_timed = not is_false(session, HAS_DETAILS)
    if is_timed:
        started = nanoseconds()
    if not (read_word(session, POOLED_BELOW, &below) and read_word(session, COUNTERS, &counter)
            and read_word(session, MEDIUM_FROM, &medium_from) and read_word(session, LEASED, &leased)
            and words_of(get_member(session, WORDS), &words, &count)):
        return None
    latencies = counter + LATENCIES
    if <uint64_t>size < below:
        table = get_member(session, POOLED)
        if table == NULL or not PyList_CheckExact(table) or (size + PAGE_LESS_ONE) >> PAGE_SHIFT >= PyList_GET_SIZE(table):
            return None
        magazine = PyList_GET_ITEM(table, (size + PAGE_LESS_ONE) >> PAGE_SHIFT)
        category = 0 if <uint64_t>size < medium_from else 1
        counter += POOLED_MEDIUM if category else POOLED_SMALL
    else:
        if not read_word(session, CHUNKED_BELOW, &below):
            return None
        table = get_member(session, CHUNKED if <uint64_t>size < below else SHELVES)
        if table == NULL or not PyDict_CheckExact(table):
            return None
        magazine = PyDict_GetItemWithError(<object>table, (size + PAGE_LESS_ONE) >> PAGE_SHIFT)
        category = 2 if <uint64_t>size < below else 3
        counter += CHUNKED_LARGE if category == 2 else DIRECT_VERY_LARGE
    latencies += LATENCY_WORDS * <uint64_t>category
    if not is_a(magazine, Magazine) or counter >= count or latencies + LATENCY_WORDS > count:
        return None
    if not (is_timed or words[counter] & SAMPLE_MASK):  # one in 64 is timed in any case
        is_timed = True
        started = nanoseconds()
    held, shelf = <object>session, <object>magazine  # what follows may run anything
    taken = _take_slot(magazine, words, count)
    if taken is None:
        return None
    slot = <PyObject *>taken
    window = get_member(slot, SLOT_WINDOW)
    if window == NULL or window == NONE or not (
        read_word(slot, SLOT_BASE, &base) and read_word(slot, SLOT_WORD, &word)
        and read_word(slot, SLOT_EXTENT_WORD, &extent_word) and is_row(word, count)
    ):
        made = (<object>pool)._make_lease(held, taken, nbytes, counter)
        if is_timed:
            held.note_latency(category, <uint64_t>(nanoseconds() - started))
        return made
    try:
        made = new_instance(EndedLease)  # it has no finalizer until it is whole
        proxy = PyWeakref_NewProxy(made, NULL)
    except BaseException:
        call(&append, get_member(magazine, READY), <PyObject *>taken)
        raise
    if not here[OURS] or not is_false(session, IS_OVER):  # a finalizer has forked, or ended the seat
        (<object>get_member(magazine, READY)).append(taken)
        return None
    # LEASED with its own generation before anything is written: a sweep frees it if we die here.
    store(words + word, base | leased)
    store(words + word + EXTENT, extent_word | <uint64_t>size)
    words[counter] += 1
    set_member(<PyObject *>made, LEASE_SLOT, slot)
    set_member(<PyObject *>made, LEASE_NBYTES, <PyObject *>nbytes)
    set_member(<PyObject *>made, LEASE_VIEW, NONE)
    set_member(slot, SLOT_LEASE, <PyObject *>proxy)
    switch_class(<PyObject *>made, <PyObject *>LiveLease)
    if is_timed:
        _note_time(words + latencies, nanoseconds() - started)
    return made


cdef inline void _note_time(uint64_t *latencies, double took) noexcept:
    """Where a category's latencies are: a lease took so many nanoseconds. Two stores at once; with `detailed_metrics` in
    the place of what the plain client keeps for later, as they cost less here."""
    cdef uint64_t whole = <uint64_t>took
    cdef uint64_t bits = <uint64_t>bit_length(whole)
    latencies[0] += whole
    latencies[1 + min(bits - 8 if bits > 8 else 0, BUCKETS - 1)] += 1


cdef object _take_slot(PyObject *magazine, uint64_t *words, uint64_t count):
    """As `Magazine.reap` and what stands before it: the slot that is to be leased next, or None."""
    cdef PyObject *ready = get_member(magazine, READY)
    cdef PyObject *published = get_member(magazine, PUBLICATIONS)
    cdef PyObject *slot
    cdef uint64_t first, last, done, base
    cdef Py_ssize_t left
    cdef object next_base, candidate, oldest
    cdef uint64_t turns
    if items_in(ready, pop.type) > 0:
        return call(&pop, ready, NULL)
    if read_word(magazine, TURNS, &turns) and turns < <uint64_t>items_in(published, pop.type):
        oldest = _take_newest(magazine, words, count, turns)
        if oldest is not None:
            return oldest
    oldest = None
    left = min(items_in(published, pop.type), REAP_SCAN)
    while left > 0:
        left -= 1
        candidate = (<object>published)[0]
        slot = <PyObject *>candidate
        if not (
            is_a(slot, Slot) and read_word(slot, SLOT_FIRST_CELL, &first) and read_word(slot, SLOT_LAST_CELL, &last)
            and read_word(slot, SLOT_DONE, &done) and read_word(slot, SLOT_BASE, &base)
            and first == last and last < count and base + ONE_GENERATION <= LAST_BASE
        ):
            return oldest if oldest is not None else (<object>magazine).reap(left + 1)
        if load(words + first) != done:
            if oldest is not None:
                return oldest
            rotate(published, -1)
            continue
        next_base = base + ONE_GENERATION
        call(&popleft, published, NULL)
        set_member(slot, SLOT_BASE, <PyObject *>next_base)
        if oldest is None:
            oldest = candidate
        else:
            call(&appendleft, ready, <PyObject *>candidate)
    return oldest


cdef object _take_newest(PyObject *magazine, uint64_t *words, uint64_t count, uint64_t left):
    """As `Magazine._reap_newest`."""
    cdef PyObject *ready = get_member(magazine, READY)
    cdef PyObject *published = get_member(magazine, PUBLICATIONS)
    cdef PyObject *slot
    cdef uint64_t first, last, done, base
    cdef Py_ssize_t size = items_in(published, pop.type), at = size, least = max(0, at - REAP_SCAN), behind = 0
    cdef bint found = False
    cdef object next_base, candidate, oldest = None
    while at > least and left:
        at -= 1
        candidate = (<object>published)[size - 1 if found else at]
        slot = <PyObject *>candidate
        if not (
            is_a(slot, Slot) and read_word(slot, SLOT_FIRST_CELL, &first) and read_word(slot, SLOT_LAST_CELL, &last)
            and read_word(slot, SLOT_DONE, &done) and read_word(slot, SLOT_BASE, &base)
            and first <= last < count and base + ONE_GENERATION <= LAST_BASE
        ):
            if found and behind:
                rotate(published, -behind)
            return oldest if oldest is not None else (<object>magazine).reap()
        while first <= last and load(words + first) == done:
            first += 1
        if first <= last:
            behind += 1
            if found:
                rotate(published, 1)
            continue
        if not found and behind:  # those that are newer go to the other end for as long, all at once
            rotate(published, behind)
            left = max(left - min(left, <uint64_t>behind), min(left, TOGETHER))
        next_base = base + ONE_GENERATION
        call(&pop, published, NULL)
        size -= 1
        set_member(slot, SLOT_BASE, <PyObject *>next_base)
        found = True
        if oldest is not None:
            call(&append, ready, <PyObject *>oldest)
        oldest = candidate
        left -= 1
    if found and behind:
        rotate(published, -behind)
    return oldest


# --- write ----------------------------------------------------------------------------------------------------

def write(self, data):
    if not _write(<PyObject *>self, data):
        plain_write(self, data)


cdef bint _write(PyObject *lease, object data) except -1:
    """False where it is the plain one's. A view that nobody has asked for yet is not made: the window is written."""
    cdef PyObject *view
    cdef PyObject *slot
    cdef PyObject *window
    cdef uint64_t nbytes
    cdef Py_buffer source
    cdef object held, exporter
    if Py_TYPE(lease) != <PyTypeObject *>LiveLease or get_member(lease, LEASE_VIEW) == NULL:
        return False
    if PyObject_GetBuffer(data, &source, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0:
        no_buffer()
        return False
    try:
        view, slot = get_member(lease, LEASE_VIEW), get_member(lease, LEASE_SLOT)
        window = get_member(slot, SLOT_WINDOW) if is_a(slot, Slot) else NULL
        if (
            Py_TYPE(lease) != <PyTypeObject *>LiveLease or view == NULL or window == NULL or window == NONE
            or not here[OURS] or not read_word(lease, LEASE_NBYTES, &nbytes)
        ):
            return False
        held, exporter = <object>slot, <object>(window if view == NONE else view)
        return fill(<PyObject *>exporter, &source, <Py_ssize_t>nbytes, _goes_past_caches(slot, nbytes))
    finally:
        PyBuffer_Release(&source)


cdef object _make_view(PyObject *lease):
    """The view of a lease whose view nobody has asked for before. The plain client makes it with the lease."""
    cdef PyObject *slot = get_member(lease, LEASE_SLOT)
    cdef PyObject *window = get_member(slot, SLOT_WINDOW) if is_a(slot, Slot) else NULL
    cdef PyObject *other
    cdef uint64_t nbytes
    cdef object held, view
    if window == NULL or window == NONE or not read_word(lease, LEASE_NBYTES, &nbytes):
        raise ViewTaken
    held = <object>window
    view = view_of(<PyObject *>held, <Py_ssize_t>nbytes)
    other = get_member(lease, LEASE_VIEW)  # that may have run anything
    if other == NULL:
        raise ViewTaken
    if other == NONE:
        set_member(lease, LEASE_VIEW, <PyObject *>view)
        return view
    return <object>other


cdef bint _goes_past_caches(PyObject *slot, uint64_t nbytes) except -1:
    """Whether so many bytes that are written there go past the caches: they would not hold them until they are read."""
    cdef PyObject *magazine = get_member(slot, SLOT_MAGAZINE)
    cdef PyObject *session = get_member(slot, SLOT_SESSION) if magazine != NULL else NULL
    cdef PyObject *published
    cdef PyObject *other
    cdef uint64_t *words
    cdef uint64_t count, size, cell, done
    cdef Py_ssize_t back
    cdef object held
    if nbytes < PAST_CACHES_BEHIND:
        return False
    if nbytes >= PAST_CACHES:
        return True
    if not (
        session != NULL and is_a(session, Mapping) and is_a(magazine, Magazine) and read_word(magazine, MAGAZINE_SIZE, &size)
        and size and words_of(get_member(session, WORDS), &words, &count)
    ):
        return False
    published = get_member(magazine, PUBLICATIONS)
    back = items_in(published, pop.type) - max(<Py_ssize_t>1, <Py_ssize_t>(FAR_BEHIND // size))
    if back < 0:
        return False
    held = (<object>published)[back]
    other = <PyObject *>held
    return is_a(other, Slot) and read_word(other, SLOT_LAST_CELL, &cell) and read_word(other, SLOT_DONE, &done) and (
        cell < count and load(words + cell) != done
    )


# --- publish, and the release of a lease ----------------------------------------------------------------------

cdef bint _drop_view(PyObject *holder, Py_ssize_t offset) except -1:
    """Take the view away from everybody else. Who kept it for himself finds it released, unless something hangs
    on it: the window's reference count tells."""
    cdef object view = <object>get_member(holder, offset)
    set_member(holder, offset, NULL)
    if view is not None and not has_references(<PyObject *>view, 1):
        try:
            view.release()
        except BufferError:
            pass
    return True


cdef inline bint is_view(PyObject *view):
    """Whether it is a lease's, made or still to be made: who has taken it away has the lease."""
    return view != NULL and (view == NONE or PyMemoryView_Check(view))


def publish(self, *, ttl=None):
    if ttl is None and Py_TYPE(<PyObject *>self) == <PyTypeObject *>LiveLease:
        handle = _publish(<PyObject *>self)
        if handle is not None:
            return handle
    return plain_publish(self, ttl=ttl)


cdef object _publish(PyObject *lease):
    cdef PyObject *slot = get_member(lease, LEASE_SLOT)
    cdef PyObject *view = get_member(lease, LEASE_VIEW)
    cdef PyObject *session
    cdef PyObject *magazine
    cdef PyObject *window
    cdef uint64_t *words
    cdef uint64_t count, base, published, pool_id, tail, nbytes, word, cell, granted
    cdef object done, handle, held, made
    if not is_a(slot, Slot) or not is_view(view):
        return None
    session = living_session(slot, SLOT_SESSION) if here[COPIED] else NULL
    if session == NULL or not (
        read_word(slot, SLOT_BASE, &base) and read_word(session, PUBLISHED, &published)
        and read_word(session, POOL_ID, &pool_id) and read_word(slot, SLOT_TAIL, &tail)
        and read_word(lease, LEASE_NBYTES, &nbytes) and read_word(slot, SLOT_WORD, &word)
        and read_word(slot, SLOT_FIRST_CELL, &cell) and words_of(get_member(session, WORDS), &words, &count)
        and is_row(word, count) and is_cell(cell, word)
    ):
        return None
    granted = base | published
    done = base | DONE
    held = <object>slot
    handle = new_handle(pool_id, granted, tail | nbytes)
    # That may have run anything: who has ended the lease meanwhile has taken its view.
    view = get_member(lease, LEASE_VIEW)
    if Py_TYPE(lease) != <PyTypeObject *>LiveLease or not is_view(view):
        return None
    session = living_session(slot, SLOT_SESSION) if here[COPIED] else NULL
    magazine, window = get_member(slot, SLOT_MAGAZINE), get_member(slot, SLOT_WINDOW)
    if session == NULL or not is_a(magazine, Magazine) or window == NULL or window == NONE:
        return None
    _drop_view(lease, LEASE_VIEW)  # whose end may have run anything, too
    magazine, window = get_member(slot, SLOT_MAGAZINE), get_member(slot, SLOT_WINDOW)
    if not has_references(window, 1) or not is_a(magazine, Magazine) or not is_false(session, IS_OVER) or not here[COPIED]:
        try:
            made = _publish_with_views(lease, slot, session, handle, cell, word, granted, done)
            return (<object>lease)._publish_slowly(1)[0] if made is None else made
        except BaseException as error:
            part_with_slot(<object>lease, error)
            raise
    # The bytes and the cell are there before the grant word says so, and the slot is waited for
    # only after it: whoever reaps finds either the last publication's DONE or this one's cell.
    store(words + cell, granted)
    store(words + word, granted)
    switch_class(lease, <PyObject *>EndedLease)
    set_member(lease, LEASE_SLOT, get_member(slot, SLOT_ORIGIN))
    set_member(slot, SLOT_LAST_CELL, get_member(slot, SLOT_FIRST_CELL))
    set_member(slot, SLOT_DONE, <PyObject *>done)
    call(&append, get_member(magazine, PUBLICATIONS), <PyObject *>held)
    return handle


def release_lease(self):
    if not (Py_TYPE(<PyObject *>self) == <PyTypeObject *>LiveLease and _release_lease(<PyObject *>self)):
        plain_release_lease(self)


cdef bint _release_lease(PyObject *lease) except -1:
    """False where it is the plain one's."""
    cdef PyObject *slot = get_member(lease, LEASE_SLOT)
    cdef PyObject *view = get_member(lease, LEASE_VIEW)
    cdef PyObject *session
    cdef PyObject *magazine
    cdef PyObject *window
    cdef uint64_t *words
    cdef uint64_t *header
    cdef uint64_t count, header_count, base, idle, word, wanted
    cdef object next_base, held
    if not is_a(slot, Slot) or not is_view(view):
        return False
    session = living_session(slot, SLOT_SESSION) if here[COPIED] else NULL
    magazine, window = get_member(slot, SLOT_MAGAZINE), get_member(slot, SLOT_WINDOW)
    if session == NULL or not is_a(magazine, Magazine) or window == NULL or window == NONE:
        return False
    if not (
        read_word(slot, SLOT_BASE, &base) and base + ONE_GENERATION <= LAST_BASE and read_word(session, IDLE, &idle)
        and read_word(slot, SLOT_WORD, &word) and read_word(slot, SLOT_WANTED, &wanted)
        and words_of(get_member(session, WORDS), &words, &count) and is_row(word, count)
        and words_of(get_member(session, HEADER), &header, &header_count) and wanted < header_count
    ):
        return False
    base += ONE_GENERATION
    next_base, held = base, <object>slot
    _drop_view(lease, LEASE_VIEW)
    magazine, window = get_member(slot, SLOT_MAGAZINE), get_member(slot, SLOT_WINDOW)
    if not has_references(window, 1) or not is_a(magazine, Magazine) or not is_false(session, IS_OVER) or not here[COPIED]:
        try:
            if here[OURS] and not here[COPIED]:
                (<object>session).guards.settle()
            (<object>lease)._release_otherwise()
        except BaseException as error:
            part_with_slot(<object>lease, error)
            raise
        return True
    switch_class(lease, <PyObject *>EndedLease)
    set_member(lease, LEASE_SLOT, get_member(slot, SLOT_ORIGIN))
    set_member(slot, SLOT_BASE, <PyObject *>next_base)
    store(words + word, base | idle)
    call(&append, get_member(magazine, READY), <PyObject *>held)
    fence()  # IDLE before the look whether somebody waits
    if load(header + wanted):
        (<object>session).is_wanted = True
        (<object>session).wake_helper()
    return True


include "lent.pxi"


# --- open, and the release of a buffer ------------------------------------------------------------------------

def open(self, handle, *, writable=False):
    if not writable and is_a(<PyObject *>self, BasePool):
        buffer = _open(<PyObject *>self, handle, False)
        if buffer is not None:
            return buffer
    return plain_open(self, handle, writable=writable)


cdef object _open(PyObject *pool, object handle, bint is_lent):
    """The usual case: a record that is there and mapped right, a ticket that is ours at once. None for any other.
    A buffer, or what is *lent* to an array."""
    cdef PyObject *session
    cdef PyObject *record
    cdef PyObject *window
    cdef PyObject *links
    cdef PyObject *link
    cdef PyObject *table
    cdef uint64_t *words
    cdef uint64_t[3] parts
    cdef uint64_t count, pool_id, granted, tail, taken, word, cell, shape, at, value
    cdef Py_ssize_t i
    cdef PyObject *swap
    cdef int fd
    cdef bint is_mine, by_lock
    cdef object kept, seen, buffer
    cdef Lent lent
    if not PyBytes_Check(handle) or PyBytes_GET_SIZE(handle) != 24:
        return None
    session = living_session(pool, POOL_SESSION)
    if session == NULL or not is_true(session, IS_WATCHED):
        return None
    if items_in(get_member(session, LEFT), pop.type):
        table = _deferred_of(session)
        if table == NULL:
            return None
        seen = <object>session
        _look(table, session)
        if not is_true(session, IS_WATCHED):
            return None
    memcpy(parts, PyBytes_AS_STRING(handle), 24)
    granted, tail = parts[1], parts[2]
    table = get_member(session, RECORDS)
    if not (
        read_word(session, POOL_ID, &pool_id) and pool_id == parts[0] and read_word(session, TAKEN, &taken)
        and words_of(get_member(session, WORDS), &words, &count) and table != NULL and PyDict_CheckExact(table)
    ):
        return None
    record = PyDict_GetItemWithError(<object>table, tail >> NBYTES_BITS)
    if record == NULL or Py_TYPE(record) != <PyTypeObject *>Record:
        return None
    kept = <object>record
    window, links = get_member(record, RECORD_WINDOW), get_member(record, RECORD_LINKS)
    if window == NULL or window == NONE or links == NULL or not PyTuple_CheckExact(links) or not (
        read_word(record, RECORD_WORD, &word) and read_word(record, RECORD_CELL, &cell)
        and read_word(record, RECORD_SHAPE, &shape) and is_row(word, count) and is_cell(cell, word)
    ):
        return None
    announce(words + word)
    if is_a(window, Window) and read_word(window, WINDOW_ADDRESS, &at):
        fetch(<void *>at)
    seen = <object>window
    if PyObject_Size(window) < <Py_ssize_t>(tail & MAX_NBYTES):  # it maps another shape
        return None
    if is_lent:
        if not is_false(record, RECORD_IS_DIRECT) or _deferred_of(session) == NULL:
            return None
        buffer = lent = Lent.__new__(Lent)
        if not lent.begin(record, window, granted, tail & MAX_NBYTES, get_member(session, FORKS)):
            return None
    else:
        buffer = _buffer_of(record, window, granted, tail & MAX_NBYTES)
        set_member(<PyObject *>buffer, TICKET_FORK, get_member(session, FORKS))
    # The allocations may have run anything. From here to the end nothing else of this process runs: where nobody
    # uses the gate, nobody has a byte locked through our descriptor, and the unlock of all is ours alone.
    # Who waits for a busy byte in the plain way uses the gate.
    if not is_false(session, IS_GATE_USED):
        return None
    swap = get_member(session, SWAP)
    if swap == NULL or not (swap == NONE or Py_TYPE(swap) == <PyTypeObject *>Swap):
        return None
    by_lock = swap == NONE
    if get_member(record, RECORD_WINDOW) != window or not is_false(session, IS_OVER) or not here[FORKS_NOTED]:
        return None
    for i in range(PyTuple_GET_SIZE(links)):  # the run is still the one that is mapped
        link = PyTuple_GET_ITEM(links, i)
        at, value = PyLong_AsUnsignedLongLong((<object>link)[0]), PyLong_AsUnsignedLongLong((<object>link)[1])
        if at >= count or load(words + at) != value:
            return None
    fd = <object>get_member(session, TICKETS_FD) if by_lock else -1  # a number, while the seat is not over
    if by_lock and not lock_byte(fd, tail >> NBYTES_BITS):
        return None
    # The grant word and the shape are the handle's, and stay so while the cell is PENDING: TAKEN while the byte is
    # locked, then the unlock, or by the swap.
    is_mine = (
        load(words + word) == granted and load(words + word + EXTENT) & SHAPE_MASK == shape | tail & MAX_NBYTES
        and load(words + cell) == granted
    )
    if by_lock:
        if is_mine:
            store(words + cell, granted & GENERATION_FIELD | taken)
        unlock_all(fd)
        fence()  # no load of the bytes comes before the look at the cell
    elif is_mine:
        is_mine = swap_word(words + cell, granted, granted & GENERATION_FIELD | taken)
    if not is_mine:
        return None  # the plain way says why
    if is_lent:
        try:
            _note_lent(session, record, True)
        except BaseException:  # no memory: nobody has opened it, so whoever asks again may
            store(words + cell, granted)
            raise
        lent.is_open = True
    else:
        switch_class(<PyObject *>buffer, <PyObject *>LiveBuffer)
    return buffer


cdef object _buffer_of(PyObject *record, PyObject *window, uint64_t granted, uint64_t nbytes):
    """A buffer that is to be open, for who has a reference to both: ended before, since it has no finalizer until it is
    whole; and since when is still to be said."""
    cdef object buffer = new_instance(EndedBuffer)
    cdef object view = view_of(window, nbytes)
    cdef object grant = granted, length = nbytes
    set_member(<PyObject *>buffer, TICKET_RECORD, record)
    set_member(<PyObject *>buffer, TICKET_GRANTED, <PyObject *>grant)
    set_member(<PyObject *>buffer, BUFFER_NBYTES, <PyObject *>length)
    set_member(<PyObject *>buffer, BUFFER_LEFT, get_member(record, RECORD_LEFT))
    set_member(<PyObject *>buffer, BUFFER_VIEW, <PyObject *>view)
    return buffer


cdef inline void _end_buffer(PyObject *buffer, PyObject *record):
    """For who has a reference to the record."""
    switch_class(buffer, <PyObject *>EndedBuffer)
    set_member(buffer, TICKET_RECORD, get_member(record, RECORD_ENDED))


def release_buffer(self):
    if not (Py_TYPE(<PyObject *>self) == <PyTypeObject *>LiveBuffer and _release_buffer(<PyObject *>self)):
        plain_release_buffer(self)


cdef bint _release_buffer(PyObject *buffer) except -1:
    """False where it is the plain one's."""
    cdef PyObject *record = get_member(buffer, TICKET_RECORD)
    cdef PyObject *view = get_member(buffer, BUFFER_VIEW)
    cdef PyObject *session
    cdef PyObject *window
    cdef uint64_t *words
    cdef uint64_t *header
    cdef uint64_t count, header_count, granted, word, cell, wanted
    cdef object kept, grant
    if record == NULL or Py_TYPE(record) != <PyTypeObject *>Record or view == NULL or not PyMemoryView_Check(view):
        return False
    session, window = get_member(record, RECORD_SESSION), get_member(record, RECORD_WINDOW)
    if not here[UNSHARED] or window == NULL or window == NONE or not is_a(session, Mapping):
        return False
    if not (
        read_word(buffer, TICKET_GRANTED, &granted) and (is_false(record, RECORD_IS_DIRECT) or granted & SEAT_MASK)
        and read_word(record, RECORD_WORD, &word) and read_word(record, RECORD_CELL, &cell)
        and read_word(record, RECORD_WANTED, &wanted) and words_of(get_member(session, WORDS), &words, &count)
        and is_row(word, count) and is_cell(cell, word)
        and words_of(get_member(session, HEADER), &header, &header_count) and wanted < header_count
    ):
        return False
    kept, grant = <object>record, <object>get_member(buffer, TICKET_GRANTED)
    _drop_view(buffer, BUFFER_VIEW)
    window = get_member(record, RECORD_WINDOW)
    if not has_references(window, 1) or not here[UNSHARED]:
        try:
            if not _leave_to_views(buffer, session, True):
                (<object>buffer)._release_slowly()
        except BaseException:
            release_interrupted(<object>buffer)
            raise
        return True
    # The view is gone, then DONE, then the look who is custodian. A publisher that leaves stores the
    # broker's custody and then looks at the cells: one of the two sees what the other has stored.
    store(words + cell, granted & GENERATION_FIELD | DONE)
    _end_buffer(buffer, record)
    fence()
    if load(words + word) != granted or load(header + wanted):
        ring(kept, grant)
    return True


def release_to_views(self):
    if not (
        Py_TYPE(<PyObject *>self) == <PyTypeObject *>LiveBuffer and get_member(<PyObject *>self, BUFFER_VIEW) != NULL
        and _release_to_views(<PyObject *>self)
    ):
        plain_release_to_views(self)


cdef bint _release_to_views(PyObject *buffer) except -1:
    """False where it is the plain one's."""
    cdef PyObject *record = get_member(buffer, TICKET_RECORD)
    cdef PyObject *window
    cdef PyObject *session
    cdef uint64_t granted
    cdef object kept
    if record == NULL or Py_TYPE(record) != <PyTypeObject *>Record or not is_false(record, RECORD_IS_DIRECT):
        return False
    session, window = get_member(record, RECORD_SESSION), get_member(record, RECORD_WINDOW)
    if not is_a(session, Mapping) or window == NULL or window == NONE or not read_word(buffer, TICKET_GRANTED, &granted):
        return False
    kept = <object>record
    set_member(buffer, BUFFER_VIEW, NULL)  # with nobody else's eyes on it, it is gone
    window = get_member(record, RECORD_WINDOW)
    if has_references(window, 1) and here[UNSHARED] and is_false(session, IS_OVER):
        _end_buffer(buffer, record)
        _finish(record, session, granted)
        return True
    try:
        if not _leave_to_views(buffer, session, False):
            (<object>buffer)._release_slowly(to_views=True)
    except BaseException:
        release_interrupted(<object>buffer)
        raise
    return True


include "parting.pxi"

include "objects.pxi"

include "queues.pxi"

include "forks.pxi"

include "windows.pxi"


# --- words --------------------------------------------------------------------------------------------------

cdef class Swap:
    """The compare-and-swap of the words of a view: see `system.atomics`."""

    cdef object view

    def __init__(self, view):
        self.view = view

    def __call__(self, index, expected, wanted):
        cdef uint64_t *words
        cdef uint64_t count, at = index, old = expected, new = wanted
        if not words_of(<PyObject *>self.view, &words, &count):
            raise ValueError("the memory of these words was given up")
        if at >= count:
            raise IndexError(f"there are {count} words, and no word {at}")
        return bool(swap_word(words + at, old, new))


# --- blocks ---------------------------------------------------------------------------------------------------

def enter(self):
    return self

cdef object open_twin = open


def exit_lease(self, kind, value, trace):
    cdef PyTypeObject *cls = Py_TYPE(<PyObject *>self)
    if cls == <PyTypeObject *>EndedLease:
        return
    try:
        if not (cls == <PyTypeObject *>LiveLease and _release_lease(<PyObject *>self)):
            self.release()
    except LeakedView as error:
        if kind is None or is_from_outside(error):
            raise


def exit_buffer(self, kind, value, trace):
    cdef PyTypeObject *cls = Py_TYPE(<PyObject *>self)
    if cls == <PyTypeObject *>EndedBuffer:
        return
    try:
        if not (cls == <PyTypeObject *>LiveBuffer and _release_buffer(<PyObject *>self)):
            self.release()
    except LeakedView as error:
        if kind is None or is_from_outside(error):
            raise


# --- for tests ----------------------------------------------------------------------------------------------

def traced(words, header):
    """What a traced build has done to shared words since the last call, in order: what, to which word of which of
    both, with which value. None of any other build."""
    cdef uint64_t *ours
    cdef uint64_t *theirs
    cdef uint64_t count, header_count, at
    took = take_trace()
    if took is None or not (words_of(<PyObject *>words, &ours, &count) and words_of(<PyObject *>header, &theirs, &header_count)):
        return None
    told = []
    for kind, address, value in took:
        at = address
        if <uint64_t>ours <= at < <uint64_t>(ours + count):
            told.append((kind, "row", (at - <uint64_t>ours) // 8, value))
        elif <uint64_t>theirs <= at < <uint64_t>(theirs + header_count):
            told.append((kind, "header", (at - <uint64_t>theirs) // 8, value))
        else:
            told.append((kind, "", at, value))
    return told


# --- in place of the plain ones -------------------------------------------------------------------------------

_TWINS = (
    (BasePool, "lease", lease), (BasePool, "open", open),
    (LiveLease, "publish", publish), (LiveLease, "release", release_lease), (LiveBuffer, "release", release_buffer),
    (Lease, "write", write), (Lease, "__enter__", enter), (Lease, "__exit__", exit_lease),
    (Buffer, "__enter__", enter), (Buffer, "__exit__", exit_buffer),
    (LiveBuffer, "release_to_views", release_to_views), (ObjectVerbs, "get", get), (Windows, "_make", make_window),
)


def install():
    """Put the twins in the place of the plain methods; those of queues when these are imported."""
    from ..queues import compiled
    _put_in_place(_TWINS)
    keep_handles(Handle)
    LiveLease.view = guard_member(LiveLease, LEASE_VIEW, b"view", ViewTaken, _make_view)
    del LiveLease.__getattr__
    atomics.compiled = Swap
    compiled.install = install_queues
    install_forks()


def _put_in_place(twins):
    for cls, name, twin in twins:
        plain = vars(cls)[name]
        twin.__doc__, twin.__wrapped__, twin.__qualname__ = plain.__doc__, plain, plain.__qualname__
        twin.__name__ = plain.__name__
        setattr(cls, name, twin)
