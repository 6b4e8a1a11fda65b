"""The arena's shape: every offset, each derived from the one before it.

    +----------------+  0
    | header         |  magic, version, geometry; one cache line per writer after that
    +----------------+
    | seal ring      |  u32 per entry: descriptor indices in seal order
    | batch states   |  u32 per descriptor
    | slab states    |  u32 per slab
    | output states  |  u32 per output buffer, right after the slabs': both kinds are one table for who sends either
    | slab nexts     |  u32 per slab
    | output nexts   |  u32 per output buffer
    | descriptors    |  DESCRIPTOR_BYTES each
    | topics         |  TOPIC_BYTES each
    | partitions     |  PARTITION_BYTES each
    +----------------+  page boundary
    | slabs          |
    | output buffers |
    +----------------+  arena_bytes

Pure arithmetic: nothing here touches memory. All integers are little-endian on the machine that shares them.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MAGIC: Final = 0x534C_4142_5052_4553  # "SLABPRES"
LAYOUT_VERSION: Final = 7
PAGE_BYTES: Final = 4096
LINE_BYTES: Final = 64

# --- header -------------------------------------------------------------------------------------------------
# Line 0: written once, before any other process attaches.
MAGIC_AT: Final = 0
VERSION_AT: Final = MAGIC_AT + 8
GEOMETRY_AT: Final = VERSION_AT + 8
# Line 2, written by the coordinator alone.
SEAL_TAIL_AT: Final = 2 * LINE_BYTES
ROOM_WANTED_AT: Final = SEAL_TAIL_AT + 8  # u64: how many free slabs are worth a ring; 0: nobody waits for any
TOPICS_WANTED_AT: Final = ROOM_WANTED_AT + 8
# Line 3, written by the holder of the admission lock.
SEAL_HEAD_AT: Final = 3 * LINE_BYTES
ORPHANS_AT: Final = SEAL_HEAD_AT + 8
PARKED_AT: Final = ORPHANS_AT + 8  # u64: batches that were set aside, or a few more
# Line 4, written by the network process.
METADATA_VERSION_AT: Final = 4 * LINE_BYTES
REPORT_LENGTH_AT: Final = METADATA_VERSION_AT + 8
PRODUCER_ID_PLUS_ONE_AT: Final = REPORT_LENGTH_AT + 16  # u64, 0 for none: the arena's id (InitProducerId)
SPLITS_AT: Final = REPORT_LENGTH_AT + 8  # u64: how often a broker found a batch, or a piece of one, too large
BROKERS_AT: Final = PRODUCER_ID_PLUS_ONE_AT + 8  # u32: how many the cluster has, as far as is known
# Counters: one line of u64 for the coordinator, two for the network process.
COORDINATOR_COUNTERS_AT: Final = 5 * LINE_BYTES
NETWORK_COUNTERS_AT: Final = 6 * LINE_BYTES
WORKER_COUNTERS_AT: Final = 8 * LINE_BYTES
WORKERS_MAX: Final = 64
# The network process's account of the bootstrap servers, as UTF-8 text.
REPORT_AT: Final = WORKER_COUNTERS_AT + WORKERS_MAX * LINE_BYTES
REPORT_BYTES: Final = 1024
# u32 for each slot of the control block: 1 while that process has the arena mapped, written by that process.
ATTACHED_AT: Final = REPORT_AT + REPORT_BYTES
ATTACHED_SLOTS: Final = 2 + WORKERS_MAX
# A line of its own, u32: 1 while the producer's callback thread sleeps until there are results (native/sleeper.pxi).
# Stored by that thread; 0 also by whoever wakes it.
RESULTS_SLEEPER_AT: Final = -(-(ATTACHED_AT + 4 * ATTACHED_SLOTS) // LINE_BYTES) * LINE_BYTES
# u64 for each worker: up to which seal number it will soon look (native/promises.pxi), written by that worker; of a
# dead one, by who recovers from its death.
PROMISES_AT: Final = RESULTS_SLEEPER_AT + LINE_BYTES
HEADER_BYTES: Final = -(-(PROMISES_AT + 8 * WORKERS_MAX) // PAGE_BYTES) * PAGE_BYTES

CONNECTIONS_MOST_AT: Final = NETWORK_COUNTERS_AT + 12 * 8
COORDINATOR_COUNTERS: Final = ("records", "record_bytes", "batches_sealed", "room_waits")
NETWORK_COUNTERS: Final = (
    "records_delivered",
    "records_failed",
    "batches_delivered",
    "batches_failed",
    "payload_bytes_delivered",
    "requests",
    "request_bytes",
    "retries",
    "reconnects",
    "metadata_requests",
    "throttle_ms",
    "splits",
    "connections_most",  # at a time, ever
    "epochs_begun",
)
WORKER_COUNTERS: Final = ("batches", "raw_bytes", "compressed_bytes", "busy_us", "sent_raw")

# The byte of the arena's file whose record lock (fcntl) is the admission lock.
ADMISSION_LOCK_BYTE: Final = SEAL_HEAD_AT

# --- batch descriptor ---------------------------------------------------------------------------------------
# Written by the coordinator while OPEN and at seal.
COMMIT_AT: Final = 0  # u64: bytes << 32 | records, stored last
BASE_TIMESTAMP_AT: Final = COMMIT_AT + 8  # i64 ms
MAX_TIMESTAMP_AT: Final = BASE_TIMESTAMP_AT + 8  # i64 ms
CREATED_AT: Final = MAX_TIMESTAMP_AT + 8  # i64 CLOCK_MONOTONIC ns; the delivery timeout counts from here
SEAL_NUMBER_AT: Final = CREATED_AT + 8  # u64, from 1; 0 until sealed
PARTITION_INDEX_AT: Final = SEAL_NUMBER_AT + 8  # u32 into the partition table
FIRST_SLAB_AT: Final = PARTITION_INDEX_AT + 4  # u32
SLAB_COUNT_AT: Final = FIRST_SLAB_AT + 4  # u32
# Written at admission and by the worker.
FIRST_OUTPUT_AT: Final = SLAB_COUNT_AT + 4  # u32
OUTPUT_COUNT_AT: Final = FIRST_OUTPUT_AT + 4  # u32
PAYLOAD_BYTES_AT: Final = OUTPUT_COUNT_AT + 4  # u32: what the output chain holds
CODEC_AT: Final = PAYLOAD_BYTES_AT + 4  # u32: Kafka's codec id, 0..4
WORKER_AT: Final = CODEC_AT + 4  # u32: the worker's index, or ORPHAN
DEATHS_AT: Final = WORKER_AT + 4  # u32, supervisor: workers that died while they compressed it
# Written by the network process.
ATTEMPTS_AT: Final = DEATHS_AT + 4  # u32: times sent
RESULT_CODE_AT: Final = ATTEMPTS_AT + 4  # i32: Kafka's error code, or one of results.py
RECORD_ERROR_INDEX_AT: Final = RESULT_CODE_AT + 4  # i32: the first record named by KIP-467, or -1
RETRIABLE_AT: Final = RECORD_ERROR_INDEX_AT + 4  # u32: 1 if sending the same record again may succeed
TEXT_LENGTH_AT: Final = RETRIABLE_AT + 4  # u32
BASE_OFFSET_AT: Final = TEXT_LENGTH_AT + 4  # i64, or -1
APPEND_TIME_AT: Final = BASE_OFFSET_AT + 8  # i64 ms, or -1 where the topic keeps CreateTime
# Of a batch that the broker found too large, and that is sent in pieces (shm/splits.py).
SPLIT_SOURCE_AT: Final = APPEND_TIME_AT + 8  # u32: first output buffer of the refused payload; NONE for a whole batch
SPLIT_SOURCE_BYTES_AT: Final = SPLIT_SOURCE_AT + 4  # u32
SPLIT_SOURCE_CODEC_AT: Final = SPLIT_SOURCE_BYTES_AT + 4  # u32
SPLIT_FIRST_AT: Final = SPLIT_SOURCE_CODEC_AT + 4  # u32: the first record that has no result yet
SPLIT_WANTED_AT: Final = SPLIT_FIRST_AT + 4  # u32: how many records the next piece is to have
SPLIT_CEILING_AT: Final = SPLIT_WANTED_AT + 4  # u32: how many were too many
SPLIT_REFUSED_BYTES_AT: Final = SPLIT_CEILING_AT + 4  # u32: bytes of the last payload that was too large
PIECE_RECORDS_AT: Final = SPLIT_REFUSED_BYTES_AT + 4  # u32, worker: how many the piece in the output buffers has
PIECE_MAX_TIMESTAMP_AT: Final = PIECE_RECORDS_AT + 4  # i64 ms, worker
PIECE_FIRST_AT: Final = PIECE_MAX_TIMESTAMP_AT + 8  # u32, worker: the batch's record that the piece begins with
# Written by the network process before the first send (network/sequences.py); -1 before.
BATCH_PRODUCER_ID_AT: Final = PIECE_FIRST_AT + 8  # i64
BATCH_EPOCH_AT: Final = BATCH_PRODUCER_ID_AT + 8  # i32
BATCH_SEQUENCE_AT: Final = BATCH_EPOCH_AT + 4  # i32: of the batch's first record
BATCH_HEADER_AT: Final = BATCH_SEQUENCE_AT + 4  # the 61 bytes that precede the records on the wire
BATCH_HEADER_BYTES: Final = 61
TEXT_AT: Final = BATCH_HEADER_AT + 64  # UTF-8, the broker's words
TEXT_BYTES: Final = 144
DESCRIPTOR_BYTES: Final = TEXT_AT + TEXT_BYTES  # six cache lines, so that every u64 word is aligned

# --- topic entry --------------------------------------------------------------------------------------------
TOPIC_WANTED_AT: Final = 0  # u32, coordinator: TOPIC_UNUSED or TOPIC_WANTED
TOPIC_NAME_LENGTH_AT: Final = TOPIC_WANTED_AT + 4  # u32, coordinator
TOPIC_PARTITIONS_AT: Final = TOPIC_NAME_LENGTH_AT + 4  # u32, network process: 0 until known
TOPIC_ERROR_AT: Final = TOPIC_PARTITIONS_AT + 4  # i32, network process: Kafka's code of the last answer
TOPIC_ANSWERS_AT: Final = TOPIC_ERROR_AT + 4  # u32, network process: how often it was answered for
TOPIC_NAME_AT: Final = TOPIC_ANSWERS_AT + 4
TOPIC_NAME_BYTES: Final = 252  # Kafka allows 249
TOPIC_BYTES: Final = TOPIC_NAME_AT + TOPIC_NAME_BYTES

# --- partition entry ----------------------------------------------------------------------------------------
PARTITION_TOPIC_AT: Final = 0  # u32 into the topic table, coordinator
PARTITION_NUMBER_AT: Final = PARTITION_TOPIC_AT + 4  # u32, coordinator
# Written by the network process before the first send of a batch: idempotence keeps its place here, so that
# a network process that takes over goes on with the same numbers (law 8).
PRODUCER_ID_AT: Final = PARTITION_NUMBER_AT + 4  # i64
PRODUCER_EPOCH_AT: Final = PRODUCER_ID_AT + 8  # i32
NEXT_SEQUENCE_AT: Final = PRODUCER_EPOCH_AT + 4  # i32
LEADER_AT: Final = NEXT_SEQUENCE_AT + 4  # u32: LEADER_UNKNOWN, LEADER_NONE, or LEADER_FIRST + its node id
PARTITION_BYTES: Final = 32
LEADER_UNKNOWN: Final = 0
LEADER_NONE: Final = 1
LEADER_FIRST: Final = 2


class Geometry(NamedTuple):
    """The numbers that decide an arena's shape; stored in its header, checked at attach."""

    arena_bytes: int
    slab_bytes: int
    slab_count: int
    output_bytes: int
    output_count: int
    batch_count: int
    topic_count: int
    partition_count: int
    # Output buffers that only pieces of split batches may take the last of (shm/admission.py).
    split_outputs: int = 0
    # 1 for an arena without compression: batches are sent straight from their slabs, and no worker takes any but to
    # split it, so the output buffers are for pieces alone.
    is_direct: int = 0

    @property
    def seal_ring_entries(self) -> int:
        """A batch is in the ring once from seal to free, so a ring of batch_count entries never overflows."""
        return self.batch_count


class Layout(NamedTuple):
    """Where each table of an arena starts, in bytes from its beginning."""

    seal_ring: int
    batch_states: int
    slab_states: int
    output_states: int
    slab_nexts: int
    output_nexts: int
    descriptors: int
    topics: int
    partitions: int
    slabs: int
    outputs: int
    end: int


def align(offset: int, boundary: int) -> int:
    """The first multiple of ``boundary`` at or after ``offset``."""
    return -(-offset // boundary) * boundary


def layout_of(geometry: Geometry) -> Layout:
    """Every table's offset for this geometry; ``end`` is what the arena needs in all."""
    seal_ring = HEADER_BYTES
    batch_states = align(seal_ring + 4 * geometry.seal_ring_entries, LINE_BYTES)
    slab_states = align(batch_states + 4 * geometry.batch_count, LINE_BYTES)
    output_states = slab_states + 4 * geometry.slab_count
    slab_nexts = align(output_states + 4 * geometry.output_count, LINE_BYTES)
    output_nexts = slab_nexts + 4 * geometry.slab_count
    descriptors = align(output_nexts + 4 * geometry.output_count, LINE_BYTES)
    topics = align(descriptors + DESCRIPTOR_BYTES * geometry.batch_count, LINE_BYTES)
    partitions = align(topics + TOPIC_BYTES * geometry.topic_count, LINE_BYTES)
    slabs = align(partitions + PARTITION_BYTES * geometry.partition_count, PAGE_BYTES)
    outputs = slabs + geometry.slab_bytes * geometry.slab_count
    end = outputs + geometry.output_bytes * geometry.output_count
    return Layout(
        seal_ring,
        batch_states,
        slab_states,
        output_states,
        slab_nexts,
        output_nexts,
        descriptors,
        topics,
        partitions,
        slabs,
        outputs,
        end,
    )


def table_bytes_per_pair() -> int:
    """Table bytes that one slab and one output buffer cost: state and next words, and two descriptors."""
    return 2 * (4 + 4) + 2 * (DESCRIPTOR_BYTES + 4 + 4)


def plan_geometry(arena_bytes: int, slab_bytes: int, topic_count: int, partition_count: int) -> Geometry:
    """The most slabs and output buffers, as many of one as of the other, that fit in ``arena_bytes``.

    There is a descriptor for each slab and each output buffer: an open or sealed batch holds at least one
    slab and every later one at least one output buffer, so descriptors are never what runs out first.

    Raises:
        ValueError: not even two of each fit; the message says how many bytes would do.
    """
    blocks = (arena_bytes - HEADER_BYTES) // (2 * slab_bytes + table_bytes_per_pair())
    while blocks >= 2:
        geometry = Geometry(
            arena_bytes,
            slab_bytes,
            blocks,
            slab_bytes,
            blocks,
            2 * blocks,
            topic_count,
            partition_count,
        )
        if layout_of(geometry).end <= arena_bytes:
            return geometry
        blocks -= 1
    smallest = Geometry(0, slab_bytes, 2, slab_bytes, 2, 4, topic_count, partition_count)
    raise ValueError(f"{layout_of(smallest).end} bytes are the least for slabs of {slab_bytes} bytes")


def make_direct(geometry: Geometry, outputs: int) -> Geometry:
    """The same arena for batches that are sent from their slabs: so many output buffers, for pieces; the rest slabs.

    Blocks of either kind are of one size, and so are their table entries.
    """
    slabs = geometry.slab_count + geometry.output_count - outputs
    return geometry._replace(slab_count=slabs, output_count=outputs, split_outputs=outputs, is_direct=1)
