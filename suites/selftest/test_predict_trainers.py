"""The loops of others: predicted against transformers' Trainer and TRL's SFTTrainer themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from matrices import matrix
from measure_support import kept_out_of_collections, predicted, shared_session, tiny_case
from trainer_reference import third_step_peak, trainer_case

from bench.errors import BenchError
from bench.training.cases import Case

# Looked for, not imported: collecting imports no torch.
if not all(map(find_spec, ("trl", "datasets"))):
    pytest.skip("needs the extra [trainers]: trl, datasets, accelerate", allow_module_level=True)

TOLERANCE = 5e-3
CASES = [
    trainer_case(loop, kind, checkpointed=checkpointed, shape=shape)
    for loop in ("trainer", "sft")
    for kind in ("fp32", "bf16", "nf4")
    for checkpointed in (False, True)
    for shape in ("full", "padded", "packed")
]


@pytest.fixture(scope="module", autouse=True)
def imported() -> Iterator[None]:
    yield from kept_out_of_collections("trl")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's head in chunks of 256 words: at its own 32,768 the buffer of one chunk, which is as
    wide for a small vocabulary, would hide the rest."""
    from trl.trainer import utils

    monkeypatch.setattr(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 256)


def test_there_are_enough_configurations() -> None:
    assert len({case.id for case in CASES}) == 36


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", matrix(CASES), ids=lambda case: case.id)
def test_the_third_steps_peak_is_the_real_trainers(
    narrow: None, tmp_path: Path, case: Case
) -> None:
    found = predicted(case)
    assert sum(found.breakdown.values()) == found.peak_allocated_bytes
    assert found.peak_allocated_bytes == pytest.approx(
        third_step_peak(case, tmp_path), rel=TOLERANCE
    )


@pytest.mark.filterwarnings("ignore")
def test_trls_head_as_it_is(tmp_path: Path) -> None:
    """With chunks of 32,768 words, the buffer is what the step takes most for."""
    case = trainer_case("sft", "bf16", checkpointed=True)
    found = predicted(case)
    assert found.peak_allocated_bytes == pytest.approx(
        third_step_peak(case, tmp_path), rel=TOLERANCE
    )
    assert found.breakdown["logits_and_loss"] > 4 * 63 * 32768 * 2


def test_on_cuda_the_head_takes_what_its_kernels_are_given() -> None:
    """In closed form, from TRL's source, going backward: the tile's buffer, the chunk of the frozen
    float32 weight that was cast to bfloat16 before, the next one, and the gradient in float32."""
    from bench.predict import predict

    words, tokens, width = 40_000, 4 * 63, 128
    case = trainer_case("sft", "bf16", checkpointed=True)
    found = predict(replace(case, config={**case.config, "vocab_size": words}))
    buffer = tokens * 32768 * 2
    chunks = words * width * 2
    gradient = tokens * width * 4
    assert found.peak_phase == "backward"
    assert found.breakdown["logits_and_loss"] == pytest.approx(buffer + chunks + gradient, rel=0.02)


def test_only_positions_with_a_label_are_projected_on_cuda() -> None:
    from bench.predict import predict

    full, padded = (predict(trainer_case("sft", "fp32", shape=s)) for s in ("full", "padded"))
    assert padded.breakdown["logits_and_loss"] < full.breakdown["logits_and_loss"]


@pytest.mark.parametrize("loop", ["trainer", "sft"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_both_are_predicted_for_cuda_under_autocast(loop: str, dtype: str) -> None:
    from bench.predict import predict

    case = trainer_case(loop, "bf16")
    found = predict(replace(case, step=replace(case.step, autocast=dtype, accumulation=2)))
    assert sum(found.breakdown.values()) == found.peak_allocated_bytes
    assert f"{loop} loop" in found.step


def test_a_measured_loop_is_the_trainers_too() -> None:
    """The measured suite runs the same function on real tensors: it trains."""
    from bench.training.loading import load
    from bench.training.loops import run_step

    training = load(tiny_case("opt", "fp32", loop="trainer", learning_rate=0.1))
    losses = [float(run_step(training)) for _ in range(10)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "case",
    [
        tiny_case("phi3", "fp32", loop="trainer", autocast="bf16"),
        tiny_case("opt", "nf4", loop="sft", optimizer="adamw-fused"),
    ],
    ids=lambda case: case.id,
)
def test_a_worker_measures_the_loop_that_is_predicted(case: Case) -> None:
    found = predicted(case)
    with shared_session().start(case) as running:
        real = running.prepare()
    assert found.peak_allocated_bytes == pytest.approx(real.peak_allocated_bytes, rel=1e-3)
    assert found.flops == real.flops


def test_what_a_loop_takes_for_granted_is_said() -> None:
    from bench.predict.trainers import assumed

    case = trainer_case("sft", "bf16", checkpointed=True)
    said = " ".join(assumed(case.step, quantized=True))
    for words in ("trl.SFTTrainer's own (transformers", "trl 1.", "norm of 1", "cast to float32",
                  "fused head", "held in bfloat16", "max_length=1024"):  # fmt: skip
        assert words in said
    assert "gradient_checkpointing" not in said
    assert assumed(tiny_case("opt").step, quantized=False) == ()


def test_accelerates_state_is_left_alone() -> None:
    from accelerate import Accelerator

    alive = Accelerator(cpu=True)
    before = dict(vars(alive.state))
    predicted(trainer_case("trainer", "bf16"))
    assert vars(alive.state) == before
    assert alive.device.type == "cpu"


@pytest.mark.parametrize(
    ("name", "loop", "said"),
    [
        ("vit", "sft", "SFTTrainer trains language models"),
        ("t5", "sft", "SFTTrainer trains language models"),
        ("distilbert", "sft", "this one is for sequence-classification: --loop trainer"),
    ],
)
def test_a_loop_that_does_not_go_with_the_model(name: str, loop: str, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        predicted(tiny_case(name, "fp32", loop=loop))


def test_a_model_without_a_loss_has_no_trainer() -> None:
    from test_predict_kinds import kind_case

    with pytest.raises(BenchError, match="a model for feature-extraction has none"):
        predicted(kind_case("bert", loop="trainer"))


def test_an_adapter_on_the_head_is_refused_as_sfttrainer_does() -> None:
    case = trainer_case("sft", "fp32")
    case = replace(case, adapter={**case.adapter, "target_modules": ["q_proj", "lm_head"]})
    with pytest.raises(BenchError, match="the trainer refuses: Applying a PEFT adapter to"):
        predicted(case)
