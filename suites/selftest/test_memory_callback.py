"""A live model's prediction, and the callback that holds it against the run itself."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from matrices import matrix
from measure_support import tiny_case
from trainer_reference import SEVEN, real_trainer, run_with, trainer_case

import bench
from bench.errors import BenchError

LORA: dict[str, Any] = {"r": 16, "lora_alpha": 16, "target_modules": SEVEN}


def live(precision: str = "fp32") -> Any:
    """A live model without adapters, in a precision."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from bench.training.cases import DTYPES

    values = dict(trainer_case("trainer", "fp32").config)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, DTYPES[precision]))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_live_model_is_predicted_as_its_case_is(precision: str) -> None:
    from peft import LoraConfig, get_peft_model

    from bench.predict import predict

    lora = LoraConfig(**LORA, task_type="CAUSAL_LM")
    found = bench.predict_memory(live(precision), lora, batch_size=4, seq_len=64)
    case = trainer_case("plain", "fp32")
    step = replace(case.step, optimizer="adamw")
    expected = predict(replace(case, precision=precision, step=step))
    assert found.peak_allocated_bytes == expected.peak_allocated_bytes
    assert found.breakdown == expected.breakdown
    adapted = get_peft_model(live(precision), lora)
    assert bench.predict_memory(adapted, batch_size=4, seq_len=64).breakdown == expected.breakdown


def test_how_a_live_model_is_held_is_read_off_it() -> None:
    from bench.predict.live import live_case

    model = live("bf16")
    model.gradient_checkpointing_enable()
    case = live_case(model, LORA, seq_len=32)
    assert (case.precision, case.step.gradient_checkpointing) == ("bf16", True)
    assert case.auto_class == "AutoModelForCausalLM"
    assert live_case(model.config, LORA).precision == "bf16"
    assert live_case("opt-350m", ["q_proj"]).model == "opt-350m"


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ((42, LORA), {}, "model: expected a transformers model, its configuration, or a name"),
        (("opt-350m", 3), {}, "adapter: expected a LoraConfig"),
        (("opt-350m",), {}, "the model carries no adapter: give a LoraConfig"),
        (("opt-350m", LORA), {"batch": 3}, "unknown option batch: known: batch_size"),
        (("opt-350m", LORA), {"gpu": "rtx 9"}, "unknown GPU"),
    ],
)
def test_wrong_input(arguments: tuple[Any, ...], options: dict[str, Any], said: str) -> None:
    with pytest.raises(BenchError, match=said):
        bench.predict_memory(*arguments, **options)


def test_a_live_training_draws_on_as_if_nothing_had_been_predicted() -> None:
    import torch

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    bench.predict_memory(live(), LORA, seq_len=16)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    bench.predict_memory("opt-350m", ["q_proj"], seq_len=16)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("loop", "shape"), matrix(product(("trainer", "sft"), ("full", "padded"))))
def test_the_callback_holds_the_prediction_against_the_run(
    tmp_path: Path, loop: str, shape: str
) -> None:
    if loop == "sft":
        pytest.importorskip("trl", reason="needs the extra [trainers]")
    pytest.importorskip("datasets", reason="needs the extra [trainers]")
    said: list[str] = []
    callback = bench.MemoryCallback(file=tmp_path / "steps.jsonl", say=said.append)
    case = trainer_case(loop, "fp32", shape=shape)
    run_with(case, tmp_path, callback)
    text = "\n".join(said)
    assert "predicted peak" in text
    assert f"{loop} loop" in text
    record = json.loads((tmp_path / "steps.jsonl").read_text())
    assert record == callback.record
    found, measured = record["predicted"], record["measured"]
    assert found["peak_allocated_bytes"] == pytest.approx(
        measured["peak_allocated_bytes"], rel=5e-3
    )
    assert list(found["peak_by_phase"]) == ["forward", "backward", "optimizer"]
    for phase, predicted in found["peak_by_phase"].items():
        assert predicted == pytest.approx(measured["peak_by_phase"][phase], rel=5e-3), phase
    assert measured["peak_reserved_bytes"] is None
    assert "peak reserved" not in text  # nothing is, on the CPU
    again = type(case).from_dict(record["case"])
    assert again.step.seq_len == 64
    assert again.step.loop == loop


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_cannot_be_predicted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets", reason="needs the extra [trainers]")
    from bench.check import training

    def refuses(*_: Any, **__: Any) -> Any:
        raise BenchError("no such thing")

    monkeypatch.setattr(training, "predict", refuses)
    said: list[str] = []
    run_with(trainer_case("trainer", "fp32"), tmp_path, bench.MemoryCallback(say=said.append))
    assert said[0] == "bench: this run is not predicted: no such thing"


def test_hazards_are_said_at_the_start() -> None:
    from bench.check.training import hazards_of

    case = tiny_case("opt")
    case = replace(case, adapter={**case.adapter, "target_modules": ["q_proj", "query"]})
    assert any(line.startswith("dead-entry: query") for line in hazards_of(case))


@pytest.mark.filterwarnings("ignore")
def test_what_the_optimizer_has_when_a_run_goes_on_is_counted(tmp_path: Path) -> None:
    """A second `train()` begins with the state of the first; so does one that is resumed."""
    pytest.importorskip("datasets", reason="needs the extra [trainers]")
    callback = bench.MemoryCallback(say=lambda _: None)
    trainer = real_trainer(trainer_case("trainer", "fp32"), tmp_path, callback)
    measured = []
    for _ in range(2):
        trainer.train()
        assert callback.record is not None
        measured.append(callback.record["measured"])
    assert measured[0] == measured[1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", ["setting", "function"])
def test_a_loss_outside_of_the_model_is_not_taken_for_its_own(tmp_path: Path, where: str) -> None:
    """Neither predicted nor measured as the step that it is not."""
    pytest.importorskip("datasets", reason="needs the extra [trainers]")
    said: list[str] = []
    callback = bench.MemoryCallback(file=tmp_path / "steps.jsonl", say=said.append)
    trainer = real_trainer(trainer_case("trainer", "fp32"), tmp_path, callback)
    if where == "setting":
        trainer.args.label_smoothing_factor = 0.1
    else:
        trainer.compute_loss_func = lambda outputs, labels, **_: outputs.logits.float().mean()
    trainer.train()
    expected = {
        "setting": "bench: this run is not predicted: label_smoothing_factor: the loss is then",
        "function": "bench: no labels reached the model: the loss was computed outside of it",
    }
    assert said[-1].startswith(expected[where])
    assert callback.record is None
    assert not (tmp_path / "steps.jsonl").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_file_that_cannot_be_written_costs_no_training(tmp_path: Path) -> None:
    """Told before the first step; one that fails at the end is a line."""
    pytest.importorskip("datasets", reason="needs the extra [trainers]")
    case, said = trainer_case("trainer", "fp32"), list[str]()
    trainer = real_trainer(case, tmp_path, bench.MemoryCallback(file=tmp_path, say=said.append))
    with pytest.raises(BenchError, match="this is a folder; name a file in it"):
        trainer.train()
    assert trainer.state.global_step == 0
    trainer = real_trainer(case, tmp_path, bench.MemoryCallback(file="/dev/full", say=said.append))
    trainer.train()
    assert said[-1] == "bench: /dev/full: the step was not kept: No space left on device"
