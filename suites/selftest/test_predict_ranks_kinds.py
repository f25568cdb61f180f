"""Which steps over several GPUs are predicted: of which kinds of models, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from measure_support import predicted
from ranks_support import (
    DISTILBERT,
    GEMMA2,
    GPT2,
    LLAMA,
    RANKS,
    ROBERTA,
    T5,
    VIT,
    alone,
    classifier,
    peaks,
    processes,
    spread_case,
)  # fmt: skip
from warm import Warm

from bench.cli import main
from bench.errors import BenchError
from bench.files import FIXTURES
from bench.training.cases import Case
from bench.training.parallel import COMPARED

CAUSAL = {
    **{kind: {**LLAMA, "model_type": kind, "head_dim": 32, "pad_token_id": 0} for kind in
       ("llama", "mistral", "qwen2", "qwen3", "phi3")},
    "gemma2": GEMMA2,
    "gemma3_text": {**GEMMA2, "model_type": "gemma3_text"},
    "opt": {**LLAMA, "model_type": "opt", "ffn_dim": 256, "word_embed_proj_dim": 128},
    "gpt2": GPT2,
    "gpt_neox": {**LLAMA, "model_type": "gpt_neox"},
    "qwen3_moe": {**LLAMA, "model_type": "qwen3_moe", "head_dim": 32, "num_experts": 4,
                  "num_experts_per_tok": 2, "moe_intermediate_size": 64},
}  # fmt: skip
KINDS = [
    spread_case(parallel, precision, config=config, target_modules="all-linear")
    for config in CAUSAL.values()
    for parallel, precision in (("ddp", "bf16"), ("fsdp", "nf4"))
] + [
    classifier("ddp", "nf4", ROBERTA, "query value"),
    classifier("ddp", "bf16", DISTILBERT, "q_lin v_lin"),
    spread_case("ddp", "bf16", config=T5, auto_class="AutoModelForSeq2SeqLM",
                task_type="SEQ_2_SEQ_LM", target_modules=["q", "v"]),
    spread_case("ddp", "bf16", config=VIT, auto_class="AutoModelForImageClassification",
                task_type=None, target_modules=["q_proj", "v_proj"]),
]  # fmt: skip


def test_the_kinds_that_an_answer_calls_compared_are_compared() -> None:
    assert {case.config["model_type"] for case in KINDS} == set(COMPARED)


SFT = [
    spread_case("ddp", "nf4", loop="sft", autocast="bf16", gradient_checkpointing=True),
    spread_case("ddp", "bf16", loop="sft", accumulation=3),
    spread_case("ddp", "bf16", loop="sft", packed=True, batch_size=2, fused_head=False),
]


@pytest.mark.slow
def test_every_kind_of_model_is_predicted(warm_process: Warm, tmp_path: Path) -> None:
    _held(warm_process, KINDS, tmp_path)


@pytest.mark.slow
def test_the_trainer_of_language_models_is_predicted(warm_process: Warm, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    _held(warm_process, SFT, tmp_path)


def _held(warm: Warm, cases: list[Case], folder: Path) -> None:
    seen = processes(warm, cases, range(RANKS), str(folder / "store"))
    for case, ranks in zip(cases, zip(*seen, strict=True), strict=True):
        for each in ranks:
            assert peaks(predicted(case)) == pytest.approx(each, rel=2e-3), case.id


REFUSED = [
    (("--parallel", "fsdp"), "--parallel fsdp is over several GPUs: add --gpus 2 or more"),
    (("--gpus", "2"), "--gpus 2: say how the step is spread: --parallel ddp or fsdp"),
    (("--parallel", "zero3", "--gpus", "2"), "choose from"),
    (("--gpus", "0"), "step option gpus: expected a whole number >= 1, found 0"),
    *(
        (("--parallel", "fsdp", "--gpus", "2", *words), said)
        for words, said in (
            (("--precision", "int8"), "not predicted with --precision int8: bitsandbytes keeps"),
            (("--optimizer", "paged-adamw-8bit"), "with --optimizer paged-adamw-8bit: FSDP2's"),
            (("--loop", "trainer"), "with --loop trainer: plain, keep-output"),
            (("--autocast", "bf16"), "with --autocast: accelerate gives FSDP2 a policy"),
            (("--liger",), "with --liger"),
            (("--measure",), "--measure is of one GPU: give it without --parallel fsdp"),
            (("--store",), "--store is of one GPU: give it without --parallel fsdp"),
        )
    ),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=lambda value: " ".join(value[:4])[:40])
def test_what_is_not_covered_is_refused_by_name(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    command = ["memory", str(tmp_path), "--target-modules", "q_proj", "--seq-len", "8", *words]
    try:
        status = main(command)
    except SystemExit as left:  # argparse
        status = int(str(left.code))
    out = capsys.readouterr()
    assert (status, out.out) == (2, "")
    assert said in out.err
    assert "Traceback" not in out.err


@pytest.mark.parametrize(
    ("case", "error"),
    [
        (spread_case("fsdp", "int8"), AttributeError),
        (spread_case("fsdp", "bf16", optimizer="adamw-8bit"), NotImplementedError),
    ],
    ids=["int8", "8-bit optimizer"],
)
def test_what_is_refused_fails_for_real(
    case: Case, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step itself, on the CPU, of one rank to which the others send nothing."""
    from bench.training import loading, parallel
    from bench.training.loops import run_step

    for module in (loading, parallel):
        monkeypatch.setattr(module, "check_parallel", lambda case: None)
    with alone(), pytest.raises(error):
        run_step(loading.load(case))


FAILING = [
    classifier("fsdp", "nf4", ROBERTA, "query value"),
    classifier("fsdp", "bf16", DISTILBERT, "q_lin v_lin"),
    spread_case("fsdp", "bf16", config=T5, auto_class="AutoModelForSeq2SeqLM",
                task_type="SEQ_2_SEQ_LM", target_modules=["q", "v"]),
]  # fmt: skip


@pytest.mark.parametrize("case", FAILING, ids=lambda case: case.id)
def test_what_accelerate_cannot_shard_is_told_in_its_own_words(case: Case) -> None:
    """The same error as the real step's, of units within units, of two dtypes that train in one,
    and of a weight that two units share."""
    from bench.training.loading import load
    from bench.training.loops import run_step

    with alone(), pytest.raises((TypeError, AssertionError, ValueError)) as seen:
        run_step(load(case))
    said = str(seen.value).splitlines()[0]
    with pytest.raises(BenchError, match="torch's own code, a real step's too, fails") as found:
        predicted(case)
    assert f"{type(seen.value).__name__}: {said[:60]}" in str(found.value)


@pytest.mark.evidence
def test_the_pages_table_is_what_is_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    page = (FIXTURES.parent / "docs" / "prediction.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (one GPU|`--parallel [^`]+`) \| (.+?) \| (.+?) \|$", page, re.M)
    assert len(rows) == 4
    asked = ["memory", "llama-3-8b", "--target-modules", "all-linear", "--rank", "16"]
    for how, *written in rows:
        spread = how.strip("`").split() if how.startswith("`") else []
        for precision, figure in zip((["bf16"], ["nf4", "--gradient-checkpointing"]), written,
                                     strict=True):  # fmt: skip
            assert main([*asked, "--seq-len", "2048", *spread, "--precision", *precision]) == 0
            assert f"peak allocated  {figure}\n" in capsys.readouterr().out, (how, precision)
