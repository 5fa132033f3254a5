/* What Cython has no words for: members of `__slots__` by their offset, words of shared memory with the order
   that the protocol asks for, a class that is switched, and the length of a view that nobody has seen yet. */
#ifndef SHMPOOL_SLOTS_H
#define SHMPOOL_SLOTS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <Python.h>
#include <structmember.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* The offset of a member that `__slots__` made; -1 for anything else. */
static inline Py_ssize_t slot_offset(PyObject *descriptor) {
    if (!Py_IS_TYPE(descriptor, &PyMemberDescr_Type)) return -1;
    return ((PyMemberDescrObject *)descriptor)->d_member->offset;
}

#define MEMBER(object, offset) (*(PyObject **)((char *)(object) + (offset)))

/* Borrowed; NULL where the member is not set. */
static inline PyObject *get_member(PyObject *object, Py_ssize_t offset) { return MEMBER(object, offset); }

/* The object refers to *value* from here on. What it referred to goes last: that may run anything. */
static inline void set_member(PyObject *object, Py_ssize_t offset, PyObject *value) {
    PyObject *old = MEMBER(object, offset);
    Py_XINCREF(value);
    MEMBER(object, offset) = value;
    Py_XDECREF(old);
}

/* A whole number, 0 to 2**64 - 1, and whether it is one. Its digits are looked at in place: the call takes as long as
   ten of them. */
#if PyLong_SHIFT == 30 && PY_VERSION_HEX < 0x030F0000
static inline int word_of(PyObject *value, uint64_t *word) {
    if (!value || !PyLong_Check(value)) return 0;
#if PY_VERSION_HEX < 0x030C0000
    const Py_ssize_t count = Py_SIZE(value);
    const digit *digits = ((PyLongObject *)value)->ob_digit;
#else
    const uintptr_t tag = ((PyLongObject *)value)->long_value.lv_tag;
    const Py_ssize_t count = tag & 3 ? (tag & 3) == 1 ? 0 : -1 : (Py_ssize_t)(tag >> 3);
    const digit *digits = ((PyLongObject *)value)->long_value.ob_digit;
#endif
    switch (count) {
        case 0: *word = 0; return 1;
        case 1: *word = digits[0]; return 1;
        case 2: *word = digits[0] | (uint64_t)digits[1] << 30; return 1;
        case 3: *word = digits[0] | (uint64_t)digits[1] << 30 | (uint64_t)digits[2] << 60; return digits[2] < 16;
        default: return 0;
    }
}
#else
static inline int word_of(PyObject *value, uint64_t *word) {
    if (!value || !PyLong_Check(value)) return 0;
    *word = PyLong_AsUnsignedLongLong(value);
    if (*word == (uint64_t)-1 && PyErr_Occurred()) { PyErr_Clear(); return 0; }
    return 1;
}
#endif

static inline int read_word(PyObject *object, Py_ssize_t offset, uint64_t *word) {
    return word_of(MEMBER(object, offset), word);
}

/* Whether there is an object of a class. That its own class is one of that was seen before, mostly, and stays so: to find it
   among the bases takes four times as long. */
static inline int is_a(PyObject *one, PyObject *cls) {
    static struct { PyTypeObject *type, *cls; } known[32];
    if (!one) return 0;
    PyTypeObject *type = Py_TYPE(one);
    if (type == (PyTypeObject *)cls) return 1;
    size_t at = ((uintptr_t)type >> 4 ^ (uintptr_t)cls >> 6) % 32;
    if (known[at].type == type && known[at].cls == (PyTypeObject *)cls) return 1;
    if (!PyType_IsSubtype(type, (PyTypeObject *)cls)) return 0;
    if (!known[at].type) {
        Py_INCREF(type);  /* no other comes to lie there */
        known[at].type = type;
        known[at].cls = (PyTypeObject *)cls;
    }
    return 1;
}

/* Items of a `collections.deque`, or of whatever is in its place. */
static inline Py_ssize_t items_in(PyObject *deque, PyTypeObject *type) {
    return Py_IS_TYPE(deque, type) ? Py_SIZE(deque) : PyObject_Size(deque);
}

/* A method in C that takes no argument, or one: found once, since a look-up by name takes longer than what it does. */
typedef struct { PyTypeObject *type; PyCFunction function; PyObject *name; int takes_one; } Method;

static inline int find_method(Method *method, PyObject *type, PyObject *name, int takes_one) {
    PyObject *found = PyObject_GetAttr(type, name);
    if (!found) return -1;
    *method = (Method){(PyTypeObject *)type, NULL, name, takes_one};
    Py_INCREF(name);
    if (Py_IS_TYPE(found, &PyMethodDescr_Type)) {
        PyMethodDef *definition = ((PyMethodDescrObject *)found)->d_method;
        if (definition->ml_flags == (takes_one ? METH_O : METH_NOARGS)) method->function = definition->ml_meth;
    }
    Py_DECREF(found);
    return 0;
}

/* *argument*: NULL for a method that takes none. */
static inline PyObject *call(Method *method, PyObject *self, PyObject *argument) {
    if (method->function && Py_IS_TYPE(self, method->type)) return method->function(self, argument);
    return argument ? PyObject_CallMethodOneArg(self, method->name, argument) : PyObject_CallMethodNoArgs(self, method->name);
}

/* Moves what is in a deque, or in whatever is in its place, so many places to the right. Apart from who calls it, whose usual
   way it is not. */
static __attribute__((noinline)) int rotate(PyObject *deque, Py_ssize_t places) {
    static PyObject *name = NULL;
    if (!name && !(name = PyUnicode_InternFromString("rotate"))) return -1;
    PyObject *count = PyLong_FromSsize_t(places);
    PyObject *done = count ? PyObject_CallMethodOneArg(deque, name, count) : NULL;
    Py_XDECREF(count);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static inline int is_false(PyObject *object, Py_ssize_t offset) { return MEMBER(object, offset) == Py_False; }
static inline int is_true(PyObject *object, Py_ssize_t offset) { return MEMBER(object, offset) == Py_True; }

/* A member that raises *taken* where it is not set: what `__getattr__` says of it, which has every look-up of the class
   go a longer way. Where it is None, it is made when it is first asked for. */
typedef struct { Py_ssize_t offset; PyObject *taken; PyObject *(*make)(PyObject *); } Guarded;

static PyObject *get_guarded(PyObject *object, void *closure) {
    Guarded *guarded = closure;
    PyObject *value = MEMBER(object, guarded->offset);
    if (!value) { PyErr_SetNone(guarded->taken); return NULL; }
    if (value == Py_None) return guarded->make(object);
    Py_INCREF(value);
    return value;
}

static int set_guarded(PyObject *object, PyObject *value, void *closure) {
    Guarded *guarded = closure;
    if (!value && !MEMBER(object, guarded->offset)) { PyErr_SetNone(guarded->taken); return -1; }
    set_member(object, guarded->offset, value);
    return 0;
}

static inline PyObject *guard_member(
    PyObject *type, Py_ssize_t offset, const char *name, PyObject *taken, PyObject *(*make)(PyObject *)
) {
    static Guarded guarded;
    static PyGetSetDef definition;
    guarded = (Guarded){offset, taken, make};
    definition = (PyGetSetDef){name, get_guarded, set_guarded, NULL, &guarded};
    Py_INCREF(taken);
    return PyDescr_NewGetSet((PyTypeObject *)type, &definition);
}

/* The items of a list. */
static inline PyObject **items_of(PyObject *list) { return ((PyListObject *)list)->ob_item; }

/* Whether there is an object, and the references to it are so many. */
static inline int has_references(PyObject *object, Py_ssize_t count) { return object && Py_REFCNT(object) == count; }

/* The words behind a memoryview of format "Q", and how many. 0 for anything else, a released one too. */
static inline int words_of(PyObject *view, uint64_t **words, uint64_t *count) {
    if (!view || !PyMemoryView_Check(view)) return 0;
    PyMemoryViewObject *memory = (PyMemoryViewObject *)view;
    if (memory->flags & _Py_MEMORYVIEW_RELEASED || memory->mbuf->flags & _Py_MANAGED_BUFFER_RELEASED) return 0;
    Py_buffer *buffer = &memory->view;
    if (buffer->ndim != 1 || buffer->itemsize != 8 || !buffer->format || buffer->format[0] != 'Q' || buffer->format[1])
        return 0;
    *words = (uint64_t *)buffer->buf;
    *count = (uint64_t)(buffer->len / 8);
    return 1;
}

/* A new view of the first *nbytes* bytes of an exporter that is one piece of bytes. Its length is set in place:
   nobody has seen it yet, and a slice would be a second object that costs as much again. */
static inline PyObject *view_of(PyObject *exporter, Py_ssize_t nbytes) {
    PyObject *view = PyMemoryView_FromObject(exporter);
    if (!view) return NULL;
    Py_buffer *buffer = PyMemoryView_GET_BUFFER(view);
    if (buffer->ndim != 1 || buffer->itemsize != 1 || nbytes > buffer->len) {
        Py_DECREF(view);
        PyErr_SetString(PyExc_SystemError, "a window is not as long as its slot");
        return NULL;
    }
    buffer->len = buffer->shape[0] = nbytes;
    return view;
}

/* Instances of a class of Cython's give buffers by *show* from here on. */
static inline void give_buffers(PyObject *type, getbufferproc show) {
    static PyBufferProcs procedures;
    procedures.bf_getbuffer = show;
    ((PyTypeObject *)type)->tp_as_buffer = &procedures;
}

/* Wake who polls an eventfd that never blocks. What fails is awake, or gone. */
static inline void signal_eventfd(int fd) {
    const uint64_t one = 1;
    const int error = errno;
    if (write(fd, &one, sizeof one) < 0) errno = error;
}

/* Shows a file in memory that its caller owns whole, its pages filled in: 0, or what the kernel has against it. One before
   Linux 5.14 leaves filling in to the faults. */
static inline int map_whole(uint64_t address, uint64_t length, int protection, int fd, uint64_t offset) {
    void *memory = (void *)(uintptr_t)address;
    if (mmap(memory, length, protection, MAP_SHARED | MAP_FIXED, fd, (off_t)offset) == MAP_FAILED) return errno;
    return madvise(memory, length, 22 /* MADV_POPULATE_READ */) && errno != EINVAL ? errno : 0;
}

/* Of a clock that only goes forward. */
static inline double nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

/* How many threads this process has; less than one where there is no /proc. */
static inline long threads_here(void) {
    struct stat tasks;
    return stat("/proc/self/task", &tasks) ? 0 : (long)tasks.st_nlink - 2;
}

/* In how many bits a number is written. */
static inline int bit_length(uint64_t number) {
    return number ? 64 - __builtin_clzll(number) : 0;
}

/* Whether nobody but its owner has a view, nor an export of it. */
static inline int is_alone(PyObject *view) {
    return Py_REFCNT(view) == 1 && ((PyMemoryViewObject *)view)->exports == 0;
}

/* This core is about to write here, or to read: the line comes from the other's cache while something else is done. Hints:
   an address that leads nowhere does no harm. */
static inline void announce(const void *at) {
#if defined(__x86_64__)
    __asm__ __volatile__("prefetchw %0" : : "m"(*(const char *)at));  /* the builtin fetches it to be read, if not told more */
#else
    __builtin_prefetch(at, 1);
#endif
}
static inline void fetch(const void *at) { __builtin_prefetch(at); }

/* A traced build (`SHMPOOL_TRACED=1`) notes what it does to shared words, in order: tests/fast/test_traced.py compares that
   with what the plain code does, which the explorer of interleavings has proven. */
#ifdef TWIN_TRACED
#define MOST_TRACED 4096
static struct { char kind; uint64_t at, value; } trace[MOST_TRACED];
static size_t trace_length = 0;
static inline void note(char kind, uint64_t at, uint64_t value) {
    if (trace_length < MOST_TRACED) {
        trace[trace_length].kind = kind;
        trace[trace_length].at = at;
        trace[trace_length++].value = value;
    }
}
static inline PyObject *take_trace(void) {
    PyObject *all = PyList_New(0);
    for (size_t i = 0; all && i < trace_length; i++) {
        PyObject *one = Py_BuildValue("CKK", trace[i].kind, (unsigned long long)trace[i].at, (unsigned long long)trace[i].value);
        if (!one || PyList_Append(all, one) < 0) Py_CLEAR(all);
        Py_XDECREF(one);
    }
    trace_length = 0;
    return all;
}
#else
#define note(kind, at, value) ((void)0)
static inline PyObject *take_trace(void) { return Py_NewRef(Py_None); }
#endif

static inline uint64_t load(const uint64_t *word) {
    uint64_t value = __atomic_load_n(word, __ATOMIC_ACQUIRE);
    note('l', (uintptr_t)word, value);
    return value;
}
static inline void store(uint64_t *word, uint64_t value) {
    if (*word != value) note('s', (uintptr_t)word, value);
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}
/* What was stored is seen by all before what follows is loaded. */
static inline void fence(void) {
    note('f', 0, 0);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* A word that says *expected* says *wanted* from here on, or stays; ordered towards all that comes before and after. */
static inline int swap_word(uint64_t *word, uint64_t expected, uint64_t wanted) {
    note('c', (uintptr_t)word, wanted);
    return __atomic_compare_exchange_n(word, &expected, wanted, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE);
}

/* Try to lock one byte of an open file; 0 where another open file has it, or something is wrong. */
static inline int lock_byte(int fd, uint64_t offset) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = 1};
    note('k', offset, 0);
    return fcntl(fd, F_OFD_SETLK, &lock) == 0;
}
/* Unlock all that an open file has locked. */
static inline void unlock_all(int fd) {
    struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
    note('u', 0, 0);
    fcntl(fd, F_OFD_SETLK, &lock);
}

/* A page of a class of mmap's, out of reach, over an open file of its own in which a byte is locked for reading; None
   where anything fails. */
static inline PyObject *hold_byte(PyObject *type, PyObject *how, PyObject *options, const char *path, uint64_t offset) {
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = 1};
    PyObject *page = NULL;
    Py_buffer buffer;
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC), held = 0;
    if (fd >= 0) {
        if (fcntl(fd, F_OFD_SETLK, &lock) == 0 && (page = PyObject_Call(type, how, options))) {
            if (PyObject_GetBuffer(page, &buffer, PyBUF_SIMPLE) == 0) {
                held = mmap(buffer.buf, (size_t)buffer.len, PROT_NONE, MAP_SHARED | MAP_FIXED, fd, 0) != MAP_FAILED;
                PyBuffer_Release(&buffer);
            }
        }
        close(fd);
    }
    if (held) return page;
    PyErr_Clear();
    Py_XDECREF(page);
    return Py_NewRef(Py_None);
}

/* What a weak proxy is of, a new reference; NULL where that is no more. */
static inline PyObject *behind_proxy(PyObject *proxy) {
    PyObject *object = NULL;
    if (!proxy || !PyWeakref_CheckProxy(proxy)) return NULL;
#if PY_VERSION_HEX >= 0x030D0000
    if (PyWeakref_GetRef(proxy, &object) < 0) PyErr_Clear();
#else
    object = PyWeakref_GetObject(proxy);
    if (object == Py_None) return NULL;
    Py_XINCREF(object);
#endif
    return object;
}

/* Replace memory by private zeros. */
static inline int cover_bytes(uint64_t address, uint64_t length) {
    void *at = (void *)(uintptr_t)address;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    if (mmap(at, (size_t)length, PROT_READ | PROT_WRITE, flags, -1, 0) == at) return 0;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

/* `object.__class__ = type`, for classes that differ in nothing but what they do. */
static inline void switch_class(PyObject *object, PyObject *type) {
    PyTypeObject *old = Py_TYPE(object);
    Py_INCREF(type);
    Py_SET_TYPE(object, (PyTypeObject *)type);
    Py_DECREF(old);
}

static inline PyObject *new_instance(PyObject *type) {
    return ((PyTypeObject *)type)->tp_alloc((PyTypeObject *)type, 0);
}

/* Handles, instances of a subclass of bytes that has no members, are three words each. The memory of a few that are no more is
   kept for the next ones, as CPython does it with its own classes: what it does at the end of an object of a class in
   Python takes longer than what a publication does to shared words. */
#define MOST_SPARE 16
static struct { PyTypeObject *type; int spares; PyObject *spare[MOST_SPARE]; } handles;

static void end_handle(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    if (type == handles.type && Py_SIZE(object) == 24 && handles.spares < MOST_SPARE) handles.spare[handles.spares++] = object;
    else type->tp_free(object);
    Py_DECREF(type);
}

static inline int keep_handles(PyObject *cls) {
    PyTypeObject *type = (PyTypeObject *)cls;
    if (type->tp_finalize || type->tp_del || type->tp_dictoffset || type->tp_weaklistoffset || !PyType_IS_GC(type)) {
        PyErr_Format(PyExc_ImportError, "%s is not a class of nothing but bytes", type->tp_name);
        return -1;
    }
    Py_INCREF(type);
    handles.type = type;
    type->tp_dealloc = end_handle;
    return 0;
}

static inline PyObject *new_handle(uint64_t first, uint64_t second, uint64_t third) {
    PyTypeObject *type = handles.type;
    PyObject *handle;
    if (handles.spares) {
        handle = (PyObject *)PyObject_InitVar((PyVarObject *)handles.spare[--handles.spares], type, 24);
        PyObject_GC_Track(handle);
    } else if (!(handle = type->tp_alloc(type, 24))) return NULL;
    uint64_t words[3] = {first, second, third};
    memcpy(PyBytes_AS_STRING(handle), words, 24);
_Py_COMP_DIAG_PUSH
_Py_COMP_DIAG_IGNORE_DEPR_DECLS
    ((PyBytesObject *)handle)->ob_shash = -1;  /* no hash yet */
_Py_COMP_DIAG_POP
    return handle;
}

/* Copies of at least so many bytes let other threads run. */
#define MANY_BYTES (1 << 20)
/* From so many on AMD's `rep movsb`, which is memcpy there, is slower than loads and stores: by a twentieth to a fifth, and
   by half where source and target lie 16 or 48 bytes off each other in their pages, as a `bytes` and a slot do. */
#define WIDE_FROM 2048

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define PAGE 4096

/* Whether copies are wide, and whether they can go past the caches. */
static int has_wide_copies(void) { return __builtin_cpu_supports("avx2"); }
static int prefers_wide_copies(void) { return has_wide_copies() && (__builtin_cpu_is("amd")); }

#define LINE(from, to, load_into, store_from) do { \
    __m256i low = load_into((const void *)(from)), high = load_into((const void *)((from) + 32)); \
    store_from((void *)(to), low); \
    store_from((void *)((to) + 32), high); \
} while (0)

/* Two pages at a time from APART to MANY_BYTES: what a core fetches ahead ends with the page, and it does so for each. */
#define APART (1 << 16)
__attribute__((target("avx2"))) static void copy_wide(char *to, const char *from, size_t length) {
    size_t at = 64 - (uintptr_t)to % 64;
    LINE(from, to, _mm256_loadu_si256, _mm256_storeu_si256);
    if (length >= APART && length < MANY_BYTES)
        for (; at + 2 * PAGE <= length; at += PAGE)
            for (size_t end = at + PAGE; at < end; at += 64) {
                LINE(from + at, to + at, _mm256_loadu_si256, _mm256_store_si256);
                LINE(from + at + PAGE, to + at + PAGE, _mm256_loadu_si256, _mm256_store_si256);
            }
    for (; at + 128 <= length; at += 128) {
        LINE(from + at, to + at, _mm256_loadu_si256, _mm256_store_si256);
        LINE(from + at + 64, to + at + 64, _mm256_loadu_si256, _mm256_store_si256);
    }
    if (at + 64 <= length) LINE(from + at, to + at, _mm256_loadu_si256, _mm256_store_si256);
    LINE(from + length - 64, to + length - 64, _mm256_loadu_si256, _mm256_storeu_si256);
}

__attribute__((target("avx2"))) static void copy_past_caches(char *to, const char *from, size_t length) {
    size_t at = 64 - (uintptr_t)to % 64;
    LINE(from, to, _mm256_loadu_si256, _mm256_storeu_si256);
    for (; at + 64 <= length; at += 64) LINE(from + at, to + at, _mm256_loadu_si256, _mm256_stream_si256);
    LINE(from + length - 64, to + length - 64, _mm256_loadu_si256, _mm256_storeu_si256);
    _mm_sfence();  /* such stores are in no order with the one that says PUBLISHED */
}
#else
static int has_wide_copies(void) { return 0; }
static int prefers_wide_copies(void) { return 0; }
#define copy_wide memcpy
#define copy_past_caches memcpy
#endif

/* Copies bytes that do not overlap. */
static inline void copy_bytes(void *to, const void *from, size_t length) {
    static int is_wide = -1;
    if (length < WIDE_FROM) {
        memcpy(to, from, length);
        return;
    }
    if (is_wide < 0) is_wide = prefers_wide_copies();
    if (is_wide) copy_wide(to, from, length);
    else memcpy(to, from, length);
}

/* Whether elements of a format are nothing but their bytes: one letter of the struct module's. What has others (numpy's
   objects, records) is looked at in the plain way. */
static inline int is_plain(const char *format) {
    if (!format) return 1;
    if (*format == '@' || *format == '=' || *format == '<') format++;
    return *format && strchr("bB?cehHiIlLqQnNfd", *format) && !format[1];
}

/* 0 where an object has no such buffer, which the plain way explains; -1 for any other exception: it is its
   `__buffer__`'s, or a signal handler's that came in it. */
static inline int no_buffer(void) {
    if (!PyErr_ExceptionMatches(PyExc_BufferError) && !PyErr_ExceptionMatches(PyExc_TypeError)
        && !PyErr_ExceptionMatches(PyExc_ValueError)) return -1;
    PyErr_Clear();
    return 0;
}

/* Fill the first *nbytes* bytes of an exporter, a view or a window, with those of *data*, which was asked for its buffer
   before: that may have run anything. 0 where these are not one piece, in C order, of just as many, or the exporter gives
   no memory any more. */
static inline int fill(PyObject *exporter, Py_buffer *from, Py_ssize_t nbytes, int is_past_caches) {
    Py_buffer to;
    /* An export: who ends the lease meanwhile finds its slot in use. */
    if (PyObject_GetBuffer(exporter, &to, PyBUF_WRITABLE) < 0) return no_buffer();
    size_t length = (size_t)nbytes;
    int fits = from->len == nbytes && nbytes <= to.len && is_plain(from->format);
    int overlap = (char *)from->buf < (char *)to.buf + length && (char *)to.buf < (char *)from->buf + length;
    if (fits && length < MANY_BYTES) {
        if (overlap) memmove(to.buf, from->buf, length);
        else copy_bytes(to.buf, from->buf, length);
    } else if (fits) {
        Py_BEGIN_ALLOW_THREADS
        if (overlap) memmove(to.buf, from->buf, length);
        else if (is_past_caches && has_wide_copies()) copy_past_caches(to.buf, from->buf, length);
        else copy_bytes(to.buf, from->buf, length);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&to);
    return fits;
}

#endif
