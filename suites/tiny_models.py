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


def adapted_as(name: str) -> Mapping[str, Any]:
    """The configuration values that make a registered or other model type tiny."""
    given = MODELS.get(name) or OTHERS[name]
    return {**COMMON, **given.config}


_MOE = {**_DECODER, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
           "num_attention_heads": 4, "image_size": 16, "patch_size": 8}  # fmt: skip
_TEXT = {**_DECODER, "vocab_size": 64, "pad_token_id": 0}

# Types beyond those above, for what a step does to their adapters.
OTHERS: dict[str, Tiny] = {
    "mamba": Tiny({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4,
                   "time_step_rank": 4}, CAUSAL, ("in_proj", "x_proj", "dt_proj")),
    "falcon_mamba": Tiny({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4,
                          "time_step_rank": 4}, CAUSAL, ("in_proj", "x_proj", "dt_proj")),
    "mamba2": Tiny({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8,
                    "head_dim": 8, "n_groups": 1, "chunk_size": 8}, CAUSAL, ("in_proj",)),
    "jamba": Tiny({**_DECODER, "mamba_d_state": 4, "mamba_dt_rank": 4, "attn_layer_period": 2,
                   "attn_layer_offset": 1, "expert_layer_period": 2, "num_experts": 2,
                   "use_mamba_kernels": False}, CAUSAL, ("q_proj", "in_proj", "x_proj", "dt_proj",
                                                         "out_proj")),
    "qwen2_moe": Tiny({**_MOE, "shared_expert_intermediate_size": 32}, CAUSAL, ("q_proj",)),
    "qwen3_moe": Tiny({**_MOE, "head_dim": 8}, CAUSAL, ("q_proj", "o_proj")),
    "olmoe": Tiny(_MOE, CAUSAL, ("q_proj", "v_proj")),
    "gemma": Tiny({**_DECODER, "head_dim": 8}, CAUSAL, ("q_proj", "down_proj")),
    "stablelm": Tiny(_DECODER, CAUSAL, ("q_proj", "down_proj")),
    "granite": Tiny(_DECODER, CAUSAL, ("q_proj", "down_proj")),
    "cohere": Tiny(_DECODER, CAUSAL, ("q_proj", "down_proj")),
    "olmo2": Tiny(_DECODER, CAUSAL, ("q_proj", "down_proj")),
    "gptj": Tiny({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "rotary_dim": 4},
                 CAUSAL, ("q_proj", "fc_in")),
    "recurrent_gemma": Tiny({**_DECODER, "num_hidden_layers": 3, "head_dim": 8, "lru_width": 32},
                            CAUSAL, ("q_proj", "linear_x", "linear_out")),
    "rwkv": Tiny({"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32,
                  "intermediate_size": 48, "context_length": 32}, CAUSAL, ("key", "value")),
    "bart": Tiny({"d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
                  "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                  "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 32,
                  "eos_token_id": 2, "forced_eos_token_id": 2, "decoder_start_token_id": 2},
                 "AutoModelForSeq2SeqLM", ("q_proj", "fc1"), "SEQ_2_SEQ_LM"),
    "electra": Tiny({**_ENCODER, "embedding_size": 32}, SEQ_CLS, ("query", "dense"), "SEQ_CLS"),
    "albert": Tiny({**_ENCODER, "embedding_size": 16}, SEQ_CLS, ("query", "dense"), "SEQ_CLS"),
    "deberta-v2": Tiny({**_ENCODER, "position_buckets": 8}, SEQ_CLS, ("query_proj", "dense"),
                       "SEQ_CLS"),
    "llava": Tiny({"text_config": {"model_type": "llama", **_TEXT},
                   "vision_config": {"model_type": "clip_vision_model", **_VISION},
                   "image_token_index": 60}, "LlavaForConditionalGeneration",
                  ("q_proj", "v_proj", "linear_1"), None),
    "paligemma": Tiny({"text_config": {"model_type": "gemma", **_TEXT, "head_dim": 8},
                       "vision_config": {"model_type": "siglip_vision_model", **_VISION},
                       "image_token_index": 60, "projection_dim": 32, "hidden_size": 32},
                      "PaliGemmaForConditionalGeneration", ("q_proj", "fc1", "linear"), None),
    "whisper": Tiny({"d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
                     "encoder_attention_heads": 2, "decoder_attention_heads": 2,
                     "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 8,
                     "max_source_positions": 16, "max_target_positions": 32,
                     "decoder_start_token_id": 1, "suppress_tokens": None,
                     "begin_suppress_tokens": None},
                    "WhisperForConditionalGeneration", ("q_proj", "fc1"), None),
}  # fmt: skip


@cache
def other(name: str) -> Model:
    """The model of OTHERS called `name`."""
    given = OTHERS[name]
    return Model(name, {"model_type": name, **COMMON, **given.config}, given.auto_class)
