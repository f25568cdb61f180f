"""The gate on losses: what breaks training in earnest fails it, each fault by itself."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from learning_study import SETTINGS, small_study, weights_of

from bench.baselines import compare, gate
from bench.errors import BenchError
from bench.learning import texts
from bench.learning.records import run_of, shown_in
from bench.learning.study import Origin, make_study


def run_study(*args, **options):
    """Imported when a test runs: collecting imports no torch."""
    from bench.learning import schedule

    return schedule.run_study(*args, **options)


ARMS = {"everything": {"scenario": "everything", "budget": True, "seeds": 5}}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory):
    return small_study(tmp_path_factory.mktemp("faults"), ARMS)


@pytest.fixture(scope="module")
def baseline(study):
    return run_of(study, run_study(study, None), "baseline", interrupted=False)


def fails(study, baseline) -> list[str]:
    """What the gate says of the study run again at the baseline's rate."""
    shown = run_study(study, None, done=tuned(study, baseline))
    verdicts = compare(baseline, run_of(study, shown, "contender", interrupted=False))
    return [f"{v.metric} {v.verdict}" for v in gate(verdicts)]


def tuned(study, baseline):
    (one,) = shown_in(baseline).values()
    return {one.arm.name: replace(one, arm=study.arms[0], fitted={})}


def changed_model(monkeypatch: pytest.MonkeyPatch, change) -> None:
    """Let every arm's model be changed once it is there."""
    from bench.learning import fit

    load = fit.load_arm

    def loaded(*arguments):
        model = load(*arguments)
        change(model)
        return model

    monkeypatch.setattr(fit, "load_arm", loaded)


def freeze(model, part: str) -> None:
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.requires_grad_(False)


def test_the_same_again_passes(study, baseline) -> None:
    assert fails(study, baseline) == []


def test_it_learns(study, baseline) -> None:
    """Else no fault could show."""
    (record,) = baseline.records.values()
    before = [fitted["losses"]["0"] for fitted in record.detail["fits"]]
    after = record.metrics["evaluation_loss"]
    assert all(a < b - 0.2 for a, b in zip(after, before, strict=True))


def test_a_frozen_adapter_fails(study, baseline, monkeypatch) -> None:
    changed_model(monkeypatch, lambda model: freeze(model, "lora_"))
    assert fails(study, baseline) == ["evaluation_loss regressed"]


@pytest.mark.evidence
def test_b_not_trained_fails(study, baseline, monkeypatch) -> None:
    changed_model(monkeypatch, lambda model: freeze(model, "lora_B"))
    assert fails(study, baseline) == ["evaluation_loss regressed"]


@pytest.mark.evidence
@pytest.mark.parametrize("factor", [1 / 16, 16], ids=["too-small", "too-large"])
def test_a_wrong_alpha_fails(study, baseline, monkeypatch, factor: float) -> None:
    from peft.tuners.lora import LoraLayer

    def scale(model) -> None:
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.scaling = {name: value * factor for name, value in module.scaling.items()}

    changed_model(monkeypatch, scale)
    assert fails(study, baseline) == ["evaluation_loss regressed"]


@pytest.mark.evidence
def test_shifted_labels_fail(study, baseline, monkeypatch) -> None:
    """In training alone: each text is taught the class of its neighbour."""
    batches = texts.batches

    def shifted(*arguments):
        return [{**b, "labels": b["labels"].roll(1)} for b in batches(*arguments)]

    from bench.learning import fit

    monkeypatch.setattr(fit.texts, "batches", shifted)
    assert fails(study, baseline) == ["evaluation_loss regressed"]


@pytest.mark.evidence
def test_dropout_on_in_evaluation_fails(study, baseline, monkeypatch) -> None:
    @contextmanager
    def evaluating(model):
        import torch

        with torch.no_grad():
            yield

    from bench.learning import fit

    monkeypatch.setattr(fit, "evaluating", evaluating)
    assert fails(study, baseline) == ["evaluation_loss regressed"]


def test_a_tokenizer_that_ends_no_text_is_told_before_training(tmp_path: Path) -> None:
    """A language model's texts stand behind one another, and an end of text parts them."""
    weights, data = weights_of(tmp_path / "weights"), tmp_path / "texts.txt"
    data.write_text("\n\n".join(["ba da fa"] * 9), encoding="utf-8")
    file = weights / "tokenizer_config.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**facts, "eos_token": None}), encoding="utf-8")
    with pytest.raises(BenchError, match=f"{weights}: its tokenizer has no eos token"):
        make_study(Origin("small", weights, data), {"study": SETTINGS, "arm": {}}, "small")
