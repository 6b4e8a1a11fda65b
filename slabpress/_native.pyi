import random
from collections import deque
from collections.abc import Callable, Sequence, Sized
from mmap import mmap
from types import TracebackType
from typing import Any, Final, TypeVar

from slabpress.errors import SlabpressError
from slabpress.pipeline.batch import Batch
from slabpress.pipeline.outcomes import Delivery, Outcome
from slabpress.pipeline.watch import DoneCallback
from slabpress.records import Headers, Part

NONE: Final[int]
BATCH_FULL: Final[int]
NO_SLAB: Final[int]
ALL_APPENDED: Final[int]
STOPPED_BATCH_FULL: Final[int]
STOPPED_NO_SLAB: Final[int]
STOPPED_NOT_OPEN: Final[int]
STOPPED_TOO_LARGE: Final[int]
PAUSED: Final[int]
NO_LIMIT: Final[int]

class Memory:
    size: int
    def __init__(self, buffer: mmap | bytearray) -> None: ...
    def release(self) -> None: ...
    def load_u32(self, offset: int) -> int: ...
    def store_u32(self, offset: int, value: int) -> None: ...
    def load_u64(self, offset: int) -> int: ...
    def store_u64(self, offset: int, value: int) -> None: ...
    def add_u64(self, offset: int, amount: int) -> None: ...
    def add_all(self, offset: int, *amounts: int) -> None: ...
    def fenced_u32(self, offset: int) -> int: ...
    def fence(self) -> None: ...
    def view_of(self, offset: int, length: int) -> memoryview: ...

class Words:
    count: int
    def __init__(self, memory: Memory, offset: int, count: int) -> None: ...
    def load(self, index: int) -> int: ...
    def store(self, index: int, value: int) -> None: ...
    def find(self, value: int, start: int = 0) -> int: ...
    def find_all(self, value: int) -> list[int]: ...
    def has(self, value: int) -> bool: ...
    def count_state(self, state: int) -> int: ...
    def tally(self, values: int) -> list[int]: ...

class Sleeper:
    def __init__(self, memory: Memory, offset: int) -> None: ...
    def lie_down(self) -> None: ...
    def wait(self) -> None: ...
    def get_up(self) -> None: ...
    def wake(self) -> bool: ...
    def call(self) -> None: ...

class Alarm:
    def __init__(self, read_descriptor: int, write_descriptor: int) -> None: ...
    @property
    def due_ns(self) -> int | None: ...
    def forget(self) -> None: ...
    def set(self, due_ns: int, ring: bool = True) -> bool: ...
    def wait(self, also: Sequence[int]) -> list[int]: ...

class Blocks:
    count: int
    block_bytes: int
    def __init__(
        self,
        memory: Memory,
        states: int,
        nexts: int,
        data: int,
        count: int,
        block_bytes: int,
        free: int,
        own: int = 0,
    ) -> None: ...
    def claim(self, wanted: int, state: int) -> int: ...
    def mark(self, first: int, state: int) -> None: ...
    def trim(self, first: int, keep: int) -> int: ...
    def chain(self, first: int) -> list[int]: ...
    def views(self, first: int, length: int) -> list[memoryview]: ...
    def runs(self, first: int, length: int | None = None) -> list[memoryview]: ...
    def count_free(self) -> int: ...

class OpenBatch:
    first_slab: int
    slabs: int
    descriptor: int
    partition: int
    records: int
    bytes: int
    last_call: int
    limit: int
    closed: bool
    seal_number: int
    outcome: Outcome | None
    callbacks_asked: int
    topic: Any
    created_ns: int
    watch: Any  # a Waiters; Batch says which
    pieces: Any
    finished: bool
    era: int
    failed: int
    seen: int
    def __init__(
        self, descriptor: int, partition: int, topic: Any = None, created_ns: int = 0, watch: Any = None
    ) -> None: ...
    def ask(self, index: int, callback: DoneCallback) -> bool: ...
    def run_asked(self) -> None: ...
    def run_for_all(self, callback: DoneCallback) -> None: ...
    def drop_callbacks(self) -> None: ...

class Shares:
    def __init__(
        self,
        memory: Memory,
        blocks: Blocks,
        states: Words,
        holding: int,
        descriptors: int,
        descriptor_bytes: int,
        count_at: int,
        partition_at: int,
        seal_number_at: int,
        partitions: int,
        partition_bytes: int,
        leader_at: int,
        partition_count: int,
        brokers_at: int,
        step: int,
        leave: int,
    ) -> None: ...
    def over(self, partition: int) -> bool: ...
    def was_over(self, partition: int) -> bool: ...
    def held_by_leader(self, partition: int, states: int) -> int: ...
    def has_any(self, partition: int, state: int) -> bool: ...
    def held_within(self, states: int) -> int: ...
    def first_within(self, state: int) -> int: ...

class SealedQueue:
    def __init__(
        self,
        memory: Memory,
        states: Words,
        sealed_state: int,
        ring: Words,
        head_at: int,
        tail_at: int,
        orphans_at: int,
        parked_at: int,
        splits_at: int,
        oversize_state: int,
        outputs: Blocks,
        shares: Shares,
        leave: int,
        descriptors: int,
        descriptor_bytes: int,
        commit_at: int,
        seal_number_at: int,
        first_slab_at: int,
        is_direct: bool,
    ) -> None: ...
    def is_empty(self) -> bool: ...
    def is_ready(self) -> bool: ...

class RecordLock:
    def __init__(self, memory: Memory, descriptor: int, byte: int) -> None: ...
    def acquire(self, blocking: bool = True) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

class Task:
    @property
    def index(self) -> int: ...
    @property
    def raw_bytes(self) -> int: ...
    @property
    def first_slab(self) -> int: ...
    @property
    def first_output(self) -> int: ...
    @property
    def output_count(self) -> int: ...
    @property
    def payload_bytes(self) -> int: ...
    @property
    def deaths(self) -> int: ...
    @property
    def source(self) -> int: ...
    @property
    def chunks(self) -> list[memoryview]: ...
    @property
    def takes_ns(self) -> float: ...

class WorkPoint:
    @property
    def ns_per_byte(self) -> float: ...
    def __init__(
        self,
        queue: SealedQueue,
        lock: RecordLock,
        slabs: Blocks,
        compressing_state: int,
        ready_state: int,
        slab_compressing: int,
        output_filling: int,
        output_ready: int,
        slab_free: int,
        room_wanted_at: int,
        counters_at: int,
        worker: int,
        first_output_at: int,
        worker_at: int,
        deaths_at: int,
        source_at: int,
    ) -> None: ...
    def admit(self) -> Task | None: ...
    def task(self, index: int) -> Task: ...
    def buffers(self, task: Task) -> list[memoryview]: ...
    def fill(self, task: Task, payload: bytes | memoryview, codec: int) -> None: ...
    def finish(self, task: Task, raw_bytes: int, payload_bytes: int, codec: int) -> None: ...
    def learn(self, ns_per_byte: float) -> None: ...
    def publish(self, task: Task) -> bool: ...

class Promises:
    def __init__(self, memory: Memory, first_at: int, workers: int, head_at: int, tail_at: int) -> None: ...
    def promise(self, worker: int, batches: int) -> bool: ...
    def begin(self, worker: int, takes_ns: float, soon_ns: float, worth_ns: float) -> int: ...
    def withdraw(self, worker: int) -> None: ...
    def cover(self) -> bool: ...
    def cover_new(self) -> bool: ...

class DeliveryHandle:
    _batch: Batch
    _index: int
    _looked: bool
    def __init__(self, batch: Batch, index: int) -> None: ...
    def done(self) -> bool: ...
    def result(self, timeout: float | None = None) -> Delivery: ...
    def exception(self, timeout: float | None = None) -> SlabpressError | None: ...
    def add_done_callback(self, callback: DoneCallback) -> None: ...

class Mutex:
    def acquire(self, blocking: bool = True) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> bool: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

class TopicLanes:
    open: list[Any]
    sticky: int
    under_way: dict[int, int]
    partition_indices: dict[int, int]
    batch_limit: int
    def stick_elsewhere(self, rng: random.Random) -> None: ...

class Waiters:
    has_thread: bool
    waiting: int
    forked: bool
    @property
    def delivered_ever(self) -> int: ...
    def count_delivered(self, records: int) -> None: ...
    def tell_all(self) -> None: ...
    def callback_raised(self, error: BaseException) -> None: ...

class Ringer:
    def __init__(self, memory: Memory, sleeping_at: list[int], descriptors: list[int]) -> None: ...
    def ring(self) -> bool: ...

class Arrivals:
    def __init__(
        self,
        memory: Memory,
        states: Words,
        done_state: int,
        reporting_state: int,
        free_state: int,
        ring: Words,
        tail_at: int,
        descriptors: int,
        descriptor_bytes: int,
        result_at: int,
        delivered: int,
        open_batches: OpenBatches,
        watch: Waiters,
        outcome: type[tuple[Any, ...]],
    ) -> None: ...
    def any(self) -> bool: ...
    def take_all(self) -> list[int]: ...
    def settle(self, queue: deque[Any], calls_all: bool) -> tuple[int, int]: ...
    def take_lone(self, taking: Mutex, lock: Mutex, turns: Sized, queue: deque[Any], calls_all: bool) -> bool: ...
    def make_way(self, done: OpenBatch) -> int: ...

class OpenBatches:
    lingering: dict[int, Any]
    held: dict[int, Any]
    def __init__(
        self,
        writer: RecordWriter,
        opening: OpeningPoint,
        sealing: SealPoint,
        slab_state: int,
        batch_state: int,
        kind: type[OpenBatch],
        batches: list[Any],
        watch: object,
        promises: Promises | None,
        ringer: Ringer,
        alarm: Alarm,
        linger_ns: int,
        nudge_ns: int,
        rng: random.Random,
    ) -> None: ...
    def open(self, topic: TopicLanes, partition: int, partition_index: int, now_ns: int) -> Any: ...
    def seal(self, batch: OpenBatch) -> None: ...
    def expect_linger(self, now_ns: int) -> None: ...

class FastLane:
    closed: bool
    reserved: int
    def __init__(self, mutex: Mutex, writer: RecordWriter, topics: dict[str, Any], batches: OpenBatches) -> None: ...
    def append(
        self,
        topic_name: str,
        value: Part,
        key: Part,
        headers: Headers | None,
        partition: int | None,
        timestamp_ms: int | None,
    ) -> DeliveryHandle | None: ...

class Sends:
    def _send_through(self, lane: FastLane, long_way: Callable[..., DeliveryHandle]) -> None: ...
    def send(
        self,
        topic: str,
        value: Part = None,
        *,
        key: Part = None,
        headers: Headers | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        on_delivery: DoneCallback | None = None,
    ) -> DeliveryHandle: ...

class OpeningPoint:
    cursor: int
    def __init__(
        self,
        memory: Memory,
        states: Words,
        free_state: int,
        open_state: int,
        descriptors: int,
        descriptor_bytes: int,
        blank: bytes,
        created_at: int,
        partition_at: int,
    ) -> None: ...
    def open(self, batch: OpenBatch, partition_index: int) -> None: ...

class Inbox:
    cursor: int
    def __init__(
        self,
        memory: Memory,
        states: Words,
        ready_state: int,
        ring: Words,
        tail_at: int,
        wanted_at: int,
        descriptors: int,
        descriptor_bytes: int,
        seal_number_at: int,
        partition_at: int,
        created_at: int,
    ) -> None: ...
    def await_ready(self, index: int) -> None: ...
    def has_news(self) -> bool: ...
    def newly_ready(self) -> list[int]: ...
    def take_wanted(self) -> bool: ...
    def next_sealed(self) -> tuple[int, int, int, int, int] | None: ...

class Watch:
    def __init__(self, memory: Memory, orders_at: int, sleeping_at: int) -> None: ...
    def add(self, inbox: Inbox) -> None: ...
    def remove(self, inbox: Inbox) -> None: ...
    def take_orders(self) -> bool: ...
    def has_news(self) -> bool: ...
    def lie_down(self) -> bool: ...
    def get_up(self) -> None: ...

_Result = TypeVar("_Result", bound=tuple[Any, ...])

def whole_frame(data: memoryview, most: int) -> bytes | None: ...
def correlation_id_of(frame: bytes) -> int: ...
def read_produce(
    version: int, frame: bytes, result: type[_Result], topic_of: Callable[[bytes], Any]
) -> tuple[int, list[_Result], list[tuple[int, str, int]]]: ...
def write_produce(
    beginning: bytes,
    flexible: bool,
    api: int,
    version: int,
    correlation_id: int,
    topics: list[tuple[bytes, list[tuple[int, Sequence[memoryview], int]]]],
) -> tuple[list[memoryview], int]: ...

class SendPoint:
    def __init__(
        self,
        memory: Memory,
        states: Words,
        in_flight_state: int,
        outputs: Blocks,
        output_in_flight: int,
        output_free: int,
        splits_at: int,
        counters_at: int,
        descriptors: int,
        descriptor_bytes: int,
        commit_at: int,
        first_output_at: int,
        attempts_at: int,
        result_at: int,
        split_source_at: int,
        header_at: int,
        text_at: int,
        text_bytes: int,
    ) -> None: ...
    def measure(self, index: int) -> tuple[int, int, int, int, bool]: ...
    def make(
        self,
        index: int,
        records: int,
        producer_id: int,
        epoch: int,
        sequence: int,
        crc32c: Callable[..., int],
        piece_max_timestamp: int | None = None,
    ) -> list[memoryview]: ...
    def any_split(self) -> bool: ...
    def start(self, index: int) -> None: ...
    def end(
        self,
        index: int,
        records: int,
        code: int,
        record_index: int,
        retriable: bool,
        base_offset: int,
        append_time_ms: int,
        text: bytes,
        state: int,
    ) -> None: ...

class SealPoint:
    def __init__(
        self,
        memory: Memory,
        tail_at: int,
        ring: Words,
        states: Words,
        seal_number_at: int,
        counters_at: int,
        output_at: int,
    ) -> None: ...

class RecordWriter:
    batch_bytes: int
    largest_record_bytes: int
    too_large_bytes: int
    reserve: int
    wanted: int
    held_back: int
    def __init__(
        self,
        memory: Memory,
        slabs: Blocks,
        shares: Shares,
        open_state: int,
        descriptors: int,
        descriptor_bytes: int,
        commit_at: int,
        base_timestamp_at: int,
        max_timestamp_at: int,
        first_slab_at: int,
        slab_count_at: int,
        batch_bytes: int,
        largest_record_bytes: int,
    ) -> None: ...
    def append(
        self, batch: OpenBatch, key: Part, value: Part, headers: Headers | None, timestamp_ms: int | None
    ) -> int: ...

class Source:
    taken: int
    def is_done(self) -> bool: ...
    def append(
        self,
        writer: RecordWriter,
        topic: TopicLanes,
        partition: int,
        call: int,
        touched: list[Any],
        batches: OpenBatches | None = None,
    ) -> tuple[int, int, bool]: ...
    def close(self) -> None: ...

class LineSource(Source):
    offset: int
    def __init__(self, buffer: Any, crlf: bool, timestamp_ms: int | None) -> None: ...

class ObjectSource(Source):
    def __init__(
        self,
        values: Sequence[Any],
        keys: Sequence[Any] | None,
        headers: Sequence[Any] | None,
        timestamps: Sequence[Any] | None,
    ) -> None: ...
    def go_on_with(
        self,
        values: Sequence[Any],
        keys: Sequence[Any] | None,
        headers: Sequence[Any] | None,
        timestamps: Sequence[Any] | None,
    ) -> None: ...

class ArrowSource(Source):
    is_struct: bool
    fields: list[tuple[str, str, bool]]
    def __init__(self, data: Any, timestamp_ms: int | None, in_memory: bool = False) -> None: ...
    def choose(self, value: int, key: int, timestamp: int) -> None: ...
    def next_chunk(self) -> bool: ...

def murmur2(data: bytes) -> int: ...
def partition_for_key(key: Part, partitions: int) -> int: ...
def cut_records(
    raw: bytes | bytearray | memoryview,
    first: int,
    count: int,
    base_timestamp_ms: int,
    out: bytearray | memoryview,
) -> tuple[int, int, int]: ...
