"""The parent's side: a session owns the fork server, and runs each case in a process of its own.

This module imports nothing heavy. Everything that can go wrong with a case comes out as
`CaseFailed` with the outcome to record; the session stays usable for the next case.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import IO, Any, NoReturn, Self

from bench.errors import BenchError
from bench.measure import outcome
from bench.measure.messages import Line, decoded, encoded
from bench.measure.outcome import CaseFailed, Measurement, Outcome, StepTime
from bench.training.cases import Case

CLOCKS = ("processor", "wall")
"""What times a step on a CPU. A process that shares its cores waits for them, in slices as long as
a whole small step; what it waits says nothing about the code. Processor time (all threads together)
leaves the waiting out; what is left of the neighbours are the caches and the memory bandwidth that
they take. A step that sleeps, or waits for a disk or a lock, looks too fast by it. On a GPU the
device's own events are the clock, whichever is asked for."""

WARMUP_ROUNDS = 1
"""Timed steps that do not count: the first after the tracked ones fills caches again."""

_START_SECONDS = 300.0
"""How long the imports may take: minutes on a cold network disk, seconds otherwise."""

KILL_COUNTERS = ("/proc/vmstat", "/sys/fs/cgroup/memory.events")
"""Where Linux says how many processes it has killed for want of memory (a line `oom_kill N`)."""


class _ServerGone(BenchError):
    """The fork server has ended, and every worker with it."""


class Session:
    """Starts workers; use it as a context manager, so that no process outlives it.

    `memory_limit_bytes` bounds what a case may allocate beyond the imported libraries (on a GPU:
    what it may allocate there). `time_limit_seconds` bounds each request to a worker. `threads`
    pins every thread pool of the workers. `preload` names further modules to import before any
    worker starts, such as one that registers a model of the user's own. `device` is "cpu", "cuda"
    or "auto": the GPUs where there are any. `clock` is one of CLOCKS.

    Several threads may use one session, to run cases on several GPUs (`devices`) at once. A server
    that somebody kills takes the running cases with it; the next case starts another.
    Raises BenchError if the libraries cannot be imported or the device is not there.
    """

    def __init__(
        self,
        memory_limit_bytes: int | None = None,
        time_limit_seconds: float | None = None,
        threads: int = 1,
        preload: Sequence[str] = (),
        device: str = "auto",
        *,
        clock: str = "wall",
    ) -> None:
        self.memory_limit_bytes = memory_limit_bytes
        self.time_limit_seconds = time_limit_seconds
        self.threads = threads
        self._preload = tuple(preload)
        self._wanted = device
        self._clock = clock
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._ready: dict[str, Any] | None = None
        self._running: set[Running] = set()

    def __enter__(self) -> Self:
        """Start the server; its imports go on while the caller does other things."""
        self._launch()
        return self

    def _launch(self) -> None:
        self._ready = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        self._errors = _scratch_file()
        server = [sys.executable, "-m", "bench.measure.server", str(theirs.fileno())]
        with theirs:
            self._server = subprocess.Popen(
                [*server, *self._preload],
                pass_fds=[theirs.fileno()],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                start_new_session=True,  # a terminal's Ctrl-C is for the parent alone
            )

    def _relaunch(self, gone: subprocess.Popen[bytes] | None) -> bool:
        """Replace a server that had worked and is gone, unless another thread has done so already;
        whether there is anything to replace it with."""
        with self._lock:
            if self._server is gone is not None:
                if self._ready is None:
                    return False  # its imports fail, and would fail again
                self._end_server()
                self._errors.close()
                self._launch()
            return True

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every worker and the server. Safe to call twice."""
        for running in list(self._running):
            running.close()
        self._end_server()

    def _end_server(self) -> None:
        if self._server is not None:
            self._control.close()
            self._server.kill()
            self._server.wait()
            self._server = None

    @property
    def devices(self) -> tuple[str, ...]:
        """Where cases can run: ("cpu",) or ("cuda:0", ...). Waits for the imports."""
        gpus = self._wait_ready()["gpus"]
        if self._wanted == "cuda" and not gpus:
            raise BenchError("device cuda: torch finds no GPU here")
        if self._wanted == "cpu" or not gpus:
            return ("cpu",)
        return tuple(f"cuda:{index}" for index in range(gpus))

    @property
    def pid(self) -> int | None:
        """The server's process id; None while there is none."""
        return None if self._server is None else self._server.pid

    @property
    def running(self) -> frozenset[Running]:
        """The cases that have a worker now."""
        return frozenset(self._running)

    def start(
        self, case: Case, device: str | None = None, clock: WorkerClock | None = None
    ) -> Running:
        """Fork a worker for `case`, on the session's first device unless another is named.

        The libraries' imports are waited for; nothing is loaded yet. `clock` is what the worker's
        steps advance, one of its own by default. The result is a context manager that ends the
        worker.
        """
        device = device or self.devices[0]
        line, theirs = Line.with_other_end()
        errors = _scratch_file()
        with theirs:
            try:
                pid, server = self._fork(case, [theirs.fileno(), errors.fileno()])
            except BaseException:
                line.close()
                errors.close()
                raise
        running = Running(self, server, case, pid, line, errors, clock or WorkerClock())
        self._running.add(running)
        running._send(
            {
                "case": case.to_dict(),
                "device": device,
                "threads": self.threads,
                "memory_limit_bytes": self.memory_limit_bytes,
                "clock": self._clock,
            }
        )
        return running

    def _fork(self, case: Case, fds: Sequence[int]) -> tuple[int, subprocess.Popen[bytes] | None]:
        """The worker's process id and the server that it is a child of."""
        request = {"do": "fork", "warm": [case.config["model_type"], case.auto_class]}
        server = self._server
        try:
            return self._ask(request, server, fds), server
        except _ServerGone:
            if not self._relaunch(server):
                raise
        server = self._server
        return self._ask(request, server, fds), server

    def _environment(self) -> dict[str, str]:
        threads = str(self.threads)
        pools = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
        source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        # This folder may have a `bench` of its own: it comes last.
        path = [source, *filter(None, [os.environ.get("PYTHONPATH")]), os.getcwd()]
        return {
            **os.environ,
            **{f"{pool}_NUM_THREADS": threads for pool in pools},
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONSAFEPATH": "1",
            # On the CPU the GPUs are hidden, so that bitsandbytes can be imported once for all.
            **({"CUDA_VISIBLE_DEVICES": ""} if self._wanted == "cpu" else {}),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
            # Counting GPUs through the driver would start CUDA in the server, which then cannot
            # be started in its children.
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        }

    def _wait_ready(self) -> dict[str, Any]:
        with self._lock:
            if self._server is None:
                raise BenchError("the measuring session is closed; open a new one")
            if self._ready is None:
                self._ready = self._receive(_START_SECONDS)
            return self._ready

    def _ask(
        self,
        request: dict[str, Any],
        server: subprocess.Popen[bytes] | None,
        fds: Sequence[int] = (),
    ) -> Any:
        """The answer of `server`, and of no other that has taken its place meanwhile."""
        self._wait_ready()
        with self._lock:
            if self._server is not server:
                raise self._server_gone()
            try:
                socket.send_fds(self._control, [encoded(request)], list(fds))
                return self._receive(_START_SECONDS)
            except OSError:
                raise self._server_gone() from None
            except _ServerGone:
                raise
            except BaseException:
                # Interrupted between question and answer: the next answer would be this one's.
                # The server's end takes every worker with it.
                self._end_server()
                raise

    def _receive(self, seconds: float) -> Any:
        self._control.settimeout(seconds)
        try:
            data = self._control.recv(1 << 16)
        except TimeoutError:
            raise BenchError(f"the libraries were not imported in {seconds:.0f} s") from None
        except OSError:
            data = b""
        if not data:
            raise self._server_gone()
        return decoded(data)["result"]

    def _server_gone(self) -> _ServerGone:
        return _ServerGone(f"the measuring process ended: {_tail(self._errors) or 'no message'}")


class Running:
    """One case in its worker. Every method raises CaseFailed once the case has failed."""

    reruns = 0
    """It ran here, and once: `Taken` says otherwise of a cluster."""

    def __init__(  # noqa: PLR0917  # only Session.start calls it
        self,
        session: Session,
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
        if self in self._session._running:
            self._session._running.discard(self)
            self._line.close()
            if self._status is None and self._server_lives():
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
        self._send(request)
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

    def _send(self, message: dict[str, Any]) -> None:
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
        said = _tail(self._errors)
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

    def _server_lives(self) -> bool:
        server = self._server
        return server is not None and server is self._session._server and server.poll() is None

    def _reap(self) -> int | None:
        """Wait for the worker, once; its status as `os.waitpid` gives it, None where the server is
        gone, and the worker with it."""
        if self._status is None and self._server_lives():
            request = {"do": "wait", "pid": self.pid}
            with contextlib.suppress(BenchError):
                self._status = self._session._ask(request, self._server)
        return self._status


class WorkerClock:
    """A timer that advances by the durations a worker measured, never by itself.

    pytest-benchmark subtracts two readings of its timer around the function: with this one, and
    `Running.step` as the function, the rounds are the worker's own seconds.
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


def _scratch_file() -> IO[bytes]:
    """A nameless file for what a process writes to its standard error; it goes when closed."""
    return tempfile.TemporaryFile()  # outlives this call


def _tail(file: IO[bytes], size: int = 400) -> str:
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
