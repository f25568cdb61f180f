"""Faults that a team wants to hear of, each injected into a real run of pytest with --gate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gate_support import CONFTEST
from model_folders import LLAMA, write_adapter, write_model
from suite_runs import SUITES
from warm import Warm

from bench.baselines import KEY, seal
from bench.files import FIXTURES
from bench.models.architectures import Model
from bench.scenarios import scenario as scenarios

OPTIONS = ("--model", "mine", "--precision", "fp32", "--rounds", "5", "--seq-len", "8")
# Steps of a millisecond are noise: what is exact and what is tracked has to catch these faults.
EXACT = ("--threshold", "time=1000%", "--threshold", "reserved=1000%")
STRUCTURE = "suites/test_counts.py"
STEP = "suites/test_measurement.py::test_step[mine-own-r4-fp32]"
TARGETS = "suites/test_counts.py::test_user_targets[mine-own]"
FAILED, WRONG_INPUT = 1, 2


class Project:
    """A folder with the suites, a tiny model `mine`, and what `pytest suites/` says there."""

    def __init__(self, pytester: pytest.Pytester, document: dict[str, Any]) -> None:
        self.pytester = pytester
        self.document = document
        self.model = pytester.mkdir("mine")
        self.output = ""
        for suite in ("counts", "measurement"):
            (pytester.path / "suites").mkdir(exist_ok=True)
            shutil.copy(SUITES / f"test_{suite}.py", pytester.path / "suites")
        pytester.makeconftest(CONFTEST)
        pytester.makepyprojecttoml(
            "[tool.pytest.ini_options]\n"
            "addopts = ['--benchmark-quiet', '--import-mode=importlib', '-p', 'bench.plugin.suite']"
        )
        self.configure()
        self.adapt(["q_proj", "v_proj"])

    def configure(self, **changes: Any) -> None:
        write_model(self.model, **changes)

    def adapt(self, targets: list[str] | str, r: int = 4) -> None:
        write_adapter(self.model, targets, r)

    def run(self, *arguments: str, apart: bool = False) -> int:
        """In this process, which has everything imported; what refuses its input, apart, with
        nothing that would need torch: a storage by name, and no model of one's own."""
        if apart:
            result = self.pytester.runpytest_subprocess(*arguments, "--benchmark-storage=results/x")
        else:
            result = self.pytester.runpytest_inprocess(*OPTIONS, *EXACT, *arguments)
        self.output = result.stdout.str() + result.stderr.str()
        return int(result.ret)

    def save(self, *arguments: str) -> dict[str, Any]:
        """Run and store; the stored document, which becomes the baseline."""
        assert self.run("--benchmark-save", "base", *arguments) == 0, self.output
        (stored,) = (self.pytester.path / "results").glob("*/0001_base.json")
        self.document = json.loads(stored.read_text())
        return self.document

    def gate(self, *arguments: str, text: str = "") -> int:
        """Exit status of a run held against the baseline; `text`: a broken one in its place."""
        (self.pytester.path / "base.json").write_text(text or json.dumps(self.document))
        options = ("--benchmark-compare=base.json", "--gate", "--verdict-file=verdicts.json")
        return self.run(*options, *(arguments or ("suites",)), apart=bool(text))

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Another baseline, as if it had been stored so."""
        document = json.loads(json.dumps(self.document))
        change(document[KEY])
        self.document = seal(document)

    @property
    def verdicts(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What failed, by case and metric."""
        written = json.loads((self.pytester.path / "verdicts.json").read_text())
        assert written["passed"] is False
        return {(v["record"], v["metric"]): v for v in written["verdicts"] if v["fails"]}

    @property
    def failed(self) -> dict[tuple[str, str], str]:
        return {key: verdict["verdict"] for key, verdict in self.verdicts.items()}


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    """The run that the first test stores, for all of them."""
    return {}


@pytest.fixture
def project(
    pytester: pytest.Pytester, stored: dict[str, Any], warm: Warm, imported: None, alone: None
) -> Project:
    made = Project(pytester, stored)
    if not stored:
        stored |= made.save("suites")
    return made


def test_the_same_again_passes(project: Project) -> None:
    assert project.gate() == 0, project.output
    assert json.loads((project.pytester.path / "verdicts.json").read_text())["passed"]


DISTURBED = """
import dataclasses
import pytest
from bench.measure import Rounds

class Disturbed(Rounds):
    launch = 0

    def take(self, step):
        Disturbed.launch += 1
        factor = {FACTORS}[Disturbed.launch - 1]
        return [
            dataclasses.replace(
                s, total_seconds=factor[i % len(factor)] * (1 + i / 100), waited_seconds=0.0
            )
            for i, s in enumerate(super().take(step))
        ]

@pytest.fixture(scope="session")
def timed_rounds():
    return Disturbed.exactly(5, 1)
"""
"""A conftest with which each launch's steps are said to take so many seconds."""

LONG, UNSTABLE = (100.0,), (100.0, 300.0)


@pytest.mark.parametrize(
    ("factors", "launches", "status"),
    [
        (((1.0,),), None, 0),
        ((LONG, (1.0,)), 2, 0),
        ((LONG, LONG, (1.0,)), 3, 0),
        ((LONG, UNSTABLE, (1.0,)), 3, 0),
        ((LONG, LONG, LONG), 3, FAILED),
        ((LONG, UNSTABLE, UNSTABLE), 3, FAILED),
    ],
)  # fmt: skip
def test_a_time_that_got_worse_is_measured_anew(
    project: Project, factors: tuple[tuple[float, ...], ...], launches: int | None, status: int
) -> None:
    """What disturbed one launch is not in the next one, and is no fault; what is in each of them
    is one, and no launch that can't be judged takes it away."""

    def steady(run: dict[str, Any]) -> None:
        run["records"][STEP]["metrics"]["step_seconds"] = [1 + i / 100 for i in range(5)]
        run["records"][STEP]["detail"].pop("unstable", None)

    project.edit(steady)
    conftest = CONFTEST + DISTURBED.replace("{FACTORS}", repr(factors))
    project.pytester.makeconftest(conftest)
    assert project.gate("--benchmark-save=x", "suites/test_measurement.py") == status, (
        project.output
    )
    (stored,) = (project.pytester.path / "results").glob("*/*_x.json")
    assert json.loads(stored.read_text())[KEY]["records"][STEP]["detail"].get("launch") == launches
    if status == FAILED:
        found = project.verdicts[STEP, "step_seconds"]
        assert found["verdict"] == "regressed"
        assert found["explanation"].startswith("slower still at launch 3; ")


def test_one_more_operation_in_each_layer(project: Project) -> None:
    project.configure(bench_fault="extra-op")
    assert project.gate() == FAILED
    found = project.verdicts[STEP, "operations"]
    assert found["verdict"] == "changed"
    # Forward adds one a layer; autograd's side of it may add more.
    assert found["contender"] - found["baseline"] >= LLAMA["num_hidden_layers"]
    assert "aten.add.Tensor" in found["explanation"]


def test_one_leaked_tensor_a_step(project: Project) -> None:
    project.configure(bench_fault="leak")
    assert project.gate() == FAILED
    assert project.failed[STEP, "peak_allocated_bytes"] == "regressed"
    found = project.verdicts[STEP, "peak_allocated_bytes"]
    step = 2 * 8 * LLAMA["hidden_size"] * 4  # batch, length, hidden, float32
    assert found["contender"] - found["baseline"] in (step, 2 * step)
    assert (STEP, "operations") not in project.failed


def test_another_default_dtype(project: Project) -> None:
    project.configure(bench_fault="dtype")
    assert project.gate() == FAILED
    assert project.failed[STEP, "operations"] == "changed"
    assert "aten._to_copy" in project.verdicts[STEP, "operations"]["explanation"]
    # Fewer bytes are no failure by themselves, and are told.
    assert set(project.failed.values()) == {"changed"}
    assert "3 improved" in project.output


def test_a_doubled_rank(project: Project) -> None:
    project.adapt(["q_proj", "v_proj"], r=8)
    assert project.gate() == FAILED
    found = project.verdicts[TARGETS, "ledger_digest"]
    assert found["verdict"] == "changed"
    assert "rank 4 -> 8" in found["explanation"]
    # The measured case carries its rank in its id, and is the same case: one's own configuration.
    assert project.failed[STEP, "trainable_parameters"] == "changed"
    assert (STEP, "case") not in project.failed


def _rename(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release of the model, whose up_proj is called ascend."""
    build = Model.build

    def renamed(self: Model) -> Any:
        model = build(self)
        for layer in model.model.layers:
            layer.mlp.ascend = layer.mlp.up_proj
            del layer.mlp.up_proj
        return model

    monkeypatch.setattr(Model, "build", renamed)


def test_a_renamed_module(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under all-linear nothing else tells: the counts, shapes and costs are the same."""
    project.adapt("all-linear")
    project.save(STRUCTURE)
    _rename(monkeypatch)
    assert project.gate(STRUCTURE) == FAILED
    assert project.failed[TARGETS, "ledger_digest"] == "changed"
    assert (TARGETS, "adapted_layers") not in project.failed


def test_a_renamed_module_that_was_asked_for_by_name(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.adapt(["q_proj", "up_proj"])
    project.save(STRUCTURE)
    _rename(monkeypatch)
    assert project.gate(STRUCTURE) == FAILED
    assert "up_proj: dead" in project.output
    assert project.failed[TARGETS, "outcome"] == "regressed"
    assert project.verdicts[TARGETS, "adapted_layers"]["contender"] == 2
    assert "up_proj" in project.verdicts[TARGETS, "dead_entries"]["explanation"]


def test_a_dropped_scenario(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (project.model / "adapter_config.json").unlink()
    project.save(STRUCTURE)
    before = project.document[KEY]["records"]
    shutil.copytree(FIXTURES / "scenarios", tmp_path / "scenarios")
    roles = tmp_path / "scenarios" / "roles.toml"
    text = roles.read_text()
    assert '[scenario.value]\nroles = ["value"]\n' in text
    roles.write_text(text.replace('[scenario.value]\nroles = ["value"]\n', ""))
    monkeypatch.setattr(scenarios, "FIXTURES", tmp_path)
    assert project.gate(STRUCTURE) == FAILED
    gone = "suites/test_counts.py::test_user_targets[mine-value]"
    assert gone in before
    assert project.failed == {(gone, "case"): "vanished"}
    assert project.gate(STRUCTURE, "--allow", f"vanished:{gone}") == 0


def test_a_stale_baseline(project: Project) -> None:
    """Figures of another release, which no longer hold; versions alone fail nothing."""

    def older(body: dict[str, Any]) -> None:
        body["versions"]["peft"] = "0.20.0"

    project.edit(older)
    assert project.gate(STRUCTURE) == 0, project.output

    def stale(body: dict[str, Any]) -> None:
        body["records"][TARGETS]["metrics"]["adapted_layers"] = 2
        body["records"][TARGETS]["metrics"]["ledger_digest"] = "0" * 16

    project.edit(stale)
    assert project.gate(STRUCTURE) == FAILED
    found = project.verdicts[TARGETS, "adapted_layers"]
    assert (found["verdict"], found["baseline"], found["contender"]) == ("changed", 2, 4)
    assert "peft 0.20.0 ->" in found["explanation"]
    assert "--benchmark-save=NAME" in project.output


def test_a_baseline_from_another_machine(project: Project) -> None:
    def elsewhere(body: dict[str, Any]) -> None:
        body["machine"] |= {"id": "linux-aarch64-cpu-64cores", "cpu_count": 64}

    project.edit(elsewhere)
    assert project.gate() == FAILED
    assert set(project.failed.values()) == {"incomparable"}
    assert {(STEP, "step_seconds"), (STEP, "peak_rss_bytes")} <= set(project.failed)
    # What does not depend on the machine is still held against it.
    assert (STEP, "peak_allocated_bytes") not in project.failed
    assert "another machine" in project.verdicts[STEP, "step_seconds"]["explanation"]
    assert project.gate("suites", "--allow", "incomparable") == 0


def test_a_baseline_with_one_digit_edited(project: Project) -> None:
    text = json.dumps(project.document)
    assert text.count('"adapted_layers": 4') > 0
    edited = text.replace('"adapted_layers": 4', '"adapted_layers": 5', 1)
    assert project.gate(STRUCTURE, text=edited) == WRONG_INPUT
    assert "base.json: edited: its content does not match its digest" in project.output


def test_no_baseline_at_all(project: Project) -> None:
    shutil.rmtree(project.pytester.path / "results", ignore_errors=True)
    assert project.run("--benchmark-compare", "--gate", STRUCTURE, apart=True) == WRONG_INPUT
    assert "no stored run in" in project.output
    assert "--benchmark-save=NAME" in project.output
