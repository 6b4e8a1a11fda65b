"""Reading Metadata responses, versions 1 to 13, within a memory that does not depend on what they hold.

kio makes objects of everything in a response, replicas too: about 600 bytes a topic-partition, where 8 are needed.
This reader walks over the frame instead. It keeps the leaders and epochs of the topics that were asked for, passes
over all else, unknown tagged fields included, and holds every length against the bytes that are there before it
makes anything of that size. What it makes of a frame is therefore smaller than the frame, whoever sent it.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Container
from typing import Final
from uuid import UUID

from slabpress.network.wire import NO_EPOCH, NO_LEADER, BrokerAddress, Leaders, MetadataAnswer, TopicMetadata, WireError

# Each broker costs this process about a kilobyte, which is part of its plan. No cluster comes near.
BROKERS_MAX: Final = 1024

_FIRST_WITH_THROTTLE: Final = 3
_FIRST_WITH_CLUSTER_ID: Final = 2
_FIRST_WITH_OFFLINE_REPLICAS: Final = 5
_FIRST_WITH_EPOCHS: Final = 7
# Brokers before 2.4 tell wrong ones while partitions are reassigned (KAFKA-9212); Java's client ignores them as well.
_FIRST_WITH_RELIABLE_EPOCHS: Final = 9
_FIRST_WITH_TOPIC_OPERATIONS: Final = 8
_WITH_CLUSTER_OPERATIONS: Final = (8, 9, 10)
_FIRST_FLEXIBLE: Final = 9
_FIRST_WITH_TOPIC_IDS: Final = 10
_FIRST_WITH_ERROR: Final = 13

_INT16: Final = struct.Struct(">h")
_INT32: Final = struct.Struct(">i")
_PARTITION: Final = struct.Struct(">hii")  # error, number, leader
_PARTITION_WITH_EPOCH: Final = struct.Struct(">hiii")
_ID_BYTES: Final = 16
_BROKER_BYTES_LEAST: Final = 11
_TOPIC_BYTES_LEAST: Final = 9
# Longer is neither a host name nor a topic name; a str may take four times its UTF-8.
_STRING_BYTES_MOST: Final = 255
_VARINT_BITS_MOST: Final = 35
# What stands where no partition was read yet: negative leaders are all taken for NO_LEADER.
_UNSEEN: Final = -2


class _Reader:
    """A place in a frame that moves on with what is read; nothing is read beyond the end.

    Lengths and the ends of structures are those of the versions without tagged fields.
    """

    __slots__ = ("_at", "_data", "_end", "_version")

    length_bytes = 4  # of an array, at least

    def __init__(self, version: int, frame: bytes) -> None:
        self._version = version
        self._data = memoryview(frame)
        self._end = len(frame)
        self._at = 0

    def wrong(self, what: str) -> WireError:
        """The error that says what is wrong, and where."""
        return WireError(f"metadata response v{self._version} of {self._end} bytes, at {self._at}: {what}")

    def skip(self, count: int) -> int:
        """Pass over so many bytes; where they begin."""
        at = self._at
        if count > self._end - at:
            raise self.wrong(f"{count} bytes are to follow, {self._end - at} are there")
        self._at = at + count
        return at

    def int16(self) -> int:
        value: int = _INT16.unpack_from(self._data, self.skip(2))[0]
        return value

    def int32(self) -> int:
        value: int = _INT32.unpack_from(self._data, self.skip(4))[0]
        return value

    def fields(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack_from(self._data, self.skip(layout.size))

    def topic_id(self) -> UUID | None:
        """An id; None for zero, which stands for none."""
        at = self.skip(_ID_BYTES)
        found = UUID(bytes=bytes(self._data[at : at + _ID_BYTES]))
        return found if found.int else None

    def count(self, bytes_least: int) -> int:
        """An array's length, 0 for null; its elements, of so many bytes at least, can be there."""
        count = max(0, self._array_length())
        if count * bytes_least > self._end - self._at:
            raise self.wrong(f"{count} elements are to follow, {self._end - self._at} bytes are there")
        return count

    def string(self) -> str | None:
        """A string, None for null."""
        length = self._string_length()
        if length < 0:
            return None
        if length > _STRING_BYTES_MOST:
            raise self.wrong(f"a string of {length} bytes")
        at = self.skip(length)
        try:
            return str(self._data[at : at + length], "utf-8")
        except UnicodeDecodeError as error:
            raise self.wrong(f"a string that is not UTF-8: {error.reason}") from error

    def skip_string(self) -> None:
        """Pass over a string or null."""
        self.skip(max(0, self._string_length()))

    def skip_int32s(self, arrays: int) -> None:
        """Pass over arrays of int32 or null."""
        for _ in range(arrays):
            self.skip(4 * max(0, self._array_length()))

    def _array_length(self) -> int:
        return self._length(self.int32())

    def _string_length(self) -> int:
        return self._length(self.int16())

    def _length(self, length: int) -> int:
        if length < -1:
            raise self.wrong(f"a length of {length}")
        return length

    def skip_tags(self) -> None:
        """Pass over the tagged fields at the end of a structure, of which these versions have none."""


class _FlexibleReader(_Reader):
    """The same for the versions with tagged fields: lengths are varints, null is 0, all others are one more."""

    __slots__ = ()

    length_bytes = 1

    def _varint(self) -> int:
        value = self._data[self.skip(1)]
        if value < 0x80:
            return value
        value &= 0x7F
        for shift in range(7, _VARINT_BITS_MOST, 7):
            byte = self._data[self.skip(1)]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise self.wrong("a varint of more than five bytes")

    def _array_length(self) -> int:
        return self._varint() - 1

    _string_length = _array_length

    def skip_int32s(self, arrays: int) -> None:
        """Pass over arrays of int32 or null: here most of the time goes, so lengths of one byte are read in place."""
        for _ in range(arrays):
            at = self._at
            if at < self._end and 0 < (length := self._data[at]) < 0x80:
                self.skip(4 * length - 3)  # one less, and the length itself
            else:
                self.skip(4 * max(0, self._varint() - 1))

    def skip_tags(self) -> None:
        """Pass over the tagged fields at the end of a structure: none is of use here."""
        for _ in range(self._varint()):
            self._varint()
            self.skip(self._varint())


def decode_metadata(version: int, frame: bytes, wanted: Container[str]) -> MetadataAnswer:
    """Read a Metadata response.

    Args:
        version: the version that was asked for.
        frame: the response, without its length.
        wanted: the names of the topics to keep.

    Raises:
        WireError: it is not such a response.
    """
    reader = (_FlexibleReader if version >= _FIRST_FLEXIBLE else _Reader)(version, frame)
    reader.int32()  # the correlation id
    reader.skip_tags()
    throttle_ms = reader.int32() if version >= _FIRST_WITH_THROTTLE else 0
    brokers = _brokers(reader)
    if version >= _FIRST_WITH_CLUSTER_ID:
        reader.skip_string()
    reader.int32()  # the controller
    topics = _topics(reader, version, wanted)
    if version in _WITH_CLUSTER_OPERATIONS:
        reader.int32()
    error = reader.int16() if version >= _FIRST_WITH_ERROR else 0
    reader.skip_tags()
    return MetadataAnswer(max(0, throttle_ms), error, brokers, topics)


def _brokers(reader: _Reader) -> list[BrokerAddress]:
    count = reader.count(_BROKER_BYTES_LEAST)
    if count > BROKERS_MAX:
        raise reader.wrong(f"{count} brokers, more than {BROKERS_MAX}")
    return [_broker(reader) for _ in range(count)]


def _broker(reader: _Reader) -> BrokerAddress:
    node = reader.int32()
    host = reader.string()
    port = reader.int32()
    reader.skip_string()  # the rack
    reader.skip_tags()
    if node < 0 or host is None:
        raise reader.wrong(f"a broker {node} at {host!r}")
    return BrokerAddress(node, host, port)


def _topics(reader: _Reader, version: int, wanted: Container[str]) -> list[TopicMetadata]:
    """The wanted topics. All are walked over, but a response may name more than there is memory for."""
    found: dict[str, TopicMetadata] = {}
    for _ in range(reader.count(_TOPIC_BYTES_LEAST)):
        topic = _topic(reader, version)
        if topic.name in found:
            raise reader.wrong(f"topic {topic.name!r} a second time")
        if topic.name in wanted:
            found[topic.name] = topic
    return list(found.values())


def _topic(reader: _Reader, version: int) -> TopicMetadata:
    error = reader.int16()
    name = reader.string()
    topic_id = reader.topic_id() if version >= _FIRST_WITH_TOPIC_IDS else None
    reader.skip(1)  # whether it is internal
    leaders = _leaders(reader, version)
    if version >= _FIRST_WITH_TOPIC_OPERATIONS:
        reader.int32()
    reader.skip_tags()
    return TopicMetadata(name or "", topic_id, error, leaders)


def _leaders(reader: _Reader, version: int) -> Leaders:
    """The leaders of a topic's partitions, which come in any order, but each of 0 .. n-1 once."""
    with_epochs = version >= _FIRST_WITH_EPOCHS
    layout = _PARTITION_WITH_EPOCH if with_epochs else _PARTITION
    lists = 3 if version >= _FIRST_WITH_OFFLINE_REPLICAS else 2  # replicas, in-sync, offline
    count = reader.count(layout.size + lists * reader.length_bytes)
    nodes, epochs = array("i", [_UNSEEN]) * count, array("i", [NO_EPOCH]) * count
    for _ in range(count):
        fields = reader.fields(layout)
        number, node = fields[1], fields[2]
        if not 0 <= number < count or nodes[number] != _UNSEEN:
            raise reader.wrong(f"partition {number} of {count}, or for the second time")
        nodes[number] = node if node >= 0 else NO_LEADER
        if version >= _FIRST_WITH_RELIABLE_EPOCHS and fields[3] >= 0:
            epochs[number] = fields[3]
        reader.skip_int32s(lists)
        reader.skip_tags()
    return Leaders(nodes, epochs)
