"""The sink's side of a connection: Produce requests are counted and acknowledged, their records never read.

Of each batch its first 61 bytes are looked at. The rest the kernel is told to drop: ``MSG_TRUNC`` on a TCP socket of
Linux takes bytes from the queue without copying them anywhere (tcp(7)), which costs 0.04 s of CPU a gigabyte on
loopback where reading them into one buffer costs 0.15. Elsewhere they are read into one buffer.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading

from bench.sink_books import Batch, Books, Topic
from bench.sink_messages import OFFERED, PRODUCE, Speaker, UnspokenError

_LOOKED_AT_BYTES = 16 * 1024
_DROPPED_AT_ONCE = 4 << 20
_FRAME_MOST = 1 << 20  # of what is not Produce
_DROP = socket.MSG_WAITALL | (socket.MSG_TRUNC if sys.platform == "linux" else 0)

_REQUEST = struct.Struct(">ihhih")  # length, API key, version, correlation id, length of the client id
_PRODUCE = struct.Struct(">hii")  # acks, timeout, number of topics
_PARTITION = struct.Struct(">ii")  # index, bytes of records
_LENGTH = struct.Struct(">h")
_COUNT = struct.Struct(">i")
# KIP-98: base offset, batch length, leader epoch, magic, CRC, attributes, last offset delta, two timestamps, producer
# id, its epoch, base sequence, number of records.
_BATCH = struct.Struct(">qiibIhiqqqhii")
_MAGIC = 2
_CODEC_BITS = 7
# What is answered for a partition: index, error, base offset, append time, (v5) log start, (v8) errors and message.
_RESULTS = {3: ">ihqq", 5: ">ihqqq", 8: ">ihqqqih"}


class BadRequestError(Exception):
    """A request whose parts do not add up."""


class Intake:
    """A connection's bytes: a few are looked at, most are dropped where they are.

    Attributes:
        data: what is looked at.
        passed: bytes that were taken or skipped since the connection began.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.data = bytearray(_LOOKED_AT_BYTES)
        self._view = memoryview(self.data)
        # Where MSG_TRUNC works its pages are never touched: the kernel only wants an address of the process's own.
        self._nowhere = bytearray(_DROPPED_AT_ONCE)
        self._at = self._end = 0
        self.passed = 0

    def take(self, octets: int) -> int:
        """Where in ``data`` the next so many bytes are; they count as passed.

        Raises:
            EOFError: the client has closed the connection.
        """
        if self._end - self._at < octets:
            self._fill(octets)
        at = self._at
        self._at += octets
        self.passed += octets
        return at

    def text(self, octets: int) -> bytes:
        """The next so many bytes, however many, copied."""
        parts = []
        while octets > 0:
            step = min(octets, _LOOKED_AT_BYTES)
            at = self.take(step)
            parts.append(bytes(self._view[at : at + step]))
            octets -= step
        return b"".join(parts)

    def skip(self, octets: int) -> None:
        """Drop the next so many bytes; a negative number, as of a null string, is none."""
        octets = max(0, octets)
        self.passed += octets
        here = min(octets, self._end - self._at)
        self._at += here
        octets -= here
        while octets:
            got = self._connection.recv_into(self._nowhere, min(octets, _DROPPED_AT_ONCE), _DROP)
            if not got:
                raise EOFError
            octets -= got

    def _fill(self, octets: int) -> None:
        kept = self._end - self._at
        self.data[:kept] = self.data[self._at : self._end]
        self._at, self._end = 0, kept
        while self._end < octets:
            got = self._connection.recv_into(self._view[self._end :])
            if not got:
                raise EOFError
            self._end += got


class Conversation:
    """One connection, until the client closes it."""

    def __init__(self, connection: socket.socket, books: Books, speaker: Speaker) -> None:
        self._connection = connection
        self._intake = Intake(connection)
        self._books = books
        self._speaker = speaker

    def run(self) -> None:
        """Answer everything; what cannot be answered ends the connection and is told on stderr."""
        with self._connection:
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                while True:
                    self._one()
            except (EOFError, ConnectionError):
                pass
            except (BadRequestError, UnspokenError) as error:
                print(f"sink: connection closed: {error}", file=sys.stderr, flush=True)

    def _one(self) -> None:
        intake = self._intake
        at = intake.take(_REQUEST.size)
        length, api, version, correlation_id, client_id = _REQUEST.unpack_from(intake.data, at)
        rest = length + 4 - _REQUEST.size
        if api == PRODUCE:
            end = intake.passed + rest
            intake.skip(client_id)
            answer = self._produce(version, correlation_id)
            if intake.passed != end:
                raise BadRequestError(f"a Produce request of {length} bytes ends {intake.passed - end} bytes off")
        else:
            if not 0 <= rest <= _FRAME_MOST:
                raise BadRequestError(f"a request with API key {api} of {length} bytes; {_FRAME_MOST} are the most")
            head = bytes(intake.data[at + 4 : at + _REQUEST.size])
            answer = self._speaker.answer(api, version, correlation_id, head + intake.text(rest))
        if answer:
            self._connection.sendall(answer)

    def _produce(self, version: int, correlation_id: int) -> bytes:
        least, most = OFFERED[PRODUCE]
        if not least <= version <= most:
            raise UnspokenError(f"Produce version {version}; {least} to {most} are offered")
        intake = self._intake
        intake.skip(_LENGTH.unpack_from(intake.data, intake.take(2))[0])  # transactional id
        acks, _, topics = _PRODUCE.unpack_from(intake.data, intake.take(_PRODUCE.size))
        arrived = [self._topic() for _ in range(topics)]
        result = struct.Struct(_RESULTS[max(first for first in _RESULTS if first <= version)])
        more = (-1, 0, 0, -1)[: 4 if version >= 8 else 2 if version >= 5 else 1]  # append time, log start, no errors
        parts = [struct.pack(">ii", correlation_id, topics)]
        with self._books.lock:
            for name, batches in arrived:
                topic = self._books.topics.get(name) or Topic(0)
                parts.append(_LENGTH.pack(len(name)) + name + _COUNT.pack(len(batches)))
                for partition, batch, octets in batches:
                    error, offset = topic.take(partition, batch, octets)
                    parts.append(result.pack(partition, error, offset, *more))
        if acks == 0:
            return b""
        body = b"".join(parts)
        return _COUNT.pack(len(body) + 4) + body + _COUNT.pack(0)  # throttled for 0 ms

    def _topic(self) -> tuple[bytes, list[tuple[int, Batch | None, int]]]:
        """A topic's name, and of each batch its partition, head (None: it is not a batch) and size."""
        intake = self._intake
        name = intake.text(_LENGTH.unpack_from(intake.data, intake.take(2))[0])
        batches = []
        for _ in range(_COUNT.unpack_from(intake.data, intake.take(4))[0]):
            partition, octets = _PARTITION.unpack_from(intake.data, intake.take(_PARTITION.size))
            batch: Batch | None = None
            if octets >= _BATCH.size:
                _, length, _, magic, _, attributes, *_, records = _BATCH.unpack_from(
                    intake.data, intake.take(_BATCH.size)
                )
                # One batch of magic 2 a topic-partition, as Kafka wants it from Produce 3 on.
                if magic == _MAGIC and length + 12 == octets:
                    batch = Batch(records, attributes & _CODEC_BITS)
                intake.skip(octets - _BATCH.size)
            else:
                intake.skip(octets)
            batches.append((partition, batch, octets))
        return name, batches


class Server:
    """Listens on loopback, with a thread for each connection: a producer has one or two.

    Attributes:
        books: the counts.
        port: where it listens.
    """

    def __init__(self) -> None:
        self.books = Books()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]

    def start(self) -> None:
        """Begin to accept connections."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        speaker = Speaker(self.port, self.books.partitions)
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=Conversation(connection, self.books, speaker).run, daemon=True).start()
