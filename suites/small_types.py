"""Small geometries of forty model types and more, on the meta device: what the fuzz draws from."""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING, Any

from bench.models.architectures import Model
from bench.models.modules import ModuleTable, read_table

if TYPE_CHECKING:
    from torch import nn

_WIDTHS: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 40, "max_position_embeddings": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
           "num_attention_heads": 4, "image_size": 16, "patch_size": 8, "projection_dim": 32,
           "num_labels": 3}  # fmt: skip
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "top_k": 2,
            "moe_intermediate_size": 24, "decoder_sparse_step": 1, "mlp_only_layers": [],
            "shared_expert_intermediate_size": 24}  # fmt: skip
_TEXT = {k: v for k, v in _WIDTHS.items() if not k.endswith("token_id")}
_SPEECH = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 40,
           "num_attention_heads": 4, "conv_dim": [16, 16], "conv_kernel": [3, 3],
           "conv_stride": [2, 2], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
           "num_feat_extract_layers": 2}  # fmt: skip

CAUSAL, SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"
SEQUENCE, TOKEN = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
ANSWER, MASKED = "AutoModelForQuestionAnswering", "AutoModelForMaskedLM"
IMAGE, SIGHTED = "AutoModelForImageClassification", "AutoModelForImageTextToText"

# (type, auto class, what differs from _WIDTHS; a vision or speech model brings its own widths)
_TYPES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("llama", CAUSAL, {"tie_word_embeddings": True}),
    ("llama", SEQUENCE, {"num_labels": 3}),
    ("mistral", CAUSAL, {}),
    ("qwen2", CAUSAL, {"tie_word_embeddings": True}),
    ("qwen2", TOKEN, {"num_labels": 3}),
    ("qwen3", CAUSAL, {}),
    ("qwen3_moe", CAUSAL, _EXPERTS),
    ("qwen2_moe", CAUSAL, _EXPERTS),
    ("mixtral", CAUSAL, _EXPERTS),
    ("gpt_oss", CAUSAL, {**_EXPERTS, "layer_types": ["full_attention"] * 3}),
    ("gemma", CAUSAL, {}),
    ("gemma2", CAUSAL, {}),
    ("gemma3_text", CAUSAL, {}),
    ("gemma3", SIGHTED, {"text_config": _TEXT, "vision_config": _VISION,
                         "mm_tokens_per_image": 4}),
    ("phi", CAUSAL, {}),
    ("phi3", CAUSAL, {}),
    ("granite", CAUSAL, {}),
    ("olmo2", CAUSAL, {}),
    ("cohere", CAUSAL, {}),
    ("starcoder2", CAUSAL, {}),
    ("stablelm", CAUSAL, {}),
    ("gpt_neox", CAUSAL, {}),
    ("gptj", CAUSAL, {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8}),
    ("gpt2", CAUSAL, {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 32}),
    ("gpt2", SEQUENCE, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}),
    ("gpt_neo", CAUSAL, {"num_layers": 3, "num_heads": 4, "attention_types":
                         [[["global"], 3]]}),
    ("bloom", CAUSAL, {"n_layer": 3, "n_head": 4}),
    ("falcon", CAUSAL, {"num_kv_heads": 2}),
    ("mpt", CAUSAL, {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 32}),
    ("opt", CAUSAL, {"ffn_dim": 48, "word_embed_proj_dim": 16}),
    ("opt", SEQUENCE, {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    ("xglm", CAUSAL, {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}),
    ("mamba", CAUSAL, {"state_size": 4, "conv_kernel": 3}),
    ("mamba2", CAUSAL, {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 2}),
    ("bert", SEQUENCE, {"num_labels": 3}),
    ("bert", MASKED, {}),
    ("roberta", TOKEN, {"num_labels": 3}),
    ("roberta", SEQUENCE, {}),
    ("albert", SEQUENCE, {"embedding_size": 16}),
    ("distilbert", SEQUENCE, {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4}),
    ("distilbert", ANSWER, {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}),
    ("deberta-v2", SEQUENCE, {"position_buckets": 4}),
    ("electra", ANSWER, {"embedding_size": 16}),
    ("modernbert", MASKED, {}),
    ("xlm-roberta", SEQUENCE, {}),
    ("t5", SEQ2SEQ, {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2}),
    ("mt5", SEQ2SEQ, {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2}),
    ("bart", SEQ2SEQ, {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
                       "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                       "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}),
    ("bart", SEQUENCE, {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
                        "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                        "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}),
    ("pegasus", SEQ2SEQ, {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
                          "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                          "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}),
    ("marian", SEQ2SEQ, {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
                         "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                         "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
                         "decoder_vocab_size": 40}),
    ("whisper", "AutoModelForSpeechSeq2Seq",
     {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
      "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
      "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16,
      "decoder_start_token_id": 1}),
    ("vit", IMAGE, _VISION),
    ("dinov2", IMAGE, {**_VISION, "mlp_ratio": 2}),
    ("clip", "AutoModelForZeroShotImageClassification",
     {"text_config": _TEXT, "vision_config": _VISION, "projection_dim": 32}),
    ("llava", SIGHTED, {"text_config": {"model_type": "llama", **_TEXT},
                        "vision_config": {"model_type": "clip_vision_model", **_VISION}}),
    ("qwen2_vl", SIGHTED, {"text_config": {**_TEXT, "rope_parameters":
                           {"rope_type": "default", "mrope_section": [1, 1, 2],
                            "rope_theta": 10000.0}},
                           "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 32,
                                             "num_heads": 4, "mlp_ratio": 2}}),
    ("wav2vec2", "AutoModelForCTC", _SPEECH),
)  # fmt: skip
_OWN_WIDTHS = {"vit", "dinov2", "clip", "llava", "gemma3", "qwen2_vl", "wav2vec2"}


class SmallType:
    """One geometry of one type: built once, copied for each injection."""

    def __init__(self, model_type: str, auto_class: str, changes: dict[str, Any]) -> None:
        widths = {} if model_type in _OWN_WIDTHS else _WIDTHS
        if model_type == "falcon":  # computes it
            widths = {k: v for k, v in widths.items() if k != "head_dim"}
        config = {"model_type": model_type, **widths, **changes}
        self.label = f"{model_type}-{auto_class.removeprefix('AutoModelFor')}"
        self.model_type = model_type
        self._network = Model(self.label, config, auto_class).build().to("meta")
        self.table: ModuleTable = read_table(self._network)

    def build(self) -> nn.Module:
        return copy.deepcopy(self._network)


@cache
def small_types() -> tuple[SmallType, ...]:
    """Every geometry that the installed transformers builds."""
    return tuple(SmallType(*described) for described in _TYPES)


@cache
def small(label: str) -> SmallType:
    """The one of this label."""
    return next(t for t in small_types() if t.label == label)
