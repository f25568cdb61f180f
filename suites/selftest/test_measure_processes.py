"""The processes of a session: none outlives it, and the loss of one costs no more than it must."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from engine_support import measure
from measure_support import tiny_case
from warm import Warm

from bench.errors import BenchError
from bench.measure import CaseFailed, Session

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Ended:
    """A session that is over, what it ran, the command lines that its processes had, and the folder
    that it was started in."""

    session: Session
    outcome: str
    pids: tuple[int, int]
    commands: tuple[list[str], list[str]]
    folder: Path


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """... in which something had asked CUDA how many GPUs there are before a worker was forked. It
    is started in a folder with modules of names that libraries import."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("yaml", "safetensors", "configuration_opt"):
        (folder / f"{name}.py").write_text("open('ran', 'w')\nraise ImportError(__name__)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
        with Session(device="cpu", preload=["measure_bad_fork"]) as session:
            running = session.start(tiny_case("opt"))
            outcome = running.prepare().outcome.name
            pids = session.pid, running.pid
            assert all(map(psutil.pid_exists, pids))
            commands = tuple(psutil.Process(pid).cmdline() for pid in pids)
    return Ended(session, outcome, pids, commands, folder)


def test_a_session_ends_everything(ended: Ended) -> None:
    assert not any(map(psutil.pid_exists, ended.pids))
    with pytest.raises(BenchError, match="closed"):
        ended.session.start(tiny_case("opt"))


def test_no_module_of_the_folder_that_it_is_started_in_is_run(ended: Ended) -> None:
    """It may be a model's repository, whose code is run with --trust-remote-code alone."""
    assert ended.outcome == "ok"
    assert not (ended.folder / "ran").exists()


def test_a_server_that_is_killed_takes_one_case_with_it(warm: Warm) -> None:
    """Between two cases it costs none; during a case that one has crashed, and the run goes on."""
    with Session(device="cpu", time_limit_seconds=60) as session:
        first = measure(session, tiny_case("opt"))
        os.kill(session.pid, signal.SIGKILL)
        second = measure(session, tiny_case("opt"))
        assert (first.loss, first.peak_allocated_bytes) == (
            second.loss,
            second.peak_allocated_bytes,
        )
        with session.start(tiny_case("opt")) as running:
            running.prepare()
            os.kill(session.pid, signal.SIGKILL)
            psutil.Process(running.pid).wait(timeout=10)
            with pytest.raises(CaseFailed, match="crashed in timing: the measuring process ended"):
                running.step()
        assert measure(session, tiny_case("opt")).outcome.name == "ok"
        pids = [session.pid]
    assert not any(map(psutil.pid_exists, pids))


def test_a_missing_module_says_so() -> None:
    with (
        Session(preload=["no_such_module"]) as session,
        pytest.raises(BenchError, match="no_such_module"),
    ):
        session.start(tiny_case("opt"))


def test_without_a_gpu_a_worker_is_always_forked(ended: Ended) -> None:
    """A CUDA build without a driver: an interpreter of its own would cost each case seconds."""
    assert ended.outcome == "ok"
    server, worker = ended.commands
    assert worker == server


_PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
sys.executable = {server!r}
sys.path.insert(0, {here!r})
from measure_support import tiny_case
from bench.measure import Session
with Session(device="cpu") as session, session.start(tiny_case("opt")) as running:
    running.prepare()
    print(session.pid, running.pid, flush=True)
    while True:
        running.step()
"""


def test_nothing_outlives_the_parent(warm_process: Warm) -> None:
    """Neither a Ctrl-C, sent to the whole group as a terminal does, nor a kill -9 with a worker
    that hangs leaves a process behind. The server that Ctrl-C does not reach is a forked one."""
    signals = (signal.SIGINT, signal.SIGKILL)
    servers = (warm_process.python, sys.executable)
    parents = [
        subprocess.Popen(
            [sys.executable, "-c", _PARENT.format(here=str(HERE), server=server)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=HERE.parents[1],
            start_new_session=True,
        )
        for server in servers
    ]
    try:
        for parent, how in zip(parents, signals, strict=True):
            pids = [int(word) for word in parent.stdout.readline().split()]
            assert len(pids) == 2
            if how == signal.SIGKILL:
                os.kill(pids[1], signal.SIGSTOP)
            os.killpg(parent.pid, how)
            _, said = parent.communicate(timeout=30)
            if how == signal.SIGINT:
                assert said.rstrip().endswith("KeyboardInterrupt")
            deadline = time.monotonic() + 10
            while any(map(psutil.pid_exists, pids)) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not any(map(psutil.pid_exists, pids)), how
    finally:
        for parent in parents:
            parent.kill()


def test_importing_the_engine_imports_no_torch() -> None:
    code = (
        "import sys, bench.measure, bench.training.cases, bench.models.precision;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'peft')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE.parents[1])
