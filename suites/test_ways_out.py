"""What an answer offers instead, applied: PEFT takes it, and it does what was meant.

Configurations of public models at their real sizes, written as people write them.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matrices import matrix

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.formulas import lora_parameters
from bench.models.architectures import load_model
from bench.scenarios.subjects import Model
from bench.targets import Ledger, match

_LLAMA_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "vocab_size": 32064,
}  # fmt: skip
_CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
    "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
    "projection_dim": 768,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llava-1.5-7b": {
        "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": 32000, "text_config": _LLAMA_7B, "vision_config": _CLIP,
    },
    "qwen3-vl-4b": {
        "model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"],
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen3_vl_text", "hidden_size": 2560, "intermediate_size": 9728,
            "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": 128, "vocab_size": 151936,
        },
        "vision_config": {
            "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
            "out_hidden_size": 2560, "deepstack_visual_indexes": [5, 11, 17],
        },
    },
    "gemma-3-4b": {
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
            "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4,
            "head_dim": 256, "vocab_size": 262208,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
            "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 896,
            "patch_size": 14,
        },
    },
    "smolvlm": {
        "model_type": "smolvlm", "architectures": ["SmolVLMForConditionalGeneration"],
        "text_config": {**_LLAMA_7B, "hidden_size": 2048, "num_hidden_layers": 24},
        "vision_config": {
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
            "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
        },
    },
    "internvl3-1b": {
        "model_type": "internvl", "architectures": ["InternVLForConditionalGeneration"],
        "text_config": {
            "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
            "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "vocab_size": 151674,
        },
        "vision_config": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": [448, 448], "patch_size": [14, 14],
        },
    },
    "whisper-large-v3": {
        "model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"],
        "d_model": 1280, "encoder_layers": 32, "decoder_layers": 32,
        "encoder_attention_heads": 20, "decoder_attention_heads": 20, "encoder_ffn_dim": 5120,
        "decoder_ffn_dim": 5120, "num_mel_bins": 128, "vocab_size": 51866,
    },
    "llama-3.2-1b-bare": {
        "model_type": "llama", "architectures": ["LlamaModel"], "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "gpt2-bare": {"model_type": "gpt2", "architectures": ["GPT2Model"]},
    "bamba-9b": {
        "model_type": "bamba", "architectures": ["BambaForCausalLM"],
        "attn_layer_indices": [9, 18, 27],
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048,
        "num_hidden_layers": 48, "head_dim": 128, "num_attention_heads": 32,
        "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "intermediate_size": 6144, "vocab_size": 151936,
    },
    "falcon-h1": {
        "model_type": "falcon_h1", "architectures": ["FalconH1ForCausalLM"],
        "num_hidden_layers": 4,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory):
    built: dict[str, Model] = {}

    def of(name: str) -> Model:
        if name not in built:
            folder: Path = tmp_path_factory.mktemp(name)
            (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
            built[name] = load_model(str(folder))
        return built[name]

    return of


@pytest.fixture
def answer(known, peft_count):
    """The ledger of a configuration; what PEFT takes is counted by PEFT as by the formulas."""

    def of(name: str, adapter: AdapterConfig) -> Ledger:
        model = known(name)
        ledger = match(model.table, adapter, model.role_of)
        if ledger.refusals:
            with pytest.raises(BenchError):
                peft_count(model, adapter)
            return ledger
        counted, found = peft_count(model, adapter), lora_parameters(ledger)
        assert sorted(a.name for a in ledger.adapted) == sorted(counted.adapted)
        assert (found.trainable, found.total) == (counted.trainable, counted.total)
        return ledger

    return of


def adapted_in(ledger: Ledger) -> dict[str, int]:
    """Stack → its adapted modules, those without any left out."""
    return {r.stack.prefix: r.modules for r in ledger.stacks if r.modules}


def offered(text: str) -> str | tuple[str, ...]:
    """target_modules as a sentence offers it: a string, or names after "write"."""
    if found := re.search(r'the string ("(?:[^"\\]|\\.)*")', text):
        return str(json.loads(found[1]))
    names = text.partition("; write ")[2].partition(";")[0]
    return tuple(names.split(", "))


@pytest.mark.parametrize(
    ("model", "written", "expected"),
    matrix([
        ("llava-1.5-7b", r"language_model.model.layers.*(q_proj|v_proj)",
         {"model.language_model": 32 * 2}),
        ("llava-1.5-7b", r".*language_model\.model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj",
         {"model.language_model": 32 * 4}),
        ("llava-1.5-7b", r"^language_model\.model\.layers\.\d+\.mlp\.(up|down|gate)_proj$",
         {"model.language_model": 32 * 3}),
        ("llava-1.5-7b", r".*vision_tower.vision_model.encoder.layers.*(q_proj|v_proj)",
         {"model.vision_tower": 24 * 2}),
        ("llava-1.5-7b", r"language_model.model.layers.(1|2|3).self_attn.q_proj",
         {"model.language_model": 3}),
        ("gemma-3-4b", r".*language_model.model.*(q_proj|k_proj)",
         {"model.language_model": 34 * 2}),
        ("gemma-3-4b", r"language_model\..*\.(q_proj|k_proj)", {"model.language_model": 34 * 2}),
        ("qwen3-vl-4b", r"model.layers.*.self_attn.(q|v)_proj", {"model.language_model": 36 * 2}),
        ("qwen3-vl-4b", r"visual.blocks.*qkv", {"model.visual": 24}),
        ("whisper-large-v3", r"model.model.decoder.*(q_proj|v_proj)",
         {"model.decoder": 32 * 2 * 2}),
        ("llama-3.2-1b-bare", r"model\.layers\.\d+\.self_attn\.(q|v)_proj", {"": 16 * 2}),
    ], by=lambda model, written, expected: {model}),
)  # fmt: skip
def test_a_pattern_on_moved_names_keeps_its_tower(
    answer, model: str, written: str, expected: dict[str, int]
) -> None:
    """It reached one tower where its names were right, and what is offered reaches the same one."""
    adapter = AdapterConfig(written)
    (entry,) = answer(model, adapter).entries
    assert entry.dead
    found = answer(model, replace(adapter, target_modules=entry.suggestion))
    assert adapted_in(found) == expected


@pytest.mark.parametrize(
    ("model", "written", "expected"),
    matrix([
        ("smolvlm", ("self_attn",), 27 * 4 + 24 * 4),
        ("smolvlm", ("layers.0", "layers.1"), 2 * (6 + 7)),
        ("llama-3.2-1b-bare", ("layers.3",), 7),
        ("llama-3.2-1b-bare", ("mlp",), 16 * 3),
        ("gpt2-bare", ("attn",), 12 * 2),
        ("qwen3-vl-4b", ("visual",), 24 * 4 + 2 + 3 * 2),
        ("qwen3-vl-4b", ("language_model",), 36 * 7),
        ("qwen3-vl-4b", ("merger",), 2),
        ("whisper-large-v3", ("decoder",), 32 * 10),
        ("whisper-large-v3", ("encoder", "decoder"), 32 * 16),
    ], by=lambda model, written, expected: {model}),
)  # fmt: skip
def test_an_entry_that_names_whole_modules(
    answer, model: str, written: tuple[str, ...], expected: int
) -> None:
    """A block, a layer by its number, a tower: what is offered adapts the projections in it."""
    refused = answer(model, AdapterConfig(written))
    assert refused.refusals
    (way,) = refused.ways_out
    assert way.startswith(", ".join(written))
    found = answer(model, AdapterConfig(offered(way)))
    assert len(found.adapted) == expected
    held = re.compile(rf"(.*\.)?({'|'.join(map(re.escape, written))})\..*")
    assert all(held.fullmatch(a.name) for a in found.adapted)


def test_the_entry_at_fault_is_named_with_what_it_names(answer) -> None:
    (one,) = answer("qwen3-vl-4b", AdapterConfig(("merger", "q_proj"))).ways_out
    assert one == (
        "merger: it names model.visual.merger (Qwen3VLVisionPatchMerger); "
        "write merger.linear_fc1, merger.linear_fc2"
    )
    (many,) = answer("llama-3.2-1b-bare", AdapterConfig(("mlp",))).ways_out
    assert many == (
        "mlp: it names layers.0.mlp and 15 more (LlamaMLP); write gate_proj, up_proj, down_proj"
    )


@pytest.mark.parametrize("written", ["mlp", "experts"])
def test_experts_are_parameters(answer, written: str) -> None:
    refused = answer("qwen3-30b-a3b", AdapterConfig((written, "q_proj")))
    (way,) = refused.ways_out
    parameters = tuple(json.loads(way.partition("target_parameters=")[2]))
    found = answer("qwen3-30b-a3b", AdapterConfig(("q_proj",), target_parameters=parameters))
    assert len(found.adapted) == 48 * 3


def test_a_type_without_a_default(answer) -> None:
    """Three of Bamba's 32 layers hold attention."""
    refused = answer("bamba-9b", AdapterConfig())
    (way,) = refused.ways_out
    names = tuple(json.loads(way.removeprefix("target_modules=")))
    found = answer("bamba-9b", AdapterConfig(names))
    assert {a.name.rpartition(".")[2] for a in found.adapted} == {"q_proj", "v_proj"}
    assert len(found.adapted) == 3 * 2


def test_a_mamba_name_in_a_list_and_in_all(answer) -> None:
    for given in ("all-linear", r".*\.(q_proj|out_proj)"):
        refused = answer("falcon-h1", AdapterConfig(given))
        (way,) = refused.ways_out
        held_out = tuple(json.loads(way.removeprefix("exclude_modules=")))
        found = answer("falcon-h1", AdapterConfig(given, exclude_modules=held_out))
        assert not found.refusals
        assert not [a for a in found.adapted if a.name.endswith("out_proj")]


@pytest.mark.parametrize("stars", ["*", "**"])
def test_a_star_as_a_string(stars: str) -> None:
    with pytest.raises(BenchError, match='every linear layer is the string "all-linear"'):
        AdapterConfig(stars)


def test_a_fused_name_of_code_from_elsewhere(answer) -> None:
    """InternLM's wqkv: the model of transformers has three projections in its place."""
    (entry,) = answer("internvl3-1b", AdapterConfig(("wqkv",))).entries
    offers = re.findall(r"(\w+) \(", entry.suggestion)
    assert offers == ["q_proj", "k_proj", "v_proj"]


@pytest.mark.parametrize(
    ("written", "leaves", "modules"),
    [
        (r".*self_attn.*", {"q_proj", "k_proj", "v_proj", "o_proj"}, 16 * 4),
        (r"layers\.[01]\..*", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
                               "down_proj"}, 2 * 7),
    ],
)  # fmt: skip
def test_a_pattern_that_reaches_whole_modules_too(
    answer, written: str, leaves: set[str], modules: int
) -> None:
    """It is held to the projections among what it reaches."""
    refused = answer("llama-3.2-1b-bare", AdapterConfig(written))
    (way,) = refused.ways_out
    assert way.startswith(f"{written} reaches whole modules too: write ")
    found = answer("llama-3.2-1b-bare", AdapterConfig(way.partition(": write ")[2]))
    assert {a.name.rpartition(".")[2] for a in found.adapted} == leaves
    assert len(found.adapted) == modules


def test_a_pattern_without_a_projection(answer) -> None:
    refused = answer("llama-3.2-1b-bare", AdapterConfig(r".*norm"))
    (way,) = refused.ways_out
    assert way == ".*norm reaches modules without a weight of their own alone"


def test_a_pattern_that_reaches_everything(answer) -> None:
    refused = answer("llama-3.2-1b-bare", AdapterConfig(r".*"))
    assert refused.ways_out == ('.* reaches whole modules too: write the string "all-linear"',)


def test_a_tensors_old_name_is_a_modules_new_one(answer) -> None:
    written = "language_model.model.layers.0.self_attn.q_proj.weight"
    (entry,) = answer("llava-1.5-7b", AdapterConfig((written,))).entries
    assert entry.cause == "it is now model.language_model.layers.0.self_attn.q_proj"
    found = answer("llava-1.5-7b", AdapterConfig((entry.suggestion,)))
    assert [a.name for a in found.adapted] == [entry.cause.removeprefix("it is now ")]
