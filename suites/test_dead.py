"""Entries without effect, in every field, and why: PEFT counts the same without them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from bench import DeadEntries, check_targets
from bench.adapters.config import AdapterConfig
from bench.cli import main
from bench.errors import BenchError
from bench.measure.counting import count, inject
from bench.models.architectures import Model
from bench.models.modules import LINEAR, Module, ModuleTable, Parameter
from bench.targets import Entry, Ledger, match

LLAMA = {
    "model_type": "llama", "vocab_size": 24, "pad_token_id": 0, "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 2, "num_hidden_layers": 2}
BERT = {**LLAMA, "model_type": "bert"}
QWEN_MOE = {**LLAMA, "model_type": "qwen3_moe", "num_experts": 2, "moe_intermediate_size": 8,
            "mlp_only_layers": [0]}  # fmt: skip
JAMBA = {**LLAMA, "model_type": "jamba", "num_experts": 1, "attn_layer_period": 2,
         "attn_layer_offset": 1, "mamba_dt_rank": 4}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": 24}
XLNET = {"model_type": "xlnet", "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24,
         "vocab_size": 24}  # fmt: skip


def model(config: dict[str, Any], auto_class: str = "AutoModelForCausalLM") -> Model:
    return Model(str(config["model_type"]), config, auto_class)


def ledger_of(fields: dict[str, Any], config: dict[str, Any] = LLAMA) -> Ledger:
    return match(model(config).table, AdapterConfig.from_dict(fields))


def dead_fields(ledger: Ledger) -> list[tuple[str, str, str]]:
    return [(dead.field, dead.entry, dead.suggestion) for dead in ledger.dead_fields]


DEAD = {
    "target_modules": ["q_proj", "k_proj"],
    "rank_pattern": {"q_prj": 4, "k_proj": 4},
    "alpha_pattern": {"zz": 3, "q_proj": 3},
    "modules_to_save": ["lmhead", "norm"],
    "exclude_modules": ["foo", "layers.0.self_attn.q_proj"],
    "layers_to_transform": [0, 1, 77],
    "layers_pattern": ["h", "layers"],
}
FOUND = [
    ("rank_pattern", "q_prj", "q_proj"),
    ("alpha_pattern", "zz", ""),
    ("modules_to_save", "lmhead", "lm_head"),
    ("exclude_modules", "foo", ""),
    ("layers_to_transform", "77", ""),
    ("layers_pattern", "h", ""),
]


def test_every_field_says_what_has_no_effect() -> None:
    assert dead_fields(ledger_of(DEAD)) == FOUND


def test_peft_ignores_the_same_entries() -> None:
    """Without them PEFT counts the same; without a live one it does not."""
    llama = model(LLAMA)

    def counted(fields: dict[str, Any]) -> tuple[int, int, list[str]]:
        found = count(inject(llama.build(), AdapterConfig.from_dict(fields)))
        return found.trainable, found.total, found.adapted

    def without(field: str, entry: str) -> dict[str, Any]:
        value = DEAD[field]
        kept = [v for v in value if str(v) != entry]
        return {**DEAD, field: {k: value[k] for k in kept} if isinstance(value, dict) else kept}

    every = counted(DEAD)
    for field, entry, _ in FOUND:
        assert counted(without(field, entry)) == every
    live = [("rank_pattern", "k_proj"), ("modules_to_save", "norm"), ("layers_to_transform", "1"),
            ("exclude_modules", "layers.0.self_attn.q_proj")]  # fmt: skip
    for field, entry in live:
        assert counted(without(field, entry)) != every


def test_peft_warns_of_the_same_patterns() -> None:
    from peft import LoraConfig, get_peft_model

    fields = {key: DEAD[key] for key in ("target_modules", "rank_pattern", "alpha_pattern")}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        get_peft_model(model(LLAMA).build(), LoraConfig(**fields))
    told = [str(w.message) for w in said if "did not match any targeted module" in str(w.message)]
    assert ["q_prj" in told[0], "zz" in told[1], len(told)] == [True, True, 2]


def test_old_expert_names_in_other_fields() -> None:
    """PEFT translates target_modules and nothing else; exclusion holds modules out only."""
    fields = {"target_modules": ["q_proj", "w1", "w2", "w3"]}
    dead = {"rank_pattern": {"w1": 4}, "exclude_modules": ["experts"]}
    ledger = ledger_of({**fields, **dead}, MIXTRAL)
    assert dead_fields(ledger) == [
        ("rank_pattern", "w1", "gate_up_proj"),
        ("exclude_modules", "experts", ""),
    ]
    plain, more = (
        count(inject(model(MIXTRAL).build(), AdapterConfig.from_dict(f)))
        for f in (fields, {**fields, **dead})
    )
    assert plain.trainable == more.trainable
    live = {**fields, "rank_pattern": {"gate_up_proj": 4}}
    assert ledger_of(live, MIXTRAL).dead_fields == ()


def test_a_configuration_that_peft_saved_has_nothing_dead(tmp_path: Path) -> None:
    """PEFT saves both of its heads for the task type, of which a model has one."""
    from peft import LoraConfig, get_peft_model

    bert = model(BERT, "AutoModelForSequenceClassification")
    asked = LoraConfig(target_modules=["query"], task_type="SEQ_CLS", rank_pattern={"query": 2})
    get_peft_model(bert.build(), asked).peft_config["default"].save_pretrained(tmp_path)
    saved = AdapterConfig.from_file(tmp_path)
    assert set(saved.modules_to_save) == {"classifier", "score"}
    assert match(bert.table, saved).dead_fields == ()


def test_commands_fail_on_them_unless_optional(tmp_path: Path, capsys) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(DEAD))
    command = ["targets", str(tmp_path), "--strict"]
    assert main(command) == 1
    assert "modules_to_save lmhead: no effect" in capsys.readouterr().out
    assert main([*command, "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["dead_entries"] == []
    assert [(d["field"], d["entry"], d["suggestion"]) for d in answer["dead_fields"]] == FOUND
    optional = [entry for _, entry, _ in FOUND]
    assert main([*command, "--optional", ",".join(optional)]) == 0
    with pytest.raises(DeadEntries, match="layers_to_transform 77: no effect"):
        check_targets(tmp_path, file)
    assert check_targets(tmp_path, file, optional=optional).adapted_layers == 3


def test_check_targets_takes_a_configuration_and_no_wrapped_model() -> None:
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    live = model(LLAMA).build()
    assert check_targets(live.config, ["q_proj"]).adapted_layers == 4
    head = {"target_modules": ["q_proj"], "task_type": "SEQ_CLS"}
    assert check_targets(live.config, head).saved == ("score",)
    with pytest.raises(DeadEntries, match="LlamaConfig: 1 of 1 entries"):
        check_targets(live.config, ["query"])
    check_targets(live, ["q_proj", "zz"], optional="zz")
    check_targets(live, ["q_proj"], optional_anywhere=["zz"])
    with pytest.raises(BenchError, match="unknown entry in optional: 'zz': known: q_proj"):
        check_targets(live, ["q_proj"], optional="zz")
    wrapped = get_peft_model(live, LoraConfig(target_modules=["q_proj"]))
    for carrying in (wrapped, wrapped.base_model.model):
        with pytest.raises(BenchError, match="carries an adapter already"):
            check_targets(carrying, ["q_proj"])
    assert check_targets(wrapped.unload(), ["q_proj"]).adapted_layers == 4
    prompted = get_peft_model(
        model(LLAMA).build(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(BenchError, match="carries an adapter already"):
        check_targets(prompted, ["q_proj"])
    with pytest.raises(BenchError, match="found int"):
        check_targets(3, ["q_proj"])


CAUSES = [
    ({"target_modules": "q_proj"}, "must match the whole name", r'["q_proj"], or .*\.q_proj'),
    ({"target_modules": "(q_proj|k_proj)"}, "must match the whole name", r".*\.(q_proj|k_proj)"),
    ({"target_modules": ["all-linear"]}, "in a list", 'the string "all-linear"'),
    ({"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["q_proj"]},
     "4 modules held out by exclude_modules", ""),
    ({"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["self_attn"]},
     "4 modules trained whole: in self_attn", ""),
    ({"target_modules": ["lm_head", "up_proj"], "modules_to_save": ["lm_head"]},
     "trained whole: in lm_head", ""),
    ({"target_modules": ["q_proj"], "layers_to_transform": [9]}, "layers_to_transform", ""),
    ({"target_modules": ["v_proj"], "target_parameters": ["q_proj"]},
     "names a module, not a parameter", "q_proj.weight"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "cause", "instead"), CAUSES)
def test_the_cause_and_not_the_name_itself(fields: dict, cause: str, instead: str) -> None:
    """The model has what these entries name, and PEFT adapts none of it."""
    ledger = ledger_of(fields)
    (entry,) = dead(ledger)
    assert cause in entry.cause
    assert entry.suggestion.endswith(instead)
    assert bool(entry.suggestion) == bool(instead)
    try:
        adapted = count(inject(model(LLAMA).build(), ledger.adapter)).adapted
    except BenchError:
        adapted = []
    assert not any(entry.entry in name for name in adapted)


def test_what_the_cause_offers_works() -> None:
    for pattern, adapted in ((r".*\.q_proj", 4), (r".*\.(q_proj|k_proj)", 8), ("all-linear", 28)):
        ledger = ledger_of({"target_modules": pattern})
        assert len(ledger.adapted) == adapted
        assert len(count(inject(model(LLAMA).build(), ledger.adapter)).adapted) == adapted


def test_a_layer_counted_from_the_end_has_no_effect() -> None:
    """PEFT takes it, and passes over it."""
    ledger = ledger_of({"target_modules": ["q_proj"], "layers_to_transform": [0, -1]})
    adapted = count(inject(model(LLAMA).build(), ledger.adapter)).adapted
    assert [item.name for item in ledger.adapted] == list(adapted)
    assert len(adapted) == 1
    (field,) = ledger.dead_fields
    assert str(field) == "layers_to_transform -1: no effect, the model's layers are 0 to 3"


def dead(ledger: Ledger) -> list[Entry]:
    return [entry for entry in ledger.entries if entry.dead]


@pytest.mark.parametrize(
    ("field", "value"),
    [("loftq_config", {"loftq_bits": 4}), ("eva_config", {"rho": 1.0}),
     ("corda_config", {"corda_method": "kpm"})],
)  # fmt: skip
def test_a_field_that_peft_ignores(field: str, value: dict[str, Any]) -> None:
    """PEFT warns of each; the same field with its own initialisation is no dead one."""
    from peft import LoraConfig

    with pytest.warns(UserWarning, match=f"`{field}` specified but will be ignored"):
        LoraConfig(**{field: value})
    given = {"target_modules": ["q_proj"], field: value}
    (dead,) = ledger_of(given).dead_fields
    assert (dead.field, dead.entry) == (field, "")
    assert "PEFT ignores it" in str(dead)
    assert field not in AdapterConfig.from_dict(given).to_dict() or field == "eva_config"
    init = {"init_lora_weights": field.removesuffix("_config")}
    assert AdapterConfig.from_dict({**given, **init}).ignored == ()


def test_a_field_that_peft_does_not_know(tmp_path: Path) -> None:
    """From a file PEFT drops it with a warning, as an argument it refuses it."""
    from peft import LoraConfig

    given = {"peft_type": "LORA", "target_modules": ["q_proj"], "enable_lora": [True]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(given))
    with pytest.warns(UserWarning, match="enable_lora"):
        LoraConfig.from_pretrained(str(tmp_path))
    with pytest.raises(TypeError, match="enable_lora"):
        LoraConfig(enable_lora=[True])
    with pytest.raises(BenchError, match=r"'enable_lora'.*knows no such field: it drops it"):
        AdapterConfig.from_file(tmp_path)


WRITTEN = [
    # (config, entries as written, what the cause says, what to write, modules that PEFT adapts)
    (LLAMA, ["[q_proj]"], "brackets and quotes", ["q_proj"], 4),
    (LLAMA, ["'q_proj'"], "brackets and quotes", ["q_proj"], 4),
    (LLAMA, ["q_proj "], "a blank before or after it belongs to the name", ["q_proj"], 4),
    (LLAMA, ["\tq_proj"], "a blank before or after it belongs to the name", ["q_proj"], 4),
    (LLAMA, [r".*\.q_proj"], "not regular expressions", ["q_proj"], 4),
    (LLAMA, [r"model.layers.*.q_proj$"], "not regular expressions",
     r"model.layers.*.q_proj$", 4),
    (LLAMA, ["*_proj"], "not regular expressions", ".*_proj", 28),
    (LLAMA, ["(q|k)_proj"], "not regular expressions", r"(?:.*\.)?(?:(q|k)_proj)", 8),
    (LLAMA, ["q_proj.weight"], "it names a tensor", ["q_proj"], 4),
    (LLAMA, ["base_model.model.model.layers.2.mlp.up_proj"],
     "it is now model.layers.2.mlp.up_proj", ["model.layers.2.mlp.up_proj"], 1),
    (LLAMA, ["transformer.layers.1.self_attn.v_proj"],
     "it is now model.layers.1.self_attn.v_proj", ["model.layers.1.self_attn.v_proj"], 1),
    (LLAMA, "q_proj,v_proj", "one regular expression", ["q_proj", "v_proj"], 8),
    (LLAMA, "['q_proj', 'v_proj']", "one regular expression", ["q_proj", "v_proj"], 8),
    (LLAMA, "all", "no module is called so", "all-linear", 28),
    (LLAMA, r"^language_model\.model\.layers\..*q_proj$", "is now model.layers",
     r"model\.layers\..*q_proj$", 4),
]  # fmt: skip


@pytest.mark.parametrize(("config", "entries", "cause", "instead", "adapted"), WRITTEN)
def test_what_was_written_is_understood(
    config: dict[str, Any], entries: Any, cause: str, instead: Any, adapted: int
) -> None:
    """The reason names the slip, and PEFT adapts as many modules with what is offered."""
    found = dead(ledger_of({"target_modules": entries}, config))
    assert cause in found[0].cause
    for name in [instead] if isinstance(instead, str) else instead:
        assert name in found[0].suggestion.replace("\\\\", "\\")
    asked = AdapterConfig(instead if isinstance(instead, str) else tuple(instead))
    assert len(count(inject(model(config).build(), asked)).adapted) == adapted


@pytest.mark.parametrize(
    ("excluded", "offer"),
    [
        (["q_prj"], "q_proj"),  # a slip
        (["layers.0.self"], 'the string ".*layers.0.self.*"'),  # the middle of names
        (["nothing"], ""),
        (["self_attn"], 'the string ".*\\\\bself_attn\\\\..*"'),  # what holds the modules
        (["lm_head"], ""),  # there, and not to be adapted
    ],
)
def test_what_to_write_for_an_exclusion_without_effect(excluded: list[str], offer: str) -> None:
    given = {"target_modules": ["q_proj", "up_proj"], "exclude_modules": excluded}
    ledger = ledger_of(given)
    assert dead_fields(ledger) == [("exclude_modules", excluded[0], offer)]
    if offer:  # what is offered holds something out
        written = json.loads(offer.removeprefix("the string ")) if " " in offer else [offer]
        fewer = ledger_of({**given, "exclude_modules": written})
        assert 0 < len(fewer.adapted) < len(ledger.adapted)
        assert fewer.dead_fields == ()


def test_an_exclusion_holds_out_what_would_be_adapted() -> None:
    """Names that are there and would not be adapted anyway, and containers in a list, do nothing:
    PEFT counts the same without them."""

    def excluded(value: Any, targets: Any = ("q_proj",)) -> Ledger:
        return ledger_of({"target_modules": targets, "exclude_modules": value})

    def adapted(ledger: Ledger) -> int:
        return len(count(inject(model(LLAMA).build(), ledger.adapter)).adapted)

    for value in (["lm_head"], ["self_attn"], ["k_proj"], "self_attn", "lm_head", r".*k_proj"):
        ledger = excluded(value)
        (dead_field,) = ledger.dead_fields
        assert dead_field.field == "exclude_modules"
        assert adapted(ledger) == 4
        if offer := dead_field.suggestion:
            assert "self_attn" in str(value)
            written = json.loads(offer.removeprefix("the string "))
            assert excluded(written, ["q_proj", "up_proj"]).dead_fields == ()
            assert adapted(excluded(written, ["q_proj", "up_proj"])) == 4
    assert excluded(["layers.0.self_attn.q_proj"]).dead_fields == ()


def test_a_mark_in_one_of_several_names_makes_no_list() -> None:
    (entry,) = ledger_of({"target_modules": "=cmd|x,@a,+b,-c,q_proj"}).entries
    assert entry.cause == "with | + in it, it is one regular expression, and no list"
    assert entry.suggestion == 'the list ["q_proj"] (on the command line q_proj)'


def test_a_name_that_peft_would_translate_is_passed_over() -> None:
    """On experts' models `up_proj` is the old name of a parameter: the next that does its work."""
    names = ("layers.0.mlp.up_proj", "layers.0.ff.fc1")
    modules = tuple(Module(name, LINEAR, 1, 1) for name in names)
    weights = tuple(Parameter(f"{name}.weight", (1, 1)) for name in names)
    for family, offer in (("", "up_proj (up, 1 modules), fc1 (up, 1 modules)"),
                          ("qwen2_moe", "fc1 (up, 1 modules)")):  # fmt: skip
        table = ModuleTable("", "Small", modules, weights, moe_conversion=family)
        assert match(table, AdapterConfig(("c_fc",))).entries[0].suggestion == offer


@pytest.mark.parametrize(
    ("config", "fields", "why"),
    [
        (LLAMA, {"target_modules": ["model.layers.7.self_attn.q_proj", "k_proj"]},
         "such modules are in model.layers.0 to 3, not in 7"),
        (LLAMA, {"target_modules": ["7.mlp.up_proj.weight", "k_proj"]},
         "such modules are in model.layers.0 to 3, not in 7"),
        (JAMBA, {"target_modules": ["layers.2.self_attn.q_proj", "k_proj"]},
         "such modules are in model.layers.1, 3, not in 2"),
        (MIXTRAL, {"target_modules": ["k_proj"],
                   "target_parameters": ["layers.5.mlp.experts.gate_up_proj"]},
         "such parameters are in model.layers.0 to 1, not in 5"),
    ],
)  # fmt: skip
def test_a_layer_that_has_none_is_named(
    config: dict[str, Any], fields: dict[str, Any], why: str
) -> None:
    """No path has moved: the model ends earlier, or another kind of layer stands there."""
    (dead,) = (entry for entry in ledger_of(fields, config).entries if entry.dead)
    assert (dead.cause, dead.suggestion) == (why, "")
