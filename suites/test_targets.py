"""The match ledger against PEFT itself: known traps with their figures, and random entry lists."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import DeadEntries, check_targets
from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.files import FIXTURES
from bench.formulas import lora_parameters
from bench.measure.counting import count, inject
from bench.models.architectures import Model
from bench.models.classes import model_class
from bench.models.modules import read_table
from bench.models.precision import precision
from bench.models.quantization import bitsandbytes_config
from bench.targets import Ledger, match
from bench.tasks import BY_TYPE

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture
def both(model_of):
    """The ledger, after PEFT agreed with it: same modules, same parameters, same refusal."""

    def compare(model: str | Path, adapter: AdapterConfig) -> Ledger:
        return agree(model_of(str(model)), adapter)

    return compare


def agree(model: Model, adapter: AdapterConfig) -> Ledger:
    ledger = match(model.table, adapter)
    bare = replace(ledger, entries=(), hazards=(), dead_fields=(), ways_out=())
    assert match(model.table, adapter, described=False) == bare
    try:
        injected = count(inject(model.build(), adapter))
    except BenchError:
        injected = None
    assert (injected is None) == bool(ledger.refusals)
    if injected is None:
        return ledger
    assert sorted(item.name for item in ledger.adapted) == sorted(injected.adapted)
    formula = lora_parameters(ledger)
    assert (formula.trainable, formula.total) == (injected.trainable, injected.total)
    return ledger


def hazards(ledger: Ledger) -> set[str]:
    return {hazard.code for hazard in ledger.hazards}


def test_one_live_entry_hides_the_dead_ones(both) -> None:
    ledger = both("llama-3.2-1b", AdapterConfig(("q_proj", "query", "c_attn", "fc1")))
    assert ledger.dead_entries == ("query", "c_attn", "fc1")
    assert [e.suggestion for e in ledger.entries if e.dead] == [
        "",  # q_proj is listed already
        "k_proj (key, 16 modules), v_proj (value, 16 modules)",
        "up_proj (up, 16 modules)",
    ]
    assert both("llama-3.2-1b", AdapterConfig(("query", "fc1"))).refusals


def test_phi3_fuses_what_the_seven_names_ask_for(both) -> None:
    """phi-3-mini, r 16: 8,912,896 over 64 layers, or 25,165,824 over 128 with the fused names."""
    seven = both("phi-3-mini", AdapterConfig(SEVEN, r=16))
    assert (seven.adapted_layers, lora_parameters(seven).trainable) == (64, 8_912_896)
    assert seven.dead_entries == ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    assert seven.entries[0].suggestion == "qkv_proj (query-key-value, 32 modules)"
    fused = AdapterConfig(("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), r=16)
    ledger = both("phi-3-mini", fused)
    assert (ledger.adapted_layers, lora_parameters(ledger).trainable) == (128, 25_165_824)
    assert ledger.weight_coverage == 1


def test_gpt_oss_experts_are_parameters(both) -> None:
    """gpt-oss-20b, seven names, r 8: 3,981,312, attention only."""
    ledger = both(FIXTURES / "traps" / "gpt-oss-20b", AdapterConfig(SEVEN, r=8))
    assert lora_parameters(ledger).trainable == 3_981_312
    assert ledger.dead_entries == ("gate_proj", "up_proj", "down_proj")
    assert "experts-not-reached" in hazards(ledger)


def test_granite_hybrid_has_attention_in_four_layers(both) -> None:
    """Granite-4.0-h-micro, r 32: 1,703,936; with the shared MLP's own names 38,404,096."""
    granite = FIXTURES / "traps" / "granite-4.0-h-micro"
    ledger = both(granite, AdapterConfig(SEVEN, r=32))
    assert lora_parameters(ledger).trainable == 1_703_936
    assert {entry.layers for entry in ledger.entries if not entry.dead} == {4}
    assert "part-of-the-layers" in hazards(ledger)
    shared = ("shared_mlp.input_linear", "shared_mlp.output_linear")
    ledger = both(granite, AdapterConfig((*SEVEN, *shared), r=32))
    assert lora_parameters(ledger).trainable == 38_404_096


@pytest.mark.parametrize(
    "model",
    ["vit-base", str(FIXTURES / "traps" / "segformer-b0")],
    ids=["vit-base", "segformer-b0"],
)
def test_renamed_attention(both, model: str) -> None:
    """PEFT's documented image example names query and value, which transformers 5 renamed."""
    ledger = both(model, AdapterConfig(("query", "value"), modules_to_save=("classifier",)))
    assert ledger.refusals
    assert ledger.entries[0].suggestion.startswith("q_proj (query, ")
    assert both(model, AdapterConfig(("q_proj", "v_proj"))).refusals == ()


class TestMixtral:
    def test_default_targets_raise(self, both) -> None:
        assert both("mixtral-8x7b", AdapterConfig()).refusals

    def test_projection_names_reach_nothing(self, both) -> None:
        ledger = both("mixtral-8x7b", AdapterConfig(SEVEN))
        assert ledger.dead_entries == ("gate_proj", "up_proj", "down_proj")
        offers = {e.entry: e.suggestion for e in ledger.entries if e.dead}
        fused = 'target_parameters=["mlp.experts.gate_up_proj"] (32 layers)'
        assert offers["gate_proj"] == offers["up_proj"] == fused
        assert "experts-not-reached" in hazards(ledger)

    def test_old_expert_names_double_the_rank(self, both) -> None:
        ledger = both("mixtral-8x7b", AdapterConfig(("w1", "w2", "w3"), r=8))
        ranks = {item.name.rpartition(".")[2]: item.r for item in ledger.adapted}
        assert ranks == {"gate_up_proj": 16, "down_proj": 8}
        # 8 experts · r (rows + columns), 32 layers: w1 and w3 share 2 · 14336 rows at rank 16
        expected = 32 * 8 * (16 * (4096 + 28672) + 8 * (4096 + 14336))
        assert lora_parameters(ledger).trainable == expected
        assert "rank-doubled" in hazards(ledger)

    def test_one_of_two_fused_names_raises(self, both) -> None:
        (refusal,) = both("mixtral-8x7b", AdapterConfig(("w1",))).refusals
        assert "w3" in refusal

    def test_all_linear_adapts_the_router_too(self, both) -> None:
        ledger = both("mixtral-8x7b", AdapterConfig("all-linear"))
        assert {"router-adapted", "rank-doubled"} <= hazards(ledger)
        assert ledger.by_role["router"] == 32

    def test_explicit_parameters_do_not_double(self, both) -> None:
        ledger = both(
            "mixtral-8x7b",
            AdapterConfig(("q_proj",), target_parameters=("mlp.experts.gate_up_proj",), r=8),
        )
        assert {item.r for item in ledger.adapted} == {8}


def test_fresh_head_stays_frozen_without_a_task_type(both) -> None:
    """distilbert q_lin+v_lin r 8: 147,456 without a task type, 739,586 of 67,694,596 with one."""
    bare = both("distilbert-base-uncased", AdapterConfig(("q_lin", "v_lin")))
    assert lora_parameters(bare).trainable == 147_456
    assert hazards(bare) == {"frozen-head"}
    told = both("distilbert-base-uncased", AdapterConfig(("q_lin", "v_lin"), task_type="SEQ_CLS"))
    assert lora_parameters(told).trainable == 739_586
    assert lora_parameters(told).total == 67_694_596
    assert hazards(told) == set()


TINY = {"vocab_size": 24, "pad_token_id": 0}
TINY_LAYERS = {**TINY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
             "num_attention_heads": 2}  # fmt: skip
TINY_DISTILBERT = {**TINY, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2}


@pytest.mark.parametrize("loaded", ["int8", "nf4"])
@pytest.mark.parametrize(
    ("model_type", "config", "task_type", "heads"),
    [
        ("distilbert", TINY_DISTILBERT, "SEQ_CLS", ["pre_classifier", "classifier"]),
        ("bert", TINY_LAYERS, "QUESTION_ANS", ["qa_outputs"]),
        ("llama", TINY_LAYERS, "TOKEN_CLS", ["score"]),
        ("llama", TINY_LAYERS, "SEQ_CLS", []),  # its last parameter is score.weight
    ],
    ids=["distilbert", "bert", "llama-tokens", "llama-sequences"],
)
def test_quantized_head_cannot_be_trained(
    tmp_path: Path, model_type: str, config: dict, task_type: str, heads: list[str], loaded: str
) -> None:
    """transformers spares the last parameter by its name, ".bias" and all: a head with a bias is
    loaded as integers, and PEFT then fails to train a copy of it."""
    from peft import LoraConfig, get_peft_model

    model = Model(model_type, {"model_type": model_type, **config}, "AutoModel").for_task(task_type)
    model_class(model.auto_class).from_config(model.transformers_config).save_pretrained(tmp_path)
    live = model_class(model.auto_class).from_pretrained(
        tmp_path, quantization_config=bitsandbytes_config(precision(loaded))
    )
    modules = live.named_modules()
    quantized = {name for name, m in modules if type(m).__module__.startswith("bitsandbytes")}
    queries = ["q_lin", "query", "q_proj"]
    adapter = AdapterConfig(tuple(queries), task_type=task_type)
    on_meta = agree(model.loaded_in(loaded), adapter)
    for ledger in (on_meta, match(read_table(live), adapter)):
        assert ("quantized-head" in hazards(ledger), bool(ledger.refusals)) == (bool(heads),) * 2
        copied = [m.name for m in ledger.table.modules if m.quantized and m.name in ledger.saved]
        assert copied == heads
        assert {m.name for m in ledger.table.modules if m.quantized} == quantized
    asked = LoraConfig(target_modules=queries, task_type=task_type)
    if heads:
        with pytest.raises(RuntimeError, match="floating point dtype can require gradients"):
            get_peft_model(live, asked)
    else:
        get_peft_model(live, asked)


def test_a_token_beyond_the_vocabulary_is_refused() -> None:
    from peft import LoraConfig, get_peft_model

    model = Model("llama", {"model_type": "llama", **TINY_LAYERS}, "AutoModelForCausalLM")
    fields = {"target_modules": ["q_proj"], "trainable_token_indices": [24]}
    (refusal,) = match(model.table, AdapterConfig.from_dict(fields)).refusals
    assert "24 rows, and 24 is not one of them" in refusal
    live = model_class(model.auto_class).from_config(model.transformers_config)
    with pytest.raises(IndexError):
        get_peft_model(live, LoraConfig(**fields))


TINY_LLAMA = {"model_type": "llama", **TINY_LAYERS}
TINY_MIXTRAL = {"model_type": "mixtral", **TINY_LAYERS, "num_local_experts": 2}
TINY_GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": 24,
             "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
TWICE, SAVED, TRANSPOSED = "adapted through target_modules", "cannot save", "fan_in_fan_out"


@pytest.mark.parametrize(
    ("config", "fields", "refusal"),
    [
        (TINY_LLAMA, {"target_modules": ["q_proj"], "target_parameters": ["q_proj.weight"]}, TWICE),
        (TINY_LLAMA, {"target_parameters": ["q_proj.weight"]}, TWICE),  # PEFT's default targets
        (TINY_LLAMA, {"target_modules": "all-linear", "target_parameters": ["up_proj.weight"]},
         TWICE),
        (TINY_LLAMA, {"target_modules": ["lm_head"], "target_parameters": ["lm_head.weight"]},
         TWICE),
        (TINY_LLAMA, {"target_modules": ["k_proj"], "target_parameters": ["q_proj.weight"]}, ""),
        (TINY_LLAMA, {"target_modules": ["k_proj"], "target_parameters": ["up_proj.weight"],
                      "modules_to_save": ["up_proj"]}, SAVED),
        (TINY_LLAMA, {"target_modules": ["k_proj"], "target_parameters": ["up_proj.weight"],
                      "modules_to_save": ["mlp"]}, ""),
        (TINY_LLAMA, {"target_modules": ["lm_head"], "modules_to_save": ["layers"]}, "ModuleList"),
        (TINY_LLAMA, {"target_modules": ["k_proj"], "target_parameters": ["up_proj.weight"],
                      "fan_in_fan_out": True}, ""),  # a linear layer turns it off
        (TINY_MIXTRAL, {"target_modules": "all-linear", "modules_to_save": ["gate"]}, SAVED),
        (TINY_MIXTRAL, {"target_modules": ["w1", "w2", "w3"], "modules_to_save": ["experts"]},
         SAVED),
        (TINY_GPT2, {"target_modules": ["c_attn"], "target_parameters": ["wte.weight"]},
         TRANSPOSED),
        (TINY_GPT2, {"target_modules": ["c_attn", "lm_head"], "target_parameters": ["wte.weight"]},
         ""),
        (TINY_GPT2, {"target_modules": [], "target_parameters": ["c_attn.weight"]}, ""),
    ],
)  # fmt: skip
def test_parameters_beside_modules(config: dict, fields: dict, refusal: str) -> None:
    """What PEFT wraps it wraps once, and never copies; a Conv1D turns fan_in_fan_out on."""
    model = Model(config["model_type"], config, "AutoModelForCausalLM")
    ledger = agree(model, AdapterConfig.from_dict(fields))
    assert bool(ledger.refusals) == bool(refusal)
    assert refusal in "".join(ledger.refusals)


def test_biases_of_layers_adapted_through_their_weight() -> None:
    """bias="lora_only": q_proj has a bias, and its weight an adapter."""
    config = {**TINY_LLAMA, "attention_bias": True}
    fields = {"target_modules": ["up_proj"], "target_parameters": ["self_attn.q_proj.weight"]}
    ledger = agree(
        Model("llama", config, "AutoModelForCausalLM"),
        AdapterConfig.from_dict({**fields, "bias": "lora_only", "r": 1}),
    )
    assert lora_parameters(ledger).terms[-1].trained == 2 * 16


def test_tied_embeddings_saved_twice_drift_apart(both) -> None:
    saved = ("embed_tokens", "lm_head")
    ledger = both("llama-3.2-1b", AdapterConfig(("q_proj",), modules_to_save=saved))
    assert hazards(ledger) == {"untied-copy"}
    copies = lora_parameters(ledger).terms[1]
    assert copies.trained == 2 * 128_256 * 2048
    tied = AdapterConfig(("q_proj",), modules_to_save=saved, ensure_weight_tying=True)
    assert hazards(match(ledger.table, tied)) == set()


def test_peft_has_six_task_types() -> None:
    from peft import TaskType

    assert {member.value for member in TaskType} == set(BY_TYPE)


def test_seq_cls_saves_every_module_that_ends_in_classifier(both) -> None:
    """PEFT compares plain endings: "classifier" takes pre_classifier along."""
    ledger = both("distilbert-base-uncased", AdapterConfig(("q_lin",), task_type="SEQ_CLS"))
    assert ledger.saved == ("pre_classifier", "classifier")


def test_all_linear_leaves_the_output_embedding_out(both) -> None:
    assert both("llama-3.2-1b", AdapterConfig("all-linear")).adapted_layers == 7 * 16
    ledger = both("bert-base-cased", AdapterConfig("all-linear", task_type="SEQ_CLS"))
    assert ledger.adapted_layers == 6 * 12 + 1  # and the pooler


# check_targets, as a user's own test calls it


def test_check_targets_tells_what_to_write_instead() -> None:
    with pytest.raises(DeadEntries) as error:
        check_targets("phi-3-mini", list(SEVEN))
    message = str(error.value)
    assert "phi-3-mini: 5 of 7 entries reach nothing" in message
    assert "q_proj: dead; write instead: qkv_proj (query-key-value, 32 modules)" in message
    assert "down_proj  32 modules in 32 of 32 layers" in message


def test_a_string_is_every_linear_layer_or_a_file() -> None:
    """PEFT takes an expression there too: with what would be right, no slip of a path passes."""
    assert check_targets("phi-3-mini", "all-linear").adapted_layers == 4 * 32
    with pytest.raises(BenchError, match=r"'\.\*q_proj': no such file; .* an expression is {"):
        check_targets("phi-3-mini", ".*q_proj")


def test_check_targets_takes_live_models_and_peft_configs(model_of) -> None:
    from peft import LoraConfig

    model = model_of("opt-125m").build()
    ledger = check_targets(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=4))
    assert ledger.adapted_layers == 24
    assert {item.r for item in ledger.adapted} == {4}
    with pytest.raises(DeadEntries, match="gate_proj"):
        check_targets(model, {"target_modules": ["q_proj", "gate_proj"]})
    check_targets(model, ["q_proj", "gate_proj"], optional=["gate_proj"])


# The differential: whatever the entries, the ledger's modules are the ones that PEFT adapts.

SMALL = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 48},
    "mixtral": {"num_key_value_heads": 2, "intermediate_size": 48, "num_local_experts": 2},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4},
    "bloom": {"n_layer": 3, "n_head": 4, "hidden_size": 32},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
}


@pytest.fixture(scope="module")
def small() -> dict[str, Model]:
    common = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 20,
              "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    return {
        kind: Model(kind, {"model_type": kind, **common, **values}, "AutoModelForCausalLM")
        for kind, values in SMALL.items()
    }


@given(st.data())
def test_random_entries_reach_what_peft_adapts(small, data: st.DataObject) -> None:
    """Suffixes of real names, full names, containers and nonsense; exclusions and layer filters."""
    model = small[data.draw(st.sampled_from(sorted(small)))]
    names = [m.name for m in model.table.modules]
    suffixes = sorted({".".join(n.split(".")[-k:]) for n in names for k in (1, 2, 3)})
    entry = st.sampled_from(suffixes) | st.sampled_from(names) | st.sampled_from(["w1", "w3", "zz"])
    targets = data.draw(st.lists(entry, min_size=1, max_size=4, unique=True))
    layers = data.draw(st.none() | st.lists(st.integers(0, 3), max_size=2).map(tuple))
    adapter = AdapterConfig(
        tuple(targets),
        r=data.draw(st.integers(1, 9)),
        exclude_modules=tuple(data.draw(st.lists(entry, max_size=2))) or None,
        layers_to_transform=layers,
        layers_pattern=data.draw(st.sampled_from([None, "layers", "h"])) if layers else None,
        rank_pattern=data.draw(st.dictionaries(st.sampled_from(suffixes), st.integers(1, 9),
                                               max_size=2)),
    )  # fmt: skip
    agree(model, adapter)


@given(st.data())
def test_random_regexes_reach_what_peft_adapts(small, data: st.DataObject) -> None:
    """Alternations, wildcards and anchored names, as a string and as an exclusion."""
    model = small[data.draw(st.sampled_from(sorted(small)))]
    leaves = sorted({m.leaf for m in model.table.modules if m.kind != "other"})
    chosen = data.draw(st.lists(st.sampled_from(leaves), min_size=1, max_size=3, unique=True))
    body = "|".join(map(re.escape, chosen))
    pattern = data.draw(
        st.sampled_from([rf".*\.({body})", rf".*\.[01]\..*\.({body})", rf".*({body})", body])
    )
    excluded = data.draw(st.none() | st.sampled_from([r".*\.2\..*", rf".*{leaves[0]}"]))
    agree(model, AdapterConfig(pattern, exclude_modules=excluded))
