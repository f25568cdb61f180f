"""The class that a configuration is asked about: the adapter's task type, then `architectures`.

PEFT asks nothing of the class: a vision-language or speech model with the CAUSAL_LM of most
tutorials is adapted as it was loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import DeadEntries, check_targets
from bench.adapters.config import AdapterConfig
from bench.cli import main
from bench.formulas import lora_parameters
from bench.models.architectures import find_model
from bench.models.classes import model_class
from bench.targets import match

TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 24,
        "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
          "num_attention_heads": 2, "image_size": 8, "patch_size": 4}  # fmt: skip
SPEECH = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
          "decoder_attention_heads": 2, "vocab_size": 24, "pad_token_id": 0}  # fmt: skip
LLAVA = {"text_config": {"model_type": "llama", **TEXT},
         "vision_config": {"model_type": "clip_vision_model", **VISION}}  # fmt: skip
LLAMA4 = {"text_config": {**TEXT, "num_local_experts": 2, "intermediate_size_mlp": 24},
          "vision_config": VISION}  # fmt: skip
MLLAMA = {"text_config": {**TEXT, "cross_attention_layers": [1]},
          "vision_config": {**VISION, "num_global_layers": 1, "attention_heads": 2,
                            "intermediate_layers_indices": [1]}}  # fmt: skip

KEPT = [
    # the task's auto class does not take the config
    ("llava", LLAVA, "LlavaForConditionalGeneration", "CAUSAL_LM"),
    ("whisper", SPEECH, "WhisperForConditionalGeneration", "SEQ_2_SEQ_LM"),
    ("vit", VISION, "ViTForImageClassification", "SEQ_CLS"),
    # it would leave the vision tower out
    ("llama4", LLAMA4, "Llama4ForConditionalGeneration", "CAUSAL_LM"),
    ("mllama", MLLAMA, "MllamaForConditionalGeneration", "CAUSAL_LM"),
]


def folder_of(path: Path, model_type: str, config: dict[str, Any], named: str) -> Path:
    values = {"model_type": model_type, **config, "architectures": [named]}
    (path / "config.json").write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(("model_type", "config", "named", "task_type"), KEPT)
def test_the_named_class_is_what_peft_adapts(
    tmp_path: Path, capsys, model_type: str, config: dict, named: str, task_type: str
) -> None:
    from peft import LoraConfig, get_peft_model

    folder = folder_of(tmp_path, model_type, config, named)
    targets = ["q_proj", "v_proj"]
    command = ["targets", str(folder), "--target-modules", ",".join(targets), "--json"]
    assert main([*command, "--task-type", task_type]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["model_class"] == named
    live = model_class(named)(find_model(str(folder)).transformers_config)
    model = get_peft_model(live, LoraConfig(target_modules=targets, task_type=task_type))
    counted = model.get_nb_trainable_parameters()
    assert (answer["trainable_parameters"], answer["total_parameters"]) == counted


@pytest.mark.parametrize(
    ("model_type", "named", "task_type", "built"),
    [
        ("bert", "BertForMaskedLM", "SEQ_CLS", "BertForSequenceClassification"),
        ("bert", "BertForMaskedLM", "FEATURE_EXTRACTION", "BertModel"),
        ("llama", "LlamaForCausalLM", "SEQ_CLS", "LlamaForSequenceClassification"),
        ("llama", "LlamaModel", "CAUSAL_LM", "LlamaForCausalLM"),
        ("bart", "BartForConditionalGeneration", "SEQ_CLS", "BartForSequenceClassification"),
    ],
)
def test_another_tasks_class_gives_way(
    tmp_path: Path, model_type: str, named: str, task_type: str, built: str
) -> None:
    config = {**SPEECH, "pad_token_id": 1} if model_type == "bart" else TEXT
    model = find_model(str(folder_of(tmp_path, model_type, config, named))).for_task(task_type)
    assert model.table.class_name == built


def test_auto_class_decides_over_both(tmp_path: Path, capsys) -> None:
    folder = folder_of(tmp_path, "llama4", LLAMA4, "Llama4ForConditionalGeneration")
    command = ["targets", str(folder), "--target-modules", "q_proj", "--task-type", "CAUSAL_LM"]
    assert main([*command, "--json", "--auto-class", "AutoModelForCausalLM"]) == 0
    assert json.loads(capsys.readouterr().out)["model_class"] == "Llama4ForCausalLM"


def test_registered_images_with_a_text_task() -> None:
    """transformers has no sequence classifier for ViT; PEFT adds its heads all the same."""
    from bench.measure.counting import count, inject

    model = find_model("vit-base").for_task("SEQ_CLS")
    ledger = match(model.table, AdapterConfig(("q_proj",), task_type="SEQ_CLS"))
    assert ledger.saved == ("classifier",)
    counted = count(inject(model.build(), ledger.adapter))
    assert lora_parameters(ledger).trainable == counted.trainable


def test_check_targets_takes_a_live_model_of_a_class_of_ones_own() -> None:
    """It is read as it is: no class of its name is built, and no size of another."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    class Mine(transformers.LlamaForCausalLM):
        pass

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    for make, targets in (
        (lambda: Mine(transformers.LlamaConfig(intermediate_size=8, **sizes)), ["q_proj"]),
        (Own, ["a"]),
    ):
        config = LoraConfig(r=2, target_modules=targets)
        counted = get_peft_model(make(), config).get_nb_trainable_parameters()
        ledger = check_targets(make(), LoraConfig(r=2, target_modules=targets))
        found = lora_parameters(ledger)
        assert (found.trainable, found.total) == counted
        assert [h.code for h in ledger.hazards if h.code == "frozen-head"] == []
        with pytest.raises(DeadEntries, match="nope"):
            check_targets(make(), [*targets, "nope"])
