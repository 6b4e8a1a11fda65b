"""Fixtures for every test, and what no test may leave behind."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import psutil
import pytest
from hypothesis import settings

from tests.support.sources import is_compiled, take_sources

if not is_compiled():
    take_sources()

from tests.support.brokers import kafka, kafka3, topic  # after that: what it imports is found so

__all__ = ["kafka", "kafka3", "topic"]

settings.register_profile(
    "slabpress",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    max_examples=int(os.environ.get("HYPOTHESIS_MAX_EXAMPLES", "60")),
)
settings.load_profile("slabpress")

_OPEN_FILES: Final = Path("/proc/self/fd")
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - looked at, never written to
_THREAD_END_S: Final = 10.0
# What this package makes, as /proc names it: in a test that shares a broker, other descriptors and processes
# may be the broker's or its clients'.
_OWN_FILES: Final = ("/memfd:slabpress", "anon_inode:[eventfd]", "anon_inode:[pidfd]")


class _WideFixtures:
    """Counts fixtures that outlive a test: what they open while one runs is not that test's.

    A plugin of its own, as pytest asks only those above the tests' folder about a session's fixtures.
    """

    started = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> None:
        if fixturedef.scope != "function":
            _WideFixtures.started += 1


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_WideFixtures())
    # A run in the background of a shell without job control starts with SIGINT ignored, and so would every program
    # that the tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if is_compiled() and item.get_closest_marker("inside")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


class _Belongings(NamedTuple):
    """What a process has that a test could leave behind."""

    children: dict[int, str]
    files: dict[int, str]
    shared_memory: set[str]
    threads: set[threading.Thread]


def _children() -> dict[int, str]:
    found = {}
    for child in psutil.Process().children():
        try:
            found[child.pid] = f"{child.name()} {child.status()}"
        except psutil.NoSuchProcess:
            continue
    return found


def _open_files() -> dict[int, str]:
    found = {}
    for link in _OPEN_FILES.iterdir() if _OPEN_FILES.is_dir() else ():
        try:
            found[int(link.name)] = str(link.readlink())
        except FileNotFoundError:
            continue  # the descriptor that the listing itself used
    return found


def _look() -> _Belongings:
    shared = {entry.name for entry in _SHARED_MEMORY.iterdir()} if _SHARED_MEMORY.is_dir() else set()
    return _Belongings(_children(), _open_files(), shared, set(threading.enumerate()))


def _left_threads(before: set[threading.Thread]) -> list[str]:
    suspects = [
        thread
        for thread in threading.enumerate()
        if thread not in before and (not thread.daemon or thread.name.startswith("slabpress"))
    ]
    for thread in suspects:
        thread.join(_THREAD_END_S)
    return [f"thread {thread.name}" for thread in suspects if thread.is_alive()]


def _left(before: _Belongings, *, shares_a_broker: bool) -> list[str]:
    now = _look()
    children = {pid: name for pid, name in now.children.items() if pid not in before.children}
    files = {fd: name for fd, name in now.files.items() if before.files.get(fd) != name}
    if shares_a_broker:
        children = {pid: name for pid, name in children.items() if not name.startswith("java ")}
        files = {fd: name for fd, name in files.items() if name.startswith(_OWN_FILES)}
    return [
        *(f"child process {pid} ({name})" for pid, name in children.items()),
        *(f"file descriptor {fd} ({name})" for fd, name in files.items()),
        *(str(_SHARED_MEMORY / name) for name in now.shared_memory - before.shared_memory),
    ]


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process, a descriptor, a shared memory object or a thread (law 11)."""
    shares_a_broker = any("kafka" in name or "cluster" in name for name in request.fixturenames)
    before, wide = _look(), _WideFixtures.started
    yield
    left = _left_threads(before.threads)
    if wide == _WideFixtures.started:
        found = _left(before, shares_a_broker=shares_a_broker)
        if found:
            gc.collect()  # what only waits for the collector is not left behind
            found = _left(before, shares_a_broker=shares_a_broker)
        left += found
    assert not left, f"the test left behind: {'; '.join(left)}"
