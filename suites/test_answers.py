"""Whole answers, word for word: why an entry reaches nothing, what to write instead, and what has
no effect. What PEFT refuses, and hazards: `test_answers_refused.py`.

Each was read against the model's own names when it was stored; that the counts are PEFT's, and that
what is offered works, is held elsewhere. `pytest suites/test_answers.py --snapshot-update` accepts
a change of wording.
"""

from __future__ import annotations

from typing import Any

import pytest
from answer_models import answer, entries, over

pytest.importorskip("syrupy", reason="pip install 'lora-target-bench[suites]'")

# What was written → the model and the configuration.
LISTED = {
    "everything": ("llama", entries("All-Linear", "*", ".*", "**", "all_linear", "Linears")),
    "brackets": ("llama", entries("[q_proj]", "('k_proj')", '"v_proj" ', "[mlp]", "[nothing]",
                                  "X[q_proj]")),
    "stars": ("llama", entries("*_proj", "model.layers.*.q_proj", "*.k_proj", "q_proj*", "mlp*",
                               "*.Xq_proj")),
    "expressions": ("llama", entries(
        r".*\.q_proj", r"model\.layers\.\d+\.self_attn\.k_proj", "^.*v_proj$", "(o|up)_proj",
        r"layers\.[01]\..*", r".*\.self_attn\..*", "(", "?x", "nothing.*at.*all",
        "x+.self_attn.q_proj",
    )),
    "anchors": ("llama", entries("^(q|k)_proj$", ".*k_proj$", "*.self_attn.*.v_proj$", "^q_proj",
                                 "*.k_proj$")),
    "tensors": ("llama", entries(
        "q_proj.weight", "k_proj.base_layer.weight", "v_proj.lora_A.default.weight",
        "mlp.weight", ".weight", "weight", "nothing.bias", "o_proj.bias", "up_proj.lora_B",
        "model.model.layers.1.mlp.gate_proj.weight",
    )),
    "moved": ("llama", entries(
        "transformer.layers.1.self_attn.v_proj", "decoder.self_attn.q_proj", "x.mlp.down_proj",
        "x.0.down_proj", "base_model.model.lm_head", "encoder.nothing",
    )),
    "moved-by-number": ("nested", entries("x.twins.1.fc", "x.twins.fc")),
    "moved-stacks": ("llava", entries(
        "language_model.model.layers.0.self_attn.q_proj", "vision_model.layers.1.self_attn.k_proj",
        "language_model.lm_head", "x.multi_modal_projector.linear_1", "x.self_attn.v_proj",
        "text_model.x.mlp.up_proj",
    )),
    "renamed": ("vit", entries("query", "attention.attention.value",
                               "vit.encoder.layer.1.attention.attention.key",
                               "encoder.layer.0.output.dense", "intermediate.dense")),
    "renamed-and-listed-already": ("vit", entries("q_proj", "query", "value")),
    "renamed-experts": ("mixtral", entries(
        "q_proj", "block_sparse_moe.gate", "layers.1.block_sparse_moe.experts.0.w1.x",
    )),
    "renamed-experts-of-qwen": ("qwen-moe", entries(
        "q_proj", "model.layers.1.mlp.experts.0.gate_proj", "experts.1.down_proj", "gate_up",
    )),
    "renamed-experts-by-number": ("qwen2-moe", entries(
        "q_proj", "model.layers.1.mlp.experts.0.gate_proj", "layers.2.mlp.experts.1.down_proj",
        "experts.0.up_proj", "mlp.experts",
    )),
    "renamed-in-nested-layers": ("segformer", entries(
        "segformer.encoder.block.1.1.attention.self.query", "block.1.0.attention.self.key",
        "attention.self.value", "query", "attention.output.dense", "self.sr",
    )),
    "work": ("llama", entries("query", "c_attn", "fc1", "fc2", "dense", "wte", "Wqkv", "w1")),
    "work-of-conv1d": ("gpt2", entries("q_proj", "o_proj", "up_proj", "down_proj", "c_att")),
    "work-of-experts": ("qwen-moe", entries("fc1", "w1", "w2", "gate", "gate_up_prj")),
    "work-of-bert": ("bert", entries("q_proj", "o_proj", "down_proj", "up_proj", "denze")),
    "work-of-t5": ("t5", entries("q_proj", "o_proj", "fc1", "down_proj", "gate_proj")),
    "work-of-parameters": ("xlnet", entries("q_proj", "k_proj", "o_proj", "fc1", "layer_3")),
    "two-meanings": ("llama", entries("wo")),
    "two-meanings-of-llama": ("llama", entries("wq", "w2", "wo")),
    "two-meanings-of-t5": ("llama", entries("wi", "wo")),
    "listed-already": ("llama", entries("q_proj", "k_proj", "v_proj", "Wqkv", "qkv", "fc1",
                                        "gate_up_proj", "up_proj")),
    "near": ("llama", entries("vv_proj", "lm_haed", "self_attn.qproj", "Q_PROJ", "mlpp", "zzz")),
    "held-back": ("llama", {
        **entries("q_proj", "k_proj", "lm_head", "up_proj"),
        "exclude_modules": ["layers.0.self_attn.q_proj", "k_proj"], "modules_to_save": ["layers.1"],
        "layers_to_transform": [0],
    }),
    "held-back-everywhere": ("llama", {
        **entries("q_proj", "v_proj", "o_proj"), "exclude_modules": r".*\.0\..*",
        "modules_to_save": ["layers.1", "o_proj"], "layers_to_transform": [7],
    }),
    "held-back-as-a-string": ("llama", {"target_modules": r".*\.q_proj",
                                        "exclude_modules": r".*q_proj"}),
    "head-of-the-task": ("llama-classes", {**entries("score", "q_proj"), "task_type": "SEQ_CLS"}),
    "no-layer-number": ("llama-bare", {
        **entries("q_proj", "embed_tokens"), "layers_to_transform": [0],
    }),
    "no-layer-around": ("llama", {**entries("embed_tokens"), "layers_to_transform": [0]}),
    "no-layer-of-that-name": ("llama", {
        **entries("q_proj"), "layers_to_transform": [0], "layers_pattern": "h",
    }),
}  # fmt: skip
AS_STRINGS = {
    "name": ("llama", "q_proj"),
    "names-or": ("llama", "q_proj|k_proj"),
    "names-in-a-group": ("llama", "(q_proj|k_proj)"),
    "anchored": ("llama", "^q_proj"),
    "dotted": ("llama", r"\.q_proj"),
    "part-of-a-name": ("llama", "self_attn"),
    "commas-and-more": ("llama", "Xq_proj,v_proj"),
    "commas": ("llama", "q_proj,v_proj"),
    "spaces": ("llama", " q_proj  v_proj "),
    "semicolons": ("llama", "q_proj;v_proj"),
    "list-as-text": ("llama", "['q_proj', \"v_proj\"]"),
    "one-in-brackets": ("llama", "[q_proj]"),
    "one-unknown": ("llama", "q_proj,nothing"),
    "container-among": ("llama", "self_attn,q_proj"),
    "mark-among": ("llama", "q_proj,v_*,k+"),
    "mark-and-brackets": ("llama", "q_proj,(v)"),
    "mark-alone": ("llama", "x*,y"),
    "all": ("llama", "all"),
    "linear-layers": ("llama", "all_linear_layers"),
    "nothing": ("llama", "nothing"),
    "moved": ("llava", r"language_model\.model\.layers\..*q_proj"),
    "moved-anchored": ("llava", r"^language_model.model.layers.\d+.mlp.(up|down)_proj$"),
    "moved-tower": ("llava", r".*vision_tower.vision_model.encoder.layers.*(q_proj|v_proj)"),
    "moved-plain": ("llama", r"transformer\.layers\.\d+\.self_attn\.q_proj"),
    "renamed": ("vit", r".*attention\.attention\.(query|value)"),
    "renamed-from-the-start": ("vit", r"vit\.encoder\.layer\.\d+\.attention\.attention\.query"),
    "renamed-in-nested-layers": ("segformer", r".*block\.\d+\.\d+\.attention\.self\.(query|value)"),
    "renamed-without-a-head": ("vit-bare", ".*query"),
    "renamed-word": ("vit", ".*query"),
    "experts": ("mixtral", r".*\.experts\.(w1|w2|w3)"),
    "an-expert-and-more": ("mixtral", r".*\.(q_proj|w2)"),
    "an-expert-of-two": ("mixtral", r".*\.(q_proj|w1)"),
    "experts-in-a-layer": ("mixtral", r".*\.1\..*w2"),
    "flag": ("llama", "(?i)nothing"),
}
PARAMETERS = {
    "module": ("llama", ["q_proj"]),
    "moved": ("mixtral", ["model.layers.0.block.experts.gate_up_proj", "x.experts.down_proj"]),
    "moved-weight": ("llama", ["x.self_attn.q_proj.weight"]),
    "slip": ("mixtral", ["mlp.experts.gate_up_prj", "gate_up", "zzz"]),
    "module-of-experts": ("mixtral", ["experts", "mlp"]),
    "work": ("mixtral", ["fc1", "w2", "q_proj.x"]),
    "work-of-modules": ("llama", ["fc1", "query", "nothing"]),
    "reached": ("mixtral", ["gate_up_proj", "mlp.experts.down_proj", "gate.weight"]),
}
FIELDS = {
    "patterns": ("llama", {"rank_pattern": {"q_prj": 4, "k_proj": 4, "q_proj": 2},
                           "alpha_pattern": {"zz": 3, "q_proj": 3}}),
    "patterns-of-which-the-last-is-dead": ("llama", {"rank_pattern": {"q_proj": 2, "zz": 1}}),
    "excluded-of-which-the-last-is-dead": ("llama", {
        "exclude_modules": ["layers.0.self_attn.q_proj", "zzz"]}),
    "patterns-without-a-module": ("llama", {"target_modules": ["zz"], "rank_pattern": {"q": 4}}),
    "patterns-of-experts": ("mixtral", {"target_modules": ["w1", "w2", "w3"],
                                        "rank_pattern": {"w1": 4, "experts.w2": 3}}),
    "saved": ("llama", {"modules_to_save": ["lmhead", "norm", "zzz", "model.nrm"]}),
    "heads": ("bert", {"modules_to_save": ["score", "classifier", "scores"],
                       "target_modules": ["query"], "task_type": "SEQ_CLS"}),
    "excluded": ("llama", {"exclude_modules": ["foo", "q_prj", "lm_head", "self_attn",
                                               "layers.0.self", "k_proj"]}),
    "excluded-as-a-string": ("llama", {"exclude_modules": "^self_attn$"}),
    "excluded-as-a-string-without-any": ("llama", {"exclude_modules": ".*zzz"}),
    "excluded-parameters": ("mixtral", {
        "target_modules": ["q_proj"], "target_parameters": ["gate_up_proj"],
        "exclude_modules": ["experts", "gate_up_proj"],
    }),
    "excluded-beside": ("llama", {"exclude_modules": ["mlp", "q_proj"],
                                  "target_modules": ["q_proj", "up_proj"]}),
    "layers": ("llama", {"layers_to_transform": [0, 3, 4, 77], "exclude_modules": r".*\.3\..*"}),
    "layers-without-numbers": ("llama-bare", {"layers_to_transform": [1, 9],
                                              "layers_pattern": ["layers", "h"]}),
    "layers-of-another-name": ("llama", {"layers_to_transform": [1], "layers_pattern": "blocks"}),
    "layers-after-a-pattern": ("llama", {"layers_to_transform": [1], "layers_pattern": ["layers",
                                                                                       "layer"]}),
    "ignored": ("llama", {"loftq_config": {"loftq_bits": 4}, "eva_config": {"rho": 1.0}}),
}  # fmt: skip


@over(LISTED)
def test_entries_of_a_list(label: str, given: dict[str, Any], snapshot: Any) -> None:
    assert answer(label, given) == snapshot


@over(AS_STRINGS)
def test_a_string(label: str, given: str, snapshot: Any) -> None:
    assert answer(label, {"target_modules": given}) == snapshot


@over(PARAMETERS)
def test_parameters(label: str, given: list[str], snapshot: Any) -> None:
    given_fields = {"target_modules": ["v_proj"], "target_parameters": given}
    assert answer(label, given_fields) == snapshot


@over(FIELDS)
def test_fields_without_effect(label: str, given: dict[str, Any], snapshot: Any) -> None:
    assert answer(label, {"target_modules": ["q_proj"], **given}) == snapshot
