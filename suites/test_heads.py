"""Heads of transformers' classes that a base model's checkpoint does not hold: each is trained, by
PEFT or by a scenario, or the ledger says that it is not.

What is new is what transformers' own base model of the same configuration lacks; what is trained
is what PEFT leaves with a gradient.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from model_folders import write_model

from bench.adapters.config import AdapterConfig
from bench.cli import main
from bench.models.architectures import Model, load_model
from bench.scenarios.scenario import Scenario
from bench.targets import Ledger, match
from bench.targets.hazards import frozen_heads

if TYPE_CHECKING:
    from torch import nn

TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 24,
        "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0,
        "num_labels": 2}  # fmt: skip
XLM = {"emb_dim": 16, "n_layers": 1, "n_heads": 2, "n_words": 24, "pad_index": 0, "num_labels": 2}
XLNET = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 24, "vocab_size": 24}
FUNNEL = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "vocab_size": 24,
          "block_sizes": [1, 1], "num_labels": 2}  # fmt: skip
SEQUENCE, TOKEN = "ForSequenceClassification", "ForTokenClassification"
ANSWER, CHOICE = "ForQuestionAnswering", "ForMultipleChoice"
TYPES = {SEQUENCE: "SEQ_CLS", TOKEN: "TOKEN_CLS", ANSWER: "QUESTION_ANS", CHOICE: None}
CLASSES = [
    ("xlm", XLM, f"XLM{SEQUENCE}", "q_lin"),
    ("flaubert", XLM, f"Flaubert{SEQUENCE}", "q_lin"),
    ("flaubert", XLM, f"Flaubert{CHOICE}", "q_lin"),
    ("xlm", XLM, f"XLM{CHOICE}", "q_lin"),
    ("xlnet", XLNET, f"XLNet{CHOICE}", "layer_1"),
    ("electra", TEXT, f"Electra{CHOICE}", "query"),
    ("deberta-v2", TEXT, f"DebertaV2{SEQUENCE}", "query_proj"),
    ("modernbert", TEXT, f"ModernBert{SEQUENCE}", "Wqkv"),
    ("modernbert", TEXT, f"ModernBert{ANSWER}", "Wqkv"),
    ("big_bird", {**TEXT, "attention_type": "original_full"}, f"BigBird{ANSWER}", "query"),
    ("splinter", TEXT, f"Splinter{ANSWER}", "query"),
    ("eurobert", TEXT, f"EuroBert{SEQUENCE}", "q_proj"),
    ("bert", TEXT, f"Bert{TOKEN}", "query"),
]

REGISTERED = ("roberta-base", "bert-base-cased", "distilbert-base-uncased", "vit-base")


def asked(model_type: str, config: dict[str, Any], named: str) -> Model:
    return Model(model_type, {"model_type": model_type, **config}, named)


def task_type_of(named: str) -> str | None:
    return next(kind for ending, kind in TYPES.items() if named.endswith(ending))


def new_weights(model: Model) -> tuple[nn.Module, set[str]]:
    """The live model, and its modules with weights that transformers' base model lacks."""
    live = model.build()
    base = {name for name, _ in Model("base", model.config, "AutoModel").build().named_parameters()}
    prefix = f"{live.base_model_prefix}."
    names = (name for name, _ in live.named_parameters() if name.removeprefix(prefix) not in base)
    return live, {name.rpartition(".")[0] for name in names}


def trained_by_peft(live: nn.Module, adapter: AdapterConfig) -> set[str]:
    import peft

    config = peft.LoraConfig(
        target_modules=list(adapter.target_modules), task_type=adapter.task_type,
        modules_to_save=list(adapter.modules_to_save) or None,
    )  # fmt: skip
    names = {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        for name, weight in peft.get_peft_model(live, config).named_parameters()
        if weight.requires_grad and "lora_" not in name
    }
    return {name.rpartition(".")[0] for name in names}


def said_of_heads(ledger: Ledger) -> str:
    return next((h.reason for h in ledger.hazards if h.code == "frozen-head"), "")


@pytest.mark.parametrize(("model_type", "config", "named", "target"), CLASSES)
def test_what_is_new_and_not_trained_is_told(
    model_type: str, config: dict[str, Any], named: str, target: str
) -> None:
    model = asked(model_type, config, named)
    live, new = new_weights(model)
    assert new
    adapter = AdapterConfig((target,), task_type=task_type_of(named))
    ledger = match(model.table, adapter)
    frozen = new - trained_by_peft(live, adapter)
    assert set(frozen_heads(ledger)) == frozen
    assert bool(said_of_heads(ledger)) == bool(frozen)


@pytest.mark.parametrize(("model_type", "config", "named", "target"), CLASSES)
def test_a_scenario_trains_every_new_head(
    model_type: str, config: dict[str, Any], named: str, target: str
) -> None:
    model = asked(model_type, config, named)
    live, new = new_weights(model)
    adapter = Scenario("own", target_modules=(target,)).adapter(model)
    assert not said_of_heads(match(model.table, adapter))
    assert new <= trained_by_peft(live, adapter)


@pytest.mark.parametrize("name", REGISTERED)
def test_registered_models_declare_their_heads(name: str) -> None:
    """Their scenarios are made without the model being built."""
    model = load_model(name)
    adapter = Scenario("own", target_modules=("all-linear",)).adapter(model)
    assert not frozen_heads(match(model.table, adapter))


def test_a_head_with_an_adapter_alone_is_in_no_file(tmp_path: Path) -> None:
    """PEFT saves the adapter; the next user's head is drawn anew, and answers otherwise."""
    import peft
    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(**TEXT)
    trained = peft.get_peft_model(
        BertForSequenceClassification(config), peft.LoraConfig(target_modules="all-linear")
    )
    trained.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert all("lora_" in key for key in saved)
    assert any("classifier" in key for key in saved)
    drawn = BertForSequenceClassification(config)
    drawn.bert.load_state_dict(trained.base_model.model.bert.state_dict(), strict=False)
    loaded = peft.PeftModel.from_pretrained(drawn, tmp_path)
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert not torch.allclose(trained(tokens).logits, loaded(tokens).logits)

    model = asked("bert", TEXT, "AutoModelForSequenceClassification")
    said = said_of_heads(match(model.table, AdapterConfig("all-linear")))
    assert said.startswith("classifier: beyond the base model")
    assert "gets an adapter alone" in said
    told = AdapterConfig("all-linear", task_type="SEQ_CLS")
    assert not said_of_heads(match(model.table, told))


@pytest.mark.parametrize(
    ("model_type", "config", "named", "target", "saved"),
    [
        ("xlm", XLM, f"XLM{SEQUENCE}", "q_lin", "sequence_summary"),
        ("funnel", FUNNEL, f"Funnel{SEQUENCE}", "q_head", "classifier"),
        ("bert", TEXT, f"Bert{TOKEN}", "query", "classifier"),
    ],
)
def test_the_labels_of_a_saved_head_are_told_whatever_it_is_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_type: str, config: dict[str, Any],
    named: str, target: str, saved: str,
) -> None:  # fmt: skip
    import peft
    import transformers

    plain = {key: value for key, value in config.items() if key != "num_labels"}
    given = transformers.AutoConfig.for_model(model_type, **plain, num_labels=5)
    model = peft.get_peft_model(
        getattr(transformers, named)(given),
        peft.LoraConfig(target_modules=[target], modules_to_save=[saved],
                        task_type=task_type_of(named)),
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    write_model(tmp_path, {"model_type": model_type, **plain}, architectures=[named])
    assert main(["check", str(tmp_path), "--no-gradients", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert any(note.startswith("5 labels, as the head in") for note in found["notes"])
    counted = model.get_nb_trainable_parameters()
    assert (found["trainable_parameters"], found["total_parameters"]) == counted
