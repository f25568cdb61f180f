"""`--liger`: what Liger's kernels allocate, against Liger itself under Triton's interpreter."""

from __future__ import annotations

import csv
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from liger_reference import CASES, liger_case
from matrices import matrix
from measure_support import kept_out_of_collections, predicted, tiny_case
from model_folders import write_model

from bench.cli import main
from bench.errors import BenchError
from bench.training import liger
from bench.training.cases import Case

HERE = Path(__file__).parent
STORED = HERE.parents[1] / "fixtures" / "measured" / "liger.csv"
TOLERANCE = 5e-3


@pytest.fixture(scope="module", autouse=True)
def imported() -> Iterator[None]:
    yield from kept_out_of_collections()


def measured() -> dict[str, int]:
    lines = STORED.read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {row["case"]: int(row["measured_bytes"]) for row in rows}


def test_there_are_enough_configurations() -> None:
    assert {case.id for case in CASES} == set(measured())
    assert len(CASES) == 22
    assert {case.model for case in CASES} == set(liger.PREDICTED)


@pytest.mark.parametrize("case", matrix(CASES), ids=lambda case: case.id)
def test_the_second_steps_peak_is_ligers(case: Case) -> None:
    found = predicted(case)
    assert sum(found.breakdown.values()) == found.peak_allocated_bytes
    assert found.peak_allocated_bytes == pytest.approx(measured()[case.id], rel=TOLERANCE)


@pytest.mark.skipif(
    not all(map(find_spec, ("liger_kernel", "triton"))), reason="needs liger_kernel and triton"
)
def test_ligers_kernels_still_take_what_is_stored() -> None:
    """One of them measured anew, by Triton's interpreter, which must be on before triton loads."""
    asked = "from liger_reference import *; from test_measure_memory import profiled; import peft; "
    asked += "under_interpreter(); print(profiled(CASES[0]).steady_step_peak_bytes)"
    run = subprocess.run(
        [sys.executable, "-c", asked],
        cwd=HERE,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = measured()[CASES[0].id]
    assert int(run.stdout.split()[-1]) == pytest.approx(expected, rel=TOLERANCE)


def sizes_of_the_loss(case: Case, capability: float = 8.0) -> list[int]:
    """What a step on CUDA makes for head and loss, the largest first; a step twice."""
    from bench.predict import kernels
    from bench.predict.trace import trace

    traced = trace(case, kernels.cuda(capability=capability))
    made = zip(traced.sizes, traced.categories, strict=True)
    return sorted((size for size, what in made if what == "logits_and_loss"), reverse=True)


def test_on_cuda_the_logits_are_as_large_as_the_input() -> None:
    """By hand, from `fused_linear_cross_entropy_forward`: 8 × 48 rows of 64 and 12,000 words are
    cut into 188 parts, so chunks of four rows; one buffer for all of them, the gradient, and a
    float32 a row. Without Liger every logit is there, in bfloat16 and in float32."""
    size = {"batch_size": 8, "seq_len": 48}
    case = liger_case("mistral", "bf16", shape={"vocab_size": 12000}, **size)
    rows = 8 * 48
    expected = [4 * 12000 * 2, rows * 64 * 2, rows * 8, rows * 8, rows * 4]  # labels, shifted
    found = sizes_of_the_loss(case)[: 2 * len(expected)]
    assert found[:4] == [expected[0]] * 2 + [expected[1]] * 2
    plain = replace(case, step=replace(case.step, liger=False))
    assert sizes_of_the_loss(plain)[0] == rows * 12000 * 4


def test_a_trained_heads_gradient_is_summed_in_place_from_ampere_on() -> None:
    """It is filed as the gradient that it becomes. Before Ampere a float32 product is beside it."""
    case = liger_case(precision="bf16", saved=("lm_head",), shape={"vocab_size": 12000})
    head = 12000 * 64
    assert sizes_of_the_loss(case)[0] < head
    assert sizes_of_the_loss(case, capability=7.5)[0] == head * 4


def test_sft_keeps_trls_head() -> None:
    pytest.importorskip("trl", reason="needs the extra [trainers]")
    from bench.predict import predict

    case = liger_case(loop="sft")
    plain = predict(replace(case, step=replace(case.step, liger=False)))
    fused = predict(case)
    assert fused.breakdown["logits_and_loss"] == plain.breakdown["logits_and_loss"]
    assert fused.breakdown["activations"] < plain.breakdown["activations"]
    assert any("norms, RoPE and MLPs" in said for said in fused.assumptions)


def test_a_folders_model_has_kernels_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its class is the one that `architectures` names."""
    folder = write_model(tmp_path / "own")
    asked = ["memory", str(folder), "--target-modules", "q_proj", "--seq-len", "8", "--liger"]
    assert main(asked) == 0
    assert "liger" in capsys.readouterr().out


def test_what_liger_takes_for_granted_is_said() -> None:
    from bench.predict import predict

    case = liger_case()
    (said,) = (line for line in predict(case).assumptions if "Liger" in line)
    assert "head and loss" in said
    assert "lm_head" not in said
    adapted = {**case.adapter, "target_modules": ["q_proj", "lm_head"]}
    (said,) = (
        line for line in predict(replace(case, adapter=adapted)).assumptions if "Liger" in line
    )
    assert "an adapter on lm_head takes no part" in said


def test_no_other_model_is_touched() -> None:
    modeling = importlib.import_module("transformers.models.llama.modeling_llama")
    before = dict(vars(modeling))
    predicted(liger_case())
    assert vars(modeling) == before


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (tiny_case("opt", liger=True), "Liger has no kernels for a model of type opt"),
        (liger_case("mixtral"), "type mixtral is not predicted .gemma, "),
        (tiny_case("distilbert", liger=True), "this one is for sequence-classification"),
    ],
)
def test_other_models_are_refused_by_name(case: Case, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        predicted(case)


def test_measuring_needs_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.training.loading import load

    monkeypatch.setattr(liger, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match="liger_kernel is not installed: pip install liger-kernel"):
        load(liger_case())


def test_the_command_line_says_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predicted without the library; measured, one line and exit 2."""
    monkeypatch.setattr(liger, "find_spec", lambda name: None)
    config = tmp_path / "config.json"
    config.write_text(importlib.import_module("json").dumps(CASES[0].config), encoding="utf-8")
    step = ["memory", str(tmp_path), "--target-modules", "q_proj", "--seq-len", "24", "--liger"]
    assert main(step) == 0
    assert "Liger's kernels (as of 0.8.5)" in capsys.readouterr().out
    assert main([*step, "--measure"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "liger_kernel is not installed" in line


def test_liger_is_among_what_would_make_a_step_fit() -> None:
    from bench.predict.levers import CHANGES

    lever = CHANGES["Liger's kernels"]
    case = liger_case()
    assert lever(case) is None
    changed = lever(replace(case, step=replace(case.step, liger=False)))
    assert changed == case
    assert lever(tiny_case("opt")) is None
