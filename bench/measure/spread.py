"""Cases spread over devices: one at a time on each, ahead of the tests that ask for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Self

from bench.errors import BenchError
from bench.measure.engine import Session
from bench.measure.outcome import Measurement, StepTime
from bench.measure.rounds import Rounds
from bench.measure.running import WorkerClock
from bench.training.cases import Case


@dataclass
class Taken:
    """What one case gave on its device; asked like a `Running`, it says it again, in order."""

    case: Case
    device: str
    measurement: Measurement | None = None
    steps: list[StepTime] = field(default_factory=list)
    losses: tuple[float, float] | None = None
    error: Exception | None = None
    reruns: int = 0
    """How often it began anew, because the node that it ran on or its process there was gone."""
    clock: WorkerClock = field(default_factory=WorkerClock)
    _told: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def prepare(self) -> Measurement:
        """The measurement, or the failure of the case."""
        return self.measurement or self._fail()

    def step(self) -> StepTime:
        """The next of the steps; advances `clock` by its duration."""
        if self._told == len(self.steps):
            self._fail()
        step = self.steps[self._told]
        self._told += 1
        self.clock.advance(step.total_seconds)
        return step

    def check_loss(self, steps: int = 20) -> tuple[float, float]:
        """The loss before and after, as the case was asked for it."""
        return self.losses or self._fail()

    def _fail(self) -> NoReturn:
        if self.error is None:
            raise BenchError(f"{self.case.id}: only {len(self.steps)} steps were measured ahead")
        raise self.error


def measure_ahead(
    session: Session, case: Case, device: str, rounds: Rounds, loss_steps: int
) -> Taken:
    """Load the case, take its timed steps, check its loss over `loss_steps` (0: not at all)."""
    taken = Taken(case, device)
    try:
        with session.start(case, device) as running:
            taken.measurement = running.prepare()
            taken.steps += rounds.take(running.step)
            if loss_steps:
                taken.losses = running.check_loss(loss_steps)
    except Exception as error:  # whatever it is, it is the asking test's
        taken.error = error
    return taken


class Spread:
    """Measures the cases of `plan` on every device of a session; `start` waits for one of them.

    `devices` are those of the session by default. One that is named twice runs two cases at once:
    they disturb each other's times, and nothing else.

    Each case is loaded, makes the timed steps of `rounds` and has its loss checked over
    `loss_steps` (0: not at all). Use as a context manager; leaving it ends the session and what
    still runs.
    """

    def __init__(
        self,
        session: Session,
        plan: Sequence[Case],
        rounds: Rounds,
        loss_steps: int,
        devices: Sequence[str] = (),
    ) -> None:
        self._session = session
        self._waiting = deque(plan)
        self._planned = {case.id for case in plan}
        self._rounds, self._loss_steps = rounds, loss_steps
        self._taken: dict[str, Taken] = {}
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, args=(device,), name=device, daemon=True)
            for device in devices or session.devices
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()
        self._session.close()
        for thread in self._threads:
            thread.join()

    def start(self, case: Case, clock: WorkerClock) -> Taken:
        """What the case gave, once it has been measured. BenchError for one not in the plan."""
        if case.id not in self._planned:
            raise BenchError(f"{case.id} is not among the cases to be measured ahead")
        with self._changed:
            self._changed.wait_for(lambda: case.id in self._taken)
            taken = self._taken.pop(case.id)
        taken.clock = clock
        return taken

    def _work(self, device: str) -> None:
        while True:
            try:
                case = self._waiting.popleft()
            except IndexError:
                return
            taken = measure_ahead(self._session, case, device, self._rounds, self._loss_steps)
            with self._changed:
                self._taken[case.id] = taken
                self._changed.notify_all()
