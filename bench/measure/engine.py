"""The parent's side: a session owns the fork server, which starts a process for each case.

This module imports nothing heavy. The session stays usable whatever becomes of a case.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import IO, Any, Self

from bench.errors import BenchError
from bench.measure.messages import Line, decoded, encoded
from bench.measure.running import Running, WorkerClock, tail
from bench.process import broken_library
from bench.training.cases import Case

# What times a step on a CPU is the processor's clock or the wall's. A process that shares its cores
# waits for them, in slices as long as a whole small step; what it waits says nothing about the
# code. Processor time (all threads together) leaves the waiting out; what is left of the neighbours
# are the caches and the memory bandwidth that they take. A step that sleeps, or waits for a disk or
# a lock, looks too fast by it. On a GPU the device's own events are the clock, whichever is asked
# for.

WARMUP_ROUNDS = 1
"""Timed steps that do not count: the first after the tracked ones fills caches again."""

_START_SECONDS = 300.0
"""How long the imports may take: minutes on a cold network disk, seconds otherwise."""


class _ServerGone(BenchError):
    """The fork server has ended, and every worker with it."""


class Session:
    """Starts workers; use it as a context manager, so that no process outlives it.

    `memory_limit_bytes` bounds what a case may allocate beyond the imported libraries (on a GPU:
    what it may allocate there). `time_limit_seconds` bounds each request to a worker. `threads`
    pins every thread pool of the workers. `preload` names further modules to import before any
    worker starts, such as one that registers a model of the user's own. `device` is "cpu", "cuda"
    or "auto": the GPUs where there are any. `clock` is "processor" or "wall".

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
        self._broken = ""
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
        running.send(
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
            return self.ask(request, server, fds), server
        except _ServerGone:
            if not self._relaunch(server):
                raise
        server = self._server
        return self.ask(request, server, fds), server

    def _environment(self) -> dict[str, str]:
        threads = str(self.threads)
        pools = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
        source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        # Not the folder that this runs in: a module of a model's repository would be run there.
        path = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
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
            if self._broken:
                raise _ServerGone(self._broken)
            if self._ready is None:
                try:
                    self._ready = self._receive(_START_SECONDS)
                except _ServerGone as gone:
                    self._broken = self._what_broke() or str(gone)
                    raise _ServerGone(self._broken) from None
            return self._ready

    def _what_broke(self) -> str:
        line = broken_library(environment=self._environment(), modules=self._preload)
        return line and f"the measuring process ended: {line}"

    def forget(self, running: Running) -> bool:
        """Whether the case was one that has a worker; it has none from now on."""
        known = running in self._running
        self._running.discard(running)
        return known

    def serves(self, server: subprocess.Popen[bytes] | None) -> bool:
        """Whether this server is the session's now, and lives."""
        return server is not None and server is self._server and server.poll() is None

    def ask(
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
        return _ServerGone(f"the measuring process ended: {tail(self._errors) or 'no message'}")


def _scratch_file() -> IO[bytes]:
    """A nameless file for what a process writes to its standard error; it goes when closed."""
    return tempfile.TemporaryFile()  # outlives this call
