"""One measuring session for all runs of pytest that a test starts in its own process."""

from __future__ import annotations

import atexit
import functools
import os
from pathlib import Path

from warm import our_own

from bench.measure import Session

CONFTEST = """
import pytest

@pytest.fixture(scope="session")
def measuring():
    from gate_support import faulty_session

    return faulty_session()
"""
"""Takes the place of the plugin's fixture: its imports cost seconds in every run."""


@functools.cache
def faulty_session() -> Session:
    """A session whose workers know the faults of `gate_faults`."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    try:
        session = Session(preload=["gate_faults"], time_limit_seconds=60, device="cpu")
        with our_own().in_place():
            session.__enter__()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    atexit.register(session.close)
    return session
