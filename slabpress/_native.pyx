# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled kernel: words shared between processes, chains of blocks, and the v2 record writer.

Everything that must be one machine instruction (an acquire load, a release store) or that runs once per
record is here; everything else is typed Python. Offsets are never written down here: the constructors take
them from slabpress/shm/layout.py, the one file that knows the arena's shape.

One module in eleven pieces that can each be read in one sitting, included below.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.unicode cimport PyUnicode_Check
from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy, memset, strerror

from slabpress.errors import RecordTypeError, RecordValueError

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>
    /* Publication: everything written before a release store is seen by whoever acquire-loads that value. */
    static inline uint32_t sp_load32(const void *p) { return __atomic_load_n((const uint32_t *)p, __ATOMIC_ACQUIRE); }
    static inline void sp_store32(void *p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELEASE); }
    static inline uint64_t sp_load64(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_ACQUIRE); }
    static inline void sp_store64(void *p, uint64_t v) { __atomic_store_n((uint64_t *)p, v, __ATOMIC_RELEASE); }
    /* "I sleep" / "is there work?" on one side and "here is work" / "who sleeps?" on the other need a full
       fence between their store and their load, or both can miss the other (Dekker). */
    static inline void sp_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    /* Hints: the addresses need not exist. */
    static inline void sp_prefetch_to_write(const void *p, int64_t size) {
        for (int64_t at = 0; at < size; at += 64) __builtin_prefetch((const char *)p + at, 1, 2);
    }
    static inline void sp_prefetch(const void *p, int64_t size) {
        for (int64_t at = 0; at < size; at += 64) __builtin_prefetch((const char *)p + at, 0, 2);
    }
    static inline int64_t sp_now_ms(void) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
    }
    """
    uint32_t sp_load32(const void *p) nogil
    void sp_store32(void *p, uint32_t v) nogil
    uint64_t sp_load64(const void *p) nogil
    void sp_store64(void *p, uint64_t v) nogil
    void sp_fence() nogil
    void sp_prefetch_to_write(const void *p, int64_t size) nogil
    void sp_prefetch(const void *p, int64_t size) nogil
    int64_t sp_now_ms() nogil

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
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    int PyBUF_READ
    int PyBUF_WRITE

# "No block": the end of a chain.
NONE = 0xFFFFFFFF
cdef uint32_t C_NONE = 0xFFFFFFFF

# What RecordWriter.append says when it did not append (a full batch is a value, not an exception).
BATCH_FULL = 0
NO_SLAB = -1

# Why RecordWriter.append_many, or Source.append, stopped.
ALL_APPENDED = 0
STOPPED_BATCH_FULL = 1
STOPPED_NO_SLAB = 2
STOPPED_NOT_OPEN = 3
STOPPED_TOO_LARGE = 4
PAUSED = 5

include "native/memory.pxi"
include "native/batches.pxi"
include "native/shares.pxi"
include "native/queue.pxi"
include "native/encoding.pxi"
include "native/writer.pxi"
include "native/lane.pxi"
include "native/split.pxi"
include "native/columns.pxi"
include "native/arrow.pxi"
include "native/rows.pxi"
