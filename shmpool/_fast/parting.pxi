# Views that live on: what `seat.deferred` does for the usual code, in which an array outlives its block.
#
# Nothing is taken out of a table here but that what was to become of it is stored before any other code of this
# process runs. What is not the usual case is left in its table, for the plain ones.

cdef bint _look(PyObject *deferred, PyObject *session) except -1:
    """As `DeferredReleases.look`."""
    cdef PyObject *table
    if items_in(get_member(session, LEFT), pop.type):
        _look_at_left(deferred, session)
    table = get_member(deferred, RECENT)
    if PyDict_Size(<object>table):
        _look_at_recent(deferred, session)
    table = get_member(deferred, PARTINGS)
    if PyDict_Size(<object>table):
        _look_at_partings(deferred)
    return True


cdef bint _look_at_recent(PyObject *deferred, PyObject *session) except -1:
    """As `DeferredReleases.look_at_recent`."""
    cdef PyObject *recent = get_member(deferred, RECENT)
    cdef PyObject *key
    cdef PyObject *value
    cdef PyObject *record
    cdef PyObject *window
    cdef Py_ssize_t at = 0
    cdef uint64_t granted
    cdef object number, ticket
    while PyDict_Next(recent, &at, &key, &value):
        if Py_TYPE(value) == <PyTypeObject *>Ticket:
            record = get_member(value, TICKET_RECORD)
        else:
            record = NULL
        window = get_member(record, RECORD_WINDOW) if record != NULL and is_a(record, Record) else NULL
        if window == NULL:
            (<object>deferred).look_at_recent()
            return True
        if not has_references(window, 1):
            continue
        if (
            not here[UNSHARED] or not is_false(session, IS_OVER) or not is_false(record, RECORD_IS_DIRECT)
            or not read_word(value, TICKET_GRANTED, &granted)
        ):
            (<object>deferred).look_at_recent()
            return True
        number, ticket = <object>key, <object>value
        PyDict_DelItem(<object>recent, number)
        _finish(record, session, granted)
        ticket = None  # its end may have run anything: from the beginning
        at = 0
    return True


cdef bint _finish(PyObject *record, PyObject *session, uint64_t granted) except -1:
    """DONE, where the cell is ours, then the look who is custodian. For who has a reference to the record."""
    cdef uint64_t *words
    cdef uint64_t *header
    cdef uint64_t count, header_count, word, cell, wanted, taken
    if not (
        words_of(get_member(session, WORDS), &words, &count) and words_of(get_member(session, HEADER), &header, &header_count)
        and read_word(record, RECORD_WORD, &word) and read_word(record, RECORD_CELL, &cell)
        and read_word(record, RECORD_WANTED, &wanted) and read_word(session, TAKEN, &taken)
        and is_row(word, count) and is_cell(cell, word) and wanted < header_count
    ):
        raise SystemError("a record of what is open names no words")
    if load(words + cell) == (granted & GENERATION_FIELD | taken):
        store(words + cell, granted & GENERATION_FIELD | DONE)
        fence()
        if load(words + word) != granted or load(header + wanted):
            ring(<object>record, granted)
    return True


cdef bint _look_at_left(PyObject *deferred, PyObject *session) except -1:
    """Buffers that were collected unreleased. Who opens has the record before it takes the ticket, and the gate
    while it does: a record that only its table knows is nobody's."""
    cdef PyObject *left = get_member(session, LEFT)
    cdef PyObject *records
    cdef PyObject *record
    cdef PyObject *window
    cdef uint64_t *words
    cdef uint64_t count, counters, word, cell, taken, granted
    cdef object index, ticket, grant, kept
    while items_in(left, pop.type) > 0:
        ticket = new_instance(Ticket)
        index = (<object>left)[0] if items_in(left, pop.type) > 0 else None
        records = get_member(session, RECORDS)
        record = NULL
        if index is not None and records != NULL and PyDict_CheckExact(records):
            record = PyDict_GetItemWithError(<object>records, index)
        window = get_member(record, RECORD_WINDOW) if record != NULL and is_a(record, Record) else NULL
        if (
            window == NULL or window == NONE or not has_references(record, 1) or not is_false(record, RECORD_IS_DIRECT)
            or not is_false(session, IS_OVER) or not here[OURS] or not here[UNSHARED]
            or not is_false(session, IS_GATE_USED)
            or not words_of(get_member(session, WORDS), &words, &count)
            or not (read_word(session, COUNTERS, &counters) and counters + COUNTER_WORDS <= count)
            or not (read_word(record, RECORD_WORD, &word) and read_word(record, RECORD_CELL, &cell))
            or not (is_row(word, count) and is_cell(cell, word))
            or not (read_word(session, TAKEN, &taken) and load(words + cell) & ~GENERATION_FIELD == taken)
        ):
            (<object>deferred).look()
            return True
        granted = load(words + cell) & GENERATION_FIELD | load(words + word) & ~GENERATION_FIELD
        (<object>left).popleft()
        kept = <object>record
        if has_references(window, 1):
            _finish(record, session, granted)
            continue
        grant = granted
        set_member(<PyObject *>ticket, TICKET_RECORD, record)
        set_member(<PyObject *>ticket, TICKET_GRANTED, <PyObject *>grant)
        set_member(<PyObject *>ticket, TICKET_FORK, <PyObject *>NO_FORK)
        words[counters + DEFERRED] += 1
        _add(deferred, <PyObject *>ticket)
        _tell(deferred, session)
    return True


cdef bint _look_at_partings(PyObject *deferred) except -1:
    """As `DeferredReleases.look_at_partings`."""
    cdef PyObject *partings = get_member(deferred, PARTINGS)
    cdef PyObject *key
    cdef PyObject *value
    cdef PyObject *slot
    cdef PyObject *window
    cdef PyObject *session
    cdef Py_ssize_t at = 0
    cdef object number, parting
    while PyDict_Next(partings, &at, &key, &value):
        slot = PyTuple_GET_ITEM(value, 0) if PyTuple_CheckExact(value) and PyTuple_GET_SIZE(value) == 2 else NULL
        window = get_member(slot, SLOT_WINDOW) if slot != NULL and is_a(slot, Slot) else NULL
        session = get_member(slot, SLOT_SESSION) if window != NULL else NULL
        if window == NULL or window == NONE or session == NULL or not here[COPIED] or not is_a(session, Mapping):
            (<object>deferred).look_at_partings()
            return True
        if not has_references(window, 1):
            continue
        number, parting = <object>key, <object>value
        PyDict_DelItem(<object>partings, number)
        if is_false(session, IS_OVER):
            (<object>PyTuple_GET_ITEM(value, 1))()
        parting = None
        at = 0
    return True


cdef bint _add(PyObject *deferred, PyObject *ticket) except -1:
    """As `DeferredReleases.add`."""
    cdef PyObject *recent = get_member(deferred, RECENT)
    cdef object number
    if PyDict_Size(<object>recent) >= MOST_RECENT:
        (<object>deferred).add(<object>ticket)
        return True
    number = next(<object>get_member(deferred, NUMBERS))
    set_member(ticket, TICKET_LAST_FORK, NONE)
    PyDict_SetItem(<object>recent, number, <object>ticket)
    return True


cdef bint _tell(PyObject *deferred, PyObject *session) except -1:
    """As `DeferredReleases.tell`."""
    cdef PyObject *pause = get_member(deferred, PAUSE)
    cdef uint64_t noted
    cdef Py_ssize_t held = (
        PyDict_Size(<object>get_member(deferred, RECENT)) + PyDict_Size(<object>get_member(deferred, OLD))
        + PyDict_Size(<object>get_member(deferred, PARTINGS))
    )
    if not (read_word(deferred, NOTED, &noted) and noted == <uint64_t>held):
        (<object>deferred)._note()
    if held and (
        pause == NULL or not PyFloat_CheckExact(pause) or PyFloat_AS_DOUBLE(pause) > LONG_PAUSE
        or not is_true(session, IS_WATCHED)
    ):
        (<object>deferred)._hurry()
    return True


cdef PyObject *_deferred_of(PyObject *session):
    """NULL where it is not ours to work on."""
    cdef PyObject *deferred = get_member(session, RELEASES)
    cdef PyObject *recent
    cdef PyObject *partings
    if deferred == NULL or Py_TYPE(deferred) != <PyTypeObject *>DeferredReleases:
        return NULL
    recent, partings = get_member(deferred, RECENT), get_member(deferred, PARTINGS)
    if recent == NULL or partings == NULL:  # the interpreter ends, and a collection has taken them
        return NULL
    return deferred if PyDict_CheckExact(recent) and PyDict_CheckExact(partings) else NULL


cdef bint _leave_to_views(PyObject *buffer, PyObject *session, bint is_counted) except -1:
    """As `Buffer._release_slowly` where a view lives on; False where it is that one's."""
    cdef PyObject *deferred = _deferred_of(session)
    cdef PyObject *record = get_member(buffer, TICKET_RECORD)
    cdef uint64_t *words
    cdef uint64_t count, counters
    cdef object kept = <object>session, of, ticket
    if (
        deferred == NULL or not here[OURS] or not here[UNSHARED] or not is_false(session, IS_OVER)
        or (is_counted and not is_false(session, STRICT))
        or not words_of(get_member(session, WORDS), &words, &count)
        or not (read_word(session, COUNTERS, &counters) and counters + COUNTER_WORDS <= count)
    ):
        return False
    of = <object>record
    ticket = new_instance(Ticket)  # not this object itself: somebody may keep it when the ticket has long been settled
    set_member(<PyObject *>ticket, TICKET_RECORD, record)
    set_member(<PyObject *>ticket, TICKET_GRANTED, get_member(buffer, TICKET_GRANTED))
    set_member(<PyObject *>ticket, TICKET_FORK, get_member(buffer, TICKET_FORK))
    _look(deferred, session)
    _add(deferred, <PyObject *>ticket)
    _end_buffer(buffer, record)
    _tell(deferred, session)
    if is_counted:
        words[counters + DEFERRED] += 1
    return True


cdef object _publish_with_views(PyObject *lease, PyObject *slot, PyObject *session, object handle, uint64_t cell, uint64_t word, uint64_t granted, object done):
    """As `LiveLease._publish_slowly` where the writer keeps a view and knows it; None where it is that one's. The view
    was taken away from everybody else before."""
    cdef PyObject *deferred = _deferred_of(session)
    cdef uint64_t *words
    cdef uint64_t count, counters
    cdef object number, go_on, parting
    if (
        deferred == NULL or not here[COPIED] or not is_false(session, IS_OVER)
        or not is_false(session, STRICT) or not is_true(session, WARNED_OF_VIEWS)
        or not words_of(get_member(session, WORDS), &words, &count) or not is_row(word, count)
        or not (read_word(session, COUNTERS, &counters) and counters + COUNTER_WORDS <= count)
    ):
        return None
    _look_at_partings(deferred)
    number = next(<object>get_member(deferred, NUMBERS))
    go_on = PyMethod_New(await_readers, <object>slot)
    parting = (<object>slot, go_on)
    if not here[COPIED] or not is_false(session, IS_OVER) or has_references(get_member(slot, SLOT_WINDOW), 1):
        return None
    words[counters + DEFERRED] += 1
    PyDict_SetItem(<object>get_member(deferred, PARTINGS), number, parting)
    # As in `_publish`; the slot is not waited for before the writer's views are gone.
    store(words + cell, granted)
    store(words + word, granted)
    switch_class(lease, <PyObject *>EndedLease)
    set_member(lease, LEASE_SLOT, get_member(slot, SLOT_ORIGIN))
    set_member(slot, SLOT_LAST_CELL, get_member(slot, SLOT_FIRST_CELL))
    set_member(slot, SLOT_DONE, <PyObject *>done)
    _tell(deferred, session)
    return handle
