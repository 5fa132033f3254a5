/* Locks of a queue's ends, which are POSIX semaphores, and waiting for a word to change. */
#ifndef SHMPOOL_SEMAPHORES_H
#define SHMPOOL_SEMAPHORES_H

#include "slots.h"
#include <sched.h>
#include <semaphore.h>

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* What was stored is seen by all before the semaphore is taken, or given back, and what is loaded behind it is as new:
   on x86 that is so of every locked instruction. */
static inline void order_store_and_semaphore(void) {
#if defined(__x86_64__) || defined(__i386__)
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

/* Nobody is inside for long; who is may have lost its core. */
#define TRIES 64
#define YIELDS 50

/* The semaphore, taken; NULL where it cannot be had at once. */
static inline uint64_t *take_semaphore(uint64_t *semaphore) {
    if (sem_trywait((sem_t *)semaphore) == 0) return semaphore;
    for (int i = 0; i < TRIES + YIELDS; i++) {
        if (i < TRIES) relax();
        else sched_yield();
        if (sem_trywait((sem_t *)semaphore) == 0) return semaphore;
    }
    return NULL;
}

static inline void give_semaphore(uint64_t *semaphore) { sem_post((sem_t *)semaphore); }

/* Whether nobody has a semaphore. */
static inline int is_free(void *semaphore) {
    int value = 0;
    return sem_getvalue((sem_t *)semaphore, &value) == 0 && value > 0;
}

/* For so long other threads of this process wait as well: to let them run takes a part of that. */
#define ALONE 2000

/* Whether a word says something else than was *seen* within so many nanoseconds. */
static int watch(const uint64_t *word, uint64_t seen, double most) {
    double started = nanoseconds(), now = started;
    while (load(word) == seen && now - started < (most < ALONE ? most : ALONE)) {
        for (int i = 0; i < 8 && load(word) == seen; i++) relax();
        now = nanoseconds();
    }
    if (load(word) == seen && now - started < most) {
        Py_BEGIN_ALLOW_THREADS
        while (load(word) == seen && now - started < most) {
            for (int i = 0; i < 4 && load(word) == seen; i++) relax();
            sched_yield();
            now = nanoseconds();
        }
        Py_END_ALLOW_THREADS
    }
    return load(word) != seen;
}

#endif
