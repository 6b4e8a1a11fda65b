"""Fixtures of the integration tests: producers that are closed, and closed in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from slabpress import Producer, SlabpressError

MakeProducer = Callable[..., Producer]


@pytest.fixture
def make_producer() -> Iterator[MakeProducer]:
    """A function that makes producers; those that a test leaves open are closed after it, without waiting."""
    made: list[Producer] = []

    def make(bootstrap_servers: str, **settings: Any) -> Producer:
        producer = Producer(bootstrap_servers, **({"workers": 2} | settings))
        made.append(producer)
        return producer

    yield make
    for producer in made:
        try:
            producer.close(0)
        except SlabpressError:
            continue  # the test has looked at what it wanted to
