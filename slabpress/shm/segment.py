"""One anonymous shared-memory file: nothing is ever made in /dev/shm, so nothing can be left there.

Containers cap /dev/shm at 64 MB and touch beyond it with SIGBUS; a memfd is charged to the process's own
memory instead, and allocating it at once turns a shortage into an error at construction.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
from typing import Final

from slabpress.errors import MemoryShortError

# Linux's fcntl commands, for Pythons before 3.14 that do not name them.
_F_ADD_SEALS: Final = 1033
_F_SEAL_SEAL: Final = 0x0001
_F_SEAL_SHRINK: Final = 0x0002
_F_SEAL_GROW: Final = 0x0004

_SHORTAGE: Final = frozenset({errno.ENOMEM, errno.ENOSPC, errno.EFBIG})


def create_segment(name: str, size: int) -> int:
    """An anonymous shared-memory file of ``size`` bytes, all of them allocated now, that cannot be resized.

    Returns:
        Its file descriptor, close-on-exec.

    Raises:
        MemoryShortError: the system has not ``size`` bytes to give.
    """
    descriptor = _open_anonymous(name)
    try:
        _allocate(descriptor, size)
        if sys.platform.startswith("linux"):
            fcntl.fcntl(descriptor, _F_ADD_SEALS, _F_SEAL_SEAL | _F_SEAL_SHRINK | _F_SEAL_GROW)
    except OSError as error:
        os.close(descriptor)
        if error.errno in _SHORTAGE:
            raise MemoryShortError(
                f"{name} of {size} bytes cannot be allocated ({os.strerror(error.errno or 0)}): "
                "lower buffer_memory or raise the memory limit"
            ) from error
        raise
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def map_segment(descriptor: int, size: int) -> mmap.mmap:
    """Map the whole segment, shared and writable, with its page tables filled in.

    A first touch costs about a microsecond a page, as much as writing twenty small records; filling the tables
    at once costs a tenth of that.
    """
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
    return mmap.mmap(descriptor, size, flags, mmap.PROT_READ | mmap.PROT_WRITE)


def _open_anonymous(name: str) -> int:
    if sys.platform.startswith("linux"):
        return os.memfd_create(f"slabpress-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    # macOS has no memfd: a POSIX object that is unlinked at once is as anonymous.
    import _posixshmem  # type: ignore[import-not-found,unused-ignore]
    import secrets

    path = f"/slabpress-{secrets.token_hex(8)}"
    descriptor: int = _posixshmem.shm_open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode=0o600)
    _posixshmem.shm_unlink(path)
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - its only argument is positional
    return descriptor


def _allocate(descriptor: int, size: int) -> None:
    if sys.platform.startswith("linux"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)
