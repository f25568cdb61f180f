"""A library that cannot be imported: whatever waits for a process that needs it is told which."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from matrices import matrix
from measure_support import tiny_case
from warm import Warm

from bench.ab.environments import Environment
from bench.atlas import build, workers
from bench.errors import BenchError, unimportable
from bench.measure import Session
from bench.measure.nodes import facts
from bench.process import ENDED, broken_library, to_its_end

BREAKS = {
    "raise OSError('libnone.so.9: no such file')": "OSError: libnone.so.9: no such file",
    "import os; os._exit(0)": "it ends the process (status 0)",
    "import os; os._exit(3)": "it ends the process (status 3)",
    "import os; os.abort()": "it crashes (SIGABRT)",
    "import sys; sys.exit(0)": "it ends the process (status 0)",
}
FEW_BREAKS = matrix(BREAKS, by=lambda code: {"raise" in code})
"""One that is an exception, and one that ends the process: `broken_library` tells all apart."""
Broken = Callable[..., Path]


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Broken:
    """A folder with a library whose first line is `code`, found before the installed one."""

    def make(library: str, code: str) -> Path:
        package = tmp_path / "broken" / library
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(code + "\n")
        monkeypatch.setenv("PYTHONPATH", str(package.parent))
        return package.parent

    return make


@pytest.mark.parametrize("code", BREAKS)
def test_the_library_is_named_whatever_it_does(broken: Broken, code: str) -> None:
    broken("torch", code)
    assert broken_library() == f"torch cannot be imported: {BREAKS[code]}"


def test_a_later_library_is_named_and_not_the_one_that_imports_it(broken: Broken) -> None:
    broken("bitsandbytes", "import os; os._exit(0)")
    line = "bitsandbytes cannot be imported: it ends the process (status 0)"
    assert broken_library() == line


@pytest.mark.parametrize("code", FEW_BREAKS)
def test_a_session_ends_in_an_error_that_names_it(broken: Broken, code: str) -> None:
    broken("torch", code)
    said = f"the measuring process ended: torch cannot be imported: {BREAKS[code]}"
    with Session(device="cpu") as session:
        for _ in range(2):  # the second is told without another try
            with pytest.raises(BenchError) as caught:
                session.start(tiny_case("opt"))
            assert str(caught.value) == said


@pytest.mark.parametrize("code", FEW_BREAKS)
def test_a_side_of_a_comparison_names_it(broken: Broken, tmp_path: Path, code: str) -> None:
    folder = broken("torch", code)
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="{folder}:$PYTHONPATH"\nexport PYTHONPATH\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)

    def cases(side: Environment) -> tuple[str, ...]:
        side.wait_open()
        side.start_select({"models": ("opt-350m",)}, {}, {"memory_bytes": None, "seconds": None})
        side.wait_select()
        return side.keys

    with Environment(python, "--contender-env", "new") as side, pytest.raises(BenchError) as caught:
        cases(side)
    assert str(caught.value).startswith("--contender-env new: ")
    assert "torch cannot be imported: " in str(caught.value)


@pytest.mark.parametrize("code", FEW_BREAKS)
def test_a_command_names_it_as_wrong_input(broken: Broken, code: str) -> None:
    broken("torch", code)
    asked = ["targets", "opt-350m", "--scenario", "query-value"]
    if "_exit" in code or "abort" in code:
        asked.append("--trust-remote-code")  # carried out by a worker, whose end is seen
    done = subprocess.run(
        [sys.executable, "-m", "lora_target_bench", *asked], capture_output=True, text=True,
        check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("bench: error: ")
    assert "torch cannot be imported: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "asked",
    [
        ["lora_target_bench", "targets", "opt-350m", "--scenario", "query-value"],
        ["pytest", "suites/test_counts.py", "--scenario", "query-value", "--model", "opt-350m"],
    ],
    ids=["command", "suite"],
)
def test_a_process_that_is_ended_has_not_passed(broken: Broken, asked: list[str]) -> None:
    """With status 0, by code that runs in the very process: nothing ran, and nothing is green."""
    broken("torch", "import os; os._exit(0)")
    done = subprocess.run(
        [sys.executable, "-m", *asked], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == ENDED, done.stdout + done.stderr
    assert done.stderr.endswith("ended it (os._exit): it has not passed\n")


def test_forked_processes_end_as_they_like() -> None:
    with to_its_end():
        if not (child := os.fork()):
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_what_a_library_raises_while_it_is_imported_names_it(
    broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = broken("inner_library", "value = 1 / 0")
    (folder / "outer_library.py").write_text("import inner_library\n")
    (folder / "calls_it.py").write_text("def call():\n    raise ImportError('of its caller')\n")
    (folder / "needs_it.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(str(folder))

    def line(code: str) -> str:
        try:
            exec(code, {})
        except Exception as error:
            return unimportable(error)
        return "nothing was raised"

    failed = "inner_library cannot be imported: ZeroDivisionError: division by zero"
    assert line("import outer_library") == failed
    assert line(
        "try:\n import inner_library\nexcept Exception as e:\n raise ValueError from e"
    ) == (failed)
    missing = "ModuleNotFoundError: No module named 'no_such_library'"
    assert line("import needs_it") == f"needs_it cannot be imported: {missing}"
    assert line("import no_such_library") == f"no_such_library cannot be imported: {missing}"
    assert line("import calls_it; calls_it.call()") == ""
    assert line("1 / 0") == ""


def test_an_atlas_of_no_type_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> list[tuple[str, None, str]]:
        return [("llama", None, "its process died with status 70")]

    monkeypatch.setattr(build, "broken_library", lambda: "")
    assert list(build.build_atlas(["llama"], none).unbuilt) == ["llama"]
    monkeypatch.setattr(build, "broken_library", lambda: "torch cannot be imported: it crashes")
    with pytest.raises(BenchError, match="torch cannot be imported"):
        build.build_atlas(["llama"], none)


@pytest.mark.parametrize("code", ["raise OSError('torn')", "import os; os._exit(0)"])
def test_the_pool_waits_for_no_process_that_ended_at_its_imports(
    broken: Broken, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.syspath_prepend(str(broken("transformers", code)))
    told = "torn" if "torn" in code else f"its process died with status {workers.ENDED}"
    assert [*workers.run_all(os.path.basename, ["a", "b"], 1)] == [
        ("a", None, told),
        ("b", None, told),
    ]


def test_a_node_says_which_library_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "peft" in facts().missing


def test_who_comes_to_a_warm_process_without_libraries_is_served_and_its_owner_told(
    broken: Broken, tmp_path: Path
) -> None:
    folder = broken("jinja2", "raise ImportError('torn')")  # imported before what takes seconds
    python = tmp_path / "python"
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="{path}" PYTHONDONTWRITEBYTECODE=1 exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    with pytest.raises(RuntimeError, match="torn"), Warm(str(python)) as warm:
        done = subprocess.run(
            [warm.python, "-c", "import jinja2"], capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ImportError: torn"


def test_a_run_of_the_suites_names_it_without_a_traceback(broken: Broken) -> None:
    broken("torch", "raise OSError('torn')")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "suites/test_measurement.py", "-q", "-p",
         "no:cacheprovider"],
        capture_output=True, text=True, check=False, cwd=root,
    )  # fmt: skip
    assert done.returncode == pytest.ExitCode.INTERNAL_ERROR
    assert "error: torch cannot be imported: OSError: torn\n" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "INTERNALERROR" not in done.stdout + done.stderr
