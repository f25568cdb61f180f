"""What to write instead of an entry that reaches nothing: PEFT adapts what the offer says."""

from __future__ import annotations

import re

import pytest
from test_dead import BERT, GPT2, LLAMA, MIXTRAL, QWEN_MOE, XLNET, dead, ledger_of, model

from bench.adapters.config import AdapterConfig
from bench.measure.counting import count, inject
from bench.targets import match

OFFERS = [
    (BERT, "o_proj", "attention.output.dense (output, 4 modules)"),
    (BERT, "down_proj", "dense (down in 4 of the 13 modules that it reaches)"),
    (GPT2, "o_proj", "attn.c_proj (output, 2 modules)"),
    (GPT2, "fc2", "mlp.c_proj (down, 2 modules)"),
    ({**LLAMA, "model_type": "modernbert"}, "o_proj", "attn.Wo (output, 4 modules)"),
    (XLNET, "q_proj", 'target_parameters=["rel_attn.q"] (2 layers)'),
    (LLAMA, "query_key_value",
     "q_proj (query, 4 modules), k_proj (key, 4 modules), v_proj (value, 4 modules)"),
    (LLAMA, "gate_up_proj", "gate_proj (gate, 4 modules), up_proj (up, 4 modules)"),
    (LLAMA, "vv_proj", "v_proj (4 modules)"),
    (LLAMA, "lm_haed", "lm_head (1 modules)"),
    (LLAMA, "self_attn.qproj", "q_proj (4 modules)"),
    (LLAMA, "Q_proj", "q_proj (query, 4 modules)"),
    (LLAMA, "nothing_alike", ""),
    # Another sign for the underscore: the same name, not the one that is alike by its letters.
    (LLAMA, "q.proj", "q_proj (query, 4 modules)"),
    (LLAMA, "self_attn.k.proj", "k_proj (key, 4 modules)"),
    (LLAMA, "Up-Proj", "up_proj (up, 4 modules)"),
    (LLAMA, "gate.up.proj", "gate_proj (gate, 4 modules), up_proj (up, 4 modules)"),
    # Never a module of another work, however near its name: c_proj, out_proj, ...
    (GPT2, "Q_PROJ", "c_attn (query-key-value, 2 modules)"),
    (GPT2, "v__proj", "c_attn (query-key-value, 2 modules)"),
    (BERT, "o_projs", "attention.output.dense (output, 4 modules)"),
    (LLAMA, "k_projection", "k_proj (key, 4 modules)"),
    # As near to each of these, and to none of the three others
    (LLAMA, "proj",
     "q_proj (4 modules), k_proj (4 modules), v_proj (4 modules), o_proj (4 modules)"),
    # PEFT would translate up_proj, the first layer's too
    (QWEN_MOE, "fc1", 'target_parameters=["mlp.experts.gate_up_proj"] (3 layers)'),
]  # fmt: skip


@pytest.mark.parametrize(("config", "entry", "offer"), OFFERS)
def test_offers_reach_what_they_say(config: dict, entry: str, offer: str) -> None:
    """What is offered is written, and PEFT adapts as many modules as the offer says."""
    auto = {"bert": "AutoModelForSequenceClassification", "modernbert": "AutoModel"}
    asked = model(config, auto.get(config["model_type"], "AutoModelForCausalLM"))
    (found,) = match(asked.table, AdapterConfig((entry,))).entries
    assert found.suggestion == offer
    for name, n in re.findall(r"([\w.]+) \([^)]*?(\d+) modules", offer):
        assert len(count(inject(asked.build(), AdapterConfig((name,)))).adapted) == int(n)
    for name, n in re.findall(r'=\["([\w.]+)"\] \((\d+) layers', offer):
        adapter = AdapterConfig((), target_parameters=(name,))
        assert len(count(inject(asked.build(), adapter)).adapted) == int(n)


BESIDE = [
    (LLAMA, "query_key_value", {"layers_to_transform": (1,)}),
    (LLAMA, "vv_proj", {"layers_to_transform": (0, 2), "layers_pattern": "layers"}),
    (LLAMA, "vv_proj", {"layers_to_transform": (0,), "layers_pattern": "blocks"}),
    (LLAMA, "Q_proj", {"exclude_modules": ("layers.0.self_attn.q_proj",)}),
    (LLAMA, "Q_proj", {"exclude_modules": r".*layers\.[01]\..*"}),
    (LLAMA, "model.layer.0.self_attn.v_proj", {"layers_to_transform": (0,)}),
    (BERT, "down_proj", {"layers_to_transform": (0,)}),
    (BERT, "qeury", {"modules_to_save": ("encoder.layer.1",)}),
]  # fmt: skip


@pytest.mark.parametrize(("config", "entry", "fields"), BESIDE)
def test_offers_count_what_the_other_fields_leave(config: dict, entry: str, fields: dict) -> None:
    """PEFT adapts so many, where the offer stands in the entry's place; one module beside it, for
    PEFT raises where nothing is adapted."""
    auto = {"bert": "AutoModelForSequenceClassification"}
    asked = model(config, auto.get(config["model_type"], "AutoModelForCausalLM"))
    found = match(asked.table, AdapterConfig((entry,), **fields)).entries[0]
    offers = re.findall(
        r"([\w.]+) \([^()]*?(\d+) (?:of (its|the) (\d+) )?modules[^()]*\)", found.suggestion
    )
    for name, n, which, among in offers or [(found.suggestion, "1", "", "")]:
        named = next(
            m.name for m in asked.table.modules if m.kind == "linear" and "." not in m.name
        )
        adapter = AdapterConfig((name, named), **fields)
        reached = {*count(inject(asked.build(), adapter)).adapted} - {named}
        assert len(reached) == int(among if which == "the" else n)


def test_parameters_are_offered_for_target_parameters() -> None:
    """Never a module's name, unless as one of target_modules."""
    moved = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up"]}
    (entry,) = dead(ledger_of(moved, MIXTRAL))
    assert entry.suggestion == 'target_parameters=["mlp.experts.gate_up_proj"] (2 layers)'
    work = {"target_modules": ["q_proj"], "target_parameters": ["fc1"]}
    (entry,) = dead(ledger_of(work))
    assert entry.suggestion == "in target_modules: up_proj (up, 4 modules)"
    slip = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_prj"]}
    (entry,) = dead(ledger_of(slip, MIXTRAL))
    assert entry.suggestion == 'target_parameters=["mlp.experts.gate_up_proj"] (2 layers)'


def test_what_is_listed_already_is_not_suggested_again() -> None:
    """Of the parts of a fused name only those that are missing; none, where all are there."""
    fused = {"target_modules": ["q_proj", "v_proj", "Wqkv"]}
    (dead,) = (entry for entry in ledger_of(fused).entries if entry.dead)
    assert dead.suggestion == "k_proj (key, 4 modules)"
    (dead,) = (
        entry
        for entry in ledger_of({"target_modules": ["q_proj", "k_proj", "v_proj", "Wqkv"]}).entries
        if entry.dead
    )
    assert not dead.suggestion
    assert dead.cause == "what would do its work is listed already (q_proj, k_proj, v_proj)"
    (alone,) = ledger_of({"target_modules": ["Wqkv"]}).entries
    assert [name.partition(" ")[0] for name in alone.suggestion.split("), ")] == [
        "q_proj", "k_proj", "v_proj",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("beside", "offered"),
    [
        (["wq", "wk", "wv"], "o_proj (output, 4 modules)"),
        (["wi_0", "wi_1"], "down_proj (down, 4 modules)"),
        ([], "o_proj (output, 4 modules), down_proj (down, 4 modules)"),
    ],
)
def test_a_name_of_two_meanings_has_the_one_of_its_neighbours(
    beside: list[str], offered: str
) -> None:
    """Meta's own Llama has wq, wk, wv, wo for attention (llama/model.py); T5 has wi and wo."""
    entries = ledger_of({"target_modules": [*beside, "wo"]}).entries
    assert entries[-1].suggestion == offered


@pytest.mark.parametrize(
    ("layers", "also", "offer"),
    [
        ([99], "; the model's layers are 0 to 3", ""),
        ([1, 99], "", 'layers_pattern="layers" beside layers_to_transform'),
    ],
)
def test_a_pattern_of_layers_is_offered_where_it_reaches_something(
    layers: list[int], also: str, offer: str
) -> None:
    asked = {"target_modules": ["gate_proj"], "layers_to_transform": layers, "layers_pattern": "h"}
    (entry,) = dead(ledger_of(asked))
    unread = "4 modules whose layer number cannot be read, for layers_to_transform"
    assert (entry.cause, entry.suggestion) == (unread + also, offer)
    reached = ledger_of({**asked, "layers_pattern": "layers"}).adapted
    assert bool(reached) == bool(offer)


def test_layers_that_hold_none_of_the_modules_are_told() -> None:
    """The first layer has no router."""
    asked = {"target_modules": ["mlp.gate"], "layers_to_transform": [0], "layers_pattern": "h"}
    config = {**QWEN_MOE, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 8}
    (entry,) = dead(ledger_of(asked, config))
    assert not entry.suggestion
    assert entry.cause.startswith("3 modules whose layer number cannot be read")
    assert entry.cause.endswith("; the layers that layers_to_transform names hold none of them")
