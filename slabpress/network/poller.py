"""Waiting for descriptors: epoll itself where there is one.

``selectors`` makes a key, a list and a lookup of each event, some 5 us of a wake-up that has 100 in all; and it cannot
watch for edges. An eventfd that is watched so rings for each write to it and need not be read.
"""

from __future__ import annotations

import select
import selectors
from typing import Any, Final, Protocol

from slabpress.shm.doorbell import Doorbell

READ: Final = selectors.EVENT_READ
WRITE: Final = selectors.EVENT_WRITE
# Where there is no epoll nobody asks for these.
_INPUT: Final = getattr(select, "EPOLLIN", 0)
_OUTPUT: Final = getattr(select, "EPOLLOUT", 0)
# More than are ready at a time, mostly; the rest are in the next turn's.
_EVENTS_MOST: Final = 64


class Pollable(Protocol):
    """What has a descriptor."""

    def fileno(self) -> int:
        """The descriptor."""
        ...


class EpollPoller:
    """Linux's way."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._data: dict[int, Any] = {}

    def register(self, file: Pollable | int, mask: int, data: Any = None) -> None:
        """Watch for READ, WRITE or both; ``data`` is what ``poll`` says then."""
        descriptor = _descriptor_of(file)
        self._epoll.register(descriptor, _events_of(mask))
        self._data[descriptor] = data

    def register_bell(self, bell: Doorbell) -> bool:
        """Watch a bell, whose data is the bell itself; whether it must be drained after each ring."""
        is_eventfd = bell.read_descriptor == bell.write_descriptor  # a pipe that nobody reads is full some day
        self._epoll.register(bell.read_descriptor, select.EPOLLIN | (select.EPOLLET if is_eventfd else 0))
        self._data[bell.read_descriptor] = bell
        return not is_eventfd

    def modify(self, file: Pollable | int, mask: int, data: Any = None) -> None:
        """Watch for something else."""
        descriptor = _descriptor_of(file)
        self._epoll.modify(descriptor, _events_of(mask))
        self._data[descriptor] = data

    def unregister(self, file: Pollable | int) -> None:
        """Watch no more."""
        descriptor = _descriptor_of(file)
        del self._data[descriptor]
        self._epoll.unregister(descriptor)

    def poll(self, timeout_s: float | None) -> list[tuple[Any, int]]:
        """Wait, for ever if ``timeout_s`` is None; the data and what there is of each that is ready."""
        data = self._data
        return [
            (data[descriptor], (READ if events & ~_OUTPUT else 0) | (WRITE if events & ~_INPUT else 0))
            for descriptor, events in self._epoll.poll(timeout_s, _EVENTS_MOST)
        ]

    def close(self) -> None:
        """Give the descriptor back."""
        self._epoll.close()


class SelectorPoller:
    """Everybody else's."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.register = self._selector.register
        self.modify = self._selector.modify
        self.unregister = self._selector.unregister
        self.close = self._selector.close

    def register_bell(self, bell: Doorbell) -> bool:
        """As ``EpollPoller.register_bell``."""
        self._selector.register(bell, READ, bell)
        return True

    def poll(self, timeout_s: float | None) -> list[tuple[Any, int]]:
        """As ``EpollPoller.poll``."""
        return [(key.data, mask) for key, mask in self._selector.select(timeout_s)]


Poller = EpollPoller | SelectorPoller


def make_poller() -> Poller:
    """The best there is here."""
    return EpollPoller() if hasattr(select, "epoll") else SelectorPoller()


def _descriptor_of(file: Pollable | int) -> int:
    return file if isinstance(file, int) else file.fileno()


def _events_of(mask: int) -> int:
    return (_INPUT if mask & READ else 0) | (_OUTPUT if mask & WRITE else 0)
