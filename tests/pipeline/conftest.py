"""No test here may pass thanks to a second look: a wake-up that is lost must show."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pipeline.instant import SMALL


@pytest.fixture(autouse=True)
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for room or for a topic sleeps until it is called, and does not look again every second."""
    monkeypatch.setattr("slabpress.pipeline.lookup._LOOK_AGAIN_S", 3600.0)
    monkeypatch.setattr("slabpress.pipeline.sender._LOOK_AGAIN_S", 3600.0)


@pytest.fixture(scope="module", autouse=True, params=["none", "lz4"], ids=["direct", "compressing"])
def compression(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both kinds of arena: one whose batches are sent from their slabs, and one with workers in between.

    ``InstantPipeline`` compresses nothing, but goes the way of either.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SMALL, "compression_type", request.param)
        yield request.param
