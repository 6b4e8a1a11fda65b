"""The message stream of the memory experiment, the same for every side, and what a side is asked to do."""

from __future__ import annotations

import json
import random
from typing import NamedTuple

MESSAGE_BYTES = 1024
DISTINCT = 2048
SEED = 6512
SHAPE = (
    f"{DISTINCT} distinct JSON orders of {MESSAGE_BYTES} bytes (seed {SEED}: ids, prices, words from a vocabulary of "
    "400), no keys; producer i of n starts at message i * 2048 / n and goes round, and writes its number and a "
    "sequence number into each"
)

_WORDS = 400
_LETTERS = "etaoinshrdlu"
# The first half of each order's id gives way to the stamp: producer and sequence number.
_STAMP = b'{"id":"%04d-%012d'
_PRODUCER = slice(7, 11)
_SEQUENCE = slice(12, 24)
STAMP_BYTES = _SEQUENCE.stop


class Job(NamedTuple):
    """What a side is asked to do.

    Attributes:
        side: its name in the tables.
        codec: the compression.type.
        producers: how many, each with a thread of its own where the client has threads.
        buffer_bytes: the memory setting of each producer.
        cap_bytes: a side that takes more memory than this is killed.
        patience_ms: how long a request may stay unanswered; a record may take twice that.
        partitions: of the topic.
        bootstrap_servers: the broker, behind the proxy.
        topic: where to send.
        messages: the file with the messages, one after the other.
    """

    side: str
    codec: str
    producers: int
    buffer_bytes: int
    cap_bytes: int
    patience_ms: int
    partitions: int
    bootstrap_servers: str
    topic: str
    messages: str


def make_messages() -> list[bytes]:
    """The distinct messages."""
    rng = random.Random(SEED)
    words = ["".join(rng.choices(_LETTERS, k=rng.randrange(3, 10))) for _ in range(_WORDS)]
    return [_message(rng, words, number) for number in range(DISTINCT)]


def split_messages(data: bytes) -> list[bytes]:
    """The messages in the bytes of a file."""
    return [data[at : at + MESSAGE_BYTES] for at in range(0, len(data), MESSAGE_BYTES)]


def first_message(producer: int, producers: int) -> int:
    """Where in the messages a producer starts."""
    return producer * DISTINCT // producers


def stamped(producer: int, sequence: int, message: bytes) -> bytes:
    """A record's value: the message with its producer and its sequence number in it."""
    return _STAMP % (producer, sequence) + message[STAMP_BYTES:]


def read_stamp(value: bytes) -> tuple[int, int]:
    """Producer and sequence number of a record.

    Raises:
        ValueError: the value has no stamp.
    """
    return int(value[_PRODUCER]), int(value[_SEQUENCE])


def _message(rng: random.Random, words: list[str], number: int) -> bytes:
    order = {
        "id": f"{rng.getrandbits(128):032x}",
        "ts": 1_517_400_000_000 + number * 41 + rng.randrange(41),
        "user": rng.randrange(2_000_000),
        "items": [
            {
                "sku": f"{rng.getrandbits(40):010x}",
                "name": " ".join(rng.choices(words, k=3)),
                "price": rng.randrange(100, 100_000) / 100,
                "quantity": rng.randrange(1, 5),
            }
            for _ in range(6)
        ],
        "status": rng.choice(("new", "paid", "packed", "sent", "returned")),
    }
    text = json.dumps(order, separators=(",", ":"))[:-1] + ',"note":"'
    while len(text) < MESSAGE_BYTES:
        text += rng.choice(words) + " "
    return (text[: MESSAGE_BYTES - 2] + '"}').encode()
