"""The processes that build the atlas: one that crashes or hangs loses itself only."""

from __future__ import annotations

import os
import time

import pytest

from bench.atlas import workers


def work(item: str) -> dict[str, object]:
    """A task by name; it runs in a process of its own."""
    if item == "crash":
        os._exit(3)
    if item == "end":
        os._exit(0)
    if item == "hang":
        time.sleep(60)
    if item == "raise":
        raise ValueError("what is wrong")
    return {"item": item, "process": os.getpid()}


def _run(items, jobs) -> dict[str, tuple[object, str]]:
    return {
        item: (answer and answer["item"], problem)
        for item, answer, problem in workers.run_all(work, items, jobs)
    }


def test_a_crash_and_an_error_lose_nothing_else(monkeypatch) -> None:
    assert _run(["a", "crash", "b", "end", "raise", "c"], 1) == {
        "a": ("a", ""),
        "b": ("b", ""),
        "c": ("c", ""),
        "crash": (None, "its process died with status 3"),
        "end": (None, "its process died with status 70"),
        "raise": (None, "what is wrong"),
    }


@pytest.mark.slow
def test_a_hang_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(workers, "TIME_LIMIT_SECONDS", 12.0)
    found = _run(["hang", "a", "b"], 2)
    assert found == {
        "hang": (None, "did not finish in 12 s"), "a": ("a", ""), "b": ("b", ""),
    }  # fmt: skip


def test_processes_end_with_the_run() -> None:
    run = workers.run_all(work, ["a", "b", "c"], 1)
    _, answer, _ = next(run)
    run.close()
    with pytest.raises(ProcessLookupError):
        os.kill(answer["process"], 0)
