"""A signal ends a command wherever it arrives, with 128 and its number."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Iterator

import pytest

import bench.cli.list
from bench.cli import main

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def as_in_a_shell() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Storage:
    pass


class Ending:
    """Gets a signal while it ends."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        _get(self.number)


def _get(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.sigtimedwait([], 5)  # the handler runs before this returns


def _callback(number: int) -> None:
    storage = Storage()
    watch = weakref.ref(storage, lambda _: _get(number))
    del storage
    assert watch() is None


def _ending(number: int) -> None:
    ending = Ending(number)
    del ending


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("arrives", ["here", "in a callback", "at an end"])
def test_a_signal_ends_a_command(
    number: signal.Signals,
    arrives: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Python drops what is raised in a callback of a weak reference, and where an object ends."""
    get = {"here": _get, "in a callback": _callback, "at an end": _ending}[arrives]

    def run(options: object) -> int:
        get(number)
        threading.Event().wait(60)
        return 0

    monkeypatch.setattr(bench.cli.list, "run", run)
    assert main(["list", "models"]) == 128 + number
    assert capfd.readouterr().err == ""


def test_any_other_error_at_an_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(options: object) -> int:
        storage = Storage()
        watch = weakref.ref(storage, lambda _: 1 // 0)
        del storage
        return int(watch() is not None)

    told = []
    monkeypatch.setattr("sys.unraisablehook", told.append)
    monkeypatch.setattr(bench.cli.list, "run", run)
    assert main(["list", "models"]) == 0
    assert [each.exc_type for each in told] == [ZeroDivisionError]
