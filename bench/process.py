"""How a process of ours runs: it collects garbage seldom, and SIGTERM and SIGHUP end it as Ctrl-C
does, so that what is finished is kept. It comes to its end, or has not passed; and why one came to
nothing: a library that breaks it."""

from __future__ import annotations

import _thread
import atexit
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NoReturn

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What ends a process beside Ctrl-C, as far as this system has it."""
STOPPING = (signal.SIGINT, *ENDING)
"""... and Ctrl-C."""

SELDOM = (100_000, 20, 50)
"""Thresholds of gc: of the thousands of modules that a model on meta has hardly one is garbage."""


def collect_seldom() -> None:
    """For the main function of a process in which nothing of somebody else's runs. The libraries
    are a million objects, none of which is ever garbage: by default Python looks through them again
    and again while they are imported, and takes them apart at the end, a quarter of what a command
    takes that has little else to do."""
    gc.set_threshold(*SELDOM)
    atexit.register(gc.freeze)


@contextmanager
def as_interrupts() -> Iterator[list[int]]:
    """Meanwhile SIGTERM and SIGHUP raise KeyboardInterrupt with their name. One that is ignored
    (nohup) stays so, and one that has a handler keeps it. None is lost: Python drops what is raised
    while an object ends, so a signal that arrives then, SIGINT too, is sent once more. Gives the
    numbers that came, in their order. In another thread than the main one it does nothing."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def interrupt(number: int, frame: object) -> NoReturn:
        came.append(number)
        raise KeyboardInterrupt(signal.Signals(number).name)

    taken = [number for number in ENDING if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, interrupt)
    dropped, ident = sys.unraisablehook, threading.get_ident()

    def once_more(what: sys.UnraisableHookArgs) -> None:
        if not issubclass(what.exc_type, KeyboardInterrupt):
            dropped(what)
            return
        name = str(what.exc_value or "") or "SIGINT"
        # From a thread, a little later: at once it would be raised, and dropped, in this hook.
        _thread.start_new_thread(_send, (getattr(signal, name, signal.SIGINT), ident))

    sys.unraisablehook = once_more
    try:
        yield came
    finally:
        sys.unraisablehook = dropped
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def held() -> Iterator[list[int]]:
    """Meanwhile none of `STOPPING` ends this process, or one that it starts: for what must not be
    half done and is done soon. Gives the numbers that came, in their order. In another thread than
    the main one it does nothing."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {each: signal.signal(each, lambda number, _: came.append(number)) for each in STOPPING}
    mask = getattr(signal, "pthread_sigmask", None)  # what is blocked is so in a child too
    blocked = mask(signal.SIG_BLOCK, STOPPING) if mask else None
    try:
        yield came
    finally:
        if mask:
            mask(signal.SIG_SETMASK, blocked)
        for number, handler in before.items():
            signal.signal(number, handler)


ENDED = 70
"""The status of a process that somebody's code ended as if all were well."""


@contextmanager
def to_its_end(
    shown: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[None]:
    """Meanwhile `os._exit(0)`, whoever calls it here, ends the process with status ENDED and a line
    that says so: what has not come to its end has not passed. Processes that are forked from this
    one end as they like. `shown`: within it, standard error is what its reader sees."""
    end, ours = os._exit, os.getpid()

    def ended(status: int) -> NoReturn:
        if not status and os.getpid() == ours:
            said = "error: code that runs in this process ended it (os._exit): it has not passed"
            with shown():
                os.write(2, f"{said}\n".encode())
            status = ENDED
        end(status)

    os._exit = ended
    try:
        yield
    finally:
        os._exit = end


def _send(number: signal.Signals, thread: int) -> None:
    time.sleep(0.01)
    if callable(signal.getsignal(number)):  # not once the run has ended: it would kill
        signal.pthread_kill(thread, number)


LIBRARIES = ("torch", "transformers", "bitsandbytes", "peft")
"""What our processes import, each after those that it imports itself."""
_IMPORT = (
    "import importlib, sys\n"
    "for name in sys.argv[1:]:\n"
    "    print('importing', name, flush=True)\n    importlib.import_module(name)\n"
    "print('imported')\n"
)
_IMPORT_SECONDS = 300.0


def broken_library(
    python: str | os.PathLike[str] = sys.executable,
    environment: Mapping[str, str] | None = None,
    modules: Sequence[str] = (),
) -> str:
    """The line that names the first of `modules` and the libraries which cannot be imported in a
    new process; "" where all can.

    It is asked once a process has ended that was to import them, whatever it left unsaid: a library
    may raise, crash the interpreter or end it with status 0.
    """
    try:
        done = subprocess.run(
            [python, "-P", "-c", _IMPORT, *modules, *LIBRARIES], env=environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=_IMPORT_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.splitlines()
    begun = [line.partition(" ")[2] for line in lines if line.startswith("importing ")]
    if "imported" in lines or not begun:
        return ""
    said = done.stderr.strip().splitlines()
    how = said[-1].strip()[:400] if said and done.returncode == 1 else (
        f"it ends the process (status {done.returncode})" if done.returncode >= 0
        else f"it crashes ({signal.Signals(-done.returncode).name})"
    )  # fmt: skip
    return f"{begun[-1]} cannot be imported: {how}"
