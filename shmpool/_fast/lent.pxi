# What `Pool.get` lends to an array: the array's base, which gives its ticket back when the array is no more.
#
# In the plain client nobody is called when the last view dies, since what a signal handler raises in a finalizer's Python
# code is thrown away. Here no line of Python runs: DONE is stored at once, or, where that is not the usual case, the
# ticket waits where any other does, and the helper is woken.

cdef object FIRST_LOOK = FIRST_PAUSE

@cython.final
@cython.no_gc  # it knows of no array
@cython.freelist(16)
cdef class Lent:
    cdef object record, window, fork
    cdef uint64_t granted, address
    cdef Py_ssize_t nbytes
    cdef bint is_open

    cdef bint begin(self, PyObject *record, PyObject *window, uint64_t granted, Py_ssize_t nbytes, PyObject *fork) except -1:
        """False where the window lies nowhere. Its ticket is still to be taken."""
        if not read_word(window, WINDOW_ADDRESS, &self.address):
            return False
        self.record, self.window, self.fork = <object>record, <object>window, <object>fork
        self.granted, self.nbytes = granted, nbytes
        return True

    cdef object as_buffer(self):
        """The same as a buffer, which it is from here on."""
        cdef PyObject *record = <PyObject *>self.record
        buffer = _buffer_of(record, <PyObject *>self.window, self.granted, self.nbytes)
        set_member(<PyObject *>buffer, TICKET_FORK, <PyObject *>self.fork)
        switch_class(<PyObject *>buffer, <PyObject *>LiveBuffer)
        self.is_open, self.window = False, None
        _note_lent(get_member(record, RECORD_SESSION), record, False)
        return buffer

    def __dealloc__(self):
        if self.is_open:
            self.is_open = False
            _take_back(self, self.granted & GENERATION_FIELD | DONE)

    cdef bint undo(self) except -1:
        """There was no memory for the array: nobody has seen it, so its ticket is open again."""
        if self.is_open:
            self.is_open = False
            _take_back(self, self.granted)
        return True


cdef object READ_ONLY = "what others read, too, is read-only; get(writable=True) gives a private copy"


cdef int _show(PyObject *lent, Py_buffer *buffer, int flags) noexcept:
    """Its buffer. numpy asks for one to write first: an exception that Cython raises took longer than all the rest."""
    if flags & PyBUF_WRITABLE:
        PyErr_SetObject(BufferError, READ_ONLY)
        return -1
    return PyBuffer_FillInfo(buffer, lent, <void *>(<Lent>lent).address, (<Lent>lent).nbytes, True, flags)

give_buffers(Lent, _show)


cdef bint _take_back(Lent lent, uint64_t mark) except -1:
    """Nobody looks any more at what was lent: its cell has this *mark* from here on. In a child it was the parent's."""
    cdef PyObject *record = <PyObject *>lent.record
    cdef PyObject *session = get_member(record, RECORD_SESSION)
    cdef uint64_t *words
    cdef uint64_t *header
    cdef uint64_t count, header_count, word, cell, wanted, taken, granted = lent.granted
    lent.window = None
    if not here[OURS] or not is_a(session, Mapping):
        return False
    _note_lent(session, record, False)
    if not is_false(session, IS_OVER):
        return False
    if not (
        here[UNSHARED] and has_references(get_member(record, RECORD_WINDOW), 1)
        and words_of(get_member(session, WORDS), &words, &count) and words_of(get_member(session, HEADER), &header, &header_count)
        and read_word(record, RECORD_WORD, &word) and read_word(record, RECORD_CELL, &cell)
        and read_word(record, RECORD_WANTED, &wanted) and read_word(session, TAKEN, &taken)
        and is_row(word, count) and is_cell(cell, word) and wanted < header_count
        and load(words + cell) == (granted & GENERATION_FIELD | taken)
        and load(words + word) == granted and not load(header + wanted)
    ):
        return _leave_to_helper(session, lent)
    store(words + cell, mark)
    fence()
    if load(words + word) != granted or load(header + wanted):  # in this very moment: the one case of Python code
        ring(lent.record, granted)
    return True


cdef bint _leave_to_helper(PyObject *session, Lent lent) except -1:
    """A child may have a view, somebody has to be told, or the ticket is not as it was left."""
    cdef PyObject *deferred
    cdef PyObject *pause
    cdef object number, grant, wakeup, ticket = new_instance(Ticket)
    deferred = _deferred_of(session)
    if deferred == NULL or get_member(deferred, NUMBERS) == NULL:
        return False  # `recover` finds it, if there is anybody left
    grant = lent.granted
    set_member(<PyObject *>ticket, TICKET_RECORD, <PyObject *>lent.record)
    set_member(<PyObject *>ticket, TICKET_GRANTED, <PyObject *>grant)
    set_member(<PyObject *>ticket, TICKET_FORK, <PyObject *>lent.fork)
    set_member(<PyObject *>ticket, TICKET_LAST_FORK, NONE)
    number = next(<object>get_member(deferred, NUMBERS))
    PyDict_SetItem(<object>get_member(deferred, RECENT), number, ticket)
    pause = get_member(deferred, PAUSE)
    if pause == NULL or not PyFloat_CheckExact(pause) or PyFloat_AS_DOUBLE(pause) > LONG_PAUSE or not is_true(session, IS_WATCHED):
        set_member(deferred, PAUSE, <PyObject *>FIRST_LOOK)
        wakeup = getattr(getattr(<object>session, "link", None), "wakeup", None)
        if Py_TYPE(<PyObject *>wakeup) == <PyTypeObject *>Descriptor:
            signal_eventfd(wakeup)
    return True


cdef bint _note_lent(PyObject *session, PyObject *record, bint is_lent) except -1:
    """What is lent counts among what views hold."""
    cdef PyObject *deferred = _deferred_of(session)
    cdef PyObject *lent
    cdef uint64_t *words
    cdef uint64_t count, counters, noted
    if deferred == NULL:
        return False
    lent = get_member(deferred, LENT)
    if lent == NULL or not PyAnySet_CheckExact(lent):
        return False
    if is_lent:
        PySet_Add(<object>lent, <object>record)
    else:
        PySet_Discard(<object>lent, <object>record)
    if (
        is_false(session, IS_OVER) and words_of(get_member(session, WORDS), &words, &count)
        and read_word(session, COUNTERS, &counters) and counters + COUNTER_WORDS <= count
        and read_word(deferred, NOTED, &noted)
    ):
        words[counters + HELD_BY_VIEWS] = noted + <uint64_t>PySet_GET_SIZE(<object>lent)
    return True
