"""Pictures, which need a package that nothing else does."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from bench import memory, throughput


@pytest.mark.parametrize(("bench", "option"), [(throughput, "--charts"), (memory, "--picture")])
def test_that_a_picture_cannot_be_drawn_is_said_before_anything_is_measured(
    bench: ModuleType, option: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("it began to measure")

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(sys, "argv", [bench.__name__, "--quick", option, str(tmp_path / "picture.svg")])
    monkeypatch.setattr(bench, "introduce", measured)
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        bench.main()
