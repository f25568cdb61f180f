"""What a formula says that it refuses, in full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from answer_models import table_of
from test_formula_terms import BD, PAIR, TWO, small

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError, UnknownName
from bench.formulas import lora_parameters
from bench.formulas.lora import module_matrices, parameter_matrices
from bench.formulas.methods import method, method_parameters
from bench.models.modules import Module, Parameter
from bench.targets import match


def lora(table: str = "plain", **fields: Any) -> Callable[[], object]:
    adapter = AdapterConfig.from_dict({"target_modules": TWO, "r": 4, **fields})
    return lambda: lora_parameters(match(small(table), adapter))


def asked(name: str, table: str = "plain", **fields: Any) -> Callable[[], object]:
    return lambda: method_parameters(small(table), method(name, **fields))


ATTENTION = "model.layers.0.self_attn"
REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: parameter_matrices(Parameter("x", (3,)), 4),
     "x: LoRA adapts parameters of 2 or 3 dimensions only"),
    (lambda: parameter_matrices(Parameter("x", (2, 2, 2, 2)), 4),
     "x: LoRA adapts parameters of 2 or 3 dimensions only"),
    (lambda: module_matrices(Module("x", class_name="LayerNorm"), 4),
     "x: no formula for LoRA on a LayerNorm"),
    (lambda: module_matrices(Module("x"), 4), "x: no formula for LoRA on a other"),
    (lora(target_parameters=["q_proj.weight"]),
     f"no closed form for {ATTENTION}.q_proj.weight: a parameter of an adapted module"),
    (lora(init_lora_weights="eva"),
     "no closed form for init_lora_weights='eva': it hands ranks from layer to layer as the data "
     "asks for; with eva_config rho=1 every layer keeps r"),
    (lora(init_lora_weights="eva", eva_config={"rho": 2.0}),
     "no closed form for init_lora_weights='eva': it hands ranks from layer to layer as the data "
     "asks for; with eva_config rho=1 every layer keeps r"),
    (lora(init_lora_weights="corda", r=9),
     f"no closed form for 'corda' with rank 9 on {ATTENTION}.v_proj: the weight has fewer ranks"),
    (lora("experts", init_lora_weights="pissa", r=3, target_modules=[],
          target_parameters=["gate.weight"]),
     "no closed form for 'pissa' with rank 3 on model.layers.0.mlp.gate.weight: the weight has "
     "fewer ranks"),
    (lora(init_lora_weights="olora", use_bdlora=BD),
     "no closed form for 'olora' with use_bdlora"),
    (lora(task_type="TOKEN_CLS", modules_to_save=["base_layer"], trainable_token_indices=[1]),
     "no closed form for a base_layer saved under trainable tokens"),
    (lora("tied", modules_to_save=["lm_head", "model"], ensure_weight_tying=True),
     "no closed form for ensure_weight_tying with the input embedding in a saved module"),
    (lora(modules_to_save=["embed_tokens"], trainable_token_indices=[1]),
     "no closed form for model.embed_tokens: trained whole and by tokens"),
    (lora("tied", modules_to_save=["lm_head"], trainable_token_indices=[1]),
     "no closed form for lm_head: trained whole and by tokens"),
    (asked("boft", target_modules=TWO, boft_n_butterfly_factor=2),
     "boft: PEFT falls back to one butterfly factor where its CUDA extension is missing: the count "
     "depends on the machine"),
    (asked("boft", target_modules=TWO, boft_block_num=4),
     "boft: give either boft_block_size or boft_block_num, the other one as 0"),
    (asked("boft", target_modules=TWO, boft_block_size=0),
     "boft: give either boft_block_size or boft_block_num, the other one as 0"),
    (asked("boft", target_modules=TWO, boft_block_size=5),
     f"boft: {ATTENTION}.q_proj has 16 inputs, which 5 does not divide"),
    (asked("oft", target_modules=TWO, r=4),
     "oft: give either r or oft_block_size, the other one as 0"),
    (asked("oft", target_modules=TWO, oft_block_size=0),
     "oft: give either r or oft_block_size, the other one as 0"),
    (asked("fourierft", target_modules=TWO, n_frequency=129),
     f"fourierft: {ATTENTION}.v_proj has fewer than n_frequency=129 elements"),
    (asked("lora-fa", target_modules=["embed_tokens"]),
     "model.embed_tokens: no closed form for lora-fa on this kind of layer"),
    (asked("lora", target_modules=["x"]),
     "nothing matches: PEFT raises when no entry reaches anything"),
    (asked("loha", target_modules=["x"]),
     "loha: nothing matches: PEFT raises when no entry reaches anything"),
    (asked("loha", target_modules=["embed_tokens"]),
     "model.embed_tokens: no closed form for loha on this kind of layer"),
    (asked("loha", target_modules=["q_proj"], modules_to_save=["_proj"]),
     f"loha: {ATTENTION}.q_proj is adapted and named in modules_to_save: PEFT cannot save an "
     "adapted module"),
    (asked("loha", target_modules=["q_proj"], modules_to_save=["elf_attn"]),
     f"no closed form for loha inside a saved module: {ATTENTION}.q_proj"),
    (lambda: method_parameters(replace(small("plain"), model_type="other"), method("loha")),
     "loha: give target_modules: PEFT has no default for other"),
    (lambda: method_parameters(replace(small("plain"), model_type=""),
                                      method("ia3", target_modules=["q_proj"])),
     "ia3: give feedforward_modules: PEFT has no default for LlamaForCausalLM"),
    (lambda: method_parameters(table_of("mamba"), method("adalora", target_modules=["out_proj"])),
     "adalora: backbone.layers.0.mixer.out_proj: PEFT refuses out_proj and conv1d on mamba"),
    (asked("trainable-tokens", token_indices=[1, 24]),
     "trainable-tokens: model.embed_tokens has 24 rows, and 24 is not one of them"),
    (asked("trainable-tokens", token_indices=[24], target_modules=["lm_head"]),
     "trainable-tokens: lm_head has 24 rows, and 24 is not one of them"),
    (lambda: method("adalora", tinit=600, tfinal=400),
     "adalora: tinit and tfinal leave no step of total_step to allocate ranks"),
    (lambda: method("ia3", target_modules=["a", "b"], feedforward_modules=["b", "d", "c"]),
     "ia3: feedforward_modules must be among target_modules, and c, d is not"),
    (lambda: method("lora", use_dora=True),
     "lora: use_dora goes into an adapter_config.json: --adapter, without --method"),
    (asked("prompt-tuning"), "prompt-tuning: PEFT needs a task type for it"),
    (asked("prompt-tuning", task_type="CAUSAL_LM"),
     "prompt-tuning: needs the model's configuration"),
]  # fmt: skip


@pytest.mark.parametrize(("formula", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_a_formula_refuses(formula: Callable, said: str) -> None:
    with pytest.raises(BenchError) as error:
        formula()
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("lara", {}, "unknown method 'lara': did you mean lora"),
        ("ia3", {"r": 8}, "unknown field of ia3: 'r': known: exclude_modules, fan_in_fan_out, "
                          "feedforward_modules, init_ia3_weights, modules_to_save, "
                          "target_modules, task_type"),
        ("lora", {"rr": 8}, "unknown field of lora: 'rr': did you mean r?"),
        ("loha", {"use_dora": True}, "unknown field of loha: 'use_dora': known: alpha, "),
        ("full", {"bias": "all"}, "unknown field of full: 'bias': known: "),
        ("vera", {"bias": "lora_only"},
         "unknown bias of vera: 'lora_only': did you mean vera_only?"),
        ("lora", {"bias": "vera_only"},
         "unknown bias of lora: 'vera_only': did you mean lora_only?"),
    ],
)  # fmt: skip
def test_names_that_a_method_does_not_know(name: str, fields: dict, said: str) -> None:
    with pytest.raises(UnknownName) as error:
        method(name, **fields)
    assert str(error.value).startswith(said)


def test_what_goes_together() -> None:
    """The nearest that is taken: one step is left, the lists are the same, a rank as wide."""
    assert method("adalora", tinit=599, tfinal=400).settings["tinit"] == 599
    assert method("ia3", target_modules=["a"], feedforward_modules=["a"])
    assert method("ia3", target_modules=".*", feedforward_modules=["a"])
    assert lora(init_lora_weights="corda", r=8)().trainable == 2 * PAIR
    assert lora(init_lora_weights="eva", eva_config={"rho": 1.0})().trainable == PAIR
    experts = {"target_modules": [], "target_parameters": ["gate.weight"]}
    assert lora("experts", init_lora_weights="pissa", r=2, **experts)()
