"""What the tests of `pytest suites/` share: a project with a tiny model, and its stored runs."""

from __future__ import annotations

from pathlib import Path

import pytest

SUITES = Path(__file__).resolve().parent.parent
COLLECTED = pytest.StashKey[set[str]]()
"""The heavy libraries that were imported when everything was collected."""
STEPS = ("--precision", "fp32", "--rounds", "5", "--seq-len", "8")


def results_of(pytester: pytest.Pytester) -> Path:
    """The folder of this machine's runs."""
    (folder,) = (pytester.path / "results").iterdir()
    return folder
