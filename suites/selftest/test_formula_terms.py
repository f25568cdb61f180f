"""Every term of the formulas by hand on one small model.

Llama of width 16 and 24, four layers, two heads of which one holds keys and values, 24 tokens:
q_proj and o_proj are 16 × 16, k_proj and v_proj 8 × 16, gate_proj and up_proj 24 × 16, down_proj
16 × 24, each embedding 24 × 16, and nine norms of 16. So 1,952 in a layer and 8,592 in all.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from answer_models import table_of
from test_dead import LLAMA, MIXTRAL, model

from bench.adapters.config import AdapterConfig
from bench.formulas import lora_parameters
from bench.formulas.methods import method, method_ledger, method_parameters
from bench.formulas.terms import Parameters, Term
from bench.models.modules import ModuleTable
from bench.targets import match

BASE = 4 * (1_920 + 2 * 16) + 2 * 24 * 16 + 16
TWO = ["q_proj", "v_proj"]
PAIR = 4 * (4 * (16 + 16) + 4 * (16 + 8))  # both in four layers, of rank 4
UP = 4 * 4 * (16 + 24)


SMALL: dict[str, dict[str, Any]] = {
    "plain": LLAMA,
    "biased": {**LLAMA, "attention_bias": True},
    "tied": {**LLAMA, "tie_word_embeddings": True},
    "experts": MIXTRAL,
}


@cache
def small(name: str) -> ModuleTable:
    return model(SMALL[name]).table


def term(name: str, trained: int, modules: int, added: int | None = None) -> Term:
    return Term(name, trained, trained if added is None else added, modules)


BD = {"target_modules_bd_a": ["q_proj"], "target_modules_bd_b": ["v_proj"]}
LORA: dict[str, tuple[str, dict[str, Any], list[Term]]] = {
    "lora": ("plain", {}, [term("lora", PAIR, 8)]),
    "rank-pattern": ("plain", {"rank_pattern": {"v_proj": 1}},
                     [term("lora", 4 * (4 * 32 + 24), 8)]),
    "saved": ("plain", {"modules_to_save": ["lm_head", "norm"]},
              [term("lora", PAIR, 8), term("modules_to_save", 24 * 16 + 9 * 16, 10)]),
    "saved-container": ("plain", {"modules_to_save": ["layers.0.mlp"]},
                        [term("lora", PAIR, 8), term("modules_to_save", 3 * 24 * 16, 1)]),
    # An ending that keeps no adapter out: copies of the attention with its adapters, whose
    # originals stay where they are.
    "saved-around-adapters": (
        "plain", {"target_modules": [*TWO, "up_proj"], "modules_to_save": ["elf_attn"]},
        [term("lora", UP, 4), term("modules_to_save", 4 * 768 + PAIR, 4, 4 * 768 + 2 * PAIR)],
    ),
    "saved-around-decomposed": (
        "plain", {"target_modules": [*TWO, "up_proj"], "modules_to_save": ["elf_attn"],
                  "use_dora": True},
        [term("lora", UP, 4), term("modules_to_save", 4 * 768 + PAIR + 4 * 24, 4,
                                   4 * 768 + 2 * (PAIR + 4 * 24)),
         term("dora", 4 * 24, 4)],
    ),
    "tokens": ("plain", {"trainable_token_indices": [1, 2, 3]},
               [term("lora", PAIR, 8), term("trainable_tokens", 3 * 16, 1)]),
    "tokens-tied": ("tied", {"trainable_token_indices": [1, 2, 3]},
                    [term("lora", PAIR, 8), term("trainable_tokens", 3 * 16, 2)]),
    "tokens-of-layers": ("tied", {"trainable_token_indices": {"o_proj": [1]}},
                         [term("lora", PAIR, 8), term("trainable_tokens", 4 * 16, 4)]),
    "tokens-of-both-tied": (
        "tied", {"trainable_token_indices": {"embed_tokens": [1, 2, 3], "lm_head": [1, 2, 3]}},
        [term("lora", PAIR, 8), term("trainable_tokens", 3 * 16, 2)],
    ),
    "bias": ("biased", {"bias": "all"},
             [term("lora", PAIR, 8), term("bias", 4 * (16 + 8 + 8 + 16), 16, 0)]),
    "bias-of-the-adapted": ("biased", {"bias": "lora_only"},
                            [term("lora", PAIR, 8), term("bias", 4 * (16 + 8), 8, 0)]),
    "bias-beside-a-saved-one": (
        "biased", {"bias": "all", "modules_to_save": ["k_proj"]},
        [term("lora", PAIR, 8), term("modules_to_save", 4 * (8 * 16 + 8), 4),
         term("bias", 4 * (16 + 8 + 16), 12, 0)],
    ),
    "dora": ("plain", {"use_dora": True}, [term("lora", PAIR, 8), term("dora", 4 * 24, 8)]),
    "lora-bias": ("plain", {"lora_bias": True},
                  [term("lora", PAIR, 8), term("lora_bias", 4 * 24, 8)]),
    "kasa": ("plain", {"kasa_config": {}}, [term("lora", PAIR, 8), term("kasa", 4 * 8, 8)]),
    "monteclora": ("plain", {"monteclora_config": {}},
                   [term("lora", PAIR, 8), term("monteclora", 8 * (4 + 8), 8)]),
    "monteclora-of-three": ("plain", {"monteclora_config": {"num_samples": 3}},
                            [term("lora", PAIR, 8), term("monteclora", 8 * (4 + 3), 8)]),
    "mica": ("plain", {"init_lora_weights": "mica"}, [term("lora", 8 * 4 * 16, 8, PAIR)]),
    "blocks": ("plain", {"use_bdlora": {**BD, "nblocks": 4}},
               [term("lora", 4 * (16 + 64 + 64 + 8), 8)]),
    "one-block": ("plain", {"use_bdlora": BD}, [term("lora", PAIR, 8)]),
    "blocks-elsewhere": (
        "plain", {"use_bdlora": {"target_modules_bd_a": ["q"], "match_strict": False,
                                 "nblocks": 2}},
        [term("lora", 4 * (32 + 64 + 64 + 32), 8)],
    ),
    "cut-from-the-weight": ("plain", {"r": 12, "init_lora_weights": "pissa_niter_2"},
                            [term("lora", 4 * (12 * 32 + 8 * 24), 8)]),
    "a-weight": ("plain", {"target_modules": [], "target_parameters": ["q_proj.weight"]},
                 [term("lora", 4 * 4 * 32, 4)]),
    "a-weight-of-many-ranks": (
        "plain", {"target_modules": [], "target_parameters": ["q_proj.weight"], "r": 40},
        [term("lora", 4 * 40 * 32, 4)],
    ),
    "experts": (
        "experts", {"target_modules": [], "target_parameters": ["gate_up_proj", "down_proj"]},
        [term("lora", 2 * 2 * 4 * (48 + 16 + 16 + 24), 4)],
    ),
    "tokens-of-none": ("plain", {"trainable_token_indices": []}, [term("lora", PAIR, 8)]),
}  # fmt: skip


@pytest.mark.parametrize(("table", "fields", "terms"), LORA.values(), ids=LORA)
def test_terms_of_lora(table: str, fields: dict, terms: list[Term]) -> None:
    adapter = AdapterConfig.from_dict({"target_modules": TWO, "r": 4, **fields})
    ledger = match(small(table), adapter)
    assert not ledger.refusals
    found = lora_parameters(ledger)
    assert found.terms == tuple(terms)
    assert found.base == sum(p.elements for p in small(table).parameters if not p.same_as)
    assert found.trainable == sum(t.trained for t in terms)
    assert found.total == found.base + sum(t.added for t in terms)
    assert table != "plain" or found.base == BASE == 8_592


LORA_METHOD: dict[str, Any] = {"target_modules": TWO, "r": 4}
METHOD_TERMS: dict[str, tuple[str, dict[str, Any], list[Term]]] = {
    "lora": ("lora", LORA_METHOD, [term("lora", PAIR, 8)]),
    "lora-of-eight": ("lora", {"target_modules": TWO}, [term("lora", 2 * PAIR, 8)]),
    "lora-fa": ("lora-fa", LORA_METHOD, [term("lora-fa", 4 * 4 * 24, 8, PAIR)]),
    "lora-fa-saved": (
        "lora-fa", {**LORA_METHOD, "target_modules": [*TWO, "up_proj"],
                    "modules_to_save": ["elf_attn"]},
        [term("lora-fa", 4 * 4 * 24, 4, UP),
         term("modules_to_save", 4 * 768 + 4 * 4 * 24, 4, 4 * 768 + 2 * PAIR)],
    ),
    "adalora": ("adalora", {"target_modules": TWO, "init_r": 4},
                [term("adalora", PAIR + 8 * 4, 8, PAIR + 8 * 4 + 8)]),
    "loha": ("loha", LORA_METHOD, [term("loha", 2 * PAIR, 8)]),
    # 16 = 4 · 4 and 8 = 2 · 4: rank 1 leaves the second product decomposed, rank 4 does not.
    "lokr": ("lokr", {**LORA_METHOD, "r": 1}, [term("lokr", 4 * (16 + 8 + 8 + 8), 8)]),
    "lokr-whole": ("lokr", LORA_METHOD, [term("lokr", 4 * (16 + 16 + 8 + 16), 8)]),
    "lokr-half": ("lokr", {**LORA_METHOD, "r": 2}, [term("lokr", 4 * (16 + 16 + 8 + 16), 8)]),
    "lokr-both": ("lokr", {**LORA_METHOD, "r": 1, "decompose_both": True},
                  [term("lokr", 4 * (8 + 8 + 6 + 8), 8)]),
    "lokr-both-whole": ("lokr", {**LORA_METHOD, "r": 3, "decompose_both": True},
                        [term("lokr", 4 * (16 + 16 + 8 + 16), 8)]),
    "vera": ("vera", LORA_METHOD, [term("vera", 4 * (20 + 12), 8)]),
    "oft": ("oft", {"target_modules": TWO, "oft_block_size": 8},
            [term("oft", 8 * 2 * 28, 8)]),
    "oft-shared": ("oft", {"target_modules": TWO, "oft_block_size": 8, "block_share": True},
                   [term("oft", 8 * 28, 8)]),
    "oft-by-blocks": ("oft", {"target_modules": TWO, "oft_block_size": 0, "r": 4},
                      [term("oft", 8 * 4 * 6, 8)]),
    "oft-nearest-divisor": ("oft", {"target_modules": TWO, "oft_block_size": 6},
                            [term("oft", 8 * 4 * 6, 8)]),  # 4 and 8 are as near: the lower
    "oft-wider": ("oft", {"target_modules": TWO, "oft_block_size": 17}, [term("oft", 8 * 120, 8)]),
    "boft": ("boft", {"target_modules": TWO}, [term("boft", 4 * (64 + 16 + 64 + 8), 8)]),
    "boft-by-blocks": ("boft", {"target_modules": TWO, "boft_block_size": 0, "boft_block_num": 2},
                       [term("boft", 4 * (128 + 16 + 128 + 8), 8)]),
    "fourierft": ("fourierft", {"target_modules": TWO, "n_frequency": 128},
                  [term("fourierft", 8 * 128, 8)]),
    "ia3": ("ia3", {"target_modules": ["k_proj", "down_proj"],
                    "feedforward_modules": ["down_proj"]}, [term("ia3", 4 * (8 + 24), 8)]),
    "ia3-by-an-expression": ("ia3", {"target_modules": ["k_proj", "down_proj"],
                                     "feedforward_modules": ".*down_proj"},
                             [term("ia3", 4 * (8 + 24), 8)]),
    "ia3-without": ("ia3", {"target_modules": ["k_proj", "down_proj"],
                            "feedforward_modules": []}, [term("ia3", 4 * (8 + 16), 8)]),
    "ia3-defaults": ("ia3", {}, [term("ia3", 4 * (8 + 8 + 24), 12)]),
    "ln-tuning": ("ln-tuning", {}, [term("ln-tuning", 9 * 16, 9)]),
    "trainable-tokens": ("trainable-tokens", {"token_indices": [0, 23]},
                         [term("trainable-tokens", 2 * 16, 1)]),
    "trainable-tokens-of-a-head": (
        "trainable-tokens", {"token_indices": [0, 23], "target_modules": ["lm_head"]},
        [term("trainable-tokens", 2 * 16, 1)],
    ),
    "prefix-tuning": ("prefix-tuning", {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5},
                      [term("prefix-tuning", 5 * 2 * 4 * 8, 0)]),
    "prompt-tuning": ("prompt-tuning", {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5,
                                        "modules_to_save": ["lm_head"]},
                      [term("prompt-tuning", 5 * 16, 0), term("modules_to_save", 24 * 16, 1)]),
    "p-tuning": ("p-tuning", {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5,
                              "encoder_hidden_size": 3},
                 [term("p-tuning", 5 * 16 + (16 * 3 + 3) + (3 * 3 + 3) + (3 * 16 + 16), 0)]),
    "loha-and-saved": ("loha", {**LORA_METHOD, "modules_to_save": ["lm_head"]},
                       [term("loha", 2 * PAIR, 8), term("modules_to_save", 24 * 16, 1)]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "fields", "terms"), METHOD_TERMS.values(), ids=METHOD_TERMS)
def test_terms_of_a_method(name: str, fields: dict, terms: list[Term]) -> None:
    config = model(LLAMA).transformers_config if "tuning" in name else None
    found = method_parameters(small("plain"), method(name, **fields), config)
    assert found == Parameters(tuple(terms), BASE)
    assert {type(n) for t in found.terms for n in (t.trained, t.added, t.modules)} == {int}


def test_full_and_biases() -> None:
    assert method_ledger(small("plain"), method("full")).entries == ()
    full = method_parameters(small("plain"), method("full"))
    assert full == Parameters((term("full", BASE, len(small("plain").modules), 0),), BASE)
    for bias, trained, modules in (("all", 48, 16), ("vera_only", 24, 8)):
        asked = method("vera", **LORA_METHOD, bias=bias)
        found = method_parameters(small("biased"), asked)
        assert found.terms == (
            term("vera", 4 * (20 + 12), 8),
            term("bias", 4 * trained, modules, 0),
        )


def test_frozen_a_beside_biases() -> None:
    found = method_parameters(small("biased"), method("lora-fa", **LORA_METHOD, bias="all"))
    assert found.terms == (
        term("lora-fa", 4 * 4 * 24, 8, PAIR),
        term("bias", 4 * 48, 16, 0),
    )


def test_a_default_that_is_an_expression() -> None:
    """Gemma 4's: query and value of its language model alone, 16 × 16 and 8 × 16 in two layers."""
    found = method_parameters(table_of("gemma4"), method("loha", r=4))
    assert found.terms == (term("loha", PAIR, 4),)


def test_tokens_of_a_tied_model() -> None:
    """The output embedding follows the input embedding, and adds nothing; alone it does not."""
    asked = {"token_indices": [1, 2], "target_modules": ["embed_tokens", "lm_head"]}
    found = method_parameters(small("tied"), method("trainable-tokens", **asked))
    assert found.terms == (term("trainable-tokens", 2 * 16, 1),)
    alone = method("trainable-tokens", **{**asked, "target_modules": ["lm_head"]})
    assert method_parameters(small("tied"), alone).terms == (term("trainable-tokens", 32, 1),)


def test_experts_old_names_are_for_lora_alone() -> None:
    """LoRA reaches the parameters, and doubles the rank of the fused ones; the others do not."""
    names = {"target_modules": ["q_proj", "w1", "w2", "w3"], "r": 4}
    lora = method_parameters(small("experts"), method("lora", **names))
    experts = 2 * 2 * (8 * (48 + 16) + 4 * (16 + 24))
    assert lora.terms == (term("lora", 2 * 4 * 32 + experts, 6),)
    loha = method_ledger(small("experts"), method("loha", **names), lambda name: "")
    assert [e.entry for e in loha.entries if e.dead] == ["w1", "w2", "w3"]
    assert loha.table.moe_conversion == ""
    from bench.models.roles import role_of

    advised = method_ledger(small("experts"), method("loha", **names), role_of)
    assert [e.suggestion for e in advised.entries if e.dead] == ["", "", ""]
    advised = method_ledger(small("plain"), method("loha", target_modules=["query"]), role_of)
    assert [e.suggestion for e in advised.entries] == ["q_proj (query, 4 modules)"]


def test_a_method_as_peft_is_given_it() -> None:
    """Lists for sequences, and what PEFT wants to be given."""
    asked = method("adalora", target_modules=("q_proj",), init_r=4)
    assert asked.to_dict() == {"total_step": 1000, "init_r": 4, "target_modules": ["q_proj"]}
    assert method("prompt_tuning").to_dict() == {"num_virtual_tokens": 20}
    assert (asked.name, asked.task_type) == ("adalora", None)
    assert method("loha", task_type="SEQ_CLS").task_type == "SEQ_CLS"
    assert method("loha", r=2).resized(3).settings == {"r": 3}
    tokens = method("trainable-tokens").resized(3)
    assert tokens.settings == {"token_indices": (0, 1, 2)}
    assert method("loha", task_type=None).common == {}
