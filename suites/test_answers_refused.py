"""Whole answers, word for word: what PEFT refuses, what to write instead, and every hazard.

As in `test_answers.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from answer_models import answer, entries, over, table_of

from bench.adapters.config import AdapterConfig
from bench.targets import match

pytest.importorskip("syrupy", reason="pip install 'lora-target-bench[suites]'")

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
    **{
        f"tied-and-{init}": ("llama-tied", {
            **entries("lm_head", "q_proj"), "ensure_weight_tying": True,
            "rank_pattern": {"lm_head": 2}, "init_lora_weights": init})
        for init in ("pissa", "olora", "orthogonal", "gaussian")
    },
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
    "wrappers-of-two-towers": ("two-towers", entries("q", "v")),
    "wrappers-of-two-towers-alone": ("two-towers", entries("sight.layers.0.q", "sound.layers.0.q")),
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
    "part-held-out-by-number": ("llava", {
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
