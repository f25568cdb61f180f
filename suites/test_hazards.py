"""Hazards and coverage: what they say of heads, experts and ranks is what PEFT does."""

from __future__ import annotations

from typing import Any

import pytest

from bench.adapters.config import AdapterConfig
from bench.measure.counting import inject
from bench.models.architectures import Model
from bench.models.classes import model_class
from bench.targets import Ledger, match

TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 24,
        "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}  # fmt: skip
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "vocab_size": 24, "pad_token_id": 0}  # fmt: skip
XLNET = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "vocab_size": 24}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 24}
GPT2 = {"n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": 24}
WAV2VEC2 = {"num_hidden_layers": 1}


def asked(model_type: str, config: dict[str, Any], named: str) -> Model:
    return Model(model_type, {"model_type": model_type, **config}, named)


def said(ledger: Ledger) -> dict[str, str]:
    return {hazard.code: hazard.reason for hazard in ledger.hazards}


@pytest.mark.parametrize(
    ("model", "target", "task_type", "heads", "offer"),
    [
        (asked("bart", BART, "BartForSequenceClassification"), "q_proj", "SEQ_CLS",
         "classification_head.dense, classification_head.out_proj", "name it in"),
        (asked("t5", T5, "T5ForSequenceClassification"), "q", "SEQ_CLS",
         "classification_head.dense, classification_head.out_proj", "name it in"),
        (asked("xlnet", XLNET, "XLNetForSequenceClassification"), "layer_1", "SEQ_CLS",
         "sequence_summary.summary, logits_proj", "name it in"),
        (asked("xlnet", XLNET, "XLNetForSequenceClassification"), "layer_1", None,
         "sequence_summary.summary, logits_proj", "name it in"),
        (asked("wav2vec2", WAV2VEC2, "Wav2Vec2ForSequenceClassification"), "q_proj", "SEQ_CLS",
         "projector", "name it in"),
        (asked("wav2vec2", WAV2VEC2, "Wav2Vec2ForCTC"), "q_proj", None, "lm_head", "name it in"),
        (asked("bert", TEXT, "BertForSequenceClassification"), "query", None, "classifier",
         "give the task type SEQ_CLS, or name it in"),
        (asked("bert", TEXT, "BertForTokenClassification"), "query", None, "classifier",
         "give the task type TOKEN_CLS, or name it in"),
        (asked("bert", TEXT, "BertForMultipleChoice"), "query", None, "classifier", "name it in"),
        (asked("gpt2", GPT2, "GPT2DoubleHeadsModel"), "c_attn", None,
         "multiple_choice_head.summary", "name it in"),
        (asked("bert", TEXT, "BertForSequenceClassification"), "query", "SEQ_CLS", "", ""),
        (asked("bert", TEXT, "BertForMaskedLM"), "query", None, "", ""),
        (asked("llama", TEXT, "LlamaForCausalLM"), "q_proj", None, "", ""),
        (asked("llama", TEXT, "LlamaForSequenceClassification"), "q_proj", "SEQ_CLS", "", ""),
        (asked("bart", BART, "BartForConditionalGeneration"), "q_proj", None, "", ""),
    ],
    ids=lambda value: value.auto_class if isinstance(value, Model) else None,
)  # fmt: skip
def test_heads_that_stay_frozen(
    model: Model, target: str, task_type: str | None, heads: str, offer: str
) -> None:
    ledger = match(model.table, AdapterConfig((target,), task_type=task_type))
    reason = said(ledger).get("frozen-head", "")
    assert reason.partition(":")[0] == heads
    assert f"; {offer} modules_to_save" in reason or not heads
    named = tuple(heads.split(", ")) if heads else ()
    peft = inject(model.build(), ledger.adapter)
    frozen = {n for n, p in peft.named_parameters() if not p.requires_grad}
    for name in named:
        assert any(f".{name}.weight" in n for n in frozen)
        assert not any(f".{name}.modules_to_save" in n for n, _ in peft.named_parameters())
    if "task type" in offer:
        told = AdapterConfig((target,), task_type=offer.split()[4].rstrip(","))
        assert "frozen-head" not in said(match(model.table, told))
    saved = tuple(name.partition(".")[0] for name in named)
    whole = AdapterConfig((target,), task_type=task_type, modules_to_save=saved)
    assert "frozen-head" not in said(match(model.table, whole))


def test_weights_of_heads_are_not_experts() -> None:
    """XLNet's projections are parameters with a matrix for every head; PEFT can adapt them."""
    import torch

    model = asked("xlnet", XLNET, "XLNetLMHeadModel")
    hazards = said(match(model.table, AdapterConfig(("layer_1",))))
    assert "experts-not-reached" not in hazards
    assert hazards["parameters-not-reached"].startswith("8 weights of three dimensions")
    mixtral = asked("mixtral", {**TEXT, "num_local_experts": 2}, "MixtralForCausalLM")
    assert "experts-not-reached" in said(match(mixtral.table, AdapterConfig(("q_proj",))))
    saved = AdapterConfig(("q_proj",), modules_to_save=("experts",))
    assert "experts-not-reached" not in said(match(mixtral.table, saved))

    live = model_class(model.auto_class)(model.transformers_config)
    peft = inject(live, AdapterConfig((), target_parameters=("rel_attn.q",)))
    peft(torch.zeros(1, 3, dtype=torch.long)).logits.sum().backward()
    trained = [p for p in peft.parameters() if p.requires_grad]
    assert len(trained) == 4
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize(
    ("pattern", "rank", "doubled"), [({}, 16, True), ({"gate_up_proj": 4}, 4, False)]
)
def test_a_pattern_for_the_fused_weights_beats_the_doubled_rank(
    pattern: dict[str, int], rank: int, doubled: bool
) -> None:
    mixtral = asked("mixtral", {**TEXT, "num_local_experts": 2}, "MixtralForCausalLM")
    ledger = match(mixtral.table, AdapterConfig(("w1", "w2", "w3"), rank_pattern=pattern))
    assert ("rank-doubled" in said(ledger)) == doubled
    peft = inject(mixtral.build(), ledger.adapter)
    ranks = {
        m.r["default"] for m in peft.modules() if getattr(m, "parameter_name", "") == "gate_up_proj"
    }
    assert ranks == {rank}


def test_a_linear_layer_adapted_through_its_weight_counts() -> None:
    llama = asked("llama", TEXT, "LlamaForCausalLM")
    by_module = match(llama.table, AdapterConfig(("q_proj",)))
    by_weight = match(llama.table, AdapterConfig((), target_parameters=("q_proj.weight",)))
    assert by_weight.weight_coverage == by_module.weight_coverage > 0
