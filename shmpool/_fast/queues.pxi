# Queues: the short ways of put and get (`queues.putting`, `queues.getting`), one by one and in runs.
#
# A queue's ends have their locks in shared memory; in front of each is a lock of this process's, the gate. Nothing
# else of this process runs from the look at the gate to the end of what is done behind it: so where nobody has the
# gate it need not be taken, and no signal handler comes in between. What is allocated there are bytes, which collects no
# garbage; one that cannot be had leaves the item where it is.

cdef extern from "semaphores.h":
    uint64_t *take_semaphore(uint64_t *)
    void give_semaphore(uint64_t *)
    bint is_free(void *)
    void order_store_and_semaphore()
    bint watch(uint64_t *, uint64_t, double)

cdef extern from *:
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *, Py_ssize_t)
    PyObject *new_token "new_handle"(uint64_t, uint64_t, uint64_t)
    void set_item "PyList_SET_ITEM"(PyObject *, Py_ssize_t, PyObject *)
    PyObject **items_of(PyObject *)
    void forget "Py_DECREF"(PyObject *)

cdef uint64_t Q_TAIL, Q_HEAD, Q_ODD, GETTERS_SLEEP, PUTTERS_SLEEP, SLEEPERS, Q_VERSIONS, Q_SEMAPHORES, Q_SEMAPHORE_WORDS, Q_LOCKS
cdef uint64_t LOW = 0xFFFFFFFF, INLINE, BYTES, TOKEN, ITEM_ROUNDING, GRANULE_SHIFT, KIND_SHIFT, LENGTH_SHIFT, LENGTH_MASK
cdef uint64_t GRANULE_WORDS
cdef Py_ssize_t MOST_ITEMS
cdef Py_ssize_t QUEUE_RING, RING_SHORT_WAY, RING_IS_CLOSED, IS_WATCHING
cdef int TAIL_END = 0, HEAD_END = 1
cdef type Queue, Ring
cdef object missed, flat, dumps, loads, patience, plain_put_fast, plain_get_fast, plain_put, plain_get_one, plain_put_many
cdef object plain_get_many, plain_check_wait, Full, bytes_type = bytes


def install_queues():
    """Put the twins of a queue's methods in the place of the plain ones, once those are there."""
    global Q_TAIL, Q_HEAD, Q_ODD, GETTERS_SLEEP, PUTTERS_SLEEP, SLEEPERS, Q_VERSIONS, Q_SEMAPHORES, Q_SEMAPHORE_WORDS, Q_LOCKS
    global INLINE, BYTES, TOKEN, ITEM_ROUNDING, GRANULE_SHIFT, KIND_SHIFT, LENGTH_SHIFT, LENGTH_MASK, GRANULE_WORDS
    global MOST_ITEMS, QUEUE_RING, RING_SHORT_WAY, RING_IS_CLOSED, IS_WATCHING, Queue, Ring, missed, flat, dumps, loads
    global Full, patience, plain_put_fast, plain_get_fast, plain_put, plain_get_one, plain_put_many, plain_get_many
    global plain_check_wait
    import pickle
    import queue as standard
    from ..protocol import queues as layout
    from ..queues import bell, compiled, getting, memory, pickling, putting, queue, ring, runs
    from ..system import patience as waiting
    Q_TAIL, Q_HEAD, Q_ODD, SLEEPERS = layout.TAIL, layout.HEAD, layout.ODD, layout.SLEEPERS_MASK
    GETTERS_SLEEP, PUTTERS_SLEEP, Q_VERSIONS = layout.GETTERS_SLEEP, layout.PUTTERS_SLEEP, layout.VERSIONS
    Q_SEMAPHORES, Q_SEMAPHORE_WORDS, Q_LOCKS = layout.SEMAPHORES, layout.SEMAPHORE_WORDS, layout.LOCKS
    INLINE, BYTES, TOKEN = layout.Kind.INLINE, layout.Kind.BYTES, layout.Kind.TOKEN
    ITEM_ROUNDING, GRANULE_SHIFT = layout.ITEM_HEAD + layout.GRANULE_BYTES - 1, layout.GRANULE_SHIFT
    KIND_SHIFT, LENGTH_SHIFT, LENGTH_MASK = layout.KIND_SHIFT, layout.LENGTH_SHIFT, layout.LENGTH_MASK
    GRANULE_WORDS, MOST_ITEMS = layout.GRANULE_BYTES // 8, runs.MOST_ITEMS
    Queue, Ring, patience = queue.Queue, ring.Ring, waiting
    QUEUE_RING, RING_SHORT_WAY = member(Queue, "_ring"), member(memory.Memory, "short_way")
    RING_IS_CLOSED, IS_WATCHING = member(memory.Memory, "is_closed"), member(bell.Bell, "is_watching")
    Full, missed, flat, dumps, loads = standard.Full, getting.MISSED, pickling.FLAT, pickle.dumps, pickle.loads
    plain_put_fast, plain_get_fast = putting.Putting.put_fast, getting.Getting.get_fast
    plain_put, plain_get_one = Queue.put, Queue.get
    plain_put_many, plain_get_many, plain_check_wait = Queue.put_many, Queue.get_many, queue.check_wait
    _put_in_place((
        (putting.Putting, "put_fast", put_fast), (getting.Getting, "get_fast", get_fast), (Queue, "put", queue_put),
        (Queue, "get", queue_get), (Queue, "put_many", queue_put_many), (Queue, "get_many", queue_get_many),
    ))
    compiled.short_way = short_way


cdef class ShortWay:
    """What the short ways need of a queue in one process: where its words lie, and how many there are."""

    cdef object words, session, bell, gates
    cdef uint64_t *word
    #: The ledger's, for hints alone: they may be gone.
    cdef uint64_t *row
    cdef uint64_t rows, count, granules, mask, first, capacity, inline_limit, most_inline, name
    cdef uint64_t said[2]
    cdef void *gate[2]
    cdef bint may_get
    #: As `Putting` and `Getting` remember them.
    cdef uint64_t last_tail, seen_head, seen_tail


def short_way(ring):
    """That of a queue; None of one whose memory is not what it seems."""
    cdef ShortWay way = ShortWay.__new__(ShortWay)
    cdef uint64_t at
    cdef int number
    way.words, way.session, way.bell, way.gates = ring.words, ring.session, ring.bell, []
    if not words_of(<PyObject *>way.words, &way.word, &way.count) or not isinstance(way.session, Mapping):
        return None
    if not words_of(get_member(<PyObject *>way.session, WORDS), &way.row, &way.rows):
        way.rows = 0
    way.granules, way.mask, way.first, way.capacity = ring.granules, ring.mask, ring.first // 8, ring.capacity
    way.inline_limit, way.most_inline = max(0, ring.inline_limit), ring.most_inline
    way.name, way.may_get = ring.tail_end.name, ring.members is None and ring.hands is None
    for number, end in enumerate((ring.tail_end, ring.head_end)):
        way.said[number] = end.said
        way.gates.append(end.gate_memory)
        at = end.gate_address
        way.gate[number] = <void *>at
        if way.said[number] >= way.first:
            return None
    if (
        way.granules != way.mask + 1 or way.granules & way.mask or way.granules > LOW
        or way.first % GRANULE_WORDS or way.first + way.granules * GRANULE_WORDS > way.count
        or way.first < Q_LOCKS + 2 * Q_VERSIONS * Q_SEMAPHORE_WORDS
    ):
        return None
    way.last_tail = way.seen_head = <uint64_t>-1
    way.seen_tail = load(way.word + Q_HEAD)
    return way


cdef inline ShortWay _way_of(PyObject *ring):
    """None where this process has to look twice."""
    cdef PyObject *way
    cdef uint64_t *words
    cdef uint64_t count
    if ring == NULL or not is_a(ring, Ring) or not is_false(ring, RING_IS_CLOSED) or not here[OURS]:
        return None
    way = get_member(ring, RING_SHORT_WAY)
    if way == NULL or Py_TYPE(way) != <PyTypeObject *>ShortWay or not is_false(<PyObject *>(<ShortWay>way).session, IS_OVER):
        return None
    if not words_of(<PyObject *>(<ShortWay>way).words, &words, &count) or words != (<ShortWay>way).word:
        return None
    return <ShortWay>way


cdef inline uint64_t *_enter(ShortWay way, int end):
    """Lock an end, where that is possible at once: the semaphore that is to be given back, else NULL."""
    cdef uint64_t version
    cdef uint64_t *semaphore
    if not is_free(way.gate[end]):
        return NULL
    version = load(way.word + Q_SEMAPHORES + end)
    store(way.word + way.said[end], way.name)
    order_store_and_semaphore()
    semaphore = take_semaphore(
        way.word + Q_LOCKS + (<uint64_t>end * Q_VERSIONS + version % Q_VERSIONS) * Q_SEMAPHORE_WORDS
    )
    order_store_and_semaphore()
    if semaphore != NULL and load(way.word + Q_SEMAPHORES + end) != version:
        give_semaphore(semaphore)  # who mends has made another count
        semaphore = NULL
    if semaphore == NULL:
        store(way.word + way.said[end], 0)
    return semaphore


cdef inline void _leave(ShortWay way, int end, uint64_t *semaphore):
    give_semaphore(semaphore)
    store(way.word + way.said[end], 0)
    order_store_and_semaphore()


# --- put ------------------------------------------------------------------------------------------------------

cdef Py_ssize_t _store_items(ShortWay way, PyObject **items, Py_ssize_t most, uint64_t kind):
    """Put the first of some bytes, as many as find room: how many."""
    cdef uint64_t *word = way.word
    cdef uint64_t *lock
    cdef uint64_t *place
    cdef uint64_t tail, head, at, count, length
    cdef Py_ssize_t done = 0
    announce(word + Q_TAIL)
    lock = _enter(way, TAIL_END)
    if lock == NULL:
        return 0
    tail = load(word + Q_TAIL)
    if tail != way.last_tail:
        way.seen_head = load(word + Q_HEAD)
    head, at = way.seen_head, tail >> 32
    if not load(word + Q_ODD):
        while done < most:
            length = <uint64_t>PyBytes_GET_SIZE(<object>items[done])
            count = length + ITEM_ROUNDING >> GRANULE_SHIFT
            if (at - (head >> 32) & LOW) + count > way.inline_limit or (tail - head & LOW) >= way.capacity:
                way.seen_head = head = load(word + Q_HEAD)
            if (
                length > way.most_inline or (at - (head >> 32) & LOW) + count > way.inline_limit
                or (at & way.mask) + count > way.granules or (tail - head & LOW) >= way.capacity
            ):
                break
            place = word + way.first + (at & way.mask) * GRANULE_WORDS
            copy_bytes(place + 1, PyBytes_AS_STRING(<object>items[done]), length)
            store(place, at | length << LENGTH_SHIFT | kind << KIND_SHIFT)
            at = at + count & LOW
            tail = at << 32 | (tail + 1 & LOW)
            done += 1
        if done:
            way.last_tail = tail
            store(word + Q_TAIL, tail)
    announce(word + way.first + (at & way.mask) * GRANULE_WORDS)
    _leave(way, TAIL_END, lock)
    return done


cdef inline bint _tell_of_items(ShortWay way, PyObject *ring, Py_ssize_t count) except -1:
    if load(way.word + GETTERS_SLEEP) & SLEEPERS:
        (<object>ring)._wake_getters(count)
    return True


def put_fast(self, data, kind):
    cdef PyObject *item = <PyObject *>data
    way = _way_of(<PyObject *>self)
    if way is None or not PyBytes_Check(data):
        return plain_put_fast(self, data, kind)
    if not _store_items(way, &item, 1, kind):
        return False
    _tell_of_items(way, <PyObject *>self, 1)
    return True


cdef inline bint _check_wait(object timeout) except -1:
    """Raise what the plain way does for a time that makes no sense, also where nothing is waited for."""
    if timeout is None or ((type(timeout) is float or type(timeout) is int) and timeout <= 86400):
        return True
    plain_check_wait(timeout)
    return True


def queue_put(self, obj, block=True, timeout=None):
    cdef PyObject *ring
    cdef PyObject *item
    cdef uint64_t kind
    cdef object data = obj, held
    _check_wait(timeout)
    if is_a(<PyObject *>self, Queue):
        ring = get_member(<PyObject *>self, QUEUE_RING)
        way = _way_of(ring)
        if way is not None:
            kind = BYTES
            if type(obj) is Handle:
                kind = TOKEN if PyBytes_GET_SIZE(obj) == 24 else 0
            elif type(obj) is not bytes_type:
                kind = INLINE if type(obj) in flat else 0
                if kind:
                    data = dumps(obj, 3)
            item = <PyObject *>data
            if kind:
                held = <object>ring
                if _store_items(way, &item, 1, kind):
                    _tell_of_items(way, <PyObject *>held, 1)
                    return
    plain_put(self, obj, block, timeout)


def queue_put_many(self, objs, block=True, timeout=None):
    cdef PyObject *ring
    cdef PyObject **items
    cdef Py_ssize_t done = 0, stored
    cdef uint64_t kind
    cdef list data
    cdef object held
    if timeout is None and is_a(<PyObject *>self, Queue) and (type(objs) is list or type(objs) is tuple):
        ring = get_member(<PyObject *>self, QUEUE_RING)
        way = _way_of(ring)
        if way is not None:
            held = <object>ring
            objs = data = list(objs)
            kind = _kind_of(data)
            if kind == INLINE:
                data = [dumps(obj, 3) for obj in data]
            while kind and done < len(data) and _way_of(<PyObject *>held) is way:
                items = items_of(<PyObject *>data) + done
                stored = _store_items(way, items, min(MOST_ITEMS, len(data) - done), kind)
                if not stored:
                    break
                done += stored
                _tell_of_items(way, <PyObject *>held, stored)
            if done and done == len(data):
                return done
            objs = objs[done:]
    if not done:
        return plain_put_many(self, objs, block, timeout)
    try:
        return done + plain_put_many(self, objs, block, timeout)
    except Full as error:
        if is_from_outside(error):
            raise
        return done


cdef uint64_t _kind_of(list objs):
    """What all of them are; 0 where they are to be looked at one by one."""
    cdef uint64_t kind = 0, other
    for obj in objs:
        if type(obj) is bytes_type:
            other = BYTES
        elif type(obj) is Handle:
            other = TOKEN if PyBytes_GET_SIZE(obj) == 24 else 0
        else:
            other = INLINE if type(obj) in flat else 0
        if not other or (kind and kind != other):
            return 0
        kind = other
    return kind


# --- get ------------------------------------------------------------------------------------------------------

cdef Py_ssize_t _load_items(ShortWay way, PyObject **items, Py_ssize_t most, uint64_t *pickled, bint *is_other) except -1:
    """Take the first items that lie in the queue itself: how many. *pickled* has a bit for each that is. *is_other*:
    something else comes first."""
    cdef uint64_t *word = way.word
    cdef uint64_t *lock
    cdef uint64_t *place
    cdef uint64_t head, tail, at, count, length, kind, first, at_row
    cdef Py_ssize_t done = 0
    cdef PyObject *made = NULL
    cdef bint is_out_of_memory = False
    is_other[0], pickled[0] = False, 0
    fetch(word + way.first + (load(word + Q_HEAD) >> 32 & way.mask) * GRANULE_WORDS)
    lock = _enter(way, HEAD_END)
    if lock == NULL:
        return 0
    head, tail = load(word + Q_HEAD), way.seen_tail
    if not 0 < (tail - head & LOW) <= way.capacity:
        way.seen_tail = tail = load(word + Q_TAIL)
    while done < most:
        if head == tail:
            way.seen_tail = tail = load(word + Q_TAIL)
            if head == tail:
                break
        at = head >> 32
        place = word + way.first + (at & way.mask) * GRANULE_WORDS
        first = load(place)
        length, kind = first >> LENGTH_SHIFT & LENGTH_MASK, first >> KIND_SHIFT
        count = length + ITEM_ROUNDING >> GRANULE_SHIFT
        if (
            first & LOW != at or count > ((tail >> 32) - at & LOW) or (at & way.mask) + count > way.granules
            or (kind != BYTES and kind != INLINE and (kind != TOKEN or length != 24))
        ):
            is_other[0] = not done
            break
        if kind == TOKEN:
            made = new_token(place[1], place[2], place[3])
            at_row = (place[3] >> 4 + NBYTES_BITS) * ROW_WORDS
            if at_row < way.rows:
                announce(way.row + at_row)  # who gets it most likely opens it next
        else:
            made = new_bytes(NULL, <Py_ssize_t>length)
            if made != NULL:
                copy_bytes(PyBytes_AS_STRING(<object>made), place + 1, length)
        if made == NULL:
            is_out_of_memory = True
            break
        items[done] = made
        pickled[0] |= <uint64_t>(kind == INLINE) << done
        head = (at + count & LOW) << 32 | (head + 1 & LOW)
        done += 1
    if done:
        store(word + Q_HEAD, head)
    _leave(way, HEAD_END, lock)
    if is_out_of_memory:
        if not done:
            return -1
        PyErr_Clear()
    return done


cdef inline bint _tell_of_room(ShortWay way, PyObject *ring) except -1:
    cdef uint64_t *word = way.word
    if load(word + PUTTERS_SLEEP) & SLEEPERS:
        (<object>ring)._wake_putters()
    if load(word + GETTERS_SLEEP) & SLEEPERS and load(word + Q_TAIL) != load(word + Q_HEAD):
        (<object>ring)._wake_getters(1)  # pass the bell on
    if not is_false(<PyObject *>way.bell, IS_WATCHING) and load(word + Q_TAIL) == load(word + Q_HEAD):
        way.bell.drain()
    return True


cdef object _get_one(ShortWay way, PyObject *ring):
    cdef PyObject *item = NULL
    cdef uint64_t pickled
    cdef bint is_other = False
    cdef object found
    if not way.may_get:
        return missed
    if not _load_items(way, &item, 1, &pickled, &is_other):
        return plain_get_fast(<object>ring) if is_other else missed
    found = <object>item
    forget(item)
    _tell_of_room(way, ring)
    return loads(found) if pickled else found


cdef bint _await_item(ShortWay way) except -1:
    """As `Getting.await_item` of who waits as long as it takes."""
    cdef uint64_t tail = load(way.word + Q_TAIL)
    if load(way.word + Q_HEAD) != tail:
        return True
    return watch(way.word + Q_TAIL, tail, 1e9 * patience.SPIN) if patience._MAY_SPIN else False


def get_fast(self):
    way = _way_of(<PyObject *>self)
    return plain_get_fast(self) if way is None else _get_one(way, <PyObject *>self)


def queue_get(self, block=True, timeout=None):
    cdef object held, found
    _check_wait(timeout)
    if is_a(<PyObject *>self, Queue):
        way = _way_of(get_member(<PyObject *>self, QUEUE_RING))
        if way is not None and way.may_get:
            held = <object>get_member(<PyObject *>self, QUEUE_RING)
            found = missed
            if load(way.word + Q_HEAD) != load(way.word + Q_TAIL):
                found = _get_one(way, <PyObject *>held)
            if found is missed and block is True and timeout is None and _await_item(way):
                if _way_of(<PyObject *>held) is way:
                    found = _get_one(way, <PyObject *>held)
            if found is not missed:
                return found
    return plain_get_one(self, block, timeout)


def queue_get_many(self, n, block=True, timeout=None):
    cdef object held, found
    _check_wait(timeout)
    if is_a(<PyObject *>self, Queue) and PyLong_CheckExact(n) and n >= 1:
        way = _way_of(get_member(<PyObject *>self, QUEUE_RING))
        if way is not None and way.may_get:
            held = <object>get_member(<PyObject *>self, QUEUE_RING)
            found = _get_run(way, held, min(n, MOST_ITEMS))
            if found is None and block is True and timeout is None and _await_item(way):
                if _way_of(<PyObject *>held) is way:
                    found = _get_run(way, held, min(n, MOST_ITEMS))
            if found is not None:
                return found
    return plain_get_many(self, n, block, timeout)


cdef list _get_run(ShortWay way, object ring, Py_ssize_t most):
    """None where there is nothing that lies in the queue itself, or somebody else is there."""
    cdef PyObject *items[64]
    cdef uint64_t pickled
    cdef bint is_other = False
    cdef Py_ssize_t count, number
    cdef list found
    count = _load_items(way, items, min(most, 64), &pickled, &is_other)
    if not count:
        return None
    try:
        found = [None] * count
    except BaseException:
        for number in range(count):
            forget(items[number])
        raise
    for number in range(count):
        set_item(<PyObject *>found, number, items[number])
        forget(NONE)
    _tell_of_room(way, <PyObject *>ring)
    if pickled:
        for number in range(count):
            if pickled >> number & 1:
                found[number] = loads(found[number])
    return found
