"""Tiny models of many architectures, small enough to be built for real on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from bench.models.architectures import Model

COMMON = {"vocab_size": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DECODER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
_ENCODER = {**_DECODER, "num_labels": 3}
_QWEN_VL = {
    "tie_word_embeddings": False,
    "text_config": {"model_type": "qwen2_vl_text", **_DECODER, **COMMON,
                    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
    "vision_config": {"model_type": "qwen2_vl", "depth": 1, "embed_dim": 32, "hidden_size": 32,
                      "num_heads": 2, "mlp_ratio": 2, "patch_size": 14},
}  # fmt: skip
CAUSAL, SEQ_CLS = "AutoModelForCausalLM", "AutoModelForSequenceClassification"


@dataclass(frozen=True)
class Tiny:
    """A model type's configuration, the class to build, target modules and the task type."""

    config: Mapping[str, Any]
    auto_class: str
    targets: tuple[str, ...]
    task: str | None = "CAUSAL_LM"
    other_class: str = SEQ_CLS
    fields: Mapping[str, Any] = field(default_factory=dict)


MODELS: dict[str, Tiny] = {
    "llama": Tiny(_DECODER, CAUSAL, ("q_proj", "v_proj", "down_proj")),
    "mistral": Tiny(_DECODER, CAUSAL, ("q_proj", "o_proj"),
                    fields={"modules_to_save": ["lm_head"]}),
    "qwen2": Tiny(_DECODER, CAUSAL, ("k_proj", "up_proj"), fields={"use_dora": True}),
    "phi3": Tiny(_DECODER, CAUSAL, ("qkv_proj", "gate_up_proj")),
    "phi": Tiny({**_DECODER, "num_key_value_heads": 4}, CAUSAL, ("q_proj", "fc1")),
    "gemma2": Tiny({**_DECODER, "head_dim": 8}, CAUSAL, ("q_proj", "embed_tokens")),
    "mixtral": Tiny({**_DECODER, "num_local_experts": 2}, CAUSAL, ("q_proj", "v_proj"),
                    fields={"target_parameters": ["experts.down_proj"]}),
    "opt": Tiny({"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "word_embed_proj_dim": 32,
                 "max_position_embeddings": 32}, CAUSAL, ("q_proj", "fc1")),
    "gpt2": Tiny({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}, CAUSAL,
                 ("c_attn", "c_fc"), fields={"fan_in_fan_out": True}),
    "bloom": Tiny({"hidden_size": 32, "n_layer": 2, "n_head": 4}, CAUSAL, ("query_key_value",),
                  fields={"trainable_token_indices": [3, 5]}),
    "falcon": Tiny({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}, CAUSAL,
                   ("query_key_value", "dense")),
    "gpt_neox": Tiny({**_DECODER}, CAUSAL, ("query_key_value", "dense_h_to_4h")),
    "bert": Tiny(_ENCODER, SEQ_CLS, ("query", "value"), "SEQ_CLS", "AutoModelForMaskedLM"),
    "distilbert": Tiny({"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "num_labels": 3,
                        "max_position_embeddings": 32}, SEQ_CLS, ("q_lin", "v_lin"), "SEQ_CLS",
                       "AutoModelForMaskedLM"),
    "roberta": Tiny(_ENCODER, "AutoModelForTokenClassification", ("query", "dense"), "TOKEN_CLS",
                    "AutoModelForMaskedLM"),
    "t5": Tiny({"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2,
                "num_decoder_layers": 2}, "AutoModelForSeq2SeqLM", ("q", "v", "wi"),
               "SEQ_2_SEQ_LM", "AutoModel"),
    "vit": Tiny({"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "image_size": 16, "patch_size": 8, "num_labels": 3},
                "AutoModelForImageClassification", ("q_proj", "v_proj"), None, "AutoModel",
                {"modules_to_save": ["classifier"]}),
    "qwen2_vl": Tiny(_QWEN_VL, "Qwen2VLForConditionalGeneration", ("q_proj", "v_proj"), None,
                     "Qwen2VLModel"),
}  # fmt: skip


@cache
def tiny(name: str, auto_class: str | None = None) -> Model:
    """The model called `name`, as commands take it."""
    given = MODELS[name]
    config = {"model_type": name, **COMMON, **given.config}
    return Model(name, config, auto_class or given.auto_class)


def built(name: str, auto_class: str | None = None) -> Any:
    """The same for real: random weights on the CPU, the same ones each time."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    model = tiny(name, auto_class)
    torch.manual_seed(0)
    from bench.models.classes import model_class

    loader = model_class(model.auto_class)
    make = getattr(loader, "from_config", loader)
    return make(model.transformers_config)
