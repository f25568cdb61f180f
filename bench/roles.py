"""Roles: what a projection does, whatever its name is on an architecture."""

from __future__ import annotations

import re

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
}

# A fused projection does the work of several roles at once.
FUSED: dict[str, tuple[str, ...]] = {
    QUERY_KEY_VALUE: (QUERY, KEY, VALUE),
    KEY_VALUE: (KEY, VALUE),
    GATE_UP: (GATE, UP),
}

# How libraries name each role: the end of a module's name. The first rule that fits decides, so
# names that need their parent to be understood come before bare ones.
_RULES: tuple[tuple[str, str], ...] = (
    (r"pooler(\.dense|\.activation)?", "pooler"),
    (r"classifier\.dense|pre_classifier", "dense_head"),
    (r"lm_head|embed_out|score|qa_outputs|classifier(\.out_proj)?|output_layer", HEAD),
    (r"project_in", "projection_in"),
    (r"project_out", "projection_out"),
    (r"(embed_positions|wpe|position_embeddings?|token_type_embeddings)", "position_embedding"),
    (r"relative_attention_bias", "position_embedding"),
    (r"embed_tokens|wte|word_embeddings|shared|tok_embeddings|patch_embeddings\.projection",
     EMBEDDING),
    (r"qkv(_proj)?|query_key_value|c_attn|Wqkv|in_proj_qkv|qkv_linear|att_proj", QUERY_KEY_VALUE),
    (r"kv(_proj)?|key_value|c_kv|to_kv|kv_a_proj_with_mqa|kv_b_proj", KEY_VALUE),
    (r"(mlp|moe|block_sparse_moe|feed_forward|ffn)\.(gate|router)(\.(weight|wg|classifier))?",
     ROUTER),
    (r"router(\.(layer|weight|classifier|proj))?", ROUTER),
    (r"q_proj|query(_proj)?|q|q_lin|wq|to_q|q_attn|linear_q|q_[ab]_proj|Wq", QUERY),
    (r"k_proj|key(_proj)?|k|k_lin|wk|to_k|linear_k|Wk", KEY),
    (r"v_proj|value(_proj)?|v|v_lin|wv|to_v|linear_v|Wv", VALUE),
    (r"(attention|attn|self_attn|self_attention)\.(wo|c_proj|dense|output|proj|output\.dense)",
     OUTPUT),
    (r"o_proj|out_proj|o|out_lin|to_out(\.0)?|Wo|linear_out|attention_output", OUTPUT),
    (r"(gate_up_proj|gate_and_up_proj|Wi|gate_up|fc_gate_up)", GATE_UP),
    (r"gate_proj|w1|wi_0|gate|linear_gate", GATE),
    (r"up_proj|w3|wi_1|wi|fc1|fc_in|c_fc|lin1|dense_h_to_4h|intermediate\.dense|linear1", UP),
    (r"down_proj|w2|wo|fc2|fc_out|mlp\.c_proj|c_proj|lin2|dense_4h_to_h|output\.dense|linear2",
     DOWN),
)  # fmt: skip
_COMPILED = tuple((re.compile(rf"(?:.*\.)?(?:{pattern})"), role) for pattern, role in _RULES)


def role_of(name: str) -> str:
    """The role that a module's (or expert parameter's) name tells; UNKNOWN where it tells none."""
    for pattern, role in _COMPILED:
        if pattern.fullmatch(name):
            return role
    return UNKNOWN


def serves(role: str, wanted: str) -> bool:
    """Whether a projection of `role` does the work of `wanted`, alone or fused with others."""
    return role == wanted or wanted in FUSED.get(role, ())


def check_role(name: str, where: str) -> str:
    """`name` itself; UnknownName, naming `where`, if there is no such role."""
    if name not in ROLES:
        raise UnknownName(f"role in {where}:", name, ROLES)
    return name
