"""Odd values of LoraConfig's fields: what PEFT cannot read of a file is refused, whatever it is."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.models.architectures import Model
from bench.targets import match

LLAMA = {
    "model_type": "llama", "vocab_size": 24, "pad_token_id": 0, "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 2}
EMPTY: tuple[Any, ...] = (None, False, "", [], {}, 0)
FIELDS = """r lora_alpha lora_dropout bias rank_pattern alpha_pattern target_modules exclude_modules
    modules_to_save init_lora_weights layers_to_transform layers_pattern loftq_config eva_config
    corda_config lora_ga_config arrow_config kasa_config velora_config monteclora_config use_bdlora
    trainable_token_indices alora_invocation_tokens layer_replication target_parameters use_dora
    use_rslora lora_bias fan_in_fan_out ensure_weight_tying task_type""".split()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("field", FIELDS)
def test_what_peft_cannot_read_is_refused(field: str, tmp_path: Path) -> None:
    """A file with nothing in a field: null, false, an empty text, list or object, or 0."""
    from peft import PeftConfig, get_peft_model

    model = Model("llama", LLAMA, "AutoModelForCausalLM")
    refused = []
    for value in EMPTY:
        fields = {"peft_type": "LORA", "target_modules": ["q_proj"], field: value}
        (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
        try:
            network = model.build()
            trained = get_peft_model(network, PeftConfig.from_pretrained(str(tmp_path)))
            assert trained.get_nb_trainable_parameters()[0] > 0
        except Exception:  # of whatever kind: it has no way to read them
            refused.append(value)
            assert _refused(model, tmp_path), value
    never_null = {"r", "lora_alpha", "lora_dropout", "bias", "rank_pattern", "alpha_pattern"}
    assert (None in refused) == (field in never_null)


def _refused(model: Model, folder: Path) -> bool:
    try:
        ledger = match(model.table, AdapterConfig.from_file(folder))
    except BenchError:
        return True
    return bool(ledger.refusals) or not ledger.adapted


SEGMENTS = ("0", "7", "²", "weight", "q_proj", "self_attn", "mlp", "experts", "gate_up_proj")


@pytest.mark.parametrize("field", ["target_modules", "target_parameters"])
@pytest.mark.parametrize("config", [LLAMA, MIXTRAL], ids=["llama", "mixtral"])
def test_an_entry_of_numbers_and_names_is_matched_as_its_ending_says(
    config: dict[str, Any], field: str
) -> None:
    """With whatever is said of one that reaches nothing: what is in its place may be no number."""
    model = Model(str(config["model_type"]), config, "AutoModelForCausalLM")
    network = model.build()
    of_modules = field == "target_modules"
    named = network.named_modules() if of_modules else network.named_parameters()
    names = [name for name, _ in named]
    reached = 0
    for size in (1, 2, 3):
        for parts in product(SEGMENTS, repeat=size):
            entry = ".".join(parts)
            there = any(f".{name}".endswith(f".{entry}") for name in names)
            fields = {"target_modules": ["v_proj"], **{field: [entry, "v_proj"][: 1 + of_modules]}}
            ledger = match(model.table, AdapterConfig.from_dict(fields))
            (found,) = [each for each in ledger.entries if each.entry == entry]
            assert found.dead == (not there), entry
            reached += there
    assert reached
