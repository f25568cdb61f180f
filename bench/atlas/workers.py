"""Build many types side by side, in processes of their own: one that crashes or hangs loses
itself, never the others. The pool is pebble's, which alone ends one task of several that hangs."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from multiprocessing import get_context
from typing import Any

from bench.process import ENDED

# The slowest type takes some seconds on an idle core. Wall-clock time, so a machine that is busy
# with other things needs room: a hang is rare, and costs this once.
TIME_LIMIT_SECONDS = 600.0

Apply = Callable[[str], Any]
Run = Callable[[Apply, Sequence[str]], Iterator[tuple[str, Any, str]]]
"""`run_all`, the processes' number settled."""


def run_all(task: Apply, items: Iterable[str], jobs: int = 2) -> Iterator[tuple[str, Any, str]]:
    """(item, task's answer, "") for each item as it is done, or (item, None, why it failed).

    `task` is a function of a module; it says what is wrong by raising.
    """
    from pebble import ProcessPool

    pool = ProcessPool(max(1, jobs), context=get_context("spawn"), initializer=_begin)
    try:
        futures = {
            pool.schedule(_work, args=[task, item], timeout=TIME_LIMIT_SECONDS): item
            for item in items
        }
        for future in as_completed(futures):
            yield futures[future], *_ended(future)
    finally:
        pool.stop()
        pool.join()


def _ended(future: Future[Any]) -> tuple[Any, str]:
    from pebble import ProcessExpired

    try:
        return future.result(), ""
    except TimeoutError:
        return None, f"did not finish in {TIME_LIMIT_SECONDS:.0f} s"
    except ProcessExpired as error:
        return None, f"its process died with status {error.exitcode}"
    except Exception as error:
        return None, str(error) or type(error).__name__


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"  # a default configuration names nothing worth fetching
    # Status 0 is to the pool the end of a process that has done its work: it would wait for ever
    # for the answer to a task whose code, a library's say, ends the process with it.
    end = os._exit
    os._exit = lambda status: end(status or ENDED)


def _work(task: Apply, item: str) -> Any:
    """Not at the process's start: one that ends there is begun again and again."""
    import transformers

    transformers.logging.set_verbosity_error()
    gc.freeze()
    return task(item)
