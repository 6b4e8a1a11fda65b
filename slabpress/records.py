"""What a record's parts may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Part: TypeAlias = bytes | bytearray | memoryview | str | None
"""A key or a value: str is encoded as UTF-8, None is null. Anything else needs a serializer."""

Headers: TypeAlias = Sequence[tuple[str | bytes, Part]]
"""A record's headers, in order; names may repeat (KIP-82). A name is never null, a value may be."""
