"""Which reduced geometry is measured: by the machine's speed, by the run to compare with, as asked;
and that each of them is the model, narrowed."""

from __future__ import annotations

import math
import platform
import re
from pathlib import Path

import pytest
from warm import Warm

from bench.errors import BenchError
from bench.models.architectures import load_model
from bench.models.declared import load_architecture, registered, smaller_labels
from bench.scenarios.subjects import MEASURED, Request, select
from bench.training.speed import half_ratio, is_slow

REDUCED = [
    (name, reduction.label)
    for name, folder in registered().items()
    for reduction in load_architecture(folder).reduced
]
ONE = ("--model", "distilbert-base-uncased", "--scenario", "query-value", "--precision", "fp32")


@pytest.mark.parametrize(
    ("ratio", "slow"), [(None, False), (0.45, False), (1.5, False), (10.0, True), (16.0, True)]
)
def test_half_precision_is_slow_from_far_beyond_what_is_fast(
    ratio: float | None, slow: bool
) -> None:
    assert is_slow(ratio) == slow


def _flags() -> str:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8") if file.exists() else ""


@pytest.mark.skipif(" avx512_bf16" not in _flags(), reason="a processor with bfloat16's products")
def test_a_processor_with_instructions_for_it_is_fast(warm: Warm) -> None:
    assert not is_slow(half_ratio())


@pytest.mark.evidence
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the variables are x86's")
def test_a_processor_without_them_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert is_slow(half_ratio())


def test_where_nothing_can_be_measured_the_geometry_is_the_usual(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert half_ratio() is None


@pytest.mark.parametrize(("name", "label"), REDUCED)
def test_a_reduced_geometry_is_the_model_narrowed(name: str, label: str) -> None:
    """Every module of fewer layers, each width divided by what the label says, rounded up."""
    width, depth = map(int, re.fullmatch(r"w(\d+)-l(\d+)", label).groups())  # type: ignore[union-attr]
    full, small = load_model(name).table, load_model(name).reduce(label).table

    def narrowed(features: int) -> set[int]:
        # the labels of a classifier and the rows of positions stay
        return {features, math.ceil(features / width), math.ceil(features / width) + 1}

    assert small.by_name.keys() <= full.by_name.keys()
    number = re.compile(r"\.\d+(?=\.|$)")
    names = [{number.sub(".N", module) for module in table.by_name} for table in (full, small)]
    assert names[0] == names[1]
    repeated = [sum(bool(number.search(n)) for n in table.by_name) for table in (full, small)]
    assert repeated[0] == depth * repeated[1]
    narrower = 0
    for module in small.by_name.values():
        whole = full.by_name[module.name]
        assert module.kind == whole.kind
        if module.in_features and whole.in_features:
            assert module.in_features in narrowed(whole.in_features), module.name
            assert module.out_features in narrowed(whole.out_features), module.name
            narrower += module.in_features < whole.in_features
    assert narrower


def test_every_measured_model_has_both() -> None:
    assert {name for name, _ in REDUCED} == set(MEASURED)
    assert len(REDUCED) == 2 * len(MEASURED)
    assert smaller_labels() < {label for _, label in REDUCED}
    with pytest.raises(BenchError, match="no reduced geometry w3-l1 is declared"):
        load_model("opt-350m").reduce("w3-l1")


def test_the_speed_is_asked_for_where_there_are_two_alone() -> None:
    asked = []

    def smaller() -> bool:
        asked.append(True)
        return True

    found = select(Request(models=("opt-350m",), on_gpu=False), smaller).measured
    assert {subject.model.label for subject in found.values()} == {"opt-350m@w8-l12"}
    assert len(asked) == 1
    select(Request(models=("opt-125m",), on_gpu=False), smaller)
    select(Request(models=("opt-350m",), on_gpu=True), smaller)
    select(Request(models=("opt-350m",), full_geometry=True, on_gpu=False), smaller)
    assert len(asked) == 1


@pytest.mark.parametrize(("slow", "label"), [(True, "w4-l3"), (False, "w2-l3")])
def test_the_id_says_which(run, monkeypatch: pytest.MonkeyPatch, slow: bool, label: str) -> None:
    monkeypatch.setattr("bench.plugin.geometry.half_is_slow", lambda: slow)
    result = run(*ONE, "--collect-only", "-q", bare=True)
    result.stdout.fnmatch_lines([f"*test_step[[]distilbert-base-uncased@{label}-query-value-*"])


def test_a_stored_run_finds_its_cases_on_a_machine_of_either_kind(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is measured as asked, and compared and gone on with in its own geometry."""
    monkeypatch.setattr("bench.plugin.geometry.half_is_slow", lambda: False)
    few = ("--rounds", "1", "--seq-len", "8", "-k", "test_step")
    first = run(*ONE, *few, "--geometry=smaller", "--benchmark-save=first", bare=True)
    assert first.ret == pytest.ExitCode.OK
    again = run(*ONE, *few, "--benchmark-compare", "--collect-only", "-q", bare=True)
    again.stdout.fnmatch_lines(["*@w4-l3-query-value-*"])
    other = run(*ONE, *few, "--geometry=reduced", "--collect-only", "-q", bare=True)
    other.stdout.fnmatch_lines(["*@w2-l3-query-value-*"])
    unknown = run(*ONE, "--geometry=tiny", bare=True)
    assert unknown.ret == pytest.ExitCode.USAGE_ERROR
    whole = run(
        *ONE, *few, "--geometry=smaller", "--full-geometry", "--benchmark-save=whole", bare=True
    )
    whole.stdout.fnmatch_lines(["--geometry smaller had no effect: distilbert-base-uncased*"])
    assert "had no effect" not in str(first.stdout)


def test_the_workers_of_xdist_take_what_was_measured_once(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In them nothing is patched: this machine itself would say otherwise, or nothing."""
    asked = []

    def slow() -> bool:
        asked.append(True)
        return True

    monkeypatch.setattr("bench.plugin.geometry.half_is_slow", slow)
    side_by_side = ("-n", "1", "--benchmark-disable", "--seq-len", "8", "-k", "test_step", "-v")
    result = run(*ONE, *side_by_side, bare=True)
    result.stdout.fnmatch_lines(["*PASSED*test_step[[]distilbert-base-uncased@w4-l3-query-value-*"])
    assert len(asked) == 1
