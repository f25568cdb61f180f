"""What the tests of the cluster run on its nodes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.measure import Rounds, StepTime
from bench.measure.cluster import measure_here
from bench.measure.spread import Taken
from bench.training.cases import Case

FOLDER = "TEST_CLUSTER_FOLDER"


def here() -> str:
    import ray

    return ray.get_runtime_context().get_node_id()


def never_ends_at_first(case: Case, *how: Any) -> Taken:
    """As `measure_here`; but the one called "lost" says where it begins, and never ends there."""
    if case.scenario == "lost":
        mark = Path(os.environ[FOLDER]) / "begun"
        if not mark.exists():
            mark.with_suffix(".new").write_text(here())
            mark.with_suffix(".new").rename(mark)
            threading.Event().wait()
    return measure_here(case, *how)


class _Killed(Rounds):
    """Rounds of which the second never comes: the process that asks for it is killed."""

    def take(self, step: Callable[[], StepTime]) -> list[StepTime]:
        step()
        (Path(os.environ[FOLDER]) / "stepped").touch()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def is_killed_at_first(case: Case, on_gpu: bool, rounds: Rounds, *how: Any) -> Taken:
    """As `measure_here`; but the one called "lost" is killed between two of its steps, once."""
    if case.scenario == "lost" and not (Path(os.environ[FOLDER]) / "stepped").exists():
        rounds = _Killed(rounds.least, rounds.most, rounds.seconds, rounds.warmup)
    return measure_here(case, on_gpu, rounds, *how)


def ends_its_node(_: Case, *how: Any) -> Taken:
    """Every attempt ends the process that it runs in."""
    os._exit(1)


def squared(item: str) -> int:
    if item == "crash":
        os._exit(3)
    if item == "raise":
        raise ValueError("what is wrong")
    return int(item) ** 2
