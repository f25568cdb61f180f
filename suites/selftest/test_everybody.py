"""In somebody else's repository: nothing of theirs is shadowed, taken, or left out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from model_folders import write_adapter, write_model
from warm import Warm

PROJECT = Path(__file__).resolve().parents[2]
PLUGIN = "lora_target_bench.pytest_plugin"

THEIR_TESTS = """
import bench
from bench import units


def test_theirs(check_targets, benchmark, request):
    assert (bench.WHOSE, units.WHOSE) == ("theirs", "theirs")
    ledger = check_targets("mine", ["q_proj", "fc1"], optional=["fc1"])
    assert ledger.adapted_layers == 2
    assert request.config.getoption("--model") == "their model"
    benchmark(lambda: None)


def test_the_same_objects():
    import lora_target_bench
    from lora_target_bench.check.targets import check_targets
    from lora_target_bench.errors import BenchError
    from lora_target_bench.formulas.lora import lora_parameters

    assert lora_target_bench.check_targets is check_targets
    assert lora_target_bench.BenchError is BenchError
    assert bench.WHOSE == "theirs"


def test_not_about_models():
    pass
"""
THEIR_CONFTEST = """
def pytest_addoption(parser):
    parser.addoption("--model")
    parser.addoption("--rounds")
    parser.addoption("--precision")
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a `bench/` of its own, options of our names, and a model `mine`."""
    package = tmp_path / "bench"
    package.mkdir()
    (package / "__init__.py").write_text("WHOSE = 'theirs'\n")
    (package / "units.py").write_text("WHOSE = 'theirs'\n")
    write_model(tmp_path / "mine")
    (tmp_path / "conftest.py").write_text(THEIR_CONFTEST)
    (tmp_path / "test_theirs.py").write_text(THEIR_TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


@pytest.fixture
def theirs(repository: Path, warm: Warm) -> Path:
    """The same, for what does not ask which modules a process has."""
    return repository


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Our checkout last on the path, as an installation is: theirs comes first."""
    path = [str(folder), str(PROJECT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def _pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # By name, whether this environment has the entry point or not.
    plugins = ("-p", PLUGIN, "-p", "pytest_benchmark.plugin")
    return _run(folder, "-m", "pytest", *plugins, "--model", "their model", *arguments)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--benchmark-save", "x"),
        pytest.param(("--benchmark-autosave",), marks=pytest.mark.evidence),
    ],
)
def test_their_tests_run_beside_their_own_bench(theirs: Path, options: tuple[str, ...]) -> None:
    done = _pytest(theirs, *options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "3 passed" in done.stdout
    assert "deselected" not in done.stdout
    if options:
        assert len(list(theirs.glob(".benchmarks/*/0001_*.json"))) == 1
        again = _pytest(theirs, "--benchmark-compare")
        assert "3 passed" in again.stdout
        assert "Comparing against benchmarks from" in again.stdout + again.stderr


def test_the_old_line_of_a_conftest_gives_the_fixture_alone(theirs: Path) -> None:
    """`pytest_plugins = ["bench.plugin"]`, as the README once said, where `bench` is ours."""
    for file in theirs.glob("bench/*.py"):
        file.unlink()
    (theirs / "bench").rmdir()
    (theirs / "conftest.py").write_text(f'pytest_plugins = ["bench.plugin"]\n{THEIR_CONFTEST}')
    (theirs / "test_theirs.py").write_text(
        "def test_theirs(check_targets, benchmark):\n"
        "    assert check_targets('mine', ['q_proj']).adapted_layers == 2\n"
        "    benchmark(lambda: None)\n"
    )
    done = _pytest(theirs, "--benchmark-save", "x")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "1 passed" in done.stdout


def test_their_project_is_the_one_that_their_tests_lie_in(theirs: Path, tmp_path: Path) -> None:
    """Wherever pytest or a command is started from: the nearest pyproject.toml, there or above."""
    (theirs / "pytest.ini").unlink()
    (theirs / "pyproject.toml").write_text(
        "[tool.pytest.ini_options]\n[tool.lora-target-bench]\nminimum-coverage = 0.9\n"
    )
    tests = theirs / "tests"
    tests.mkdir()
    (theirs / "test_theirs.py").unlink()
    (tests / "test_theirs.py").write_text(
        "def test_theirs(check_targets):\n"
        f"    check_targets({str(theirs / 'mine')!r}, ['q_proj'])\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    named = ("-c", str(theirs / "pyproject.toml"), "--rootdir", str(theirs), str(tests))
    for folder, arguments in ((theirs, ()), (tests, ()), (elsewhere, named)):
        done = _pytest(folder, *arguments)
        assert done.returncode == 1, done.stdout[-2000:] + done.stderr
        assert "low-coverage" in done.stdout
    asked = ("targets", str(theirs / "mine"), "--target-modules", "q_proj", "--strict")
    for folder in (theirs, tests):
        done = _run(folder, "-P", "-m", "lora_target_bench", *asked)
        assert done.returncode == 1, done.stderr
        assert "low-coverage" in done.stdout


def test_a_model_elsewhere_does_not_move_their_project(
    theirs: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """pytest looks for its rootdir before it knows our options: their values are no tests to it."""
    elsewhere = tmp_path_factory.mktemp("models") / "mine"
    (theirs / "mine").rename(elsewhere)
    (theirs / "pytest.ini").unlink()
    project = theirs / "pyproject.toml"
    project.write_text("[tool.lora-target-bench]\nminimum-coverage = 0.9\n")
    test = "def test(check_targets):\n    check_targets(adapter=['q_proj'])\n"
    (theirs / "test_theirs.py").write_text(test)
    for argument in ((), ("test_theirs.py",)):
        done = _pytest(theirs, "--lora-model", str(elsewhere), *argument)
        assert done.returncode == 1, done.stdout[-2000:] + done.stderr
        assert "low-coverage" in done.stdout
    write_adapter(elsewhere, ["q_proj", "v_proj"])
    shutil.rmtree(theirs / "bench")
    named = tuple(str(elsewhere) if word == "mine" else word for word in GATE)
    asked = tuple(word for word in named if not word.startswith("--benchmark-storage"))
    done = _run(theirs, *asked, *TIMED)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert [path.name for path in theirs.glob("results/*/*_first.json")] == ["0001_first.json"]
    assert not (elsewhere / "results").exists()
    project.write_text('[tool.bench.thresholds]\nstep_secondz = "1%"\n')
    done = _run(theirs, *asked[:-1], *TIMED, "--benchmark-compare", "--gate")
    assert done.returncode == 2, done.stdout[-2000:]
    assert f"unknown metric in {project}" in done.stdout + done.stderr


def test_their_scripts_in_a_folder_without_init_are_found(theirs: Path) -> None:
    """An installed package goes before such a folder; its modules are there all the same."""
    (theirs / "bench" / "__init__.py").unlink()
    (theirs / "bench" / "helpers.py").write_text("WHOSE = 'theirs'\n")
    code = (
        "import bench.helpers, bench.errors; assert bench.helpers.WHOSE == 'theirs'; "
        "from lora_target_bench.errors import BenchError as E; assert E is bench.errors.BenchError"
    )
    done = _run(theirs, "-c", code)
    assert done.returncode == 0, done.stderr


def test_their_package_of_suites_stays_theirs(theirs: Path) -> None:
    suites = theirs / "bench" / "suites"
    suites.mkdir()
    (suites / "__init__.py").write_text("")
    (suites / "test_inside.py").write_text("def test_inside():\n    pass\n")
    done = _pytest(theirs, "--pyargs", "bench.suites")
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_their_package_of_our_name_is_disturbed_by_nothing(repository: Path) -> None:
    """One of the two cannot be imported: only `check_targets` is of no use then, and says why."""
    for folder in ("lora_target_bench", "suites"):
        (repository / folder).mkdir()
    (repository / "lora_target_bench" / "__init__.py").write_text("")
    (repository / "suites" / "test_theirs.py").write_text(
        "def test_passes(): pass\n"
        "def test_fails(check_targets): check_targets('mine', ['q_proj'])\n"
    )
    done = _pytest(repository, "suites")
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "a package of this repository is called lora_target_bench" in done.stdout
    assert "During handling" not in done.stdout


def test_options_of_the_fixture(theirs: Path) -> None:
    (theirs / "test_theirs.py").write_text("def test_it(check_targets):\n    check_targets()\n")
    assert "1 skipped" in _pytest(theirs).stdout
    write_adapter(theirs, ["q_proj", "fc1"])
    given = ("--lora-model", "mine", "--lora-adapter", "adapter_config.json")
    for option in given[::2]:  # as from a variable that is not set
        assert f"{option}: expected a value, found nothing" in _pytest(theirs, option, "").stderr
    failed = _pytest(theirs, *given)
    assert failed.returncode == 1
    assert "fc1: dead" in failed.stdout
    for spread in ((), ("-p", "xdist", "-n", "2")):  # of xdist's workers, one checks nothing
        allowed = _pytest(theirs, *given, "--lora-optional", "fc1,fc3", *spread).stdout
        assert "1 passed" in allowed
        assert "--lora-optional: 'fc3': in no configuration" in allowed


def test_an_adapter_beside_the_model_is_checked(theirs: Path) -> None:
    """A model by name and no adapter anywhere is a mistake, and no skip."""
    (theirs / "test_theirs.py").write_text(
        "def test_it(check_targets):\n    check_targets('mine')\n"
    )
    alone = _pytest(theirs)
    assert alone.returncode == 1
    assert "no adapter: give" in alone.stdout
    (theirs / "mine" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "target_modules": ["q_proj", "fc1"]})
    )
    beside = _pytest(theirs)
    assert beside.returncode == 1
    assert "fc1: dead" in beside.stdout


def test_nothing_given_by_mistake_is_no_skip(theirs: Path) -> None:
    """A key that is misspelt gives None: that fails, with an adapter from the options too."""
    (theirs / "test_theirs.py").write_text(
        "def test_it(check_targets):\n    check_targets('mine', {}.get('target_module'))\n"
    )
    for options in ((), ("--lora-adapter", "adapter_config.json")):
        done = _pytest(theirs, *options)
        assert done.returncode == 1
        assert "found NoneType" in done.stdout


def test_the_plugin_brings_nothing_along(repository: Path) -> None:
    code = (
        f"import sys, pytest, {PLUGIN}\n"
        "ours = {name for name in sys.modules if name.partition('.')[0] == 'bench'}\n"
        "assert not ours, ours\n"
        "assert not {'torch', 'transformers', 'numpy', 'pandas'} & set(sys.modules)"
    )
    done = _run(repository, "-c", code)
    assert done.returncode == 0, done.stderr


def test_the_command_runs_beside_their_own_bench(theirs: Path) -> None:
    done = _run(
        theirs, "-m", "lora_target_bench", "targets", "mine", "--target-modules", "q_proj", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["adapted_layers"] == 2


def test_no_file_asks_for_a_module_of_ours_by_a_string() -> None:
    """Beside another `bench` such a string would mean theirs; `__import__` means ours."""
    asks = re.compile(r"import_module\(f?[\"']bench\b")
    files = (PROJECT / "bench").rglob("*.py")
    assert [str(f) for f in files if asks.search(f.read_text(encoding="utf-8"))] == []


BOTH_NAMES = {
    "bench first": """
import bench.errors, bench.units
import lora_target_bench, lora_target_bench.units
""",
    "the other first": """
import lora_target_bench.units, lora_target_bench.errors
import bench, bench.units
""",
}
SAME = """
import lora_target_bench.predict.gpus, bench.predict.gpus, lora_target_bench.files, bench.files
import sys
assert bench.units is lora_target_bench.units
assert bench.files is lora_target_bench.files
assert bench.predict.gpus is lora_target_bench.predict.gpus
assert bench.errors.BenchError is lora_target_bench.BenchError is bench.BenchError
assert bench.check_targets is lora_target_bench.check_targets
assert bench.__all__ == lora_target_bench.__all__
for name in bench.__all__:
    assert getattr(bench, name) is getattr(lora_target_bench, name), name
for name in ("bench.units", "bench.errors"):
    assert sys.modules[name].__spec__.name == sys.modules[name].__name__
"""


@pytest.mark.parametrize("order", BOTH_NAMES)
def test_both_names_mean_the_same_modules(order: str, tmp_path: Path, warm: Warm) -> None:
    done = _run(tmp_path, "-c", BOTH_NAMES[order] + SAME)
    assert done.returncode == 0, done.stderr


def test_wrong_input_shows_the_line_of_the_test_and_none_of_ours(theirs: Path) -> None:
    (theirs / "test_theirs.py").write_text(
        "def test_fixture(check_targets):\n"
        "    check_targets('no-such-model', ['q_proj'])\n"
        "def test_function():\n"
        "    from lora_target_bench import check_targets\n"
        "    check_targets('mine', 5)\n"
        "def test_dead(check_targets):\n"
        "    check_targets('mine', ['qq_proj'])\n"
    )
    done = _pytest(theirs)
    assert "3 failed" in done.stdout
    places = re.findall(r"^(\S+\.py):\d+", done.stdout, re.MULTILINE)
    assert places == ["test_theirs.py"] * 3, done.stdout
    assert "unknown architecture 'no-such-model'" in done.stdout
    assert "found int" in done.stdout
    assert "qq_proj: dead; write instead: q_proj" in done.stdout


GATE = (
    "-m", "pytest", "-p", PLUGIN, "--pyargs", "lora_target_bench.suites.test_parameters",
    "-m", "not measured", "--model", "mine", "--benchmark-storage=kept", "--benchmark-save=first",
)  # fmt: skip
TIMED = ("-p", "pytest_benchmark.plugin")


@pytest.fixture
def gated(theirs: Path) -> Path:
    """The repository without a `bench/`, and with an adapter beside its model."""
    shutil.rmtree(theirs / "bench")
    write_adapter(theirs / "mine", ["q_proj", "v_proj"])
    return theirs


def _stored(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("kept/*"))


def test_the_gate_names_the_extra_that_it_needs(gated: Path) -> None:
    (gated / "without.py").write_text("import sys\nsys.modules['pytest_benchmark'] = None\n")
    done = _run(gated, *GATE, "-p", "without")
    assert done.returncode == 2
    assert done.stderr == (
        "error: pytest_benchmark is not installed: "
        "pip install 'lora-target-bench[suites]' brings it\n"
    )


def test_the_gate_runs_beside_a_conftest_with_options_of_the_same_names(gated: Path) -> None:
    """The folder after --model is no path to test, whose conftest.py would be read."""
    done = _run(gated, *GATE, *TIMED)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert _stored(gated) == ["0001_first.json", "accepted.json"]


@pytest.mark.parametrize("file", ["baselines.py", "__init__.py", "notes.txt"])
def test_the_gate_runs_beside_a_bench_of_theirs_in_any_import_mode(theirs: Path, file: str) -> None:
    """`python -m pytest` puts their folder first on the path, and importlib nothing before it."""
    write_adapter(theirs / "mine", ["q_proj", "v_proj"])
    if file == "notes.txt":  # no package, and found before one that an installation only tells of
        for each in theirs.glob("bench/*.py"):
            each.unlink()
    (theirs / "bench" / file).touch()
    done = _run(theirs, *GATE, *TIMED, "--import-mode=importlib")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert _stored(theirs) == ["0001_first.json", "accepted.json"]


def test_a_plugin_that_has_imported_their_bench_is_told(theirs: Path) -> None:
    write_adapter(theirs / "mine", ["q_proj", "v_proj"])
    (theirs / "early.py").write_text("import bench\n")
    done = _run(theirs, *GATE, *TIMED, "-p", "early")
    assert done.returncode == 2
    assert done.stderr.startswith("error: a plugin has imported your own bench (")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("place", ["addopts", "plugin"])
def test_a_plugin_with_options_of_the_same_names_is_told_with_a_way_out(
    gated: Path, place: str
) -> None:
    (gated / "ranking.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--rank')\n"
    )
    if place == "addopts":
        (gated / "pytest.ini").write_text("[pytest]\naddopts = -p ranking\n")
        way = ("-o", "addopts=")
    else:
        way = ("-p", "no:ranking")
    brought = () if place == "addopts" else ("-p", "bringing")
    (gated / "bringing.py").write_text("pytest_plugins = ['ranking']\n")
    refused = _run(gated, *GATE, *TIMED, *brought)
    assert refused.returncode == 2, refused.stdout
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: ranking defines --rank, and so do these suites: ")
    assert line.endswith(f"{' '.join(way)} (docs/ci.md)")
    assert _run(gated, *GATE, *TIMED, *brought, *way).returncode == 0


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_a_folder_with_options_of_the_same_names_is_told(gated: Path, first: str) -> None:
    tests = gated / "tests"
    tests.mkdir()
    (gated / "conftest.py").rename(tests / "conftest.py")
    before, after = (("tests",), ()) if first == "theirs" else ((), ("tests",))
    done = _run(gated, "-m", "pytest", *before, *GATE[2:], *TIMED, *after)
    assert done.returncode == 2
    assert "conftest.py defines --model, --precision, --rounds, and so do" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_gate_runs_in_importlib_mode(gated: Path) -> None:
    (gated / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    done = _run(gated, *GATE, *TIMED)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def test_a_run_that_cannot_be_collected_leaves_nothing_behind(gated: Path) -> None:
    (gated / "conftest.py").unlink()
    (gated / "test_broken.py").write_text("import no_such_module\n")
    done = _run(gated, *GATE, *TIMED, "test_broken.py")
    assert done.returncode == 2
    assert "1 error during collection" in done.stdout
    assert _stored(gated) == []
