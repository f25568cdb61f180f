"""The warm interpreter beside the real one: the same to what runs in it, and as it ends."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import warm_client
from warm import OURS, Warm

SAYS = """
import io, json, os, signal, sys
here = sys.modules["__main__"]
if len(sys.argv) > 2:
    os.write(int(sys.argv[2]), b"written")
numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE]
print(json.dumps({
    "arguments": sys.argv, "path": sys.path, "name": __name__, "file": getattr(here, "__file__", 0),
    "folder": os.getcwd(), "environment": dict(os.environ), "input": sys.stdin.read(),
    "files": sorted(n for n in range(64) if os.path.exists(f"/proc/self/fd/{n}")),
    "signals": [str(signal.getsignal(n)) for n in numbers],
    "streams": [(s.encoding, s.errors, s.line_buffering, s.write_through, s.mode, s.fileno())
                for s in (sys.stdin, sys.stdout, sys.stderr)],
    "unbuffered": isinstance(sys.stdout.buffer, io.BufferedIOBase),
    "leader": os.getsid(0) == os.getpgid(0),
}))
print("of the error", file=sys.stderr)
sys.exit(3)
"""


def both(warm: Warm, *arguments: str, **options: Any) -> list[subprocess.CompletedProcess[str]]:
    """What the warm interpreter and the real one say to the same."""
    options = {"text": True, "capture_output": True, "timeout": 60, **options}
    return [
        subprocess.run([python, *arguments], check=False, **options)
        for python in (warm.python, sys.executable)
    ]


@pytest.mark.parametrize("how", ["code", "script", "module", "safe", "path", "unbuffered"])
def test_nothing_tells_it_from_the_interpreter(
    warm_process: Warm, tmp_path: Path, how: str
) -> None:
    (tmp_path / "says.py").write_text(SAYS)
    environment = {**os.environ, "ASKED": "é\n"}
    if how == "path":
        environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}there"
    ways = {
        "code": ["-c", SAYS],
        "script": ["says.py"],
        "safe": ["-P", "-c", SAYS],
        "unbuffered": ["-u", "-B", "-c", SAYS],
    }
    read, write = os.pipe()
    forked, started = both(
        warm_process, *ways.get(how, ["-msays"]), "an argument", str(write), pass_fds=[write],
        cwd=tmp_path, env=environment, input="of the input", start_new_session=True,
    )  # fmt: skip
    os.close(write)
    assert (forked.returncode, forked.stderr) == (3, "of the error\n")
    assert (started.returncode, started.stderr) == (3, "of the error\n")
    assert json.loads(forked.stdout) == json.loads(started.stdout)
    assert os.read(read, 64) == b"written" * 2
    os.close(read)


ENDS = {
    "": 0,
    "import sys; sys.exit('a word')": 1,
    "import sys; sys.exit(256 + 7)": 7,
    "1 / 0": 1,
    "raise KeyboardInterrupt": -signal.SIGINT,
    "import os; os._exit(9)": 9,
    "import os; os.abort()": -signal.SIGABRT,
    "import os; os.kill(os.getpid(), 9)": -signal.SIGKILL,
    "import atexit; atexit.register(print, 'at the end')": 0,
    "import threading; threading.Timer(0.1, print, ['of a thread']).start()": 0,
    "import sys; sys.stdout.write('unfinished')": 0,
    "import os; os.close(1)": 0,
}


@pytest.mark.parametrize("code", ENDS)
def test_it_ends_as_the_interpreter_does(warm_process: Warm, code: str) -> None:
    forked, started = both(warm_process, "-c", code)
    assert forked.returncode == started.returncode == ENDS[code]
    assert forked.stdout == started.stdout
    assert forked.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


def test_what_runs_fails_and_says_so_as_ever(warm_process: Warm, tmp_path: Path) -> None:
    """An assertion in a test, a module that is not there, output that nobody can take."""
    for arguments in (["-m", "no_such_module"], ["-m", "pytest", "no_such_file.py", "-q"]):
        forked, started = both(warm_process, *arguments, cwd=tmp_path)
        assert forked.returncode == started.returncode != 0
    with open("/dev/full", "w") as full:
        python = [warm_process.python, sys.executable]
        ends = [subprocess.run([each, "-c", "print()"], stdout=full, stderr=subprocess.DEVNULL,
                               check=False).returncode for each in python]  # fmt: skip
    assert ends[0] == ends[1] != 0


def test_the_libraries_are_there_and_nothing_of_ours(warm_process: Warm) -> None:
    code = (
        "import sys; print('torch' in sys.modules, len(sys.meta_path),"
        f"[n for n in sys.modules if n.partition('.')[0] in {OURS} or n.startswith('warm')])"
    )
    forked, started = both(warm_process, "-c", code)
    assert forked.stdout.split()[0] == "True", warm_process.log.read_text()
    assert started.stdout.split()[0] == "False"
    assert "bench" not in forked.stdout


def test_children_know_nothing_of_each_other(warm_process: Warm) -> None:
    """Neither variables, modules, files nor random numbers pass from one to the next."""
    code = (
        "import os, sys, random, numpy; print('left' in sys.modules, 'LEFT' in os.environ,"
        "random.random(), numpy.random.random());"
        "sys.modules['left'] = sys; os.environ['LEFT'] = '1'"
    )
    first, second = (
        subprocess.run([warm_process.python, "-c", code], capture_output=True, text=True,
                       check=True).stdout.split()
        for _ in range(2)
    )  # fmt: skip
    assert first[:2] == second[:2] == ["False", "False"]
    assert not set(first[2:]) & set(second[2:])


def test_a_file_that_it_closes_is_closed(warm_process: Warm) -> None:
    code = "import os, time; os.close(1); time.sleep(60)"
    with subprocess.Popen([warm_process.python, "-c", code], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.read() == b""
        started.kill()


def test_what_it_starts_is_forked_too(warm_process: Warm) -> None:
    code = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', "
        "'import sys; print(\"torch\" in sys.modules)'])"
    )
    done = subprocess.run([warm_process.python, "-c", code], capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert done.stdout == "True\n"


@pytest.mark.parametrize(
    ("options", "variables"),
    [
        ((), {"HF_HOME": "/elsewhere"}),
        ((), {"PYTHONHASHSEED": "7"}),
        ((), {"OMP_NUM_THREADS": "3"}),
        (("-W", "error"), {}),
        (("-I",), {}),
        (("-S",), {}),
    ],
)
def test_what_a_fork_cannot_be_is_started(
    warm_process: Warm, options: tuple[str, ...], variables: dict[str, str]
) -> None:
    code = "import sys, os; print('torch' in sys.modules, sys.flags, os.environ.get('HF_HOME'))"
    forked, started = both(warm_process, *options, "-c", code, env={**os.environ, **variables})
    assert forked.stdout == started.stdout
    assert forked.stdout.startswith("False")


def test_without_the_warm_process_it_is_the_interpreter() -> None:
    with Warm() as gone:
        gone.kill()
        done, _ = both(gone, "-c", "print(__name__)")
    assert (done.returncode, done.stdout) == (0, "__main__\n")


HANGS = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


@pytest.mark.parametrize("number", warm_client.PASSED_ON)
def test_a_signal_reaches_what_runs(warm_process: Warm, number: int) -> None:
    caught = f"import signal; signal.signal({int(number)}, lambda n, f: exit(n + 40)); {HANGS}"
    for code, status in ((HANGS, -number), (caught, number + 40)):
        with subprocess.Popen(
            [warm_process.python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as started:
            assert started.stdout is not None
            started.stdout.readline()
            started.send_signal(number)
            assert started.wait(20) == status


# An interpreter whose warm process has imported nothing: it forks in no time.
BARE = """#!/bin/sh
[ "$2" = -c ] || exec {python} "$@"
shift 3
exec {python} -P -c '{code}' "$@"
"""
IMPORTS_NOTHING = f"""
import sys, types
sys.path.append("{Path(warm_client.__file__).parent}")
import warm
for name in ("numpy", "torch"):
    sys.modules[name] = types.SimpleNamespace()
sys.modules["numpy"].random = types.SimpleNamespace(seed=int)
sys.modules["torch"].cuda = types.SimpleNamespace(device_count=int)
warm.rehearse = warm.ask_the_processor_once = int
warm.main()
"""


def test_nothing_outlives_whom_it_runs_for(warm_process: Warm, tmp_path: Path) -> None:
    """Killed as subprocess.run does after a timeout; and where the whole session ends."""
    bare = tmp_path / "python"
    bare.write_text(BARE.format(python=sys.executable, code=IMPORTS_NOTHING))
    bare.chmod(0o755)

    def running(warm: Warm) -> tuple[subprocess.Popen[str], int]:
        started = subprocess.Popen([warm.python, "-c", HANGS], stdout=subprocess.PIPE, text=True)
        assert started.stdout is not None
        return started, int(started.stdout.readline())

    def ends(pid: int) -> bool:
        deadline = time.monotonic() + 20
        while (here := Path(f"/proc/{pid}").exists()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return not here

    started, pid = running(warm_process)
    with started:
        started.kill()
    assert ends(pid)
    with Warm(str(bare)) as own:
        other, pid = running(own)
        assert other.pid != pid  # it was forked
    with other:
        assert other.wait(20) == -signal.SIGKILL
    assert ends(pid)


def test_a_client_that_is_killed_before_it_asks_ends_nothing_else() -> None:
    """What was sent to it is unread then, and the connection reset."""
    with Warm() as own:
        for _ in range(3):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.connect(str(own.folder / "socket"))
                assert select.select([client], [], [], 60)[0]  # the environment has come
        told = subprocess.run(
            [own.python, "-c", "import sys; print('torch' in sys.modules)"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert told.stdout == "True\n"
