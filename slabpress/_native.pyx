# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled kernel: words shared between processes, chains of blocks, and the v2 record writer.

Everything that must be one machine instruction (an acquire load, a release store) or that runs once per
record is here; everything else is typed Python. Offsets are never written down here: the constructors take
them from slabpress/shm/layout.py, the one file that knows the arena's shape.

One module in twenty-seven pieces that can each be read in one sitting, included below.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_CheckExact, PyList_GET_ITEM, PyList_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.memoryview cimport PyMemoryView_FromMemory, PyMemoryView_FromObject
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.tuple cimport PyTuple_CheckExact
from cpython.unicode cimport PyUnicode_Check, PyUnicode_CheckExact, PyUnicode_DecodeUTF8
from libc.stdint cimport INT64_MAX, INT64_MIN, int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy, memset, strerror

from slabpress.errors import RecordTypeError, RecordValueError

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #include <time.h>
    #if defined(__linux__)
    #include <linux/futex.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #endif
    /* Publication: everything written before a release store is seen by whoever acquire-loads that value. */
    static inline uint32_t sp_load32(const void *p) { return __atomic_load_n((const uint32_t *)p, __ATOMIC_ACQUIRE); }
    static inline void sp_store32(void *p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELEASE); }
    static inline uint64_t sp_load64(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_ACQUIRE); }
    static inline void sp_store64(void *p, uint64_t v) { __atomic_store_n((uint64_t *)p, v, __ATOMIC_RELEASE); }
    /* "I sleep" / "is there work?" on one side and "here is work" / "who sleeps?" on the other need a full
       fence between their store and their load, or both can miss the other (Dekker). */
    static inline void sp_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    static inline uint32_t sp_exchange32(void *p, uint32_t v) {
        return __atomic_exchange_n((uint32_t *)p, v, __ATOMIC_SEQ_CST);
    }
    /* Sleep while the word at ``p`` is ``v``, and wake who sleeps there. Between processes, so not FUTEX_PRIVATE_FLAG;
       on macOS what its own C++ library waits with (UL_COMPARE_AND_WAIT_SHARED). */
    #if defined(__linux__)
    static void sp_sleep(void *p, uint32_t v) { syscall(SYS_futex, p, FUTEX_WAIT, v, NULL, NULL, 0); }
    static void sp_awaken(void *p) { syscall(SYS_futex, p, FUTEX_WAKE, 1, NULL, NULL, 0); }
    #else
    extern int __ulock_wait(uint32_t operation, void *p, uint64_t v, uint32_t timeout_us);
    extern int __ulock_wake(uint32_t operation, void *p, uint64_t v);
    static void sp_sleep(void *p, uint32_t v) { __ulock_wait(3, p, v, 0); }
    static void sp_awaken(void *p) { __ulock_wake(3, p, 0); }
    #endif
    /* How many words are ``value`` in the bits of ``mask``, more or less: others store meanwhile. Plain loads, which can
       be done many at a time: 1,024 words take 80 ns and not 400. */
    static inline int64_t sp_count_masked(const void *words, int64_t count, uint32_t mask, uint32_t value) {
        const uint32_t *word = (const uint32_t *)words;
        uint32_t found = 0;
        for (int64_t at = 0; at < count; at++) found += (word[at] & mask) == value;
        return found;
    }
    static int64_t sp_count32(const void *words, int64_t count, uint32_t value) {
        return sp_count_masked(words, count, ~(uint32_t)0, value);
    }
    /* Hints: the addresses need not exist. */
    static inline const char *sp_prefetch_to_write(const char *p, const char *end) {
        for (; p < end; p += 64) __builtin_prefetch(p, 1, 3);
        return p;
    }
    static inline void sp_prefetch(const void *p, int64_t size) {
        for (int64_t at = 0; at < size; at += 64) __builtin_prefetch((const char *)p + at, 0, 2);
    }
    /* A counter that goes on evenly and costs less to read than the clock; 0 where there is none to be trusted.
       sp_tick_rate says how far it goes in a tenth of a millisecond, or in less. */
    #if defined(__x86_64__)
    #include <cpuid.h>
    static inline uint64_t sp_ticks(void) { return __builtin_ia32_rdtsc(); }
    static uint64_t sp_tick_rate(void) {
        unsigned a, b, c, d;  /* "invariant TSC"; none ran below 1 GHz */
        return __get_cpuid(0x80000007, &a, &b, &c, &d) && (d >> 8 & 1) ? 100000 : 0;
    }
    #elif defined(__aarch64__)
    static inline uint64_t sp_ticks(void) { uint64_t t; __asm__ volatile("mrs %0, cntvct_el0" : "=r"(t)); return t; }
    static uint64_t sp_tick_rate(void) {
        uint64_t hz; __asm__ volatile("mrs %0, cntfrq_el0" : "=r"(hz)); return hz / 10000;
    }
    #else
    static inline uint64_t sp_ticks(void) { return 0; }
    static uint64_t sp_tick_rate(void) { return 0; }
    #endif
    static int64_t sp_read_clock_ms(void) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
    }
    /* The time of day in milliseconds, read anew after a tenth of one: 25 -> 10 ns. Under the interpreter's lock.
       CLOCK_REALTIME_COARSE costs 5, but stands still for 1 to 10 ms: a record would be older than its send(). */
    static inline int64_t sp_now_ms(void) {
        static int64_t ms;
        static uint64_t read_at, rate;
        static int known;
        if (!known) { rate = sp_tick_rate(); read_at = sp_ticks() - rate; known = 1; }
        if (rate == 0) return sp_read_clock_ms();
        uint64_t ticks = sp_ticks();
        if (ticks - read_at >= rate) { read_at = ticks; ms = sp_read_clock_ms(); }
        return ms;
    }
    static inline int sp_varint_size(uint64_t zigzag) {
        return ((63 - __builtin_clzll(zigzag | 1)) * 9 + 73) >> 6;
    }
    static inline char *sp_put_varint(char *out, uint64_t zigzag) {
        if (zigzag >= 0x80) {
            if (zigzag < 0x4000) { out[0] = (char)(zigzag | 0x80); out[1] = (char)(zigzag >> 7); return out + 2; }
            do { *out++ = (char)(zigzag | 0x80); zigzag >>= 7; } while (zigzag >= 0x80);
        }
        *out = (char)zigzag;
        return out + 1;
    }
    /* The same of what takes two bytes at most. */
    static inline char *sp_put_short(char *out, uint64_t zigzag) {
        if (zigzag < 0x80) { out[0] = (char)zigzag; return out + 1; }
        out[0] = (char)(zigzag | 0x80); out[1] = (char)(zigzag >> 7); return out + 2;
    }
    /* memcpy, without the call where that is most of it: keys, header names. Reads and writes nothing beyond. */
    static inline void sp_copy(char *out, const char *data, int64_t size) {
        if (size > 16) memcpy(out, data, size);
        else if (size >= 8) {
            uint64_t head, tail;
            memcpy(&head, data, 8); memcpy(&tail, data + size - 8, 8);
            memcpy(out, &head, 8); memcpy(out + size - 8, &tail, 8);
        } else if (size >= 4) {
            uint32_t head, tail;
            memcpy(&head, data, 4); memcpy(&tail, data + size - 4, 4);
            memcpy(out, &head, 4); memcpy(out + size - 4, &tail, 4);
        } else while (size-- > 0) *out++ = *data++;
    }
    """
    uint32_t sp_load32(const void *p) nogil
    void sp_store32(void *p, uint32_t v) nogil
    uint64_t sp_load64(const void *p) nogil
    void sp_store64(void *p, uint64_t v) nogil
    Py_ssize_t sp_count_masked(const void *words, Py_ssize_t count, uint32_t mask, uint32_t value) nogil
    Py_ssize_t sp_count32(const void *words, Py_ssize_t count, uint32_t value) nogil
    void sp_fence() nogil
    uint32_t sp_exchange32(void *p, uint32_t v) nogil
    void sp_sleep(void *p, uint32_t v) nogil
    void sp_awaken(void *p) nogil
    const char *sp_prefetch_to_write(const char *p, const char *end) nogil
    void sp_prefetch(const void *p, int64_t size) nogil
    int64_t sp_now_ms() nogil
    int sp_varint_size(uint64_t zigzag) nogil
    char *sp_put_varint(char *out, uint64_t zigzag) nogil
    char *sp_put_short(char *out, uint64_t zigzag) nogil
    void sp_copy(char *out, const char *data, Py_ssize_t size) nogil

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_mutexattr_t:
        pass
    int PTHREAD_MUTEX_ERRORCHECK
    int pthread_mutexattr_init(pthread_mutexattr_t *attributes)
    int pthread_mutexattr_settype(pthread_mutexattr_t *attributes, int kind)
    int pthread_mutexattr_destroy(pthread_mutexattr_t *attributes)
    int pthread_mutex_init(pthread_mutex_t *mutex, pthread_mutexattr_t *attributes)
    int pthread_mutex_trylock(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)

cdef extern from "Python.h":
    bint PyGC_Disable()
    bint PyGC_Enable()
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    ctypedef struct PyObject:
        pass
    PyObject **PySequence_Fast_ITEMS(object sequence)
    Py_ssize_t PySequence_Fast_GET_SIZE(object sequence)
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    void *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    int PyBUF_READ
    int PyBUF_WRITE

# "No block": the end of a chain.
NONE = 0xFFFFFFFF
cdef uint32_t C_NONE = 0xFFFFFFFF

# What RecordWriter.append says when it did not append (a full batch is a value, not an exception).
BATCH_FULL = 0
NO_SLAB = -1

# Why Source.append stopped.
ALL_APPENDED = 0
STOPPED_BATCH_FULL = 1
STOPPED_NO_SLAB = 2
STOPPED_NOT_OPEN = 3
STOPPED_TOO_LARGE = 4
PAUSED = 5

# What a topic's batches may hold as long as the broker has found none too large.
NO_LIMIT = INT64_MAX

include "native/memory.pxi"
include "native/sleeper.pxi"
include "native/ringer.pxi"
include "native/alarm.pxi"
include "native/batches.pxi"
include "native/shares.pxi"
include "native/queue.pxi"
include "native/record_lock.pxi"
include "native/working.pxi"
include "native/promises.pxi"
include "native/sending.pxi"
include "native/watch.pxi"
include "native/requests.pxi"
include "native/answers.pxi"
include "native/encoding.pxi"
include "native/runs.pxi"
include "native/points.pxi"
include "native/writer.pxi"
include "native/topics.pxi"
include "native/open_batches.pxi"
include "native/arrivals.pxi"
include "native/lane.pxi"
include "native/split.pxi"
include "native/columns.pxi"
include "native/objects.pxi"
include "native/arrow.pxi"
include "native/rows.pxi"
