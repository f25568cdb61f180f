"""Installed as a wheel in an environment of its own, used from another project's folder.

`python -m pytest suites/selftest/test_wheel.py -m slow`. The libraries come from the environment
that runs this, so that torch is not installed twice; `bench` comes from the wheel alone. What would
import them once more for every command is forked from a process of that environment (warm.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from model_folders import write_model
from warm import Warm

from bench.errors import EXTRAS
from bench.files import FIXTURES, INSTALLED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.wheel,
    pytest.mark.evidence,
    pytest.mark.skipif(INSTALLED, reason="a wheel is built from the repository"),
]
ROOT = FIXTURES.parent
SEVEN = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
# In the second environment only: what HIDDEN names is not found, as if it were not installed.
HIDE = """
import os
from importlib.machinery import PathFinder
real, hidden = PathFinder.find_spec, os.environ.get("HIDDEN", "").split(",")
PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.partition(".")[0] in hidden else real(name, *rest)
)
"""
USER_TEST = """
import pytest
from lora_target_bench import DeadEntries

def test_good(check_targets):
    check_targets("config.json", {"target_modules": ["qkv_proj"], "r": 8})

def test_dead(check_targets):
    with pytest.raises(DeadEntries, match="q_proj"):
        check_targets("config.json", {"target_modules": ["q_proj", "o_proj"], "r": 8})
"""


class Installed:
    """The second environment, and a folder of another project."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.project = folder / "their project"
        (self.project / "tests").mkdir(parents=True)
        (self.project / "pyproject.toml").write_text('[project]\nname = "theirs"\n')
        (self.project / "tests" / "test_lora.py").write_text(USER_TEST)
        config = (FIXTURES / "architectures" / "phi-3-mini" / "config.json").read_text()
        (self.project / "config.json").write_text(config)
        write_model(self.project / "small", num_hidden_layers=1)
        adapter = {"peft_type": "LORA", "r": 8, "target_modules": ["qkv_proj"]}
        (self.project / "adapter_config.json").write_text(json.dumps(adapter))
        venv.create(folder / "env")
        self.python = folder / "env" / "bin" / "python"
        site = self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout
        self.site = Path(site.strip())
        libraries = [sysconfig.get_path("purelib"), *_path_entries()]
        (self.site / "libraries.pth").write_text("\n".join(dict.fromkeys(libraries)) + "\n")
        (self.site / "sitecustomize.py").write_text(HIDE)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python"]
        subprocess.run([*pip, str(self.python), "install", "--no-index", str(wheel)], check=True)
        self.warm = Warm(str(self.python), self.environment())

    def environment(self, hidden: str = "") -> dict[str, str]:
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "COV"))
        }
        return {**kept, "HIDDEN": hidden, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(
        self, *arguments: str, hidden: str = "", forked: bool = False, ok: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Python of this environment in the project's folder, `forked` or started; it must end
        well unless `ok` says otherwise."""
        python = self.warm.python if forked else str(self.python)
        done = subprocess.run(
            [python, *arguments], env=self.environment(hidden),
            cwd=self.project, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert not ok or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def bench(
        self, *arguments: str, hidden: str = "", forked: bool = False, ok: bool = True
    ) -> str:
        """What the installed `bench` prints, errors too."""
        script = self.python.parent / "bench"
        done = self.run(str(script), *arguments, hidden=hidden, forked=forked, ok=ok)
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def files(self) -> set[str]:
        """What the package holds, without what Python compiles."""
        return {str(p) for p in (self.site / "bench").rglob("*") if "__pycache__" not in p.parts}


def _path_entries() -> list[str]:
    """Folders that the libraries of this environment lie in, this repository excepted."""
    found = [Path(p).resolve() for p in sys.path if p.endswith("site-packages")]
    return [str(p) for p in found if not ROOT.is_relative_to(p)]


def _followed() -> list[str]:
    """The files that git follows, and those that it has not been told to ignore; none where this
    is no checkout."""
    if not (ROOT / ".git").exists():
        return []
    asked = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    said = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    return [name for name in said.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git follows: an earlier build's folder would fill its gaps."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source" if (files := _followed()) else ROOT
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    isolated = [] if find_spec("setuptools") is None else ["--no-build-isolation"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *isolated, "-w", folder, source],
        check=True,
    )
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Iterator[Installed]:
    made = Installed(tmp_path_factory.mktemp("user"), wheel)
    with made.warm:
        yield made


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    """Pages, snapshots and data among them: whatever git follows, but the tool's own tests."""
    packages, mapped = ("bench/", "lora_target_bench/"), ("suites/", "fixtures/", "results/")
    expected = {
        name if name.startswith(packages) else f"bench/{name}"
        for name in _followed()
        if name.startswith((*packages, *mapped)) and not name.startswith("suites/selftest/")
    }
    if not expected:
        pytest.skip("not a git checkout")
    with zipfile.ZipFile(wheel) as held:
        assert expected - set(held.namelist()) == set()


def test_nothing_is_read_from_the_repository(installed: Installed) -> None:
    code = "import bench.files as f; print(f.INSTALLED, f.FIXTURES, f.RESULTS, f.SUITES)"
    said = installed.run("-c", code).stdout
    assert said.startswith("True ")
    assert str(ROOT) not in said
    assert said.count(str(installed.site / "bench")) == 3
    for name in ("fixtures/gpus.toml", "results/README.md", "suites/test_measurement.py"):
        assert (installed.site / "bench" / name).is_file()
    assert not (installed.site / "bench" / "suites" / "selftest").exists()
    # Nothing at the top of site-packages that another project could call its own.
    tops = {p.name for p in installed.site.iterdir()}
    assert not tops & {"suites", "fixtures", "results", "conftest.py", "setup.py"}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (f"targets phi-3-medium --target-modules {SEVEN} --rank 16", r"qkv_proj"),
        ("targets ./config.json --target-modules o_proj", r"32 of 32 layers"),
        ("explain llama-3-8b --trainable 20971520", r"all-linear|everything|seven|q_proj"),
        ("methods llama-3.2-1b --budget 1000000", r"ia3"),
        ("memory opt-350m --target-modules q_proj --gpu A100-80GB --seq-len 64", r"fits"),
        ("atlas --diff 4.57.6 5.23.0 --types llama", r""),
        ("report", r"\| scenario"),
        ("report structure/1 --format html", r"<html"),
        ("compare structure/1 linux-x86_64-cpu-2cores/1", r"unchanged"),
        ("choose ./small --gpu-memory 4GiB --seq-len 64 --precision nf4", r"Proposed: row"),
        ("check adapter_config.json --model ./config.json", r"32 of 32 layers"),
    ],
    ids=lambda value: str(value).split()[0] if str(value) else "",
)
def test_command_answers(installed: Installed, command: str, expected: str) -> None:
    before = installed.files()
    # Those that would import torch each for itself, but for one.
    said = installed.bench(*command.split(), forked=not command.startswith("check"), ok=False)
    assert "bench: error" not in said, said
    assert re.search(expected, said), said
    assert installed.files() == before


@pytest.mark.parametrize(
    ("options", "instead"),
    [("", "--output DIR"), ("--types llama", "--output DIR"), ("--roles", "in a checkout"),
     ("--renames", "in a checkout"), ("--reach --types llama", "in a checkout")],
)  # fmt: skip
def test_the_stored_atlases_are_not_written_to(
    installed: Installed, options: str, instead: str
) -> None:
    said = installed.bench("atlas", *options.split(), ok=False).strip()
    assert instead in said
    assert said.count("\n") == 0


def test_check_targets_is_a_fixture_without_a_conftest(installed: Installed) -> None:
    said = installed.run("-m", "pytest", "tests", "-q", forked=True).stdout
    assert "2 passed" in said


def test_suites_run_and_store_in_the_users_folder(installed: Installed) -> None:
    """One structural and one measured case, once by the module's name and once by its place."""
    before = installed.files()
    where = installed.bench("suites").strip()
    assert Path(where) == installed.site / "bench" / "suites"
    common = ["-q", "-p", "no:cacheprovider", "--model", "opt-350m", "--scenario", "query-value"]
    counts = ["-k", "test_counts or test_measurement", "--precision", "fp32", "--rounds", "2"]
    said = installed.run(
        "-m",
        "pytest",
        "--pyargs",
        "bench.suites",
        *common,
        *counts,
        "--benchmark-save=first",
        forked=True,
    ).stdout
    stored = list((installed.project / "results").glob("*/0001_first.json"))
    assert len(stored) == 1, said
    records = json.loads(stored[0].read_text())["lora_bench"]["records"]
    assert {r["suite"] for r in records.values()} >= {"counts", "measurement"}
    again = installed.run(
        "-m", "pytest", where, *common, *counts,
        "--benchmark-compare", "--gate", "--threshold", "time=1000%", forked=True,
    ).stdout  # fmt: skip
    assert "verdicts against" in again
    assert "Run 0001" in installed.bench("report", "first")
    assert installed.files() == before
    shutil.rmtree(installed.project / "results")  # the other tests ask for the package's own runs


@pytest.mark.parametrize(
    ("command", "hidden"),
    [("suites", "pandas"), ("suites", "pytest")],
)
def test_a_missing_extra_is_one_line(installed: Installed, command: str, hidden: str) -> None:
    said = installed.bench(*command.split(), hidden=hidden, ok=False).strip().splitlines()
    assert f"pip install 'lora-target-bench[{EXTRAS[hidden]}]'" in said[-1]
    assert len([line for line in said if "error:" in line]) <= 1


def test_base_installation_answers_without_any_extra(installed: Installed) -> None:
    hidden = ",".join(EXTRAS)
    said = installed.bench(
        "memory", "./small", "--target-modules", "q_proj", "--precision", "nf4", "--seq-len", "64",
        hidden=hidden,
    )  # fmt: skip
    assert "peak allocated" in said
    assert "qkv_proj" in installed.bench(
        "targets", "phi-3-medium", "--target-modules", "q_proj,o_proj", hidden=hidden
    )


def test_installs_from_the_repositorys_address(installed: Installed, tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    target = tmp_path / "from-git"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target,
         *([] if find_spec("setuptools") is None else ["--no-build-isolation"]),
         f"git+{ROOT.as_uri()}"],
        check=True,
    )  # fmt: skip
    assert (target / "bench" / "fixtures" / "gpus.toml").is_file()


def test_extras_are_those_of_pyproject() -> None:
    """Every module that EXTRAS names belongs to a distribution of that extra."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {
        extra: {re.split(r"[><=]", line)[0] for line in lines}
        for extra, lines in data["optional-dependencies"].items()
    }
    other = {"pynvml": "nvidia-ml-py", "xdist": "pytest-xdist"}
    for module, extra in EXTRAS.items():
        assert other.get(module, module.replace("_", "-")) in names[extra]
    known = {other.get(m, m.replace("_", "-")) for m in EXTRAS}
    # syrupy holds only what the repository's own tests expect; PEFT brings accelerate anyhow.
    asked = set().union(*(names[extra] for extra in set(EXTRAS.values())))
    asked -= {"syrupy", "accelerate"}
    assert asked <= known
