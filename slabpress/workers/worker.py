"""A worker's turns among its arenas, one batch each, so that a flooded producer does not starve the others.

It sleeps on its doorbell when none has a batch for it.
"""

from __future__ import annotations

from slabpress.shm.control import FIRST_WORKER, NETWORK
from slabpress.shm.handover import Child
from slabpress.workers.calls import Calls
from slabpress.workers.codecs import CodecCache
from slabpress.workers.compressor import Compressor


class Worker:
    """The compressors of one worker process, one an arena.

    Args:
        child: what the process was given.
    """

    def __init__(self, child: Child) -> None:
        self._child = child
        self._codecs = CodecCache()
        self._index = child.slot - FIRST_WORKER
        self._calls = Calls(child.control, self._index)
        self.compressors: dict[int, Compressor] = {}

    def follow_changes(self) -> None:
        """Take on arenas that were added, let go those that were taken away."""
        if not self._child.has_changes():
            return
        self._calls.go_away()  # it may take long
        for change in self._child.changes():
            if change.arena is not None:
                codec, control = self._codecs.get(change.settings), self._child.control
                made = Compressor(change.arena, codec, self._index, control, self._calls)
                self.compressors[change.number] = made
            elif (gone := self.compressors.pop(change.number, None)) is not None:
                self._calls.remove(gone.arena)
                self._child.let_go(gone.arena)
                self._codecs.keep_only([compressor.codec for compressor in self.compressors.values()])

    def work(self) -> bool:
        """Compress one batch of every arena that has one; whether there was any."""
        worked = False
        for compressor in self.compressors.values():  # every arena's turn, whether or not one before it had work
            worked = compressor.work() or worked
        return worked

    def sleep(self) -> bool:
        """Wait for the doorbell; False when the coordinator is gone."""
        child, control, slot = self._child, self._child.control, self._child.slot
        watched = child.watched
        self._calls.go_away()
        control.lie_down(slot)
        try:
            if not self._calls.is_any_work() and not child.has_changes() and not control.stopping:
                readable = control.bells[slot].wait(child.idle_timeout_s, watched)
                if watched:
                    return not readable  # the wait has told: no need to ask again at every wake-up
        finally:
            control.get_up(slot)
        return child.orphaned or not child.parent_is_gone()


def run(child: Child, worker: Worker) -> None:
    """The worker's turns, until it has to end."""
    orders = child.control.watch(child.slot)  # before the first look at what it tells of
    while not child.control.stopping:
        worker.follow_changes()
        while worker.work():
            if child.orphaned or orders.take_orders():
                break
        else:
            if not worker.sleep() and not _go_on_as_orphan(child):
                break
        if child.orphaned and not child.is_alive(NETWORK):
            break  # nobody is left to send what is compressed


def _go_on_as_orphan(child: Child) -> bool:
    """The coordinator is gone: whether to go on until the network process has delivered what the job had accepted."""
    if not child.settings["orphan_drain"]:
        return False
    child.become_orphan()
    return True
