"""Small models for the stored answers, each described once and its table read once, and what is
said of a ledger as one text."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
from test_dead import BERT, GPT2, LLAMA, MIXTRAL, QWEN_MOE, XLNET, model
from test_hazards import LLAVA as _LLAVA

from bench.adapters.config import AdapterConfig
from bench.models.modules import LINEAR, Module, ModuleTable, Parameter
from bench.models.stacks import AUDIO, LANGUAGE, VISION, Stack
from bench.targets import Ledger, match

T5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
      "vocab_size": 24}  # fmt: skip
VIT = {"model_type": "vit", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
       "num_attention_heads": 2, "image_size": 8, "patch_size": 4}  # fmt: skip
DISTILBERT = {"model_type": "distilbert", "dim": 16, "hidden_dim": 24, "n_layers": 2,
              "n_heads": 2, "vocab_size": 24, "pad_token_id": 0}  # fmt: skip
MAMBA = {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 24,
         "state_size": 4}  # fmt: skip
BAMBA = {**LLAMA, "model_type": "bamba", "num_hidden_layers": 3, "attn_layer_indices": [1],
         "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4}  # fmt: skip
GEMMA4 = {
    "model_type": "gemma4", "tie_word_embeddings": True, "audio_config": None,
    "text_config": {
        "model_type": "gemma4_text", "hidden_size": 16, "intermediate_size": 24, "vocab_size": 24,
        "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"],
        "num_attention_heads": 2, "num_key_value_heads": 1, "num_global_key_value_heads": 1,
        "head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 24, "pad_token_id": 0, "num_kv_shared_layers": 0,
    },
    "vision_config": {
        "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
        "global_head_dim": 8, "patch_size": 4, "pooling_kernel_size": 2,
        "position_embedding_size": 16,
    },
}  # fmt: skip
QWEN2_MOE = {**QWEN_MOE, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 8}
SEGFORMER = {"model_type": "segformer", "num_encoder_blocks": 2, "depths": [1, 2],
             "hidden_sizes": [8, 16], "num_attention_heads": [1, 2], "sr_ratios": [2, 1],
             "mlp_ratios": [2, 2], "patch_sizes": [3, 3], "strides": [2, 2],
             "decoder_hidden_size": 8}  # fmt: skip
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "llama": (LLAMA, "AutoModelForCausalLM"),
    "llama-tied": ({**LLAMA, "tie_word_embeddings": True}, "AutoModelForCausalLM"),
    "llama-bare": (LLAMA, "AutoModel"),
    "llama-classes": (LLAMA, "AutoModelForSequenceClassification"),
    "mixtral": (MIXTRAL, "AutoModelForCausalLM"),
    "mixtral-classes": (MIXTRAL, "AutoModelForSequenceClassification"),
    "qwen-moe": (QWEN_MOE, "AutoModelForCausalLM"),
    "qwen2-moe": (QWEN2_MOE, "AutoModelForCausalLM"),
    "segformer": (SEGFORMER, "AutoModelForImageClassification"),
    "bert": (BERT, "AutoModelForSequenceClassification"),
    "bert-words": (BERT, "AutoModelForMaskedLM"),
    "distilbert": (DISTILBERT, "AutoModelForSequenceClassification"),
    "distilbert-spans": (DISTILBERT, "AutoModelForQuestionAnswering"),
    "gpt2": (GPT2, "AutoModelForCausalLM"),
    "xlnet": (XLNET, "AutoModelForCausalLM"),
    "t5": (T5, "AutoModelForSeq2SeqLM"),
    "vit": (VIT, "AutoModelForImageClassification"),
    "vit-bare": (VIT, "AutoModel"),
    "llava": ({**_LLAVA, "model_type": "llava"}, "AutoModelForImageTextToText"),
    "gemma4": (GEMMA4, "AutoModelForImageTextToText"),
    "mamba": (MAMBA, "AutoModelForCausalLM"),
    "bamba": (BAMBA, "AutoModelForCausalLM"),
}


@cache
def table_of(label: str) -> ModuleTable:
    if label in BY_HAND:
        return BY_HAND[label]()
    described, _, loaded = label.partition("@")
    found = model(*MODELS[described])
    return (found.loaded_in(loaded) if loaded else found).table


def _every_kind() -> ModuleTable:
    """A layer of each kind that LoRA adapts, and one that it does not."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from bench.models.modules import read_table

    with torch.device("meta"):
        network = nn.ModuleDict(
            {
                "rows": nn.Embedding(11, 6),
                "conv": nn.Conv2d(8, 20, 3, groups=2),
                "dense": nn.Linear(5, 7),
                "crossed": Conv1D(7, 5),
                "mixer": nn.MultiheadAttention(6, 1),
                "norm": nn.LayerNorm(6),
                "square": Conv1D(6, 6),
                "one": nn.ModuleDict({"proj": nn.Linear(4, 6)}),
                "two": nn.ModuleDict({"proj": nn.Conv1d(4, 6, 3), "last": nn.Conv3d(2, 2, 1)}),
                "three": nn.ModuleDict({"proj": nn.Conv2d(4, 6, 3), "last": nn.Linear(2, 2)}),
            }
        )
    return read_table(network)


def _nested() -> ModuleTable:
    """Names that a projection and what is around projections share."""
    import torch
    from torch import nn

    from bench.models.modules import read_table

    def pair() -> nn.Module:
        return nn.ModuleDict({"up": nn.Linear(4, 6), "down": nn.Linear(6, 4)})

    def block() -> nn.Module:
        mlp = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
        return nn.ModuleDict({"mlp": mlp, "mix": pair()})

    with torch.device("meta"):
        network = nn.ModuleDict(
            {
                "layers": nn.ModuleList([block(), block(), block()]),
                "first": nn.ModuleDict({"mix": nn.Linear(4, 4), "wrap": pair()["up"]}),
                "second": nn.ModuleDict({"wrap": nn.ModuleDict({"p": nn.Linear(4, 4)})}),
                "third": nn.ModuleDict({"wrap": nn.ModuleDict({"q": nn.Linear(4, 4)})}),
                "norm": nn.ModuleDict({"wrap": nn.LayerNorm(4)}),
                "twins": nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(4, 4)}) for _ in "ab"]),
                "apart": nn.ModuleDict({"fc": nn.LayerNorm(4)}),
                "fourth": nn.ModuleDict({"pack": nn.ModuleDict({"p": nn.Linear(4, 4)})}),
                "fifth": nn.ModuleDict({"pack": nn.ModuleDict({"q": nn.Linear(4, 4)})}),
            }
        )
    return read_table(network)


def _two_towers() -> ModuleTable:
    """Two towers that hold their projections in wrappers, beside a language model."""
    wrappers = [f"{tower}.layers.0.{leaf}" for tower in ("sight", "sound") for leaf in "qv"]
    linear = [
        *(f"{name}.linear" for name in wrappers),
        "text.layers.0.q",
        "text.layers.0.v",
        "head",
    ]
    return ModuleTable(
        "", "Towers",
        (*(Module(name, class_name="Wrapper") for name in wrappers),
         *(Module(name, LINEAR, 4, 4) for name in linear)),
        tuple(Parameter(f"{name}.weight", (4, 4)) for name in linear),
        output_embedding="head",
        stacks=(Stack(VISION, "sight", ("image",)), Stack(AUDIO, "sound", ("audio",)),
                Stack(LANGUAGE, "text")),
    )  # fmt: skip


BY_HAND = {"kinds": _every_kind, "nested": _nested, "two-towers": _two_towers}


def told(ledger: Ledger) -> str:
    """All that is said of a ledger, a line each."""
    lines = []
    for e in ledger.entries:
        roles = ", ".join(f"{n} {role}" for role, n in e.roles.items())
        reached = f"{len(e.reached)} in {e.layers} layers ({roles})" if e.reached else "dead"
        lines.append(f"{e.field} {e.entry}: {reached}{e.why_dead}")
    ranks = ", ".join(f"{n} of rank {r}" for r, n in Counter(a.r for a in ledger.adapted).items())
    lines += [f"adapted {ranks or 'none'}; saved {', '.join(ledger.saved) or 'none'}"]
    lines += [f"stack {r.stack.label}: {r.modules} in {r.inside or 'none'}" for r in ledger.stacks]
    lines += [f"no effect: {dead}" for dead in ledger.dead_fields]
    lines += [f"refused: {reason}" for reason in ledger.refusals]
    lines += [f"way out: {way}" for way in ledger.ways_out]
    lines += [f"hazard {hazard.code}: {hazard.reason}" for hazard in ledger.hazards]
    return "\n".join(lines)


def entries(*written: str) -> dict[str, Any]:
    return {"target_modules": [*written]}


def answer(label: str, fields: dict[str, Any]) -> str:
    return told(match(table_of(label), AdapterConfig.from_dict(fields)))


def over(cases: dict[str, Any]) -> Any:
    return pytest.mark.parametrize(("label", "given"), cases.values(), ids=cases)
