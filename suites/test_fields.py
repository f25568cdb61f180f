"""Every field of `LoraConfig`: what it changes, what it does not, and what has no closed form."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from agreement import counted_or_refused

from bench.adapters import config as adapters
from bench.adapters.config import AdapterConfig
from bench.cli import main
from bench.errors import BenchError
from bench.formulas import lora_parameters
from bench.formulas.terms import base_totals
from bench.measure.counting import Totals, count, inject, totals
from bench.models.architectures import Model, load_model
from bench.models.modules import ModuleTable, read_table
from bench.targets import match

if TYPE_CHECKING:
    from torch import nn

KINDS: dict[str, Callable[[Any], nn.Module]] = {
    "linear": lambda nn: nn.Linear(8, 16),
    "square": lambda nn: nn.Linear(8, 8),
    "conv1d": lambda nn: transformers_conv1d(16, 8),
    "square-conv1d": lambda nn: transformers_conv1d(8, 8),
    "convolution1d": lambda nn: nn.Conv1d(8, 16, 3),
    "convolution2d": lambda nn: nn.Conv2d(8, 16, (3, 1), groups=2),
    "convolution3d": lambda nn: nn.Conv3d(8, 16, (1, 2, 1)),
    "embedding": lambda nn: nn.Embedding(11, 8),
    "attention": lambda nn: nn.MultiheadAttention(8, 1),
}
VARIANTS: list[dict[str, Any]] = [
    {}, {"use_dora": True}, {"lora_bias": True}, {"kasa_config": {}}, {"velora_config": {}},
    {"monteclora_config": {}}, {"alora_invocation_tokens": (1, 2)},
    {"use_bdlora": {"target_modules_bd_a": ["x"], "nblocks": 2}},
    {"use_bdlora": {"target_modules_bd_b": ["x"], "nblocks": 2}},
]  # fmt: skip
INITIALISATIONS = (True, False, "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora", "mica")


def transformers_conv1d(rows: int, columns: int) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(rows, columns)


@pytest.mark.evidence
@pytest.mark.parametrize("kind", KINDS)
def test_every_variant_and_initialisation(kind: str) -> None:
    """On real weights, rank below and above the layer's: refused alike, or equal in every count."""
    import torch
    from torch import nn

    wrong = []
    for variant, init, r in product(VARIANTS, INITIALISATIONS, (2, 9)):
        try:
            adapter = AdapterConfig(("x",), r=r, init_lora_weights=init, **variant)
        except BenchError:  # two variants at once
            continue
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = nn.ModuleDict({"x": KINDS[kind](nn)})
            ledger = match(read_table(network), adapter)
            try:
                formula = None if ledger.refusals else lora_parameters(ledger)
            except BenchError:  # no closed form
                if not variant and init is True:
                    raise
                continue
            counted, said = counted_or_refused(network, adapter)
        if counted is None or formula is None:
            if (counted is None) != (formula is None):
                wrong.append((variant, init, r, ledger.refusals, said))
        elif (formula.trainable, formula.total) != (counted.trainable, counted.total):
            wrong.append((variant, init, r, formula.trainable, counted.trainable))
    assert wrong == []


FIXED = {"vocab_size": 24, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = Model(
    "tiny-llama",
    {
        "model_type": "llama", **FIXED, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "attention_bias": True,
    },
    "AutoModelForCausalLM",
)  # fmt: skip
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def on_cpu(model: Model) -> nn.Module:
    """Real weights: initialisations that decompose them do not run on meta."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(model.transformers_config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lora_alpha", 64),
        ("lora_dropout", 0.3),
        ("use_rslora", True),
        ("alpha_pattern", {"q_proj": 3}),
        ("fan_in_fan_out", True),
        ("velora_config", {}),
        ("alora_invocation_tokens", (1,)),
        ("init_lora_weights", False),
        ("init_lora_weights", "gaussian"),
        ("init_lora_weights", "orthogonal"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_2"),
        ("init_lora_weights", "olora"),
    ],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_fields_that_change_nothing(field: str, value: object) -> None:
    """The formula and PEFT agree that these leave every count as it is."""
    plain = AdapterConfig(ATTENTION, r=4)
    changed = replace(plain, **{field: value})
    expected = lora_parameters(match(LLAMA.table, plain))
    assert lora_parameters(match(LLAMA.table, changed)) == expected
    counted = count(inject(on_cpu(LLAMA), changed))
    assert (counted.trainable, counted.total) == (expected.trainable, expected.total)


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 40, "init_lora_weights": "pissa"},
        {"r": 40, "init_lora_weights": "olora"},
        {"r": 4, "init_lora_weights": "mica"},
        {"r": 4, "kasa_config": {}},
        {"r": 4, "monteclora_config": {}},
        {"r": 4, "monteclora_config": {"num_samples": 3}},
        {"r": 4, "rank_pattern": {"q_proj": 6}, "monteclora_config": {}},
        {"r": 4, "init_lora_weights": "eva", "eva_config": {"rho": 1.0}},
    ],
    ids=["pissa", "olora", "mica", "kasa", "monteclora", "monteclora-3", "patterned", "eva"],
)
def test_initialisations_and_variants_on_real_weights(fields: dict) -> None:
    """What needs weights to look at, and on meta is as many. PiSSA and OLoRA hold no more ranks
    than the weight has."""
    adapter = AdapterConfig(ATTENTION, **fields)
    formula = lora_parameters(match(LLAMA.table, adapter))
    for network in (on_cpu(LLAMA), LLAMA.build()):
        counted = count(inject(network, adapter))
        assert (formula.trainable, formula.total) == (counted.trainable, counted.total)


def test_replication_leaves_the_model_as_it_was() -> None:
    """PEFT writes the grown depth into the configuration; the next model built must not grow."""
    adapter = AdapterConfig(ATTENTION, r=4, layer_replication=((0, 2), (0, 2)))
    counted = count(inject(LLAMA.build(), adapter))
    assert (
        counted.trainable
        == 2 * lora_parameters(match(LLAMA.table, AdapterConfig(ATTENTION, r=4))).trainable
    )
    assert len(read_table(LLAMA.build()).layers) == 2


def test_kasa_leaves_a_rank_of_the_weight_out() -> None:
    """k_proj is 8 × 16 here: PEFT takes 7 ranks and no more."""
    seven, eight = (AdapterConfig(("k_proj",), r=r, kasa_config={}) for r in (7, 8))
    assert match(LLAMA.table, seven).refusals == ()
    inject(on_cpu(LLAMA), seven)
    assert match(LLAMA.table, eight).refusals == (
        "model.layers.0.self_attn.k_proj: KaSA takes at most rank 7, not 8",
    )
    with pytest.raises(BenchError, match="PEFT refuses"):
        inject(on_cpu(LLAMA), eight)


def test_mica_holds_no_more_ranks_than_the_weight() -> None:
    adapter = AdapterConfig(("k_proj",), r=9, init_lora_weights="mica")
    assert match(LLAMA.table, adapter).refusals == (
        "model.layers.0.self_attn.k_proj: MiCA takes at most rank 8, not 9",
    )
    with pytest.raises(BenchError, match="PEFT refuses"):
        inject(on_cpu(LLAMA), adapter)


@pytest.mark.parametrize("init", ["corda", "loftq", "lora_ga"])
def test_a_decomposed_weight_has_no_more_ranks_than_it_is_wide(init: str) -> None:
    """k_proj is 8 × 16: rank 8 is counted, of 9 no closed form is known."""
    eight, nine = (AdapterConfig(("k_proj",), r=r, init_lora_weights=init) for r in (8, 9))
    assert lora_parameters(match(LLAMA.table, eight)).trainable == 2 * 8 * (8 + 16)
    with pytest.raises(BenchError, match=f"'{init}' with rank 9 on .*k_proj"):
        lora_parameters(match(LLAMA.table, nine))


def test_a_module_in_both_block_diagonal_lists() -> None:
    both = {"target_modules_bd_a": ["k_proj"], "target_modules_bd_b": ["k_proj"], "nblocks": 2}
    adapter = AdapterConfig(("k_proj",), use_bdlora=both)
    assert match(LLAMA.table, adapter).refusals == (
        "model.layers.0.self_attn.k_proj: matches both block-diagonal lists",
    )
    with pytest.raises(BenchError, match="PEFT refuses"):
        inject(LLAMA.build(), adapter)


def test_what_has_no_closed_form_raises() -> None:
    """Nothing is ignored: a field is counted, changes nothing, or raises by name."""
    eva = AdapterConfig(ATTENTION, init_lora_weights="eva")
    with pytest.raises(BenchError, match=r"eva.*rho=1"):
        lora_parameters(match(LLAMA.table, eva))
    for field in ("arrow_config", "use_qalora", "megatron_config"):
        with pytest.raises(BenchError, match=f"no closed form for {field}"):
            AdapterConfig.from_dict({"target_modules": ["q_proj"], field: {"top_k": 1}})
    with pytest.raises(BenchError, match="unknown field"):
        AdapterConfig.from_dict({"target_modules": ["q_proj"], "use_sora": True})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kasa_config": True}, "fields of its own"),
        ({"monteclora_config": {"num_samples": "8"}}, "num_samples must be a whole number"),
        ({"use_bdlora": {"nblocks": 0}}, "nblocks must be a whole number"),
        # All that is wrong is said at once.
        ({"r": 0, "lora_dropout": "x"}, r"r must be .*; lora_dropout must be "),
        ({"lora_alhpa": 8, "r": 0}, "'lora_alhpa': did you mean lora_alpha.*; .*r must be a whole"),
        ({"trainable_token_indices": "a"}, "token indices"),
        ({"trainable_token_indices": {"wte": [1, -2]}}, "token indices"),
        ({"layer_replication": "ab"}, r"\[start, end\)"),
        ({"layer_replication": [[2, 1]]}, r"\[start, end\)"),
        ({"layer_replication": [3]}, r"\[start, end\)"),
        ({"use_dora": True, "kasa_config": {}}, "do not go together"),
        ({"use_dora": True, "init_lora_weights": "mica"}, "do not go together"),
    ],
)
def test_wrong_fields(fields: dict, message: str) -> None:
    """A value that cannot be is an error that names it, not a traceback."""
    with pytest.raises(BenchError, match=message):
        AdapterConfig.from_dict({"target_modules": ["q_proj"], **fields}, "adapter_config.json")


def test_layers_beside_targets_are_refused_where_peft_refuses_them() -> None:
    """An empty pattern is one too, beside a string."""
    from peft import LoraConfig

    for targets, pattern, layers in product(
        ("all-linear", ".*q_proj", ["q_proj"]), (None, "", [], "layers", ["h"]), (None, 0, [0])
    ):
        fields: dict[str, Any] = {"target_modules": targets, "layers_pattern": pattern,
                                  "layers_to_transform": layers}  # fmt: skip
        raised = []
        for build in (LoraConfig, AdapterConfig.from_dict):
            try:
                build(**fields) if build is LoraConfig else build(fields)
            except (ValueError, BenchError) as error:
                raised.append(str(error))
            else:
                raised.append("")
        assert bool(raised[0]) == bool(raised[1]), (fields, raised)


def test_unused_variants_may_be_written_down() -> None:
    """A saved configuration names every field; null and empty ask for nothing."""
    saved = {"target_modules": ["q_proj"], "use_bdlora": None, "kasa_config": None,
             "arrow_config": None, "loftq_config": {}, "layer_replication": None}  # fmt: skip
    assert AdapterConfig.from_dict(saved) == AdapterConfig(("q_proj",))


def test_an_entry_written_twice_is_one() -> None:
    """PEFT makes a set of the list."""
    (entry,) = match(LLAMA.table, AdapterConfig(("q_proj", "q_proj"))).entries
    assert (entry.entry, len(entry.reached)) == ("q_proj", 2)


def test_every_field_of_peft_is_known() -> None:
    """Each field of PEFT's LoraConfig is counted, declared to change nothing, or refused by name.

    A new field of a new PEFT fails here until somebody says what it costs.
    """
    from peft import LoraConfig

    ours = {f.name for f in dataclasses.fields(AdapterConfig)} - {"ignored", "saved", "unseen"}
    known = ours | adapters.INERT | set(adapters.NOT_UNDERSTOOD)
    theirs = {f.name for f in dataclasses.fields(LoraConfig)}
    assert theirs - known == set()
    assert ours - theirs == set()


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_quantized_layers(kind: str) -> None:
    """LoRA on bitsandbytes layers: counts as on the plain model; packed and unique totals apart."""
    network = quantized(on_cpu(LLAMA), kind)
    table = read_table(network)
    adapter = AdapterConfig(ATTENTION, r=4, bias="lora_only")
    formula = lora_parameters(match(table, adapter))
    assert formula == lora_parameters(match(LLAMA.table, adapter))
    expected = closed_totals(LLAMA.table, four_bit=kind != "int8")
    assert totals(network) == expected
    assert dataclasses.astuple(base_totals(table)) == dataclasses.astuple(expected)
    counted = count(inject(network, adapter))
    assert (formula.trainable, formula.total) == (counted.trainable, counted.total)
    assert expected.unique == LLAMA.table.total_parameters


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_variants_of_quantized_layers(kind: str) -> None:
    """bitsandbytes' layers have other variants than those in floats, and some initialisations read
    floats: refused alike, equal in every count, and what is left out without a word is told."""
    blocks = {"target_modules_bd_b": ["q_proj"]}
    asked: list[dict[str, Any]] = [
        *({"init_lora_weights": init} for init in INITIALISATIONS),
        *(each for each in VARIANTS if "use_bdlora" not in each),
        {"use_bdlora": blocks},
        {"use_bdlora": {**blocks, "nblocks": 2, "match_strict": False}},
        {"use_bdlora": {**blocks, "nblocks": 7, "match_strict": False}},
        {"kasa_config": {}, "r": 4096},
        {"trainable_token_indices": {"k_proj": (1,)}},
    ]
    told = {}
    for fields, head in product(asked, ((), ("lm_head",))):
        network = quantized(on_cpu(LLAMA), kind)
        adapter = AdapterConfig(("q_proj", *head), **{"r": 4, **fields})
        ledger = match(read_table(network), adapter)
        counted, said = counted_or_refused(network, adapter)
        assert bool(ledger.refusals) == (counted is None), (fields, head, said)
        if counted is not None:
            formula = lora_parameters(ledger)
            ours = (formula.trainable, formula.total)
            assert ours == (counted.trainable, counted.total), (fields, head)
        for dead in ledger.dead_fields:
            told[dead.field, head] = dead.reason
    fields_left_out = {"kasa_config", "monteclora_config", "use_bdlora"}
    assert {field for field, _ in told} == fields_left_out
    assert {"all 2 adapted" in why for (_, head), why in told.items() if not head} == {True}
    assert {"2 of 3 adapted" in why for (_, head), why in told.items() if head} == {True}


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_the_three_totals_are_printed(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Side by side for a quantized model, as bitsandbytes' layers have them."""
    network = load_model("opt-125m").loaded_in(kind).build()
    assert main(["targets", "opt-125m", "--precision", kind, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["base_totals"] == dataclasses.asdict(totals(network))
    added = sum(term["added"] for term in answer["terms"])
    assert answer["total_parameters"] == answer["base_totals"]["unique"] + added
    assert main(["targets", "opt-125m", "--precision", kind]) == 0
    assert f"{totals(network).packed:,} packed" in capsys.readouterr().out


def quantized(network: nn.Module, kind: str) -> nn.Module:
    """Every linear layer but the head by a quantized one, as transformers does it."""
    import bitsandbytes as bnb
    from torch import nn

    for name, module in list(network.named_modules()):
        if not isinstance(module, nn.Linear) or name == "lm_head":
            continue
        size = (module.in_features, module.out_features, module.bias is not None)
        if kind == "int8":
            layer = bnb.nn.Linear8bitLt(*size, has_fp16_weights=False)
        else:
            layer = bnb.nn.Linear4bit(*size, quant_type=kind)
        layer.load_state_dict(module.state_dict())
        network.set_submodule(name, layer.requires_grad_(False).to("cpu"))
    # By these PEFT chooses its own layers for them; without, it takes them for layers in floats.
    network.is_loaded_in_8bit, network.is_loaded_in_4bit = kind == "int8", kind != "int8"
    return network


def closed_totals(table: ModuleTable, *, four_bit: bool) -> Totals:
    """Written from the shapes: a 4-bit weight is stored two to a byte."""
    linear = {
        f"{m.name}.weight": (m.weight_elements + 1) // 2 * four_bit or m.weight_elements
        for m in table.modules
        if m.kind == "linear" and m.name != table.output_embedding
    }
    return Totals(
        logical=sum(p.elements for p in table.parameters),
        packed=sum(linear.get(p.name, p.elements) for p in table.parameters if not p.same_as),
        unique=sum(p.elements for p in table.parameters if not p.same_as),
    )
