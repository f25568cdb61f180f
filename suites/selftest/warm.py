"""The warm process: it has imported the libraries, and forks where an interpreter would be started.

A run of pytest or of `bench`, as a user starts it, takes four to six seconds of processor time to
import torch, transformers, PEFT and bitsandbytes before it does anything, and the selftest has
hundreds of them. `Warm.python` is an executable that does what the interpreter does in a tenth of a
second (`warm_client.py`): a child that has its own folder, environment, arguments, open files and
session, and ends as the interpreter would have.

What such a child has that a fresh process has not: the libraries are imported. Of this project's
modules none is. So the tests of what is imported, of environments, of what a start costs and of the
processes themselves start the real interpreter; and so does the client where a variable that is
read at the start differs, with options of the interpreter, on a terminal, and on a machine with a
GPU, where importing bitsandbytes would start CUDA.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from warm_client import AS_IT_IS, OPTIONS

HERE = Path(__file__).resolve().parent
OURS = ("bench", "lora_target_bench")
SCRIPTS = {"python": [], "pytest": ["-P", "-m", "pytest"], "bench": ["-P", "-m", OURS[1]]}

# Collected by a run of pytest in the warm process, since plugins have to be imported by pytest,
# which rewrites their assertions. The test is for what the libraries import when first used.
REHEARSAL = """
import hypothesis, jinja2, matplotlib.figure, pandas, rich.table, tabulate
import torch, torch._dynamo, transformers
import peft, bitsandbytes, peft.tuners.lora.bnb
import transformers.integrations.bitsandbytes
from transformers.models.auto import modeling_auto


def test_a_model_is_wrapped():
    size = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "vocab_size": 8}
    config = transformers.LlamaConfig(**size, num_hidden_layers=1)
    lora = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    with torch.device("meta"):
        peft.get_peft_model(transformers.AutoModelForCausalLM.from_config(config), lora)
"""


class Warm:
    """Owns the warm process; a context manager. `folder` holds what to start in the place of
    `python`, and of the scripts `pytest` and `bench`. Nothing that was forked outlives it.

    `interpreter` and `environment` are those that it would be started with: by default our own.
    """

    def __init__(
        self, interpreter: str = sys.executable, environment: Mapping[str, str] = os.environ
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self.folder = Path(self._folder.name)
        self.python = str(self.folder / "python")
        address = str(self.folder / "socket")
        for name, before in SCRIPTS.items():
            script = self.folder / name
            script.write_text(
                f"#!{interpreter} -IS\nimport sys\nsys.path.append({str(HERE)!r})\n"
                "from warm_client import main\n"
                f"main({address!r}, {interpreter!r}, [*{before!r}, *sys.argv[1:]])\n"
            )
            script.chmod(0o700)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(address)
        self._listener.listen(64)  # who comes before the imports are done waits for them
        theirs, self._alive = os.pipe()
        home = self.folder / "home"  # where libraries look for files of the user's
        home.mkdir()
        own = ("PYTEST_", "PYTHONPATH")
        kept = {k: v for k, v in environment.items() if not k.startswith(own)}
        code = f"import sys; sys.path.append({str(HERE)!r}); import warm; warm.main()"
        fds = [self._listener.fileno(), theirs]
        self.log = self.folder / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [interpreter, "-P", "-c", code, *map(str, fds), self.python], pass_fds=fds,
                env={**kept, **AS_IT_IS, "HOME": str(home)}, cwd=self.folder,
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        os.close(theirs)
        # Its end alone is left open: where it ends, who comes is refused, and nobody waits for it.
        self._listener.close()

    @contextlib.contextmanager
    def in_place(self) -> Iterator[Warm]:
        """Meanwhile, what this process starts in the interpreter's name is forked."""
        before = sys.executable, spawn.get_executable()
        sys.executable = self.python
        spawn.set_executable(self.python)
        try:
            yield self
        finally:
            sys.executable = before[0]
            spawn.set_executable(before[1])

    def kill(self) -> None:
        """End it as it may end by itself: nobody answers from now on."""
        self._process.kill()
        self._process.wait()
        self._listener.close()

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        """RuntimeError where the libraries could not be imported: then nothing was forked."""
        os.close(self._alive)  # at which it ends its children and itself, as at our death
        status, said = self._process.wait(), self.log.read_text(errors="replace")
        self._folder.cleanup()
        if status > 0:
            raise RuntimeError(f"the warm process ended (status {status}): {said[-2000:]}")


class Lent(Warm):
    """Another process's, which ends it: that of the controller, in a worker of pytest-xdist."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.python, self.log = str(self.folder / "python"), self.folder / "log"


LENT = ""
"""The folder of the one that our controller has lent; empty where there is none."""


@functools.cache
def our_own() -> Warm:
    """The one of this process, lent or started when it is first asked for."""
    if LENT:
        return Lent(LENT)
    warm = Warm()
    atexit.register(warm.__exit__)
    return warm


def main() -> None:
    """The warm process; its children too, which become what was asked for."""
    listener, alive = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    executable, environment, path = sys.argv[3], dict(os.environ), list(sys.path)
    path.remove(str(HERE))
    gc.disable()  # of what is imported nothing is garbage
    rehearse()
    gc.enable()
    sys.path[:] = path
    ask_the_processor_once()
    import torch

    if torch.cuda.device_count():
        sys.exit(0)  # nothing is forked
    gc.collect()
    gc.freeze()
    request = serve(listener, alive, environment)
    sys.executable = executable  # what it starts is forked in its turn
    spawn.set_executable(executable)
    status: Any = 0
    try:
        become(request)
    except SystemExit as error:
        status = error.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    end(status)


def ask_the_processor_once() -> None:
    """pytest-benchmark asks what it is whenever it stores or compares, and the answer takes a
    second of sleep to measure the frequency."""
    import cpuinfo

    found = cpuinfo.get_cpu_info()
    cpuinfo.get_cpu_info = lambda: dict(found)


def rehearse() -> None:
    """Import the libraries, and forget what of this project the plugin has brought along."""
    import pytest

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_rehearsal.py").write_text(REHEARSAL)
        Path(folder, "pytest.ini").write_text("[pytest]\n")
        status = pytest.main([folder, "-q", "-p", "no:cacheprovider"])
    if status:
        sys.exit(f"the libraries cannot be imported: status {status}")
    for name in list(sys.modules):
        if name.partition(".")[0] in (*OURS, "test_rehearsal"):
            del sys.modules[name]
    sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith(OURS)]


def serve(listener: socket.socket, alive: int, environment: dict[str, str]) -> dict[str, Any]:
    """Fork a child for each request and say how it ended: its process id, then its wait status.
    Returns in the children, with the request; the warm process ends where its owner does."""
    waiting: set[socket.socket] = set()  # have connected, and not asked yet
    running: dict[socket.socket, int] = {}
    ended, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # for its byte in that pipe
    while True:
        ready, _, _ = select.select([listener, alive, ended, *waiting, *running], [], [])
        if alive in ready:
            for pid in running.values():
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        if ended in ready:
            os.read(ended, 4096)
            for client, pid in list(running.items()):
                reaped, status = os.waitpid(pid, os.WNOHANG)
                if reaped:
                    with contextlib.suppress(OSError):  # it was killed meanwhile
                        client.send(str(status).encode())
                    client.close()
                    del running[client]
        for client in [c for c in ready if c in running]:  # it was killed: it says nothing more
            os.kill(running[client], signal.SIGKILL)
            os.waitpid(running.pop(client), 0)
            client.close()
        for client in [c for c in ready if c in waiting]:
            waiting.remove(client)
            data, fds = b"", []
            with contextlib.suppress(ConnectionError):  # it was killed before it had read ours
                data, fds, _, _ = socket.recv_fds(client, 1 << 20, 250)
            if not data:  # it starts the interpreter instead
                client.close()
                continue
            request: dict[str, Any] = json.loads(data)
            if (pid := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                for held in (listener, client, *waiting, *running):
                    held.detach()
                take_files(dict(zip(request["files"], fds, strict=True)))
                return request
            for fd in fds:
                os.close(fd)
            running[client] = pid
            with contextlib.suppress(OSError):
                client.send(str(pid).encode())
        if listener in ready:
            client, _ = listener.accept()
            waiting.add(client)
            with contextlib.suppress(OSError):
                client.send(json.dumps(environment).encode())


def take_files(files: dict[int, int]) -> None:
    """Have these files open and no others, each under the number that it has in the client."""
    above = max([*files, *files.values(), 2]) + 1
    for place, fd in enumerate(files.values()):
        os.dup2(fd, above + place)
    os.closerange(0, above)
    for place, number in enumerate(files):
        os.dup2(above + place, number)
    os.closerange(above, above + len(files))


def become(request: dict[str, Any]) -> None:
    """Run what was asked for, in what an interpreter would have at its start."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.modules["numpy"].random.seed()  # or every child draws the same numbers
    words = list(request["arguments"])
    options = set()
    while words[0] in OPTIONS:
        options.add(words.pop(0))
    safe = "-P" in options or bool(os.environ.get("PYTHONSAFEPATH"))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        fresh = stream(getattr(sys, f"__{name}__"), number, unbuffered="-u" in options)
        setattr(sys, name, fresh)
        setattr(sys, f"__{name}__", fresh)
    kind = words[0]
    if kind.startswith("-"):
        words = [kind[:2], *filter(None, [kind[2:]]), *words[1:]]  # -mpytest
        what = words.pop(1)
    kind = words[0]
    before = {"-m": os.getcwd(), "-c": ""}.get(kind, str(Path(kind).resolve().parent))
    more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [*[before] * (not safe), *(os.path.abspath(place) for place in more if place)]
    sys.argv[:] = words
    main_module = sys.modules["__main__"].__dict__
    for name in [n for n in main_module if not n.startswith("__")]:
        del main_module[name]
    if kind == "-m":
        runpy._run_module_as_main(what)  # type: ignore[attr-defined]  # as `python -m` itself
    elif kind == "-c":
        exec(compile(what, "<string>", "exec"), main_module)
    else:
        main_module["__file__"] = file = os.path.abspath(kind)
        exec(compile(Path(file).read_bytes(), file, "exec"), main_module)


def stream(own: io.TextIOWrapper, number: int, *, unbuffered: bool) -> io.TextIOWrapper | None:
    """Standard input, output or error, made as the interpreter has made our own, or as it does
    under -u (`unbuffered`: nothing that is written is kept back); None where it is closed."""
    at_once = bool(number) and (unbuffered or not isinstance(own.buffer, io.BufferedIOBase))
    try:
        file = open(number, "wb" if number else "rb", 0 if at_once else -1, closefd=False)  # noqa: SIM115
    except OSError:
        return None
    text = io.TextIOWrapper(
        file, own.encoding, own.errors,
        line_buffering=own.line_buffering and not at_once,
        write_through=own.write_through or at_once or unbuffered,  # standard input too
    )  # fmt: skip
    text.mode = own.mode
    return text


def end(status: Any) -> None:
    """End as the interpreter does, but for taking a million imported objects apart."""
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for the threads
    atexit._run_exitfuncs()
    for each in (sys.stdout, sys.stderr):
        try:
            each.flush()
        except (AttributeError, ValueError):
            pass  # there is none, or it is closed
        except OSError:
            status = 120  # the interpreter's own
    if status is not None and status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit((status or 0) & 0xFF)
