"""Roles: what a projection does, whatever its name is on an architecture."""

from __future__ import annotations

import re
from functools import lru_cache

from bench.errors import UnknownName

QUERY, KEY, VALUE, OUTPUT = "query", "key", "value", "output"
QUERY_KEY_VALUE, KEY_VALUE = "query_key_value", "key_value"
GATE, UP, DOWN, GATE_UP = "gate", "up", "down", "gate_up"
ROUTER, EMBEDDING, HEAD, UNKNOWN = "router", "embedding", "head", "unknown"

ROLES: dict[str, str] = {
    QUERY: "attention query projection",
    KEY: "attention key projection",
    VALUE: "attention value projection",
    OUTPUT: "attention output projection",
    QUERY_KEY_VALUE: "query, key and value fused in one projection",
    KEY_VALUE: "key and value fused in one projection",
    GATE: "gate of a gated feed-forward block",
    UP: "feed-forward projection to the intermediate width",
    DOWN: "feed-forward projection back to the hidden width",
    GATE_UP: "gate and up fused in one projection",
    ROUTER: "router of a mixture of experts",
    EMBEDDING: "token or patch embedding",
    "position_embedding": "learned position or segment embedding",
    HEAD: "language-model head or task classifier",
    "dense_head": "a further dense layer of a task head",
    "pooler": "pooling projection before a task head",
    "projection_in": "projection from the embedding width to the hidden width",
    "projection_out": "projection from the hidden width to the embedding width",
    "query_key": "one projection that serves as query and as key",
    "query_key_value_gate": "query, key, value and the output gate fused in one projection",
    "receptance": "receptance of RWKV's time mixing, in the place of a query",
    "attention_gate": "gate inside attention: on its output, or on keys that it compresses",
    "attention_index": "scores by which sparse attention chooses keys",
    "attention_sink": "a learned share of the attention that goes nowhere",
    "deformable_attention": "offsets and weights of deformable attention's sampling points",
    "relative_position": "projection or bias of relative positions inside attention",
    "recurrence_gate": "decay, input or forget gate of a linear attention or recurrence",
    "state_space_in": "projection into a state-space or recurrent mixer",
    "state_space_gate": "gating branch beside a recurrent mixer",
    "state_space_parameters": "projection to a state space's input-dependent step, B and C",
    "state_space_step": "projection to a state space's step width per channel",
    "state_space_out": "projection out of a state-space or recurrent mixer",
    "convolution": "convolution: stem, branch, down- or upsampling",
    "convolution_in": "projection into a short-convolution mixer or branch",
    "convolution_out": "projection out of a short-convolution mixer or branch",
    "expert_gate": "gate of a shared expert, one number a token",
    "per_layer_input": "projection of the embeddings that every layer gets for itself",
    "residual_mix": "mixing of residual streams: hyper-connections, AltUp, LAuReL",
    "block_adapter": "low-rank or bottleneck adapter that belongs to the base model",
    "connector": "projection between the widths of two models or modalities",
    "box_head": "regression of boxes, points or masks",
    "conditioning": "scale and shift by time step, speaker or style",
}

# A fused projection does the work of several roles at once.
FUSED: dict[str, tuple[str, ...]] = {
    QUERY_KEY_VALUE: (QUERY, KEY, VALUE),
    KEY_VALUE: (KEY, VALUE),
    GATE_UP: (GATE, UP),
    "query_key": (QUERY, KEY),
    "query_key_value_gate": (QUERY, KEY, VALUE, "attention_gate"),
}

# How libraries name each role: the end of a module's name. The first rule that fits decides, so
# names that need their parent to be understood come before bare ones.
_RULES: tuple[tuple[str, str], ...] = (
    (r"pooler(\.dense|\.activation)?", "pooler"),
    (r"router(_mlp)?\.\w+|mlp\.gate\.down_proj", ROUTER),
    (r"classifier\.dense|pre_classifier|(lm_head|predictions(\.transform)?)\.dense"
     r"|generator_predictions\.dense", "dense_head"),
    (r"lm_heads?(\.\d+)?(\.decoder)?|embed_out|score|qa_outputs|classifier(\.out_proj)?"
     r"|output_layer|predictions\.decoder|output_projection|generator_lm_head|lm_loss"
     r"|pred_layer\.proj|class_embed(\.\d+)?|class_labels_classifier|enc_score_head"
     r"|enc_out_class_embed\.\d+", HEAD),
    (r"(\w*(bbox|box|point|iou|obj_score|pos)_(embed|head|predictor|prediction_head|score_head)"
     r"|pred_obj_score_head|output_hypernetworks_mlps|mask_embed\w*)(\.\d+)?"
     r"\.(layers\.\d+|proj_in|proj_out)", "box_head"),
    (r"project_in|embeddings_project|embedding_hidden_mapping_in|pre_projection", "projection_in"),
    (r"project_out|post_projection", "projection_out"),
    (r"(embed_positions|wpe|token_type_embeddings|\w*pos(ition)?_embed(ding)?s?(_table)?|pos_emb"
     r"|embed_positions\w*|segment_embeddings?)", "position_embedding"),
    (r"relative_attention_bias", "position_embedding"),
    (r"rel_attn\.(r|seg_embed)|attention\.(r_kernel|seg_embed)|r_proj|relative_k_proj|linear_pos"
     r"|relative_pos_embeddings|relative_position_embedding\.pos_proj|gru_rel_pos_linear"
     r"|continuous_position_bias_mlp\.\d+|pos_(key|query)_proj", "relative_position"),
    (r"embed_tokens|wte|word_embeddings|shared|tok_embeddings|patch_embeddings\.projection",
     EMBEDDING),
    # Parts of a block that hold ordinary names, which mean something else inside of them.
    (r"indexer\..+", "attention_index"),
    (r"(\w+_adapter_list|adapter_modules)\..+", "block_adapter"),
    (r"(\w*hyper_connection\w*|altup|laurel)\..+|altup_\w+(\.\d+)?", "residual_mix"),
    (r"per_layer_(input_gate|projection|model_projection)", "per_layer_input"),
    (r"(multi_?modal_projector|mm_projector|(visual|vision|audio|text)_projection"
     r"|(deepstack_)?mergers?(_list)?(\.\d+)?)(\..+)?|(audio_)?enc_to_dec_proj", "connector"),
    (r"(mamba|mixer)\.in_proj|temporal_block\.linear_x", "state_space_in"),
    (r"(mamba|mixer)\.out_proj|temporal_block\.linear_out", "state_space_out"),
    (r"(mamba|mixer)\.x_proj(_weight)?", "state_space_parameters"),
    (r"(mamba|mixer)\.dt_proj(_weight)?", "state_space_step"),
    (r"temporal_block\.linear_y", "state_space_gate"),
    (r"conv\.in_proj|lconv1d\.linear_start|conv\.pointwise_lin1", "convolution_in"),
    (r"conv\.out_proj|lconv1d\.linear_end|conv\.pointwise_lin2", "convolution_out"),
    (r"in_proj_qkvz", "query_key_value_gate"),
    (r"in_proj_(a|b|ba)|(self_attn|linear_attn)\.[ab]_proj|forget_gate\.f_(a_|b_)?proj"
     r"|[if]gate_preact|rg_lru\.\w+_gate_weight", "recurrence_gate"),
    (r"in_proj_z|g_(a_|b_)?proj|output_gate|ogate_preact|q_gate_proj"
     r"|(self_attn|attn|attention|compressor)\.gate_proj", "attention_gate"),
    (r"sink_proj", "attention_sink"),
    (r"(self_attn|encoder_attn|cross_attn)\.(sampling_offsets|attention_weights)",
     "deformable_attention"),
    (r"shared_expert_gate", "expert_gate"),
    (r"attention\.receptance", "receptance"),
    (r"(attn_norm|norm1)\.linear|adaln_(proj|linear)|shift_proj", "conditioning"),

    (r"qkv(_proj)?|query_key_value|c_attn|Wqkv|in_proj_qkv|qkv_linear|att_proj"
     r"|queries_keys_values", QUERY_KEY_VALUE),
    (r"query_key", "query_key"),
    (r"kv(_proj)?|key_value|c_kv|to_kv|kv_a_proj_with_mqa|kv_b_proj", KEY_VALUE),
    (r"(mlp|moe|block_sparse_moe|feed_forward|ffn)\.(gate|router)(\.(weight|wg|classifier))?",
     ROUTER),
    (r"router(\.weight)?", ROUTER),
    # RWKV's channel mixing and JetMoE's mixture of attention use each other's names.
    (r"feed_forward\.receptance", GATE),
    (r"feed_forward\.key", UP),
    (r"feed_forward\.value", DOWN),
    (r"self_attention\.experts\.input_linear", QUERY),
    (r"self_attention\.experts\.output_linear", OUTPUT),
    (r"q_proj|query(_proj)?|q|q_lin|wq|to_q|q_attn|linear_q|q_[ab]_proj|Wq|project_q"
     r"|projection_query|q_head|(layout_|w2e_|e2w_|e2e_)query|query_global"
     r"|(self_attn_|cross_attn_)?(q|query)_(content|pos|pos_sine)_proj", QUERY),
    (r"k_proj|key(_proj)?|k|k_lin|wk|to_k|linear_k|Wk|project_k|projection_key|k_head|layout_key"
     r"|key_global|(self_attn_|cross_attn_)?(k|key)_(content|pos)_proj", KEY),
    (r"v_proj|value(_proj)?|v|v_lin|wv|to_v|linear_v|Wv|project_v|projection_value|v_head"
     r"|layout_value|value_global|v_proj_(current|delayed)|(self|cross)_attn_value_proj", VALUE),
    (r"(attention|attn|self_attn|self_attention|multi_head_attention|window_attn|channel_attn)"
     r"\.(wo|c_proj|dense|output|proj|output\.dense|projection|projection_layer|post|post_proj)",
     OUTPUT),
    (r"(encoder_attn|self_attn|cross_attn)\.output_proj|layout_output\.dense", OUTPUT),
    (r"(mlp|ffn|ff|feed_forward)\.in_proj", UP),
    (r"(mlp|ffn|ff|feed_forward)\.(out_proj|Wo)", DOWN),
    (r"o_(a_|b_)?proj|out_proj|o|out_lin|to_out(\.0)?|Wo|linear_out|attention_out(put)?", OUTPUT),
    (r"gate_up_proj|gate_and_up_proj|Wi|gate_up|fc_gate_up|\w*(mlp|moe)\.input_linear", GATE_UP),
    (r"gate_proj|w1|wi_0|gate|linear_gate|proj_up_gate|w_in\.w_0", GATE),
    (r"up_proj|w3|wi_1|wi|fc1|fc_in|c_fc|lin1|dense_h_to_4h|intermediate\.dense|linear1"
     r"|linear_fc1|proj_up|w_in\.w_1|(ffn|ff|mlp|feed_forward)\d?\.(0|layer_1|linear_1|dense1"
     r"|proj_in|intermediate(_dense)?|dense\.dense)|(intermediate_query|layout_intermediate)\.dense"
     r"|ffw_layer_1|pwconv1|fc1\.proj|linear_up", UP),
    (r"down_proj|w2|wo|fc2|fc_out|mlp\.c_proj|c_proj|lin2|dense_4h_to_h|output\.dense|linear2"
     r"|\w*(mlp|moe)\.output_linear|linear_fc2|proj_down|w_out|(ffn|ff|mlp|feed_forward)\d?\.(2"
     r"|layer_2|linear_2|dense2|proj_out|output(_dense)?)|output_query\.dense|ffw_layer_2|pwconv2"
     r"|linear_down", DOWN),
)  # fmt: skip
_SEGMENTS = 6  # no rule looks at more of a name
# A wrapper that clips or quantizes keeps its weight in `linear`; experts are parameters.
_COMPILED = tuple(
    (re.compile(rf"(?:.*\.)?(?:{pattern})(?:\.linear)?(?:\.weight)?"), role)
    for pattern, role in _RULES
)


def role_of(name: str) -> str:
    """The role that a module's (or expert parameter's) name tells; UNKNOWN where it tells none."""
    parts = name.split(".")[-_SEGMENTS:]
    # Numbers before the last two segments are a layer's or an expert's, and tell nothing.
    return _role_at_end(".".join("0" if p.isdigit() else p for p in parts[:-2]), *parts[-2:])


@lru_cache(maxsize=1 << 16)
def _role_at_end(*end: str) -> str:
    name = ".".join(filter(None, end))
    return next((role for pattern, role in _COMPILED if pattern.fullmatch(name)), UNKNOWN)


def serves(role: str, wanted: str) -> bool:
    """Whether a projection of `role` does the work of `wanted`, alone or fused with others."""
    return role == wanted or wanted in FUSED.get(role, ())


def check_role(name: str, where: str) -> str:
    """`name` itself; UnknownName, naming `where`, if there is no such role."""
    if name not in ROLES:
        raise UnknownName(f"role in {where}:", name, ROLES)
    return name
