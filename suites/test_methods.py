"""The other methods and the task types: closed form against what PEFT creates."""

from __future__ import annotations

import dataclasses
import json
from functools import cache

import pytest

from bench.adapters import TASK_TYPES, AdapterConfig
from bench.architectures import Model
from bench.counting import count, count_lora_fa, count_method, inject
from bench.errors import BenchError, UnknownName
from bench.formulas import lora_parameters
from bench.formulas.budgets import methods_at_budget
from bench.formulas.kinds import METHODS, near_root
from bench.formulas.methods import method, method_parameters
from bench.targets import match

COMMON = {"vocab_size": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
           "num_attention_heads": 2, "max_position_embeddings": 32}  # fmt: skip
CONFIGS = {
    "llama": ({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
               "num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True,
               "tie_word_embeddings": True}, "AutoModelForCausalLM", "CAUSAL_LM"),
    "gpt2": ({"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 32},
             "AutoModelForCausalLM", "CAUSAL_LM"),
    "bert": ({**ENCODER, "num_labels": 3}, "AutoModelForSequenceClassification", "SEQ_CLS"),
    "t5": ({"d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 96, "num_layers": 2,
            "num_decoder_layers": 2}, "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
    "opt": ({"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
             "word_embed_proj_dim": 32, "max_position_embeddings": 32},
            "AutoModelForCausalLM", "CAUSAL_LM"),
}  # fmt: skip
TASKS = {name: task for name, (_, _, task) in CONFIGS.items()}


@cache
def model_called(name: str) -> Model:
    config, auto_class, _ = CONFIGS[name]
    return Model(name, {"model_type": name, **COMMON, **config}, auto_class)


# Settings beside the defaults, each of which takes another branch of its formula.
SETTINGS: dict[str, list[dict]] = {
    "lora": [{}, {"r": 3, "bias": "all"}],
    "adalora": [{}, {"init_r": 3, "bias": "lora_only"}],
    "lokr": [{}, {"r": 2, "decompose_both": True}, {"r": 3, "decompose_factor": 4}, {"r": 40},
             {"r": 1, "decompose_factor": 7, "decompose_both": True}],
    "vera": [{}, {"r": 4, "bias": "vera_only"}, {"r": 4, "bias": "all"}],
    "oft": [{}, {"oft_block_size": 24}, {"r": 6, "oft_block_size": 0},
            {"r": 4, "oft_block_size": 0, "block_share": True}, {"bias": "oft_only"}],
    "boft": [{}, {"boft_block_size": 8, "bias": "boft_only"},
             {"boft_block_size": 0, "boft_block_num": 4}],
    "fourierft": [{}, {"n_frequency": 7, "bias": "fourier_only"}],
    "trainable-tokens": [{"token_indices": [1, 2, 5]}],
    "prefix-tuning": [{}, {"prefix_projection": True, "encoder_hidden_size": 10},
                      {"prefix_projection": True}],
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


def formula_of(model: Model, name: str, **fields: object) -> tuple[int, int] | str:
    try:
        found = method_parameters(model.table, method(name, **fields), model.fields)
    except BenchError as error:
        return str(error)
    return found.trainable, found.total


def counted_of(model: Model, name: str, **fields: object) -> tuple[int, int] | str:
    network = model.build()
    if name == "full":
        elements = sum(p.numel() for p in network.parameters())
        return elements, elements
    if name == "boft":  # builds its permutations element by element, which meta cannot
        network = network.to_empty(device="cpu")
        network.tie_weights()
    asked = method(name, **fields)
    try:
        if name == "lora-fa":
            found = count_lora_fa(network, asked.to_dict())
        else:
            found = count_method(network, METHODS[name].peft_class, asked.to_dict())
    except BenchError as error:
        return str(error)
    return found.trainable, found.total


@pytest.mark.parametrize(("label", "name", "number"), COUNTED, ids=str)
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
    with pytest.raises(UnknownName, match="did you mean ia3"):
        method("ia33")
    with pytest.raises(UnknownName, match="field of ia3"):
        method("ia3", r=8)
    with pytest.raises(UnknownName, match="bias of vera"):
        method("vera", bias="lora_only")
    with pytest.raises(BenchError, match="at least 1"):
        method("loha", r=0)
    with pytest.raises(BenchError, match="task type"):
        method_parameters(model_called("llama").table, method("prompt-tuning"), {})
    with pytest.raises(BenchError, match="CUDA extension"):
        method_parameters(model_called("llama").table, method("boft", boft_n_butterfly_factor=2))


@pytest.mark.parametrize("name", ["loha", "lokr"])
@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize("r", [1, 4, 30])
def test_convolutions(name: str, effective: bool, r: int) -> None:
    """LoHa and LoKr on convolutions, with the window folded in or as a core tensor of its own."""
    import torch
    from torch import nn

    from bench.modules import read_table

    asked = method(
        name, r=r, use_effective_conv2d=effective, target_modules=["one", "two", "point", "dense"]
    )
    with torch.device("meta"):
        network = nn.ModuleDict(
            {
                "one": nn.Conv1d(12, 20, 3),
                "two": nn.Conv2d(12, 20, 3, groups=2),
                "point": nn.Conv2d(12, 20, 1),
                "dense": nn.Linear(12, 20),
            }
        )
    formula = method_parameters(read_table(network), asked)
    counted = count_method(network, METHODS[name].peft_class, asked.to_dict())
    assert (formula.trainable, formula.total) == (counted.trainable, counted.total)


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
            fields=model.fields,
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


# Task types

BERT = {"model_type": "bert", **COMMON, **ENCODER, "num_labels": 2}
SMALL_T5 = {"model_type": "t5", **COMMON, **CONFIGS["t5"][0]}
SMALL_LLAMA = {"model_type": "llama", **COMMON, **CONFIGS["llama"][0]}
OF_TASK = {
    "SEQ_CLS": (BERT, "AutoModelForSequenceClassification", ("query", "value"), ("classifier",)),
    "TOKEN_CLS": (BERT, "AutoModelForTokenClassification", ("query", "value"), ("classifier",)),
    "QUESTION_ANS": (BERT, "AutoModelForQuestionAnswering", ("query", "value"), ("qa_outputs",)),
    "FEATURE_EXTRACTION": (BERT, "AutoModel", ("query", "value"), ()),
    "SEQ_2_SEQ_LM": (SMALL_T5, "AutoModelForSeq2SeqLM", ("q", "v"), ()),
    "CAUSAL_LM": (SMALL_LLAMA, "AutoModelForCausalLM", ("q_proj", "v_proj"), ()),
}


@pytest.mark.parametrize("task", TASK_TYPES)
def test_task_type(task: str) -> None:
    """PEFT's six, each on a model of the task: adapted layers, heads trained, formula = count."""
    config, auto_class, targets, heads = OF_TASK[task]
    model = Model(task.lower(), config, auto_class)
    adapter = AdapterConfig(targets, r=4, task_type=task)
    ledger = match(model.table, adapter)
    formula = lora_parameters(ledger)
    network = model.build()
    counted = count(inject(network, adapter))
    assert ledger.saved == counted.saved == heads
    assert sorted(a.name for a in ledger.adapted) == sorted(counted.adapted)
    assert (formula.trainable, formula.total) == (counted.trainable, counted.total)
    plain = lora_parameters(match(model.table, AdapterConfig(targets, r=4)))
    head = sum(p.elements for name in heads for p in model.table.below(name))
    assert formula.trainable == plain.trainable + head


@pytest.mark.parametrize("task", ["TOKEN_CLS", "QUESTION_ANS"])
def test_all_linear_adapts_a_head_that_cannot_be_saved(task: str) -> None:
    """PEFT adds these tasks' heads after it has injected, and SEQ_CLS's before: only they raise."""
    config, auto_class, _, heads = OF_TASK[task]
    model = Model("heads", config, auto_class)
    adapter = AdapterConfig("all-linear", task_type=task)
    (refusal,) = match(model.table, adapter).refusals
    assert refusal.startswith(f"{heads[0]} is adapted and named in modules_to_save")
    with pytest.raises(BenchError, match="modules_to_save cannot be applied"):
        inject(model.build(), adapter)
    sequence = Model("heads", BERT, "AutoModelForSequenceClassification")
    assert not match(sequence.table, AdapterConfig("all-linear", task_type="SEQ_CLS")).refusals


def test_pefts_task_types_are_six() -> None:
    import peft

    assert {task.value for task in peft.TaskType} == set(TASK_TYPES)


@pytest.mark.parametrize("task", ["MULTIPLE_CHOICE", "IMAGE_CLASSIFICATION", "UNSPECIFIED"])
def test_task_types_that_peft_does_not_have(task: str) -> None:
    """Some lists name three more. PEFT has no such members, and says so; so does bench."""
    import peft

    assert not hasattr(peft.TaskType, task)
    with pytest.raises(ValueError, match="task type"):
        peft.LoraConfig(target_modules=["query"], task_type=task)
    with pytest.raises(UnknownName, match=r"unknown task type .*PEFT has no other"):
        AdapterConfig(("query",), task_type=task)


@pytest.mark.parametrize(
    ("config", "auto_class", "targets"),
    [
        (BERT, "AutoModelForMultipleChoice", ("query", "value")),
        (
            {"model_type": "vit", "hidden_size": 32, "intermediate_size": 48, "num_labels": 5,
             "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4},
            "AutoModelForImageClassification",
            ("q_proj", "v_proj"),
        ),
    ],
    ids=["multiple-choice", "image-classification"],
)  # fmt: skip
def test_what_works_instead(config: dict, auto_class: str, targets: tuple[str, ...]) -> None:
    """No task type, and the head in modules_to_save: it trains. Without, it stays frozen."""
    model = Model("instead", config, auto_class)
    head = sum(p.elements for p in model.table.below("classifier"))
    bare = AdapterConfig(targets, r=4)
    kept = AdapterConfig(targets, r=4, modules_to_save=("classifier",))
    for adapter, trained_head in ((bare, 0), (kept, head)):
        formula = lora_parameters(match(model.table, adapter))
        network = inject(model.build(), adapter)
        counted = count(network)
        assert (formula.trainable, formula.total) == (counted.trainable, counted.total)
        trained = {n for n, p in network.named_parameters() if p.requires_grad}
        assert any("classifier" in name for name in trained) == bool(trained_head)
        assert (
            formula.trainable - trained_head == lora_parameters(match(model.table, bare)).trainable
        )


# The command line's answers


def test_method_command(capsys: pytest.CaptureFixture[str]) -> None:
    from bench.reports.methods import budget_command, method_command

    model = model_called("llama")
    assert method_command(model, "ia3", as_json=True) == 0
    answer = json.loads(capsys.readouterr().out)
    found = method_parameters(model.table, method("ia3"))
    assert answer["trainable_parameters"] == found.trainable
    assert answer["terms"][0]["name"] == "ia3"
    assert method_command(model, "prompt-tuning", ["num_virtual_tokens=7"]) == 0
    assert f"trainable {7 * 64:,}" in capsys.readouterr().out
    assert budget_command(model, 5000, target_modules=("q_proj",)) == 0
    assert capsys.readouterr().out.count("\n") == len(METHODS) + 1
    with pytest.raises(BenchError, match="FIELD=VALUE"):
        method_command(model, "ia3", ["r"])
    with pytest.raises(UnknownName):
        method_command(model, "ia3", ["rank=8"])
