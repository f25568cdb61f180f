"""A whole command in a worker process: where a model repository's own code runs in it.

Such code may do anything by mistake: end the process with status 0, crash it, replace functions.
The process that was called runs none of it, and takes the command's word only if the command came
to its end and said so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.process import STOPPING, broken_library

_PIPE = "LORA_TARGET_BENCH_WORKER"
"""Names the descriptor on which a worker says its exit status."""
_state: dict[str, bool] = {}
_SOURCE = Path(__file__).resolve().parents[2]


def worker_pipe() -> int | None:
    """The descriptor to say the exit status on, if this process is such a worker; asked for once:
    what it starts is none."""
    found = os.environ.pop(_PIPE, None)
    if found is None or not found.isdecimal():
        return None
    _state["worker"] = True
    return int(found)


def in_worker() -> bool:
    """Whether `worker_pipe` has found this process to be one."""
    return "worker" in _state


def say_status(pipe: int, status: int) -> None:
    """A worker's last word."""
    os.write(pipe, str(status).encode())
    os.close(pipe)


def run_apart(module: str, arguments: Sequence[str]) -> int:
    """Run `python -m module arguments` on our own streams; its exit status.

    A signal that would end us goes to it, so that it ends as it does by itself. BenchError where
    it ended before it said a status.
    """
    ours, theirs = os.pipe()
    path = [str(_SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, _PIPE: str(theirs), "PYTHONPATH": os.pathsep.join(path)}
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # -P: the folder that we are in is not ours, and may hold a module of any name. In a session of
    # its own: a terminal's Ctrl-C comes from us, once.
    command = [sys.executable, "-P", "-m", module, *arguments]
    with os.fdopen(ours) as said:
        try:
            worker = subprocess.Popen(
                command, env=environment, pass_fds=[theirs], start_new_session=True
            )
        finally:
            os.close(theirs)
        with handed_on(worker) as sent:
            worker.wait()
        status = said.read()
    if status:
        return int(status)
    if -worker.returncode in sent:
        return 128 - worker.returncode
    how = (
        f"status {worker.returncode}" if worker.returncode >= 0 else f"signal {-worker.returncode}"
    )
    why = broken_library(environment=environment) or (
        "the model's own code (--trust-remote-code) ended or crashed it"
    )
    raise BenchError(f"the worker process ended ({how}) before it had an answer: {why}")


@contextlib.contextmanager
def handed_on(*workers: subprocess.Popen[Any]) -> Iterator[list[int]]:
    """Meanwhile, signals go to the workers; which ones did. One that is ignored (nohup) stays
    so."""
    sent: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        sent.append(number)
        for worker in workers:
            worker.send_signal(number)

    before: dict[int, Any] = {}
    try:
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, hand_on)
    except ValueError:  # not the main thread: nothing reaches us
        pass
    try:
        yield sent
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
