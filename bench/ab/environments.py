"""A Python environment to measure in: found, checked, and asked through a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from bench.errors import BenchError
from bench.measure.messages import Line
from bench.measure.outcome import StepTime
from bench.process import broken_library

NEEDED = ("torch", "transformers", "peft", "bitsandbytes", "psutil", "numpy", "msgspec")
"""What an environment must have to measure in it. bench itself comes from this checkout."""

SOURCE = Path(__file__).resolve().parents[1]
OLDEST_PYTHON = (3, 11)

_GRACE_SECONDS = 10.0
_ASK = (
    "import json, sys; from importlib.util import find_spec; print(json.dumps({"
    "'python': sys.version_info[:2], 'missing': [n for n in sys.argv[1:] if not find_spec(n)]}))"
)


def find_python(environment: str, option: str) -> Path:
    """The interpreter of a virtual environment's folder, or the executable itself, checked.

    Raises BenchError, naming `option`, for a path without an interpreter, an older Python, or an
    environment that lacks a library.
    """
    path = Path(environment).expanduser()
    if path.is_dir():
        inside = [path / "bin" / "python", path / "Scripts" / "python.exe"]
        found = next((str(python) for python in inside if python.is_file()), None)
        what = f"no Python in this folder (expected {inside[0]}): create one with python -m venv"
    else:
        found = shutil.which(str(path))
        what = "neither the folder of a virtual environment nor a Python executable"
    if found is None:
        raise BenchError(f"{option} {environment}: {what}")
    # Absolute, but not resolved: a virtual environment's python is a link, and knows it.
    python = Path(found).absolute()
    try:
        done = subprocess.run(
            [python, "-c", _ASK, *NEEDED], capture_output=True, text=True, timeout=60,
            env=_variables(), check=True,
        )  # fmt: skip
        said = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        raise BenchError(
            f"{option} {environment}: {python} does not answer as Python 3 does"
        ) from None
    if tuple(said["python"]) < OLDEST_PYTHON:
        version, oldest = (".".join(map(str, v)) for v in (said["python"], OLDEST_PYTHON))
        raise BenchError(f"{option} {environment}: Python {version}; bench needs {oldest} or newer")
    if said["missing"]:
        names = " ".join(said["missing"])
        raise BenchError(
            f"{option} {environment}: it lacks {', '.join(said['missing'])}: "
            f"install with {python} -m pip install {names}"
        )
    return python


class Environment:
    """One side of a comparison; a context manager that ends its processes.

    `option` and `label` are what a user gave it with and as; `clock` times its steps on a CPU.
    Every method raises BenchError, naming both, where this side refuses its input or its process
    ends.
    """

    def __init__(self, python: Path, option: str, label: str, clock: str = "wall") -> None:
        self.option = option
        self.label = label
        self.python = python
        self.versions: dict[str, str] = {}
        self.machine: dict[str, Any] = {}
        self.decided: dict[str, Any] = {}
        self.keys: tuple[str, ...] = ()
        self.broken: dict[str, str] = {}
        self.clock = clock
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the process; `wait_open` waits for its imports."""
        self._folder = tempfile.TemporaryDirectory(prefix="bench-ab-")
        # Bench alone: beside an installed bench stand libraries that are not this environment's.
        source = Path(self._folder.name)
        (source / "bench").symlink_to(SOURCE)
        self._errors = tempfile.TemporaryFile()
        self._line, theirs = Line.with_other_end()
        with theirs:
            self._process = subprocess.Popen(
                [self.python, "-m", "bench.ab.side", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                env=_variables(str(source)),
                start_new_session=True,
            )
        self._send({"do": "open", "clock": self.clock})
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._process is not None:
            self._line.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_GRACE_SECONDS if kind is None else 0)
            # Whatever is left: its session's server ends with it, and the workers with the server.
            self._process.kill()
            self._process.wait()
            self._process = None
        self._errors.close()
        self._folder.cleanup()

    def wait_open(self) -> None:
        """Wait until the libraries are imported; learn the versions."""
        answer = self._receive()
        if answer["bench"] != (here := str(SOURCE)):
            raise BenchError(
                f"{self.option} {self.label}: this environment measures with another bench, "
                f"{answer['bench']}, not {here}: what measures must be the same on both sides"
            )
        self.versions = answer["versions"]

    def start_select(
        self, request: Mapping[str, Any], step: Mapping[str, Any], limits: Mapping[str, Any]
    ) -> None:
        """Ask which cases `request` means here; `wait_select` waits for the answer."""
        self._send({"do": "select", "request": request, "step": step, "limits": limits})

    def wait_select(self) -> None:
        """Wait for the cases' keys, the machine, and the models that this side cannot even list."""
        answer = self._receive()
        self.decided, self.machine = answer["decided"], answer["machine"]
        self.keys = tuple(self.decided["subjects"])
        self.broken = answer["broken"]

    def prepare(self, key: str) -> bool:
        """Load the case in a worker; whether it can take steps."""
        self._send({"do": "prepare", "key": key})
        return bool(self._receive())

    def relaunch(self) -> bool:
        """End the worker and load the same case in a new one; whether it can take steps."""
        self._send({"do": "relaunch"})
        return bool(self._receive())

    def step(self) -> StepTime | None:
        """One timed step; None once the case has failed."""
        self._send({"do": "step"})
        answer = self._receive()
        return None if answer is None else StepTime(**answer)

    def finish(
        self, rounds: Sequence[Mapping[str, float]], detail: Mapping[str, Any]
    ) -> dict[str, Any]:
        """End the worker; the case's record, as a stored run holds it."""
        self._send({"do": "finish", "rounds": rounds, "detail": detail})
        record: dict[str, Any] = self._receive()
        return record

    def _send(self, request: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # its end is told of by the next answer
            self._line.send(request)

    def _receive(self) -> Any:
        try:
            answer = self._line.receive()
        except (EOFError, OSError):
            self._errors.seek(0)
            said = (
                broken_library(self.python, _variables(str(Path(self._folder.name))))
                or " ".join(self._errors.read().decode(errors="replace").split())[-600:]
            )
            raise BenchError(
                f"{self.option} {self.label}: its process ended: {said or 'silent'}"
            ) from None
        if "failed" in answer:
            raise BenchError(f"{self.option} {self.label}: {answer['failed']}")
        return answer["result"]


def _variables(path: str = "") -> dict[str, str]:
    """This process's variables, less those that would lend it our libraries, or a folder's."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return {**kept, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
