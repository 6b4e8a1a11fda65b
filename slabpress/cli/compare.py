"""Were all records delivered, once each, and those of a key in their order? Checksums of both sides tell.

A key's values go into one running BLAKE2b, in order, so a lost, doubled, changed or swapped record shows. Records
without a key may lie in any partition: for them a sum is kept, which does not depend on the order.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

_DIGEST_BYTES: Final = 16
_NAMED_MAX: Final = 5


class Checksum:
    """What was sent, or what was read: count, one checksum per key, one sum for records without a key."""

    def __init__(self) -> None:
        self.records = 0
        self.keyless = 0
        self._keyless_sum = 0
        self._hashes: dict[bytes, blake2b] = {}

    def add(self, key: bytes | None, value: bytes) -> None:
        """Take in one record."""
        self.records += 1
        if key is None:
            self.keyless += 1
            self._keyless_sum += int.from_bytes(blake2b(value, digest_size=_DIGEST_BYTES).digest(), "big")
            return
        hashed = self._hashes.get(key)
        if hashed is None:
            hashed = self._hashes[key] = blake2b(digest_size=_DIGEST_BYTES)
        hashed.update(len(value).to_bytes(4, "big"))
        hashed.update(value)

    @property
    def keys(self) -> int:
        """How many different keys there are."""
        return len(self._hashes)

    def differences(self, read: Checksum) -> list[str]:
        """What ``read`` has otherwise than this side, in words; empty if both are equal."""
        found = []
        if self.records != read.records:
            found.append(f"{self.records:,} records were sent and {read.records:,} were read")
        keys = self._hashes.keys() | read._hashes.keys()
        wrong = sorted(key for key in keys if self._digest(key) != read._digest(key))
        if wrong:
            named = ", ".join(repr(key) for key in wrong[:_NAMED_MAX])
            more = f" and {len(wrong) - _NAMED_MAX:,} more" if len(wrong) > _NAMED_MAX else ""
            found.append(f"the values of {len(wrong):,} keys differ, or their order does: {named}{more}")
        if (self.keyless, self._keyless_sum) != (read.keyless, read._keyless_sum):
            found.append(f"the records without a key differ: {self.keyless:,} sent, {read.keyless:,} read")
        return found

    def _digest(self, key: bytes) -> bytes:
        hashed = self._hashes.get(key)
        return hashed.digest() if hashed is not None else b""
