"""The other methods: closed form against what PEFT creates."""

from __future__ import annotations

import dataclasses

import pytest
from matrices import matrix
from method_models import COMMON, CONFIGS, ENCODER, TASKS, counted_of, formula_of, model_called

from bench.errors import BenchError, UnknownName
from bench.formulas import prompts
from bench.formulas.budgets import methods_at_budget
from bench.formulas.kinds import METHODS, PARTS, near_root
from bench.formulas.methods import method, method_parameters
from bench.measure.counting import count_method
from bench.models.architectures import Model, load_model

# Settings beside the defaults, each of which takes another branch of its formula.
SETTINGS: dict[str, list[dict]] = {
    "lora": [{}, {"r": 3, "bias": "all"}],
    "adalora": [{}, {"init_r": 3, "bias": "lora_only"}],
    "lokr": [{}, {"decompose_factor": 0}, {"r": 2, "decompose_both": True},
             {"r": 3, "decompose_factor": 4}, {"r": 40},
             {"r": 1, "decompose_factor": 7, "decompose_both": True}],
    "vera": [{}, {"r": 4, "bias": "vera_only"}, {"r": 4, "bias": "all"}],
    "oft": [{}, {"oft_block_size": 24}, {"r": 6, "oft_block_size": 0},
            {"r": 4, "oft_block_size": 0, "block_share": True}, {"bias": "oft_only"}],
    "boft": [{}, {"boft_block_size": 8, "bias": "boft_only"},
             {"boft_block_size": 0, "boft_block_num": 4}],
    "fourierft": [{}, {"n_frequency": 7, "bias": "fourier_only"}],
    "trainable-tokens": [{"token_indices": [1, 2, 5]}],
    "prefix-tuning": [{}, {"prefix_projection": True, "encoder_hidden_size": 10},
                      {"prefix_projection": True}, {"num_layers": 3}, {"token_dim": 32},
                      {"token_dim": 32, "num_attention_heads": 8}],
    "prompt-tuning": [{}, {"token_dim": 48}, {"num_transformer_submodules": 3},
                      {"prompt_tuning_init": "SAMPLE_VOCAB"}],
    "p-tuning": [{}, {"encoder_hidden_size": 12}, {"encoder_reparameterization_type": "LSTM"},
                 {"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 3,
                  "encoder_hidden_size": 12}],
}  # fmt: skip
COUNTED = [
    (model, name, number)
    for model in CONFIGS
    for name in METHODS
    for number in range(len(SETTINGS.get(name, [{}])))
]


@pytest.mark.parametrize(
    ("label", "name", "number"),
    matrix(COUNTED, by=lambda label, name, number: {label, (name, number)}),
    ids=str,
)
def test_method(label: str, name: str, number: int) -> None:
    """A method's closed form equals PEFT's count, or both refuse the model."""
    model, fields = model_called(label), SETTINGS.get(name, [{}])[number]
    common = METHODS[name].common
    task = {"task_type": TASKS[label]} if "task_type" in common else {}
    saved = {"modules_to_save": ["lm_head"]} if "modules_to_save" in common else {}
    variants = [{**fields, **task, **saved}]
    if "layers_to_transform" in common:
        variants.append({**fields, "target_modules": "all-linear"})
    for given in variants:
        formula, counted = formula_of(model, name, **given), counted_of(model, name, **given)
        if isinstance(formula, str) or isinstance(counted, str):
            assert isinstance(formula, str) == isinstance(counted, str), (given, formula, counted)
        else:
            assert formula == counted, given


@pytest.mark.parametrize("name", [n for n in METHODS if n != "full"])
def test_fields_and_defaults_are_pefts(name: str) -> None:
    """Every field that a method takes exists in PEFT, with PEFT's default where it has one."""
    import peft

    kind = METHODS[name]
    theirs = {f.name: f for f in dataclasses.fields(getattr(peft, kind.peft_class))}
    assert {*kind.settings, *kind.common} <= set(theirs)
    for field, value in kind.settings.items():
        default = theirs[field].default
        if default not in (None, dataclasses.MISSING):
            assert value == default, field


def test_unknown_method_and_field() -> None:
    with pytest.raises(UnknownName, match=r"^unknown method 'ia33': did you mean ia3"):
        method("ia33")
    with pytest.raises(UnknownName, match="field of ia3"):
        method("ia3", r=8)
    with pytest.raises(UnknownName, match="bias of vera"):
        method("vera", bias="lora_only")
    with pytest.raises(BenchError, match="at least 1"):
        method("loha", r=0)
    with pytest.raises(BenchError, match="task type"):
        method_parameters(model_called("llama").table, method("prompt-tuning"), {})
    sizes = {"boft_block_size": 4, "boft_block_num": 4}
    with pytest.raises(BenchError, match="boft: give either boft_block_size or boft_block_num"):
        method_parameters(model_called("llama").table, method("boft", **sizes))
    with pytest.raises(BenchError, match="CUDA extension is missing: the count depends"):
        method_parameters(model_called("llama").table, method("boft", boft_n_butterfly_factor=2))


@pytest.mark.parametrize("name", ["loha", "lokr"])
@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize("r", [1, 2, 4, 30])
def test_convolutions(name: str, effective: bool, r: int) -> None:
    """LoHa and LoKr on convolutions, with the window folded in or as a core tensor of its own."""
    import torch
    from torch import nn

    from bench.models.modules import read_table

    asked = method(
        name, r=r, use_effective_conv2d=effective,
        target_modules=["one", "two", "point", "pair", "dense"],
    )  # fmt: skip
    with torch.device("meta"):
        network = nn.ModuleDict(
            {
                "one": nn.Conv1d(12, 20, 3),
                "two": nn.Conv2d(12, 20, 3, groups=2),
                "point": nn.Conv2d(12, 20, 1),
                "pair": nn.Conv1d(12, 20, 2),
                "dense": nn.Linear(12, 20),
            }
        )
    formula = method_parameters(read_table(network), asked)
    counted = count_method(network, METHODS[name].peft_class, asked.to_dict())
    assert (formula.trainable, formula.total) == (counted.trainable, counted.total)
    assert isinstance(formula.trainable, int)


@pytest.mark.parametrize("size", [2, 5, 12, 64])
def test_oft_on_an_embedding(size: int) -> None:
    """Rotated in its width; a block size that does not divide it becomes the nearest divisor."""
    model = model_called("llama")
    asked = method("oft", oft_block_size=size, target_modules=["embed_tokens"])
    formula = method_parameters(model.table, asked)
    counted = count_method(model.build(), "OFTConfig", asked.to_dict())
    assert (formula.trainable, formula.total) == (counted.trainable, counted.total)


def test_near_root() -> None:
    """LoKr's factors, from PEFT's documentation of its factorization."""
    assert near_root(256) == (16, 16)
    assert near_root(128) == (8, 16)
    assert near_root(127) == (1, 127)
    assert near_root(128, 4) == (4, 32)


# Figures of the papers: VeRA's table 1 (query and value of RoBERTa-base and RoBERTa-large: 24 and
# 48 matrices), IA3's and prompt tuning's arithmetic on T5.
@pytest.mark.parametrize(
    ("width", "matrices", "r", "published"),
    [(768, 24, 1024, 43_008), (1024, 48, 256, 61_440)],
    ids=["roberta-base", "roberta-large"],
)
def test_vera_paper(width: int, matrices: int, r: int, published: int) -> None:
    """The published 0.043 M and 0.061 M trained parameters of VeRA."""
    config = {"model_type": "roberta", **COMMON, **ENCODER, "hidden_size": width,
              "num_attention_heads": 16, "num_hidden_layers": matrices // 2}  # fmt: skip
    model = Model("roberta", config, "AutoModel")
    found = method_parameters(model.table, method("vera", r=r, target_modules=["query", "value"]))
    assert found.trainable == published


def test_methods_at_budget() -> None:
    """Side by side: as near to the budget as each method's size allows, or why not."""
    model, budget = model_called("llama"), 5_000
    rows = {
        row.method: row
        for row in methods_at_budget(
            model.table, budget, target_modules=("q_proj", "v_proj"), task_type="CAUSAL_LM",
            config=model.transformers_config,
        )
    }  # fmt: skip
    assert list(rows) == list(METHODS)
    for name, row in rows.items():
        assert row.source
        if row.trainable is None or not METHODS[name].size:
            continue
        size = int(row.setting.partition("=")[2])
        fields = {METHODS[name].size: size}
        if name == "trainable-tokens":
            fields = {"token_indices": tuple(range(size))}
        targets = {"target_modules": ("q_proj", "v_proj")}
        given = fields | (targets if "layers_to_transform" in METHODS[name].common else {})
        if "task_type" in METHODS[name].common:
            given["task_type"] = "CAUSAL_LM"
        assert formula_of(model, name, **given) == (row.trainable, row.total)
        for other in (size - 1, size + 1):
            if other < 1 or METHODS[name].size in ("token_indices", "oft_block_size",
                                                  "boft_block_size"):  # fmt: skip
                continue
            near = formula_of(model, name, **{**given, METHODS[name].size: other})
            assert abs(near[0] - budget) >= abs(row.trainable - budget)
    assert rows["lora"].trainable == 11 * 2 * (64 + 64 + 64 + 32)
    assert rows["full"].off > 1


def test_a_method_that_does_not_fit_says_why() -> None:
    (row,) = methods_at_budget(model_called("gpt2").table, 1000, names=["boft"])
    assert row.trainable is None
    assert "boft" in row.refusal
    with pytest.raises(BenchError, match="budget"):
        methods_at_budget(model_called("gpt2").table, 0)
    with pytest.raises(UnknownName):
        methods_at_budget(model_called("gpt2").table, 10, names=["lara"])


@pytest.mark.parametrize("budget", [50_000, 130_000, 1_000_000])
def test_the_nearest_of_sizes_whose_count_falls(budget: int) -> None:
    """LoKr gives up its second product at a rank, and then has fewer parameters: no size is
    nearer than the one that is told."""
    table = load_model("llama-3.2-1b").table
    (row,) = methods_at_budget(table, budget, names=["lokr"])
    counts = [method_parameters(table, method("lokr", r=r)).trainable for r in range(1, 70)]
    assert counts != sorted(counts)
    assert row.off == min((n / budget - 1 for n in counts), key=abs)


def test_block_sizes_are_powers_of_two() -> None:
    """A budget that blocks of 3 would meet, which divide these widths too: 2 or 4 is told."""
    bert = model_called("bert")
    table = dataclasses.replace(bert, config={**bert.config, "hidden_size": 48}).table
    targets = ("query", "value")

    def count(size: int) -> int:
        asked = method("oft", target_modules=targets, oft_block_size=size)
        return method_parameters(table, asked).trainable

    budget = count(3)
    assert budget not in (count(2), count(4))
    (row,) = methods_at_budget(table, budget, target_modules=targets, names=["oft"])
    nearest = min((2, 4), key=lambda size: abs(count(size) - budget))
    assert (row.setting, row.trainable) == (f"oft_block_size={nearest}", count(nearest))


def test_no_more_tokens_than_rows() -> None:
    """A budget above the method's largest: all of the vocabulary, all of a weight's elements."""
    model = model_called("llama")
    rows = methods_at_budget(
        model.table, 10**6, target_modules=("k_proj",), names=["trainable-tokens", "fourierft"]
    )
    assert [row.setting for row in rows] == ["token_indices=48", "n_frequency=2048"]


# Mixture of experts: PEFT translates the expert names of transformers 4 for LoRA alone

MOE = {
    "mixtral": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4},
    "qwen3_moe": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
                  "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4,
                  "moe_intermediate_size": 32, "mlp_only_layers": [0]},
}  # fmt: skip


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "gate_proj", "up_proj", "w1", "w3"]],
                         ids=["all-linear", "old-names"])  # fmt: skip
@pytest.mark.parametrize("name", [n for n, kind in METHODS.items() if kind.elements])
@pytest.mark.parametrize("label", MOE)
def test_method_on_experts(label: str, name: str, targets: str | list[str]) -> None:
    model = Model(label, {"model_type": label, **COMMON, **MOE[label]}, "AutoModelForCausalLM")
    own = {"ia3": {"feedforward_modules": []}, "fourierft": {"n_frequency": 50}}
    given = {**own.get(name, {}), "target_modules": targets}
    formula, counted = formula_of(model, name, **given), counted_of(model, name, **given)
    if isinstance(formula, str) or isinstance(counted, str):
        assert isinstance(formula, str) == isinstance(counted, str), (formula, counted)
    else:
        assert formula == counted
    if name != "ln-tuning":  # which copies the experts' weights too
        assert isinstance(formula, tuple)


# What PEFT refuses

MAMBA = Model(
    "mamba", {"model_type": "mamba", "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 48},
    "MambaForCausalLM",
)  # fmt: skip
DISTILBERT = Model(
    "distilbert",
    {"model_type": "distilbert", "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96,
     "vocab_size": 48},
    "DistilBertForSequenceClassification",
)  # fmt: skip
SEQUENCES = {"task_type": "SEQ_CLS"}


@pytest.mark.parametrize(
    ("model", "name", "given"),
    [
        (MAMBA, "adalora", {"target_modules": ["in_proj", "out_proj"]}),
        (MAMBA, "prompt-tuning", {"task_type": "CAUSAL_LM"}),
        *((DISTILBERT, name, SEQUENCES) for name in prompts.PROMPT_METHODS),
        (DISTILBERT, "prompt-tuning", {**SEQUENCES, "token_dim": 64}),
        (None, "ia3", {"feedforward_modules": ["up_proj"], "target_modules": ["k_proj"]}),
        (None, "loha", {"target_modules": ["q_proj"], "modules_to_save": ["_proj"]}),
        (None, "oft", {"target_modules": ["q_proj"], "modules_to_save": ["roj"]}),
        (None, "trainable-tokens", {"token_indices": [48]}),
        (None, "adalora", {"target_modules": ["q_proj"], "tinit": 600, "tfinal": 400}),
        (None, "adalora", {"target_modules": ["q_proj"], "orth_reg_weight": -1}),
        (None, "p-tuning", {"task_type": "CAUSAL_LM", "encoder_reparameterization_type": "XX"}),
    ],
)
def test_what_peft_refuses(model: Model | None, name: str, given: dict) -> None:
    import peft

    model = model or model_called("llama")
    assert isinstance(formula_of(model, name, **given), str)
    fields = {**METHODS[name].settings, **given}
    needed = {k: fields[k] for k in ("num_virtual_tokens", "total_step") if k in fields}
    network = model.build().to_empty(device="cpu")  # on meta no index is looked up
    make = getattr(peft, METHODS[name].peft_class)
    with pytest.raises((ValueError, IndexError, TypeError)):
        peft.get_peft_model(network, make(**needed, **given))


LAYERED = [name for name, kind in METHODS.items() if kind.elements is not None]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LAYERED)
def test_the_parts_of_a_wrapped_layer_are_pefts(name: str) -> None:
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer

    targets = ["input_layernorm"] if name == "ln-tuning" else ["q_proj"]
    network = model_called("llama").build().to_empty(device="cpu")
    network.tie_weights()
    asked = method(name, target_modules=targets)
    wrapped = peft.get_peft_model(
        network, getattr(peft, METHODS[name].peft_class)(**asked.to_dict())
    )
    layer = next(m for m in wrapped.modules() if isinstance(m, BaseTunerLayer))
    assert {part for part, _ in layer.named_modules() if part} == set(PARTS[name])


@pytest.mark.parametrize("name", LAYERED)
@pytest.mark.parametrize("saved", ["default", "R", "layers", "lm_head"])
def test_a_module_to_save_that_fits_a_part_of_an_adapter(name: str, saved: str) -> None:
    """ "default" is the adapter's own name, which is a module within some methods' layers."""
    targets = ["input_layernorm"] if name == "ln-tuning" else ["q_proj"]
    given = {"target_modules": targets, "modules_to_save": [saved]}
    model = model_called("llama")
    formula, counted = formula_of(model, name, **given), counted_of(model, name, **given)
    if isinstance(counted, str) or isinstance(formula, str):
        assert isinstance(formula, str) == isinstance(counted, str), (formula, counted)
    else:
        assert formula == counted


def test_mamba_without_its_output_projection() -> None:
    given = {"target_modules": ["in_proj"]}
    assert formula_of(MAMBA, "adalora", **given) == counted_of(MAMBA, "adalora", **given)
    given = {"target_modules": ["in_proj", "out_proj"]}  # which others may adapt
    assert formula_of(MAMBA, "loha", **given) == counted_of(MAMBA, "loha", **given)
