"""Build many types side by side, in processes of their own: one that crashes or hangs loses
itself, never the others."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

# The slowest type takes some seconds on an idle core. Wall-clock time, so a machine that is busy
# with other things needs room: a hang is rare, and costs this once.
TIME_LIMIT_SECONDS = 600.0

Task = Callable[[str], Any]
Run = Callable[[Task, Sequence[str]], Iterator[tuple[str, Any, str]]]
"""`run_all`, the processes' number settled."""


class _Worker:
    """One process and the line to it. `item` is what it works at, "" when it is idle."""

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=_serve, args=(theirs, task), daemon=True
        )
        self.process.start()
        theirs.close()
        self.item = ""
        self.deadline = 0.0

    def give(self, item: str) -> None:
        self.item, self.deadline = item, time.monotonic() + TIME_LIMIT_SECONDS
        with contextlib.suppress(OSError):  # it died; the next wait tells
            self.connection.send_bytes(item.encode())

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def run_all(task: Task, items: Iterable[str], jobs: int = 2) -> Iterator[tuple[str, Any, str]]:
    """(item, task's JSON answer, "") for each item as it is done, or (item, None, why it failed).

    `task` is a function of a module; it answers in JSON, and says what is wrong by raising.
    """
    waiting = list(items)[::-1]
    workers = [_Worker(task) for _ in range(max(1, min(jobs, len(waiting))))]
    try:
        for worker in workers:
            if waiting:
                worker.give(waiting.pop())
        while busy := {w.connection: w for w in workers if w.item}:
            remaining = min(w.deadline for w in busy.values()) - time.monotonic()
            ready = {c for c in wait(list(busy), max(0.0, remaining)) if isinstance(c, Connection)}
            for connection, worker in busy.items():
                late = time.monotonic() > worker.deadline
                if connection not in ready and not late:
                    continue
                item, worker.item = worker.item, ""
                answer, problem = (
                    _read(worker) if connection in ready
                    else (None, f"did not finish in {TIME_LIMIT_SECONDS:.0f} s")
                )  # fmt: skip
                if connection not in ready or not worker.process.is_alive():
                    worker.stop()
                    workers.remove(worker)
                    if waiting:
                        workers.append(_Worker(task))
                        workers[-1].give(waiting.pop())
                elif waiting:
                    worker.give(waiting.pop())
                yield item, answer, problem
    finally:
        for worker in workers:
            worker.stop()


def _read(worker: _Worker) -> tuple[Any, str]:
    try:
        answer, problem = json.loads(worker.connection.recv_bytes())
    except (EOFError, OSError):
        worker.process.join(5)
        return None, f"its process died with status {worker.process.exitcode}"
    return answer, problem


def _serve(connection: Connection, task: Task) -> None:
    import gc
    import os
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"  # a default configuration names nothing worth fetching
    import transformers

    transformers.logging.set_verbosity_error()
    gc.freeze()
    while True:
        try:
            item = connection.recv_bytes().decode()
        except (EOFError, OSError):
            return
        try:
            answer = [task(item), ""]
        except Exception as error:
            answer = [None, str(error) or type(error).__name__]
        connection.send_bytes(json.dumps(answer).encode())
