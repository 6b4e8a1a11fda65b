"""One mapping for several processes: created whole, attached only if it is one, never resized, gone at the end."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from slabpress.errors import MemoryShortError, UnsupportedPlatformError
from slabpress.platforms import check_platform
from slabpress.shm import layout as at
from slabpress.shm.arena import Arena
from slabpress.shm.layout import Geometry
from slabpress.shm.segment import create_segment, map_segment
from tests.shm.kit import run_python, small_arena, small_geometry

_CHILD = """
import sys
from slabpress.shm.arena import Arena
arena = Arena.attach(int(sys.argv[1]))
assert arena.memory.load_u64(8 * 64 * 2) == 0
print(*arena.geometry)
print(arena.batch_states.load(3), bytes(arena.slabs.views(1, 5)[0]))
arena.batch_states.store(3, 6)
arena.slabs.views(1, 7)[0][:] = b"goodbye"
arena.close()
"""


def test_what_one_process_writes_the_other_reads() -> None:
    with small_arena() as arena:
        arena.batch_states.store(3, 5)
        arena.slabs.views(1, 5)[0][:] = b"hello"
        ended = run_python(_CHILD, str(arena.descriptor), pass_fds=(arena.descriptor,))
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.splitlines() == [" ".join(map(str, arena.geometry)), "5 b'hello'"]
        assert arena.batch_states.load(3) == 6
        assert bytes(arena.slabs.views(1, 7)[0]) == b"goodbye"


def test_a_new_arena_is_all_free_and_empty() -> None:
    with small_arena() as arena:
        assert arena.batch_states.tally(1) == [arena.geometry.batch_count]
        assert arena.slabs.count_free() == arena.geometry.slab_count
        assert arena.outputs.count_free() == arena.geometry.output_count
        assert (arena.seal_head, arena.seal_tail, arena.report()) == (0, 0, "")
        assert os.fstat(arena.descriptor).st_size == arena.geometry.arena_bytes
        assert os.fstat(arena.descriptor).st_blocks * 512 >= arena.geometry.arena_bytes, "not all allocated"
        assert not os.get_inheritable(arena.descriptor)


@pytest.mark.parametrize("change", [-1, 1])
def test_nobody_can_resize_an_arena(change: int) -> None:
    with small_arena() as arena:
        with pytest.raises(OSError, match="Operation not permitted") as caught:
            os.ftruncate(arena.descriptor, arena.geometry.arena_bytes + change * at.PAGE_BYTES)
        assert caught.value.errno == errno.EPERM


def test_an_arena_has_no_name_anywhere() -> None:
    shared = Path("/dev/shm")  # noqa: S108 - looked at only
    before = set(shared.iterdir()) if shared.is_dir() else set()
    with small_arena() as arena:
        assert (set(shared.iterdir()) if shared.is_dir() else set()) <= before
        assert os.fstat(arena.descriptor).st_nlink == 0


def test_closing_gives_descriptor_and_mapping_back_and_twice_is_nothing() -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:slabpress")

    before = mappings()
    arena = Arena.create(small_geometry())
    descriptor = arena.descriptor
    assert mappings() == before + 1
    arena.close()
    arena.close()
    assert mappings() == before
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def _attach(content: bytes) -> str:
    descriptor = os.memfd_create("garbage")
    try:
        os.write(descriptor, content)
        with pytest.raises(ValueError) as caught:
            Arena.attach(descriptor)
        return str(caught.value)
    finally:
        os.close(descriptor)


def _header(magic: int = at.MAGIC, version: int = at.LAYOUT_VERSION, geometry: Geometry | None = None) -> bytes:
    geometry = geometry or small_geometry()
    header = bytearray(geometry.arena_bytes)
    struct.pack_into("<QI", header, at.MAGIC_AT, magic, version)
    struct.pack_into("<10Q", header, at.GEOMETRY_AT, *geometry)
    return bytes(header)


def test_garbage_is_not_attached_and_the_message_says_what_was_expected_and_found() -> None:
    assert _attach(b"\xff" * 8192) == (
        f"not this version's arena: magic, layout, bytes are ({2**64 - 1}, {2**32 - 1}, {2**64 - 1}), "
        f"expected ({at.MAGIC}, {at.LAYOUT_VERSION}, 8192)"
    )


def test_an_arena_of_another_version_or_size_is_not_attached() -> None:
    size = small_geometry().arena_bytes
    other = at.LAYOUT_VERSION + 1
    said = _attach(_header(version=other))
    assert f"({at.MAGIC}, {other}, {size}), expected ({at.MAGIC}, {at.LAYOUT_VERSION}, {size})" in said
    said = _attach(_header() + b"more")
    assert f"({at.MAGIC}, {at.LAYOUT_VERSION}, {size}), expected ({at.MAGIC}, {at.LAYOUT_VERSION}, {size + 4})" in said
    assert f"({at.MAGIC + 1}, " in _attach(_header(magic=at.MAGIC + 1))


def test_a_file_too_short_for_a_header_is_not_attached() -> None:
    assert "not this version's arena" in _attach(b"short")


def test_a_geometry_larger_than_its_file_is_not_attached() -> None:
    geometry = small_geometry()
    assert "not this version's arena" in _attach(_header(geometry=geometry._replace(slab_count=1 << 40)))


_SHORTAGE = """
import resource, sys
from slabpress.errors import MemoryShortError
from slabpress.shm.segment import create_segment
import os, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
before = len(os.listdir("/proc/self/fd"))
os.close(create_segment("arena", 1 << 20))
try:
    create_segment("arena", (1 << 20) + 4096)
except MemoryShortError as error:
    assert isinstance(error, MemoryError)
    print(error)
assert len(os.listdir("/proc/self/fd")) == before
"""


def test_memory_that_is_not_there_is_an_error_that_says_how_much_and_leaves_nothing() -> None:
    ended = run_python(_SHORTAGE)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == (
        f"arena of {(1 << 20) + 4096} bytes cannot be allocated (File too large): lower buffer_memory or raise "
        "the memory limit"
    )


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.ENOSPC])
def test_every_kind_of_shortage_is_a_memory_error(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def no_room(descriptor: int, start: int, size: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(MemoryShortError, match=f"^control of 4096 bytes cannot be allocated \\({os.strerror(code)}"):
        create_segment("control", 4096)


def test_an_error_that_is_no_shortage_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.EIO, "disk on fire")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(OSError, match="disk on fire"):
        create_segment("arena", 4096)


def test_an_arena_that_cannot_be_mapped_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, size: int) -> None:
        raise OSError(errno.ENOMEM, "no address space")

    monkeypatch.setattr("slabpress.shm.arena.map_segment", fail)
    with pytest.raises(OSError, match="no address space"):
        Arena.create(small_geometry())  # conftest looks for the descriptor


def test_segments_share_their_bytes_between_mappings() -> None:
    descriptor = create_segment("test", 8192)
    try:
        one, other = map_segment(descriptor, 8192), map_segment(descriptor, 8192)
        one[8000] = 7
        assert other[8000] == 7
        one.close()
        other.close()
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("platform", ["win32", "cygwin", "emscripten"])
def test_other_platforms_are_told_what_is_missing(platform: str) -> None:
    with pytest.raises(UnsupportedPlatformError, match=f"record locks.*{platform} lacks.*WSL 2"):
        check_platform(platform)
    for good in ("linux", "darwin"):
        check_platform(good)


def test_the_report_comes_back_and_is_cut_to_its_room() -> None:
    with small_arena() as arena:
        arena.write_report("broker:9092 refused — twice")
        assert arena.report() == "broker:9092 refused — twice"
        arena.write_report("é" * 600)
        assert arena.report() == "é" * 512
        arena.write_report("x" + "é" * 600)
        assert arena.report() == "x" + "é" * 511 + "�"
        arena.write_report("")
        assert arena.report() == ""


def test_the_seal_ring_goes_round() -> None:
    with small_arena(slabs=2, outputs=1) as arena:
        entries = arena.geometry.seal_ring_entries
        assert entries == 3
        for number in range(7):
            arena.seal_ring.store(number % entries, 100 + number)
            assert arena.sealed_at(number) == 100 + number
