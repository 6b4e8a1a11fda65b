"""What the package offers, and what importing it costs."""

from __future__ import annotations

import inspect
import sys
from importlib import metadata

import pytest

import slabpress
from tests.shm.kit import run_python


def test_all_names_are_sorted_and_importable() -> None:
    assert slabpress.__all__ == sorted(slabpress.__all__)
    assert len(set(slabpress.__all__)) == len(slabpress.__all__)
    for name in slabpress.__all__:
        value = getattr(slabpress, name)
        assert value.__name__ == name
        assert value.__doc__, f"{name} has no docstring"


def test_every_error_is_public() -> None:
    from slabpress import errors

    kinds = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert kinds <= set(slabpress.__all__)


def test_dir_lists_what_is_public() -> None:
    assert set(slabpress.__all__) <= set(dir(slabpress))


def test_an_unknown_name_is_an_attribute_error() -> None:
    name = "Consumer"
    with pytest.raises(AttributeError, match="module 'slabpress' has no attribute 'Consumer'"):
        getattr(slabpress, name)


def test_the_version_is_the_installed_one() -> None:
    assert slabpress.__version__ == metadata.version("slabpress")


_LOADED = """
import sys
{code}
names = {{name.partition(".")[0] for name in sys.modules}}
print(*sorted(names & {{"kio", "crc32c", "zstandard", "lz4", "cramjam", "msgspec", "psutil"}}))
"""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import slabpress", ""),
        ("from slabpress import SlabpressError", ""),
        ("import slabpress.shm.arena, slabpress.shm.admission, slabpress.shm.handover", ""),
        ("from slabpress import Producer", "msgspec"),
        ("from slabpress import Config, plan_memory; plan_memory(Config.of('a:1'))", "msgspec"),
    ],
)
def test_importing_loads_neither_protocol_nor_codecs(code: str, expected: str) -> None:
    ended = run_python(_LOADED.format(code=code))
    assert ended.stdout.split() == expected.split(), ended.stderr


def test_importing_starts_no_thread_and_changes_no_signal_handler() -> None:
    code = """
import signal, threading
before = [signal.getsignal(number) for number in signal.valid_signals()]
from slabpress import Producer
assert [signal.getsignal(number) for number in signal.valid_signals()] == before
assert threading.active_count() == 1
"""
    assert run_python(code).returncode == 0


def test_the_package_is_typed() -> None:
    from importlib import resources

    assert resources.files("slabpress").joinpath("py.typed").is_file()
    assert sys.version_info >= (3, 11)
