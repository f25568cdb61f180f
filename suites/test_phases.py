"""What PEFT does between reading a configuration and counting, with its own answer each time."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product

import pytest
from agreement import agrees, disagreement
from matrices import matrix
from small_types import small
from tiny_models import tiny

from bench.adapters.config import NO_TARGETS, AdapterConfig
from bench.errors import BenchError
from bench.formulas import lora_parameters
from bench.formulas.methods import method, method_parameters
from bench.measure.counting import count, count_lora_fa, inject
from bench.models.architectures import Model, load_model
from bench.models.modules import OTHER, read_table
from bench.targets import match


def opt_names(leaf: str, layers: int = 24) -> tuple[str, ...]:
    return tuple(f"model.decoder.layers.{n}.self_attn.{leaf}" for n in range(layers))


def test_many_full_names_obey_layer_numbers() -> None:
    """48 full names are condensed to two endings, which layers_to_transform then filters: layer 0
    alone, 2 modules × 8 × (1,024 + 1,024). Nineteen full names are reached whatever it says."""
    model = load_model("opt-350m")
    many = AdapterConfig(
        (*opt_names("q_proj"), *opt_names("v_proj")), r=8, layers_to_transform=(0,)
    )
    counted = count(inject(model.build(), many))
    assert counted.trainable == 2 * 8 * (1024 + 1024) == 32_768
    assert lora_parameters(match(model.table, many)).trainable == 32_768
    few = AdapterConfig(opt_names("q_proj", 19), r=8, layers_to_transform=(0,))
    assert lora_parameters(match(model.table, few)).trainable == 19 * 8 * 2048
    assert count(inject(model.build(), few)).trainable == 19 * 8 * 2048
    twenty = AdapterConfig(opt_names("q_proj", 20), r=8, layers_to_transform=(0,))
    expected = count(inject(model.build(), twenty)).trainable
    assert lora_parameters(match(model.table, twenty)).trainable == expected


@pytest.mark.parametrize(("size", "reached"), [(19, 19), (20, 7), (21, 7)])
def test_a_list_is_condensed_from_twenty_names_on(size: int, reached: int) -> None:
    """Of all 21 projections of three layers, the last ones left out: endings that all three layers
    have obey the layer's number, as PEFT has it."""
    names = [m.name for m in small("llama-CausalLM").table.modules if m.kind == "linear"]
    chosen = tuple(n for n in names if ".layers." in n)[:size]
    adapter = AdapterConfig(chosen, layers_to_transform=(0,))
    agrees("llama-CausalLM", adapter)
    assert len(match(small("llama-CausalLM").table, adapter).adapted) == reached


def test_what_many_names_reach_is_told_by_entry() -> None:
    table = load_model("opt-350m").table
    adapter = AdapterConfig((*opt_names("q_proj"), "nothing"), layers_to_transform=(3,))
    reached = [e.entry for e in match(table, adapter).entries if not e.dead]
    assert reached == ["model.decoder.layers.3.self_attn.q_proj"]


@pytest.mark.parametrize("pattern", ["layers", ("h", "layers"), ("layers", "nowhere"), ()])
@pytest.mark.parametrize("indices", [0, 2, (0, 2), (1, 2)])
def test_layer_numbers_after_a_pattern(
    pattern: tuple[str, ...] | str, indices: tuple[int, ...] | int
) -> None:
    """The first and the last layer too, and the number behind the list's own name."""
    adapter = AdapterConfig(("q_proj", "down_proj"), layers_to_transform=indices,
                            layers_pattern=pattern)  # fmt: skip
    agrees("llama-CausalLM", adapter)
    numbers = {indices} if isinstance(indices, int) else {*indices}
    reached = {a.name.split(".")[2] for a in match(small("llama-CausalLM").table, adapter).adapted}
    assert reached == {str(n) for n in numbers}


@pytest.mark.parametrize(
    ("label", "pattern", "reached"),
    [
        ("t5-Seq2SeqLM", "block", "block.1."),
        ("t5-Seq2SeqLM", "layer", "layer.1."),
        ("t5-Seq2SeqLM", None, "block.1."),
        ("albert-SequenceClassification", "albert_layers", ""),
        ("albert-SequenceClassification", "albert_layer_groups", ""),
    ],
)
def test_of_nested_numbers_the_first_counts(label: str, pattern: str | None, reached: str) -> None:
    """A block's number and its part's: whichever list is named, and the outer one unasked."""
    adapter = AdapterConfig(
        ("q", "o", "wo", "query"), layers_to_transform=1, layers_pattern=pattern
    )
    names = [a.name for a in match(small(label).table, adapter).adapted]
    assert bool(names) == bool(reached)
    assert all(reached in name for name in names)
    agrees(label, adapter, "injected" if reached else "refused")


@pytest.mark.parametrize(
    ("label", "targets", "saved"),
    [
        ("t5-Seq2SeqLM", ("q",), ("dropout",)),
        ("llama-CausalLM", ("q_proj",), ("default",)),
        ("llama-CausalLM", ("q_proj",), ("lora_A",)),
        ("llama-CausalLM", ("q_proj",), ("vector",)),
        ("llama-CausalLM", ("q_proj",), ("q_proj",)),
        ("llama-CausalLM", ("q_proj",), ("layers",)),
    ],
)
def test_refused_after_injection(label: str, targets: tuple, saved: tuple) -> None:
    """What is to be saved is looked for on the injected model, parts of adapters included."""
    agrees(label, AdapterConfig(targets, modules_to_save=saved), "refused")


NESTED = [
    ("base_layer",),
    ("decoder", "layers.0"),
    ("decoder", "layers.0", "layers.0.self_attn"),
    ("layers.0", "layers.0.self_attn"),
    ("layers.0", "layers.0.self_attn.k_proj"),
    ("layers.0.self_attn", "layers.0.self_attn.k_proj", "layers.0"),
    ("decoder", "k_proj"),
    ("layers.0", "layers.0.self_attn.k_proj", "layers.1.fc2"),  # the second is found no more
    ("ecoder", "ayers.0"),  # endings that keep no adapter out
    ("ecoder", "ayers.1.fc2", "ayers.1"),
    ("embed_tokens",),
]


@pytest.mark.parametrize(
    ("saved", "task", "bias"),
    matrix(
        product(
            NESTED, (None, "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"), ("none", "all", "lora_only")
        )
    ),
)
def test_saved_inside_saved(saved: tuple[str, ...], task: str | None, bias: str) -> None:
    """A module in a saved one, its children's children, the adapters inside, task heads' second
    look: PEFT's counts."""
    adapter = AdapterConfig(("q_proj", "fc1", "lm_head"), r=3, modules_to_save=saved,
                            task_type=task, bias=bias)  # fmt: skip
    agrees("opt-CausalLM", adapter)


@pytest.mark.parametrize("variant", [{"use_dora": True}, {"init_lora_weights": "mica"}])
def test_variants_inside_saved(variant: dict) -> None:
    adapter = AdapterConfig("all-linear", modules_to_save=("elf_attn", "layers.0.fc1"), **variant)
    agrees("opt-CausalLM", adapter)


def test_coverage_leaves_saved_containers_out() -> None:
    """Phi-3's feed-forward saved, as a container or as its two projections: attention is all that
    is left to adapt, and all of it is."""
    table = small("phi3-CausalLM").table
    coverage = [
        match(table, AdapterConfig(("qkv_proj", "o_proj"), modules_to_save=saved)).weight_coverage
        for saved in (("mlp",), ("gate_up_proj", "down_proj"))
    ]
    assert coverage == [1.0, 1.0]
    half = AdapterConfig(("qkv_proj", "o_proj"), modules_to_save=("layers.0.mlp",))
    linear = sum(m.weight_elements for m in table.modules if m.kind == "linear")
    linear -= table.by_name["lm_head"].weight_elements
    one_mlp = sum(m.weight_elements for m in table.modules if "layers.0.mlp." in m.name)
    attention = sum(m.weight_elements for m in table.modules if "self_attn." in m.name)
    assert match(table, half).weight_coverage == pytest.approx(attention / (linear - one_mlp))


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_2_SEQ_LM"])
def test_a_task_that_the_class_cannot_serve(task: str) -> None:
    adapter = AdapterConfig(("q_proj", "query"), task_type=task)
    for label in ("llama-SequenceClassification", "bert-SequenceClassification"):
        agrees(label, adapter, "refused")
        assert any(task in reason for reason in match(small(label).table, adapter).refusals)
    agrees("llama-CausalLM", adapter)


def test_a_flag_in_an_expression_that_fits_nothing() -> None:
    agrees("llama-CausalLM", AdapterConfig("(?i)nothing"), "refused")
    agrees("llama-CausalLM", AdapterConfig("(?i).*Q_PROJ"))
    for field in ("rank_pattern", "alpha_pattern"):
        with pytest.raises(BenchError, match=field):
            AdapterConfig(("q_proj",), **{field: {"(?i)Q": 4}})
    with pytest.raises(BenchError, match="modules_to_save"):
        AdapterConfig(("q_proj",), modules_to_save=("(?i)HEAD",))


def test_all_linear_on_a_plain_module() -> None:
    """PEFT leaves the output embedding out on transformers' own models alone."""
    import torch
    from torch import nn

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    with torch.device("meta"):
        network = Plain()
    adapter = AdapterConfig("all-linear", r=2)
    assert {a.name for a in match(read_table(network), adapter).adapted} == {"body", "head"}
    assert disagreement(network, read_table(network), adapter) == ("injected", "")


def test_tokens_of_an_embedding_within_a_saved_module() -> None:
    """PEFT looks for the embedding after saving, where it has another name: both are taken."""
    model = small("modernbert-MaskedLM")
    embedding = "model.embeddings.tok_embeddings"
    for saved, refused in (((embedding,), True), ((embedding, "model"), False)):
        adapter = AdapterConfig(("dense",), modules_to_save=saved, trainable_token_indices=(0, 1))
        assert bool(match(model.table, adapter).refusals) == refused
        if refused:
            with pytest.raises(BenchError, match="already marked to be trained fully"):
                inject(model.build(), adapter)
        else:
            assert "model" in count(inject(model.build(), adapter)).saved


def test_a_module_that_is_registered_twice() -> None:
    """Under its second name it is the same, as is what is in it."""
    from collections import OrderedDict

    import torch
    from torch import nn

    with torch.device("meta"):
        shared = nn.Sequential(OrderedDict(fc=nn.Linear(3, 5)))
        network = nn.ModuleDict({"x": nn.ModuleDict({"block": shared}), "z": nn.Linear(2, 2),
                                 "y": nn.ModuleDict({"block": shared})})  # fmt: skip
    table = read_table(network)
    assert dict(table.repeated) == {"y.block": "x.block", "y.block.fc": "x.block.fc"}
    for saved in (("block",), ("fc",), ("y.block",), ("y.block.fc", "block")):
        adapter = AdapterConfig(("z",), r=2, modules_to_save=saved)
        counted = count(inject(copy.deepcopy(network), adapter))
        formula = lora_parameters(match(table, adapter))
        assert (formula.trainable, formula.total) == (counted.trainable, counted.total)


def test_saved_in_a_table_without_containers() -> None:
    """An atlas holds no lists and blocks: what is saved within them is found all the same."""
    model = small("opt-CausalLM")
    bare = replace(model.table, modules=tuple(m for m in model.table.modules if m.kind != OTHER))
    adapter = AdapterConfig(("q_proj",), r=2, modules_to_save=("fc2", "layers.0.self_attn.k_proj"))
    counted = count(inject(model.build(), adapter))
    ledger = match(bare, adapter)
    assert sorted(ledger.saved) == sorted(counted.saved)
    assert lora_parameters(ledger).trainable == counted.trainable


def test_layers_of_falcons_name_are_stacked() -> None:
    bare = Model("gpt2", {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 2,
                          "vocab_size": 24}, "AutoModel")  # fmt: skip
    adapter = AdapterConfig(("c_attn",), r=2, layer_replication=((0, 2), (0, 2)))
    assert disagreement(bare.build(), bare.table, adapter) == ("injected", "")
    assert len(match(bare.table, adapter).adapted) == 4


def test_layers_that_are_stacked_again() -> None:
    """Ranges one behind the other, numbered anew; a layer that none names is gone."""
    table = small("llama-CausalLM").table
    adapter = AdapterConfig(("q_proj", "lm_head"), r=2, layer_replication=((1, 3), (1, 2)))
    agrees("llama-CausalLM", adapter)
    ledger = match(table, adapter)
    names = [f"model.layers.{n}.self_attn.q_proj" for n in range(3)]
    assert [a.name for a in ledger.adapted] == [*names, "lm_head"]
    gone = sum(p.elements for p in table.parameters if p.name.startswith("model.layers.0."))
    assert ledger.table.total_parameters == table.total_parameters - gone
    first, *_, last = ledger.table.modules
    assert (first.name, last.name) == (table.modules[0].name, table.modules[-1].name)
    shared = {p.name: p.same_as for p in ledger.table.parameters if "q_proj" in p.name}
    assert shared == {f"{names[0]}.weight": "", f"{names[1]}.weight": "",
                      f"{names[2]}.weight": f"{names[0]}.weight"}  # fmt: skip
    agrees("bert-SequenceClassification", AdapterConfig(("query",), layer_replication=((0, 2),)))


def test_an_exclusion_from_fewer_layers_is_looked_for_in_them() -> None:
    """The last range goes beyond the layers that are left, and it did in the model as it was."""
    given = {"r": 2, "layer_replication": ((0, 1), (2, 3))}
    held = AdapterConfig("all-linear", exclude_modules=("k_proj",), **given)
    nothing = AdapterConfig("all-linear", exclude_modules=("none_such",), **given)
    for adapter, dead in ((held, []), (nothing, ["none_such"])):
        agrees("llama-CausalLM", adapter)
        ledger = match(small("llama-CausalLM").table, adapter)
        assert [field.entry for field in ledger.dead_fields] == dead


def test_experts_that_layers_share_are_missed_once() -> None:
    adapter = AdapterConfig(("q_proj",), r=2, layer_replication=((0, 1), (0, 1), (0, 1)))
    ledger = match(tiny("mixtral").table, adapter)
    (said,) = (h.reason for h in ledger.hazards if h.code == "experts-not-reached")
    one = [p for p in ledger.table.expert_parameters if p.name.startswith("model.layers.0.")]
    share = sum(p.elements for p in one) / ledger.table.total_parameters
    assert said.startswith(f"6 fused expert weights, {share:.0%} of the model, get no adapter")


@pytest.mark.parametrize(
    ("label", "pairs", "said"),
    [
        ("llama-CausalLM", ((0, 4),),
         "layer_replication [(0, 4)]: the model has layers 0 to 2"),
        ("llama-CausalLM", ((0, 1), (3, 4)),
         "layer_replication [(0, 1), (3, 4)]: the model has layers 0 to 2"),
        ("gpt2-CausalLM", ((0, 1),),
         "layer_replication: PEFT replicates model.layers, encoder.layer or h, and GPT2LMHeadModel "
         "has none of them"),
    ],
)  # fmt: skip
def test_layers_that_cannot_be_stacked(label: str, pairs: tuple, said: str) -> None:
    adapter = AdapterConfig("all-linear", layer_replication=pairs)
    with pytest.raises(BenchError) as error:
        match(small(label).table, adapter)
    assert str(error.value) == said
    agrees(label, adapter, "refused")


def test_lora_fa_freezes_every_a() -> None:
    """In the copies of saved modules too; no term is below zero."""
    model = small("opt-CausalLM")
    fields = {"r": 3, "target_modules": ["q_proj", "fc1"], "modules_to_save": ["layers.0", "fc2"]}
    formula = method_parameters(model.table, method("lora-fa", **fields))
    counted = count_lora_fa(model.build(), fields)
    assert (formula.trainable, formula.total) == (counted.trainable, counted.total)
    assert min(term.trained for term in formula.terms) >= 0


def test_no_targets() -> None:
    """PEFT's own value for a configuration without adapters."""
    adapter = AdapterConfig(NO_TARGETS, modules_to_save=("lm_head",))
    agrees("mistral-CausalLM", adapter)
    assert match(small("mistral-CausalLM").table, adapter).entries == ()


def test_the_hub_client_reads_its_own_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE=0 is online: the client alone reads it."""
    import huggingface_hub

    asked: dict[str, object] = {}

    def download(name: str, file: str, **options: object) -> str:
        asked.update(options)
        raise OSError("no connection")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(BenchError, match="no connection"):
        load_model("owner/name")
    assert not asked.get("local_files_only")
