"""The arena: one shared mapping that holds every table, slab and output buffer of one producer.

The coordinator creates it and passes its descriptor to the children, who attach. Nothing here allocates in
proportion to records; tables are fixed by the Geometry.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from slabpress._native import Blocks, Inbox, Memory, Promises, RecordLock, Sleeper, Words, WorkPoint
from slabpress.shm import layout as at
from slabpress.shm.layout import Geometry, Layout, layout_of
from slabpress.shm.sealed import sealed_queue, work_point
from slabpress.shm.segment import create_segment, map_segment
from slabpress.shm.sending import inbox, send_point
from slabpress.shm.shares import output_shares, slab_shares
from slabpress.shm.states import OUTPUT_FREE, SLAB_FREE

if TYPE_CHECKING:
    import mmap

_GEOMETRY = struct.Struct("<10Q")


class Arena:
    """One process's mapping of an arena. Make it with ``create`` or ``attach``.

    Attributes:
        descriptor: the file descriptor of the mapping, owned by this object.
        geometry, layout: its shape.
        memory: the mapping as words.
        seal_ring: u32 entries, descriptor indices in seal order.
        batch_states: state word of each batch.
        is_direct: batches are sent straight from their slabs (``Geometry.is_direct``).
        slabs, outputs: the block tables. In a direct arena the second goes on where the first ends, and knows the
            blocks of both; those that it claims and counts as free are its own.
        payload_states: state word of each block of ``outputs``.
        slab_shares, output_shares: which leaders' batches have their share of them.
        sealed_queue: what waits for a worker.
        admission_lock: held by whoever is admitted to a batch, or recovers.
        promises: which of it some worker will soon look at.
        results_sleeper: the producer's callback thread, while it sleeps until there are results.
        send_point: what the network process does with a batch.
    """

    def __init__(self, descriptor: int, mapping: mmap.mmap, geometry: Geometry) -> None:
        self.descriptor = descriptor
        self.geometry = geometry
        self.layout: Layout = layout_of(geometry)
        self._mapping = mapping
        self.memory = Memory(mapping)
        self.seal_ring = Words(self.memory, self.layout.seal_ring, geometry.seal_ring_entries)
        self.batch_states = Words(self.memory, self.layout.batch_states, geometry.batch_count)
        self.slab_states = Words(self.memory, self.layout.slab_states, geometry.slab_count)
        self.output_states = Words(self.memory, self.layout.output_states, geometry.output_count)
        self.is_direct = bool(geometry.is_direct)
        own = self.layout
        states, nexts, blocks = own.output_states, own.output_nexts, own.outputs
        before = 0
        if self.is_direct:
            states, nexts, blocks = own.slab_states, own.slab_nexts, own.slabs
            before = geometry.slab_count
        self.payload_states = Words(self.memory, states, before + geometry.output_count)
        self.slabs = Blocks(
            self.memory,
            self.layout.slab_states,
            self.layout.slab_nexts,
            self.layout.slabs,
            geometry.slab_count,
            geometry.slab_bytes,
            SLAB_FREE,
        )
        self.outputs = Blocks(
            self.memory,
            states,
            nexts,
            blocks,
            before + geometry.output_count,
            geometry.output_bytes,
            OUTPUT_FREE,
            before,
        )
        self.slab_shares = slab_shares(self)
        self.output_shares = output_shares(self)
        self.sealed_queue = sealed_queue(self)
        self.admission_lock = RecordLock(self.memory, descriptor, at.ADMISSION_LOCK_BYTE)
        self.promises = Promises(self.memory, at.PROMISES_AT, at.WORKERS_MAX, at.SEAL_HEAD_AT, at.SEAL_TAIL_AT)
        self.results_sleeper = Sleeper(self.memory, at.RESULTS_SLEEPER_AT)
        self.send_point = send_point(self)
        # Plain reads and writes of what a state word protects; dropped before the mapping is closed.
        self.view: memoryview = memoryview(mapping)

    @classmethod
    def create(cls, geometry: Geometry) -> Arena:
        """Allocate and map a new arena.

        Raises:
            MemoryShortError: the system has not ``geometry.arena_bytes`` to give.
        """
        descriptor = create_segment("arena", geometry.arena_bytes)
        try:
            mapping = map_segment(descriptor, geometry.arena_bytes)
        except BaseException:
            os.close(descriptor)
            raise
        _GEOMETRY.pack_into(mapping, at.GEOMETRY_AT, *geometry)
        arena = cls(descriptor, mapping, geometry)
        arena.memory.store_u32(at.VERSION_AT, at.LAYOUT_VERSION)
        arena.memory.store_u64(at.MAGIC_AT, at.MAGIC)
        return arena

    @classmethod
    def attach(cls, descriptor: int) -> Arena:
        """Map an arena that another process created; takes over ``descriptor``.

        Raises:
            ValueError: it is not an arena of this version; the message says what was expected and found.
        """
        size = os.fstat(descriptor).st_size
        if size < at.HEADER_BYTES:
            raise ValueError(f"not this version's arena: {size} bytes, expected at least {at.HEADER_BYTES}")
        mapping = map_segment(descriptor, size)
        magic, version = struct.unpack_from("<QI", mapping, at.MAGIC_AT)
        geometry = Geometry(*_GEOMETRY.unpack_from(mapping, at.GEOMETRY_AT))
        found = (magic, version, geometry.arena_bytes)
        expected = (at.MAGIC, at.LAYOUT_VERSION, size)
        if found != expected:
            mapping.close()
            raise ValueError(f"not this version's arena: magic, layout, bytes are {found}, expected {expected}")
        if layout_of(geometry).end > size:
            mapping.close()
            raise ValueError(f"not this version's arena: {geometry} does not fit in its {size} bytes")
        return cls(descriptor, mapping, geometry)

    def close(self) -> None:
        """Unmap and close the descriptor. The memory goes back when every process has done so."""
        if self.descriptor < 0:
            return
        self.view.release()
        self.memory.release()
        self._mapping.close()
        os.close(self.descriptor)
        self.descriptor = -1

    def set_attached(self, slot: int, *, attached: bool) -> None:
        """Say whether the process of a slot has the arena mapped (that process; of a dead one, the coordinator)."""
        self.memory.store_u32(at.ATTACHED_AT + 4 * slot, int(attached))

    def attached(self, slots: int) -> list[int]:
        """Those of the first ``slots`` slots whose processes have the arena mapped; the coordinator never says so."""
        return [slot for slot in range(slots) if self.memory.load_u32(at.ATTACHED_AT + 4 * slot)]

    @property
    def seal_tail(self) -> int:
        """How many batches were ever sealed; entries of the seal ring before this one are valid."""
        return self.memory.load_u64(at.SEAL_TAIL_AT)

    @property
    def seal_head(self) -> int:
        """How many sealed batches were admitted to compression."""
        return self.memory.load_u64(at.SEAL_HEAD_AT)

    def sealed_at(self, number: int) -> int:
        """The descriptor index of the ``number``-th sealed batch (from 0)."""
        return self.seal_ring.load(number % self.geometry.seal_ring_entries)

    def work_point(self, worker: int) -> WorkPoint:
        """For a worker with this index: what it does with batches."""
        return work_point(self, worker)

    def inbox(self) -> Inbox:
        """For a network process: what others do, from the beginning."""
        return inbox(self)

    def report(self) -> str:
        """The network process's account of the bootstrap servers."""
        length = min(self.memory.load_u64(at.REPORT_LENGTH_AT), at.REPORT_BYTES)
        return bytes(self.view[at.REPORT_AT : at.REPORT_AT + length]).decode(errors="replace")

    def write_report(self, text: str) -> None:
        """Publish the account of the bootstrap servers, cut to what fits (network process)."""
        data = text.encode()[: at.REPORT_BYTES]
        self.memory.store_u64(at.REPORT_LENGTH_AT, 0)
        self.view[at.REPORT_AT : at.REPORT_AT + len(data)] = data
        self.memory.store_u64(at.REPORT_LENGTH_AT, len(data))
