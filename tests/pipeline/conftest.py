"""No test here may pass thanks to a second look: a wake-up that is lost must show."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for room or for a topic sleeps until it is called, and does not look again every second."""
    monkeypatch.setattr("slabpress.pipeline.lookup._LOOK_AGAIN_S", 3600.0)
    monkeypatch.setattr("slabpress.pipeline.sender._LOOK_AGAIN_S", 3600.0)
