"""The gate on predictions: a scenario that needs more memory fails, and says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from measure_support import tiny_case

from bench.baselines import predicted
from bench.baselines.predicted import FIGURES, difference, load_predictions, store, stored_file
from bench.cli import main
from bench.errors import BenchError
from bench.scenarios.scenario import Scenario, load_scenarios

SUITES = Path(__file__).resolve().parent.parent
STORED = "test_stored_prediction[opt-350m-q_proj-v_proj-nf4]"
CASE = "opt-350m-q_proj-v_proj-r8-nf4-b1-s2048"


@pytest.fixture(autouse=True, scope="module")
def _imported() -> None:
    """Runs inside this process forget what they imported, and torch cannot be imported twice."""
    from bench.predict import predict

    predict(tiny_case("opt", "nf4"))


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Run the suite of predictions for one case, in a project of its own."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    folder = pytester.mkdir("suites")
    for name in ("conftest.py", "test_prediction.py"):
        shutil.copy(SUITES / name, folder)
    pytester.makepyprojecttoml(
        "[tool.pytest.ini_options]\n"
        "addopts = ['--import-mode=importlib', '-p', 'bench.plugin.suite']"
    )

    def once() -> Any:
        return pytester.runpytest_inprocess(
            "suites", "--model", "opt-350m", "--scenario", "q_proj-v_proj", "--precision", "nf4",
            "-k", "stored", "-rs",
        )  # fmt: skip

    return once


needs_stored = pytest.mark.skipif(
    not stored_file().exists(), reason="no stored predictions for the installed libraries"
)


@needs_stored
def test_a_scenario_that_needs_more_fails(run, monkeypatch: pytest.MonkeyPatch) -> None:
    run().assert_outcomes(passed=1, deselected=2)

    right = Scenario.adapter
    expected = load_predictions(stored_file())[CASE]["peak_allocated_bytes"]

    def with_head(self: Scenario, *args: Any) -> Any:
        return replace(right(self, *args), modules_to_save=("lm_head",))

    monkeypatch.setattr(Scenario, "adapter", with_head)
    result = run()
    result.assert_outcomes(failed=1, deselected=2)
    result.stdout.fnmatch_lines([
        f"{CASE}: the prediction is not the stored one",
        f"  peak_allocated_bytes: obtained *, expected {expected:,}: +*MiB (+*%)",
        "  trainable_parameters: obtained 26,525,696, expected 786,432: +25,739,264 (+*%)",
        "If that is meant: bench memory opt-350m --scenario q_proj-v_proj --rank 8 --precision nf4 "
        "--batch-size 1 --seq-len 2048 --store",
    ])  # fmt: skip


def test_other_versions_are_skipped_with_the_command(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicted, "versions", lambda: {"torch": "9.9.9+cu990", "peft": "9.8"})
    result = run()
    result.assert_outcomes(skipped=1, deselected=2)
    result.stdout.fnmatch_lines([
        "*torch-9.9.9_peft-9.8.json: none for these versions; store it: "
        "bench memory opt-350m --scenario q_proj-v_proj *--store"
    ])  # fmt: skip


@needs_stored
def test_what_the_default_run_predicts_is_stored() -> None:
    stored = load_predictions(stored_file())
    for precision in ("fp16", "int8", "nf4"):
        for number in range(1, 7):
            assert f"phi-3-medium-published-{number}-r16-{precision}-b1-s2048" in stored
        assert f"opt-350m-q_proj-v_proj-r8-{precision}-b1-s2048" in stored
        assert f"distilbert-base-uncased-query-value-r8-{precision}-b1-s512" in stored


@needs_stored
def test_stored_predictions_are_plausible() -> None:
    """What can be said without a trace: more is trained with the head, less is held in 4-bit, and
    scenarios that reach the same modules are the same."""
    stored = load_predictions(stored_file())
    peaks = {
        (number, precision): stored[f"phi-3-medium-published-{number}-r16-{precision}-b1-s2048"]
        for number in range(1, 7)
        for precision in ("fp16", "int8", "nf4")
    }
    for number in range(1, 7):
        sizes = [peaks[number, p]["peak_allocated_bytes"] for p in ("fp16", "int8", "nf4")]
        assert sizes == sorted(sizes, reverse=True)
    for precision in ("fp16", "int8", "nf4"):
        assert peaks[3, precision] == peaks[4, precision]
        assert peaks[5, precision] == peaks[6, precision]
        # Two matrices of 32064 × 5120, a copy and two moments each: bfloat16, or float32 in fp16.
        both = 2 * 32064 * 5120
        more = (
            peaks[3, precision]["peak_allocated_bytes"]
            - peaks[5, precision]["peak_allocated_bytes"]
        )
        assert peaks[3, precision]["trainable_parameters"] == both + 21_299_200
        least = 3 * (4 if precision == "fp16" else 2) * both
        assert least <= more < 1.5 * least


def test_stored_by_the_command_and_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predicted, "store", lambda found: store(found, tmp_path))
    options = ["memory", "distilbert-base-uncased", "--precision", "bf16", "--seq-len", "16"]
    for scenario in ("query", "key"):  # the second run keeps what the first had stored
        assert main([*options, "--scenario", scenario, "--store"]) == 0
    assert "stored 1 in" in capsys.readouterr().err
    stored = load_predictions(stored_file(tmp_path))
    query, key = (f"distilbert-base-uncased-{s}-r8-bf16-b1-s16" for s in ("query", "key"))
    assert set(stored) == {query, key}
    assert difference("query", stored[query], stored[query]) == ""
    less = {
        **stored[query],
        "peak_reserved_bytes": stored[query]["peak_reserved_bytes"] + 300_000_000,
    }
    assert "-286.1 MiB (-" in difference("query", less, stored[query])
    assert set(stored[query]) == set(FIGURES)
    lines = stored_file(tmp_path).read_text().splitlines()
    assert sum(query in line for line in lines) == 1  # a case a line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "expected a table"),
        ('{"versions": {}, "predictions": {"a": {"flops": 1}}}', "missing key"),
        ('{"versions": {}, "predictions": {"a": 1}}', "expected a table"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "torch-1.json"
    path.write_text(text)
    with pytest.raises(BenchError, match=said) as error:
        load_predictions(path)
    assert "torch-1.json" in str(error.value)


def test_the_command_of_images_names_no_length() -> None:
    """`bench memory` refuses one for images, and calls the step by its own default."""
    from bench.scenarios.subjects import Request, select
    from bench.training.cases import PREDICTED_LENGTH, StepOptions

    (subject, *_) = select(Request(models=("vit-base",))).structural.values()
    step = StepOptions(batch_size=1, seq_len=PREDICTED_LENGTH)
    words = predicted.store_command(replace(subject, precision="bf16").case(step)).split()
    assert "--seq-len" not in words
    assert "--batch-size" in words


def test_every_case_has_its_command() -> None:
    """The command that a failure names predicts that very case."""
    from bench.cli.parser import make_parser
    from bench.cli.subject import predicted_subjects
    from bench.scenarios.subjects import Request, select
    from bench.training.cases import StepOptions

    step = StepOptions(batch_size=3, seq_len=40, gradient_checkpointing=True, padded=True)
    subjects = select(Request(models=("opt-350m",), r=4)).structural.values()
    assert {s.name for s in subjects} < set(load_scenarios())
    for subject in subjects:
        case = replace(subject, precision="nf4").case(step)
        words = predicted.store_command(case).split()
        assert words[0] == "bench"
        options = make_parser().parse_args(words[1:])
        (again,) = predicted_subjects(options)
        assert options.gradient_checkpointing
        assert options.padded
        assert replace(again, precision=options.precision[0]).case(step) == case
