"""What the selftest starts: a warm interpreter, and pytest as a user of the suites does."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from warm import Warm


@pytest.fixture(scope="session")
def warm_process() -> Iterator[Warm]:
    """Started when a test first asks for it."""
    with Warm() as warm:
        yield warm


@pytest.fixture
def warm(warm_process: Warm, monkeypatch: pytest.MonkeyPatch) -> Warm:
    """Whatever the test, or the code under test, starts as `sys.executable` is forked."""
    monkeypatch.setattr(sys, "executable", warm_process.python)
    return warm_process
