"""Cutting the bytes of a connection into response frames. No socket.

A frame is held once: what is on its way to be a large one is gathered where it stays, in a buffer that has its size
from the first byte on. A bytearray that grows with what comes in would be copied, and kio wants bytes at the end.
"""

from __future__ import annotations

import io
import struct
from typing import Final

from slabpress._native import whole_frame
from slabpress.network.wire import RESPONSE_MAX_BYTES, WireError

# A frame up to this size is copied out of what came in with it.
SMALL_BYTES: Final = 64 * 1024

_LENGTH_BYTES: Final = 4
_HEAD: Final = struct.Struct(">ii")  # length, correlation id


class OversizedError(WireError):
    """A response is larger than RESPONSE_MAX_BYTES.

    Attributes:
        length: its size.
        correlation_id: what it seems to answer.
    """

    def __init__(self, length: int, correlation_id: int) -> None:
        super().__init__(f"a response of {length} bytes, more than {RESPONSE_MAX_BYTES}")
        self.length = length
        self.correlation_id = correlation_id


class Frames:
    """The frames of one connection, in the order in which they come."""

    def __init__(self) -> None:
        self._small = bytearray()
        # BytesIO gives its buffer away as bytes, without a copy.
        self._large: io.BytesIO | None = None
        self._missing = 0

    def whole(self, data: memoryview) -> bytes | None:
        """The frame that came in, if that is all there is: a response mostly comes by itself."""
        return None if self._small or self._large is not None else whole_frame(data, SMALL_BYTES)

    def feed(self, data: memoryview) -> None:
        """Take what came in; what ``whole`` has given is not fed."""
        if self._large is not None:
            part = data[: self._missing]
            self._large.write(part)
            self._missing -= len(part)
            data = data[len(part) :]
        self._small += data

    def next(self) -> bytes | None:
        """The next frame, without its length; None if it is not complete.

        Raises:
            OversizedError: it is too large to be held.
            WireError: it cannot be one.
        """
        if (large := self._large) is not None:
            if self._missing:
                return None
            self._large = None
            return large.getvalue()
        length = self._length()
        if length is None:
            return None
        end = _LENGTH_BYTES + length
        if len(self._small) >= end:
            frame = bytes(memoryview(self._small)[_LENGTH_BYTES:end])
            del self._small[:end]
            return frame
        if length > SMALL_BYTES:
            self._begin_large(length)
        return None

    def _length(self) -> int | None:
        """The size of the next frame, once that is known; not before it is known what it answers if it is large."""
        if len(self._small) < _LENGTH_BYTES:
            return None
        length = int.from_bytes(self._small[:_LENGTH_BYTES], "big", signed=True)
        if length < 0:
            raise WireError(not_a_response(length))
        if length <= RESPONSE_MAX_BYTES:
            return length
        if len(self._small) >= _HEAD.size:
            raise OversizedError(*_HEAD.unpack_from(self._small))
        return None

    def _begin_large(self, length: int) -> None:
        large = io.BytesIO()
        large.seek(length - 1)
        large.write(b"\0")
        large.seek(0)
        self._missing = length - large.write(memoryview(self._small)[_LENGTH_BYTES:])
        self._small = bytearray()
        self._large = large

    def clear(self) -> None:
        """Forget what was not complete."""
        self._small = bytearray()
        self._large = None


def not_a_response(length: int) -> str:
    """What to say of a length that no response has."""
    return f"not a Kafka response: it begins with {_HEAD.pack(length, 0)[:4]!r}, a length of {length} bytes"
