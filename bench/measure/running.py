"""A case in its worker, as the session that started it sees it.

Everything that can go wrong with a case comes out as `CaseFailed` with the outcome to record.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import IO, Any, NoReturn, Protocol, Self

from bench.errors import BenchError
from bench.measure import outcome
from bench.measure.messages import Line
from bench.measure.outcome import CaseFailed, Measurement, Outcome, StepTime
from bench.training.cases import Case

KILL_COUNTERS = ("/proc/vmstat", "/sys/fs/cgroup/memory.events")
"""Where Linux says how many processes it has killed for want of memory (a line `oom_kill N`)."""


class Host(Protocol):
    """The session that started a case, as the case sees it."""

    memory_limit_bytes: int | None
    time_limit_seconds: float | None

    def ask(self, request: dict[str, Any], server: subprocess.Popen[bytes] | None, /) -> Any:
        """The server's answer; BenchError where it is gone."""

    def serves(self, server: subprocess.Popen[bytes] | None) -> bool:
        """Whether this server is the session's now, and lives."""

    def forget(self, running: Running) -> bool:
        """Whether the case was one that has a worker; it has none from now on."""


class Running:
    """One case in its worker. Every method raises CaseFailed once the case has failed."""

    reruns = 0
    """It ran here, and once: `Taken` says otherwise of a cluster."""

    def __init__(  # noqa: PLR0917  # only Session.start calls it
        self,
        session: Host,
        server: subprocess.Popen[bytes] | None,
        case: Case,
        pid: int,
        line: Line,
        errors: IO[bytes],
        clock: WorkerClock,
    ) -> None:
        self.case = case
        self.pid = pid
        self.clock = clock
        self.measurement: Measurement | None = None
        self.failed: Outcome | None = None
        self._session = session
        self._server = server
        self._line = line
        self._errors = errors
        self._progress: dict[str, Any] = {"phase": outcome.LOAD, "peak": 0}
        self._kills = kernel_kills()
        self._status: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self) -> Measurement:
        """Load the model and take the memory and exact cost of its first and a steady step."""
        self.measurement = Measurement.from_dict(self._request({"do": "prepare"}))
        return self.measurement

    def step(self) -> StepTime:
        """Time one step; advances `clock` by its duration."""
        measured = StepTime(**self._request({"do": "step"}, outcome.TIMING))
        self.clock.advance(measured.total_seconds)
        return measured

    def check_loss(self, steps: int = 20) -> tuple[float, float]:
        """The loss on the fixed batch before the first step and now: finite, and lower now.

        Where it is not, the case trains on until it is, and is "diverged" if `steps` steps in all
        have not helped.
        """
        request = {"do": "check_loss", "steps": steps}
        losses = self._request(request, outcome.LOSS_CHECK)
        return losses["before"], losses["after"]

    def close(self) -> None:
        """End the worker, at once. Safe to call twice."""
        if self._session.forget(self):
            self._line.close()
            if self._status is None and self._session.serves(self._server):
                # Nobody has waited for it yet, so the id cannot be another process's by now.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                self._reap()
            self._errors.close()

    def _request(self, request: dict[str, Any], phase: str | None = None) -> Any:
        if self.failed is not None:
            raise CaseFailed(self.case.id, self.failed)
        if phase is not None:
            self._progress["phase"] = phase
        self.send(request)
        limit = self._session.time_limit_seconds
        deadline = None if limit is None else time.monotonic() + limit
        try:
            while True:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not self._line.ready(left):
                    self._fail(outcome.TIMED_OUT, f"no answer within {limit:g} s")
                message = self._line.receive()
                if "note" not in message:
                    break
                self._progress.update(message["note"])
        except (EOFError, OSError):
            self._fail(*self._how_it_ended())
        if "failed" in message:
            self.failed = Outcome(**message["failed"])
            raise CaseFailed(self.case.id, self.failed)
        return message["result"]

    def send(self, message: dict[str, Any]) -> None:
        """Send the worker a message."""
        # A worker that has already ended is told of by the next read.
        with contextlib.suppress(OSError):
            self._line.send(message)

    def _fail(self, status: str, message: str) -> NoReturn:
        self.failed = Outcome(status, self._progress["phase"], message, self._progress["peak"])
        self.close()
        raise CaseFailed(self.case.id, self.failed)

    def _how_it_ended(self) -> tuple[str, str]:
        """Outcome and message for a worker that ended without an answer."""
        status = self._reap()
        said = tail(self._errors)
        if status is None:
            return outcome.CRASHED, "the measuring process ended, and this worker with it"
        if not os.WIFSIGNALED(status):
            return outcome.CRASHED, f"exit status {os.waitstatus_to_exitcode(status)}: {said}"
        name = signal.Signals(os.WTERMSIG(status)).name
        if name == "SIGKILL":
            kills = kernel_kills()
            if kills is not None and kills > (self._kills or 0):
                return outcome.OOM, "SIGKILL: the kernel ran out of memory"
            if kills is None and self._session.memory_limit_bytes is not None:
                # A guess: the limit itself kills nobody, but is set where memory is short.
                return outcome.OOM, "SIGKILL, with a memory limit set and no kernel to ask"
        return outcome.CRASHED, f"{name}: {said}" if said else name

    def _reap(self) -> int | None:
        """Wait for the worker, once; its status as `os.waitpid` gives it, None where the server is
        gone, and the worker with it."""
        if self._status is None and self._session.serves(self._server):
            request = {"do": "wait", "pid": self.pid}
            with contextlib.suppress(BenchError):
                self._status = self._session.ask(request, self._server)
        return self._status


class WorkerClock:
    """A timer that advances by the durations a worker measured, never by itself.

    pytest-benchmark subtracts two readings of its timer around the function: with this one, and
    a function that advances it, the rounds are the worker's own seconds.
    """

    __name__ = "worker_clock"  # pytest-benchmark stores its timer's name in the run

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """Seconds measured so far."""
        return self.seconds

    def advance(self, seconds: float) -> None:
        """Add one measured duration."""
        self.seconds += seconds


def tail(file: IO[bytes], size: int = 400) -> str:
    """The end of what a process wrote to its standard error, on one line.

    If the interpreter reported a fatal signal, what it said first, and not the list of modules.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 16_384))
    said = file.read().decode(errors="replace")
    _, fatal, after = said.rpartition("Fatal Python error")
    if fatal:
        return " ".join((fatal + after).split("Extension modules:")[0].split())[:size]
    return " ".join(said.split())[-size:]


def kernel_kills() -> int | None:
    """How often the kernel has killed a process here to free memory; None where nothing tells.

    /proc/vmstat counts every such kill, those for a cgroup's limit too; memory.events those of the
    own cgroup (the kernel's Documentation/admin-guide/cgroup-v2.rst).
    """
    found: list[int] = []
    for path in KILL_COUNTERS:
        with contextlib.suppress(OSError), open(path) as counters:
            found += [int(line.split()[1]) for line in counters if line.startswith("oom_kill ")]
    return sum(found) if found else None
