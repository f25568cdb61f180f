"""Whole answers, word for word: why an entry reaches nothing, what has no effect, what PEFT
refuses, what to write instead, and every hazard.

Each was read against the model's own names when it was stored; that the counts are PEFT's, and that
what is offered works, is held elsewhere. `pytest suites/test_answers.py --snapshot-update` accepts
a change of wording.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from answer_models import table_of

from bench.adapters.config import AdapterConfig
from bench.targets import Ledger, match

pytest.importorskip("syrupy", reason="pip install 'lora-target-bench[suites]'")


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
REFUSED = {
    "nothing": ("llama", entries("zz")),
    "no-default": ("bamba", {}),
    "no-default-at-all": ("kinds", {}),
    "default": ("llama", {}),
    "default-expression": ("gemma4", {}),
    "does-not-generate": ("llama-classes", {**entries("q_proj"), "task_type": "CAUSAL_LM"}),
    "does-not-generate-pairs": ("bert", {**entries("query"), "task_type": "SEQ_2_SEQ_LM"}),
    "one-of-two-experts": ("mixtral", entries("q_proj", "w3", "w2")),
    "other-of-two-experts": ("mixtral", entries("w1")),
    "nothing-to-tie": ("llama-tied", {**entries("lm_head", "q_proj"), "ensure_weight_tying": True,
                                      "exclude_modules": ["embed_tokens"]}),
    "tied": ("llama-tied", {**entries("lm_head", "q_proj"), "ensure_weight_tying": True}),
    **{
        f"tied-of-another-rank-{name}": ("llama-tied", {
            **entries("lm_head", "q_proj"), "ensure_weight_tying": True, "rank_pattern": {name: 2}})
        for name in ("lm_head", "embed_tokens", "q_proj")
    },
    "tied-and-cut-from-the-weight": ("llama-tied", {
        **entries("lm_head", "q_proj"), "ensure_weight_tying": True, "rank_pattern": {"lm_head": 2},
        "init_lora_weights": "pissa"}),
    "untied-of-another-rank": ("llama", {**entries("lm_head", "q_proj"),
                                         "rank_pattern": {"embed_tokens": 2}}),
    "tied-saved": ("llama-tied", {**entries("q_proj"), "ensure_weight_tying": True,
                                  "modules_to_save": ["lm_head"]}),
    "tied-as-a-string": ("llama-tied", {"target_modules": "lm_head|.*q_proj",
                                        "ensure_weight_tying": True}),
    "untied": ("llama-tied", {**entries("embed_tokens", "q_proj"), "modules_to_save": ["lm_head"]}),
    "saved-and-adapted": ("llama", {"target_modules": "all-linear", "task_type": "TOKEN_CLS",
                                    "modules_to_save": []}),
    "saved-list": ("llama", {**entries("q_proj"), "modules_to_save": ["layers"]}),
    "saved-part": ("llama", {**entries("q_proj"), "modules_to_save": ["lora_A"]}),
    "saved-part-of-an-embedding": ("llama", {**entries("embed_tokens"), "modules_to_save": [
        "lora_embedding_A.default"]}),
    "saved-part-of-a-saved-one": ("llama-classes", {
        **entries("q_proj"), "modules_to_save": ["save"], "task_type": "SEQ_CLS"}),
    "saved-part-of-base": ("llama", {**entries("q_proj"), "modules_to_save": ["default"]}),
    "saved-under-its-weight": ("llama", {**entries("k_proj"), "modules_to_save": ["up_proj"],
                                         "target_parameters": ["up_proj.weight"]}),
    "twice": ("llama", {**entries("q_proj"), "target_parameters": ["q_proj.weight"]}),
    "within-a-wrapped-one": ("llama", {"target_modules": [], "target_parameters": [
        "embed_tokens.weight", "norm.weight", "q_proj.weight"]}),
    "saved-and-adapted-later": ("bert", {**entries("query", "classifier"),
                                         "task_type": "TOKEN_CLS"}),
    "saved-base-layer": ("llama", {**entries("q_proj"), "modules_to_save": ["base_layer"]}),
    "saved-within-an-adapted-one": ("kinds", {**entries("mixer"), "modules_to_save": ["out_proj"]}),
    "saved-within-saved": ("llama", {**entries("q_proj", "up_proj"), "modules_to_save": [
        "yers.0", "layers.0.mlp", "o_proj"]}),
    "tokens-and-saved-by-name": ("llama", {
        **entries("q_proj"), "trainable_token_indices": {"embed_tokens": [1]},
        "modules_to_save": ["embed_tokens"]}),
    "tokens-and-saved-around": ("llama-bare", {
        **entries("q_proj"), "trainable_token_indices": [1], "modules_to_save": ["embed_tokens"]}),
    "tokens-without-an-embedding": ("kinds", {**entries("dense"), "trainable_token_indices": [1]}),
    "tokens-of-a-head-beyond": ("llama", {**entries("q_proj"), "trainable_token_indices":
                                          {"lm_head": [24]}}),
    "tokens-around-a-tied-head": ("bert-words", {
        **entries("query"), "ensure_weight_tying": True,
        "trainable_token_indices": {"word_embeddings": [1], "predictions": [2]}}),
    "tokens-of-both": ("llama-tied", {**entries("q_proj", "lm_head"), "trainable_token_indices":
                                      {"embed_tokens": [1], "lm_head": [1]}}),
    "tokens-beyond": ("llama", {**entries("q_proj"), "trainable_token_indices": [3, 24]}),
    "tokens-last": ("llama", {**entries("q_proj"), "trainable_token_indices": [23]}),
    "tokens-of-nothing": ("llama", {**entries("q_proj"), "trainable_token_indices": {"wte": [1]}}),
    "tokens-of-a-container": ("llama", {**entries("q_proj"), "trainable_token_indices":
                                        {"self_attn": [1]}}),
    "tokens-and-saved": ("llama", {**entries("q_proj"), "trainable_token_indices": [1],
                                   "modules_to_save": ["embed_tokens"]}),
    "tokens-and-adapted": ("llama", {**entries("embed_tokens"), "trainable_token_indices": [1]}),
    "tokens-named-and-adapted": ("llama", {**entries("lm_head", "q_proj"),
                                           "trainable_token_indices": {"lm_head": [1]}}),
    "tokens-of-a-tied-head": ("llama-tied", {**entries("lm_head"), "trainable_token_indices": [1]}),
    "tokens-that-differ": ("llama-tied", {
        **entries("q_proj"), "ensure_weight_tying": True,
        "trainable_token_indices": {"embed_tokens": [1], "lm_head": [2]}}),
    "parameters-and-fields": ("llama", {"target_modules": [], "lora_dropout": 0.1,
                                        "target_parameters": ["q_proj.weight"]}),
    "parameters-and-bias": ("llama", {"target_modules": [], "lora_bias": True,
                                      "target_parameters": ["q_proj.weight"]}),
    "parameters-and-dora": ("llama", {"target_modules": [], "use_dora": True,
                                      "target_parameters": ["q_proj.weight"]}),
    "parameters-and-initialisation": ("llama", {"target_modules": [], "init_lora_weights": "loftq",
                                                "target_parameters": ["q_proj.weight"]}),
    **{
        f"parameters-and-{init}": ("llama", {
            "target_modules": [], "init_lora_weights": init,
            "target_parameters": ["q_proj.weight"]})
        for init in ("gaussian", "eva", False)
    },
    "experts-of-a-classifier": ("mixtral-classes", {"target_modules": "all-linear",
                                                    "task_type": "SEQ_CLS"}),
    "wrapped-by-one-name": ("nested", entries("pack")),
    "parameters-and-pissa": ("mixtral", {
        "target_modules": [], "init_lora_weights": "pissa",
        "target_parameters": ["gate.weight", "gate_up_proj"]}),
    "parameters-and-an-odd-rank": ("llama", {
        "target_modules": [], "init_lora_weights": "orthogonal", "r": 3,
        "target_parameters": ["q_proj.weight"]}),
    "parameters-beside-conv1d": ("gpt2", {**entries("c_attn"), "target_parameters":
                                          ["wte.weight"]}),
    "mamba": ("mamba", entries("in_proj", "out_proj", "conv1d")),
    "mamba-all": ("mamba", {"target_modules": "all-linear"}),
    "mamba-all-excluded": ("mamba", {"target_modules": "all-linear",
                                     "exclude_modules": ["x_proj"]}),
    "mamba-expression": ("mamba", {"target_modules": r".*(in|out)_proj", "exclude_modules": "x"}),
    "mamba-parameters": ("mamba", {"target_modules": "all-linear", "target_parameters": [
        "in_proj.weight", "conv1d.weight", "mixer.D"]}),
    "mamba-parameter": ("mamba", {**entries("in_proj"), "target_parameters": ["out_proj.weight"]}),
    "containers": ("llama", entries("q_proj", "mlp", "self_attn")),
    "containers-alone": ("llama", entries("layers.1", "layers.2")),
    "layers-by-number": ("llama", entries("0", "2", "q_proj")),
    "containers-of-experts": ("mixtral", entries("experts", "q_proj")),
    "containers-of-all-in-moe": ("qwen-moe", entries("mlp", "q_proj")),
    "containers-alone-in-moe": ("mixtral", entries("mlp")),
    "norms": ("llama", entries("norm", "q_proj")),
    "norms-alone": ("llama", entries("input_layernorm")),
    "mixed-entry": ("bert", entries("output", "query")),
    "tower": ("llava", entries("vision_tower")),
    "tower-and-names": ("llava", entries("vision_tower", "q_proj")),
    "expression-of-containers": ("llama", {"target_modules": ".*self_attn.*"}),
    "expression-of-everything": ("llama-bare", {"target_modules": ".*"}),
    "expression-of-norms": ("llama", {"target_modules": ".*norm"}),
    "shared-name": ("nested", entries("mix")),
    "shared-names": ("nested", entries("mix", "wrap", "up")),
    "shared-name-told-by-numbers": ("nested", entries("fc")),
    "shared-numbers": ("nested", entries("0", "2", "1")),
    "shared-number-and-name": ("nested", entries("layers.0", "mlp.2")),
    "expression-told-by-numbers": ("nested", {"target_modules": r".*\.fc"}),
    "expression-of-shared-names": ("nested", {"target_modules": r".*\.(mix|wrap)"}),
    "wrapped-unlike": ("nested", entries("second.wrap", "third.wrap")),
    "wrappers": ("gemma4", entries("q_proj", "up_proj")),
    "wrappers-of-a-tower": ("gemma4", entries("patch_embedder", "self_attn.v_proj")),
    "wrappers-alone": ("gemma4", entries("encoder.layers.0.self_attn.o_proj")),
    "quantized-head": ("distilbert@nf4", {**entries("q_lin"), "task_type": "SEQ_CLS"}),
    "quantized-base-layer": ("distilbert@nf4", {**entries("q_lin"),
                                                "modules_to_save": ["base_layer"]}),
    "quantized-container": ("distilbert@int8", {**entries("q_lin"), "modules_to_save": ["ffn"]}),
    "long-list": ("llama", entries(*(f"model.layers.{n}.self_attn.{p}_proj"
                                     for n in range(4) for p in "qkvo"),
                                   *(f"model.layers.{n}.mlp" for n in range(4)))),
}  # fmt: skip
HAZARDS = {
    "head": ("bert", entries("query")),
    "heads": ("distilbert", entries("q_lin")),
    "head-saved": ("distilbert", {**entries("q_lin"), "modules_to_save": ["classifier"]}),
    "head-of-another-task": ("bert", {**entries("query"), "task_type": "QUESTION_ANS"}),
    "head-of-spans": ("distilbert-spans", entries("q_lin")),
    "head-adapted": ("bert", entries("query", "classifier")),
    "head-of-words": ("bert-words", entries("query")),
    "head-of-images": ("vit", entries("q_proj")),
    "head-of-tokens": ("llama-classes", {**entries("q_proj"), "task_type": "TOKEN_CLS"}),
    "tied": ("llama-tied", entries("embed_tokens", "q_proj")),
    "tied-both": ("llama-tied", {**entries("q_proj"), "modules_to_save": ["embed_tokens",
                                                                         "lm_head"]}),
    "router": ("mixtral", entries("q_proj", "gate")),
    "router-of-qwen": ("qwen-moe", entries("q_proj", "gate")),
    "doubled": ("mixtral", entries("w1", "w2", "w3")),
    "experts": ("mixtral", entries("q_proj", "k_proj", "v_proj", "o_proj")),
    "experts-of-qwen": ("qwen-moe", entries("q_proj", "up_proj")),
    "some-experts": ("mixtral", {**entries("q_proj"), "target_parameters": ["down_proj"]}),
    "experts-saved": ("mixtral", {**entries("q_proj"), "modules_to_save": ["experts"]}),
    "parameters": ("xlnet", entries("layer_1")),
    "parameters-some": ("xlnet", {**entries("layer_1"), "target_parameters": ["rel_attn.q"]}),
    "towers": ("llava", entries("q_proj", "v_proj")),
    "towers-all": ("llava", {"target_modules": "all-linear"}),
    "towers-alone": ("llava", {"target_modules": r".*vision_tower.*q_proj"}),
    "towers-beside-an-exclusion": ("llava", {**entries("q_proj", "up_proj"),
                                             "exclude_modules": ["up_proj", "x.y"]}),
    "towers-beside-an-expression": ("llava", {**entries("q_proj", "up_proj"),
                                              "exclude_modules": r".*\.up_proj"}),
    "towers-left-out": ("llava", {**entries("q_proj"),
                                  "exclude_modules": r"model\.vision_tower(\..*)?"}),
    "part": ("bamba", entries("q_proj")),
    "part-of-two": ("bamba", entries("q_proj", "v_proj", "zz")),
    "part-of-both": ("bamba", entries("q_proj", "in_proj")),
    "part-by-number": ("bamba", entries("layers.1.self_attn.q_proj")),
    "part-beside-a-number": ("bamba", entries("layers.1.self_attn.k_proj", "q_proj")),
    "part-of-the-second-stack": ("llava", {
        **entries("q_proj"), "exclude_modules": ["language_model.layers.0.self_attn.q_proj"]}),
    "part-on-purpose": ("bamba", {**entries("q_proj"), "layers_to_transform": [1]}),
    "part-and-containers": ("bamba", {"target_modules": r".*\.2\..*_proj"}),
    "kinds": ("kinds", entries("dense", "conv")),
    "kinds-of-one-name": ("kinds", entries("proj", "last", "dense")),
    "low": ("llama", {"target_modules": r"model\.layers\.1\.self_attn\.k_proj"}),
}  # fmt: skip


_ON_A, _ON_B = {"target_modules_bd_a": ["e"]}, {"target_modules_bd_b": ["e"]}
# One layer, and what PEFT does not do to it: A variant or an initialisation that it has not.
LAYERS: dict[str, dict[str, Any]] = {
    "dora-on-attention": {"use_dora": True, **entries("mixer")},
    "dora": {"use_dora": True, **entries("rows", "conv", "dense", "crossed")},
    "bias-on-an-embedding": {"lora_bias": True, **entries("rows")},
    "bias-and-an-initialisation": {"lora_bias": True, "init_lora_weights": "gaussian",
                                   **entries("dense")},
    "bias-without-one": {"lora_bias": True, "init_lora_weights": False, **entries("dense")},
    "kasa-on-conv1d": {"kasa_config": {}, "r": 2, **entries("crossed")},
    "kasa-of-too-many-ranks": {"kasa_config": {}, "r": 5, **entries("dense")},
    "kasa-of-most-ranks": {"kasa_config": {}, "r": 4, **entries("dense")},
    "monteclora-on-a-convolution": {"monteclora_config": {}, **entries("conv")},
    "velora-on-an-embedding": {"velora_config": {}, **entries("rows")},
    "tokens-on-an-embedding": {"alora_invocation_tokens": [1], **entries("rows")},
    "variants-on-linear-layers": {"velora_config": {}, **entries("dense", "crossed")},
    "groups": {"r": 3, **entries("conv")},
    "groups-that-divide": {"r": 4, **entries("conv")},
    "gaussian-on-a-convolution": {"init_lora_weights": "gaussian", **entries("conv")},
    "pissa-on-a-convolution": {"init_lora_weights": "pissa", **entries("conv")},
    "lora-ga-on-a-convolution": {"init_lora_weights": "lora_ga", "r": 2, **entries("conv")},
    "pissa-on-attention": {"init_lora_weights": "pissa_niter_4", **entries("mixer")},
    "orthogonal-on-attention": {"init_lora_weights": "orthogonal", "r": 3, **entries("mixer")},
    "orthogonal-of-an-odd-rank": {"init_lora_weights": "orthogonal", "r": 3, **entries("dense")},
    "orthogonal-on-an-embedding": {"init_lora_weights": "orthogonal", "r": 3, **entries("rows")},
    "mica-of-too-many-ranks": {"init_lora_weights": "mica", "r": 6, **entries("crossed")},
    "mica-of-most-ranks": {"init_lora_weights": "mica", "r": 5, **entries("crossed")},
    "mica-on-a-convolution": {"init_lora_weights": "mica", "r": 2, **entries("conv")},
    "olora-and-dora": {"init_lora_weights": "olora", "use_dora": True, **entries("crossed")},
    "olora-and-dora-on-a-square": {"init_lora_weights": "olora", "use_dora": True,
                                   **entries("square")},
    "olora-and-dora-on-a-linear-layer": {"init_lora_weights": "olora", "use_dora": True,
                                         **entries("dense")},
    "blocks-on-conv1d": {"use_bdlora": _ON_A, **entries("crossed")},
    "blocks-in-neither-list": {"use_bdlora": {"target_modules_bd_a": ["x"]}, **entries("dense")},
    "blocks-in-neither-list-and-allowed": {
        "use_bdlora": {"target_modules_bd_a": ["x"], "match_strict": False}, **entries("dense")},
    "blocks-of-a": {"use_bdlora": {**_ON_A, "nblocks": 5}, "r": 5, **entries("dense")},
    "blocks-of-a-that-do-not-divide": {"use_bdlora": {**_ON_A, "nblocks": 7}, "r": 7,
                                       **entries("dense")},
    "blocks-of-b": {"use_bdlora": {**_ON_B, "nblocks": 7}, "r": 7, **entries("dense")},
    "blocks-of-b-that-do-not-divide": {"use_bdlora": {**_ON_B, "nblocks": 5}, "r": 5,
                                       **entries("dense")},
    "blocks-that-do-not-divide-the-rank": {"use_bdlora": {**_ON_A, "nblocks": 5}, "r": 4,
                                           **entries("dense")},
    "one-block": {"use_bdlora": _ON_A, **entries("dense")},
    "blocks-in-both-lists": {"use_bdlora": {**_ON_A, **_ON_B}, **entries("dense")},
    "other": entries("norm", "dense"),
    "other-alone": entries("norm"),
    "other-container": entries("one"),
}  # fmt: skip


def answer(label: str, fields: dict[str, Any]) -> str:
    return told(match(table_of(label), AdapterConfig.from_dict(fields)))


def over(cases: dict[str, Any]) -> Any:
    return pytest.mark.parametrize(("label", "given"), cases.values(), ids=cases)


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


@over(REFUSED)
def test_refusals(label: str, given: dict[str, Any], snapshot: Any) -> None:
    assert answer(label, given) == snapshot


@over(HAZARDS)
def test_hazards(label: str, given: dict[str, Any], snapshot: Any) -> None:
    assert answer(label, given) == snapshot


@pytest.mark.parametrize("given", LAYERS.values(), ids=LAYERS)
def test_layers(given: dict[str, Any], snapshot: Any) -> None:
    assert answer("kinds", given) == snapshot


def test_an_expression_is_held_to_the_projections_of_a_shared_name() -> None:
    """What is offered adapts the two that are linear, and is not refused."""
    refused = match(table_of("nested"), AdapterConfig(r".*\.(mix|wrap)"))
    (way,) = refused.ways_out
    offered = match(table_of("nested"), AdapterConfig(way.partition(": write ")[2]))
    assert [a.name for a in offered.adapted] == ["first.mix", "first.wrap"]
    assert offered.refusals == ()


def test_an_embedding_that_peft_cannot_find() -> None:
    table = replace(table_of("llama"), ties_unknown=True)
    assert match(table, AdapterConfig(("q_proj",))).refusals == (
        "PEFT cannot find the input embedding that LlamaForCausalLM ties to",
    )
