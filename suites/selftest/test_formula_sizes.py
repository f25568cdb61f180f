"""Sizes in closed form by hand: virtual tokens, settings as they are written, sizes that meet a
budget, and small parts of the formulas.

The model is that of `test_formula_terms`.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from matrices import matrix
from test_dead import LLAMA, model
from test_formula_terms import BASE, BD, TWO

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError, UnknownName
from bench.formulas import prompts, settings
from bench.formulas.budgets import BudgetRow, methods_at_budget
from bench.formulas.kinds import METHODS, near_root
from bench.formulas.lora import (
    Matrices,
    adapted_matrices,
    module_matrices,
    parameter_matrices,
)
from bench.formulas.methods import method, method_parameters
from bench.formulas.terms import BaseTotals, Parameters, Term, base_totals
from bench.models.modules import Module, ModuleTable, Parameter
from bench.targets import Adapted


@pytest.fixture(scope="module")
def table() -> ModuleTable:
    return model(LLAMA).table


class Config:
    """As much of a transformers configuration as is asked for."""

    def __init__(self, **values: Any) -> None:
        self.values = values
        vars(self).update(values)

    def to_dict(self) -> dict[str, Any]:
        return self.values


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}


def virtual(name: str, task: str | None = "CAUSAL_LM", embedding: int = 0, /, **values: Any) -> int:
    """Elements of five virtual tokens; settings by PEFT's names, the rest is the model's."""
    known = [k for k, v in values.items() if k in prompts.PROMPT_METHODS[name] and v != "absent"]
    given = {k: values.pop(k) for k in known}
    kept = {**prompts.PROMPT_METHODS[name], "num_virtual_tokens": 5, **given}
    left = {k: v for k, v in {**SIZES, **values}.items() if v != "absent"}
    return prompts.elements(name, kept, Config(**left), task, embedding)


@pytest.mark.parametrize(
    ("values", "width"),
    [
        ({}, 32),
        ({"num_key_value_heads": 2}, 32 // 4 * 2),
        ({"num_key_value_heads": 2, "head_dim": 6}, 6 * 2),
        ({"num_key_value_heads": 2, "head_dim": 6, "global_head_dim": 10}, 10 * 2),
        ({"num_key_value_heads": 2, "head_dim": 6, "global_head_dim": 10,
          "num_global_key_value_heads": 1}, 10),
        ({"num_key_value_heads": 2, "head_dim": 8, "per_layer_config": {}}, 16),
        ({"num_key_value_heads": 2, "head_dim": 8, "per_layer_config":
          {0: {"head_dim": 7}, 1: {"head_dim": 9}, 2: {"head_dim": 9, "num_key_value_heads": 5}}},
         9 * 2),
        ({"num_key_value_heads": 2, "head_dim": 8, "per_layer_config":
          {0: {}, 1: {"head_dim": 12, "num_key_value_heads": 1}}}, 12),
        ({"token_dim": 24}, 24),
        ({"token_dim": 24, "num_key_value_heads": 2}, 24 // 4 * 2),
        ({"token_dim": 24, "num_key_value_heads": 2, "num_attention_heads": 8}, 24 // 8 * 2),
    ],
)  # fmt: skip
def test_the_width_of_a_prefix(values: dict, width: int) -> None:
    assert virtual("prefix-tuning", **values) == 5 * 2 * 3 * width
    projected = 5 * width + (width * width + width) + (width * 6 * width + 6 * width)
    assert virtual("prefix-tuning", prefix_projection=True, **values) == projected
    narrow = 5 * width + (width * 7 + 7) + (7 * 6 * width + 6 * width)
    hidden = {"prefix_projection": True, "encoder_hidden_size": 7}
    assert virtual("prefix-tuning", **hidden, **values) == narrow


def test_rows_of_virtual_tokens() -> None:
    """Twice as many for an encoder and a decoder; SAMPLE_VOCAB has the embedding's width."""
    assert virtual("prompt-tuning") == 5 * 32
    assert virtual("prompt-tuning", "SEQ_2_SEQ_LM") == 2 * 5 * 32
    assert virtual("prompt-tuning", num_transformer_submodules=3) == 3 * 5 * 32
    sampled = {"prompt_tuning_init": "SAMPLE_VOCAB"}
    assert virtual("prompt-tuning", "CAUSAL_LM", 20, **sampled) == 5 * 20
    assert virtual("prompt-tuning", "CAUSAL_LM", 0, **sampled) == 5 * 32
    assert virtual("prompt-tuning", "CAUSAL_LM", 20) == 5 * 32
    assert virtual("prefix-tuning", "SEQ_2_SEQ_LM") == 5 * 2 * 3 * 32
    mlp = (32 * 7 + 7) + (7 * 7 + 7) + (7 * 32 + 32)
    assert virtual("p-tuning", encoder_hidden_size=7) == 5 * 32 + mlp
    lstm, ends = {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 7}, 210 + 480
    first, other = 2 * (28 * (32 + 7) + 56), 2 * (28 * (14 + 7) + 56)
    for layers, weights in ((1, first), (2, first + other), (3, first + 2 * other)):
        found = virtual("p-tuning", encoder_num_layers=layers, **lstm)
        assert found == 5 * 32 + weights + ends
    assert virtual("p-tuning", **lstm) == 5 * 32 + first + other + ends


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hidden_size": "absent"},
         "the configuration has none of hidden_size, n_embd, d_model; PEFT asks for token_dim"),
        ({"num_hidden_layers": "absent"},
         "the configuration has none of num_hidden_layers, num_layers, n_layer; PEFT asks for "
         "num_layers"),
        ({"num_attention_heads": "absent"},
         "the configuration has none of num_attention_heads, n_head, num_heads, "
         "encoder_attention_heads; PEFT asks for num_attention_heads"),
        ({"hidden_size": [32]}, "the configuration's token_dim is no number: [32]"),
        ({"num_hidden_layers": "3"}, "the configuration's num_layers is no number: '3'"),
        ({"num_key_value_heads": [2]},
         "the configuration does not tell the width of keys and values"),
        ({"num_key_value_heads": 2, "num_attention_heads": [4]},
         "the configuration does not tell the width of keys and values"),
        ({"num_key_value_heads": 2, "head_dim": "8"},
         "the configuration does not tell the width of keys and values"),
    ],
)  # fmt: skip
def test_sizes_that_a_configuration_does_not_tell(values: dict, said: str) -> None:
    given = dict(values)
    with pytest.raises(BenchError) as error:
        virtual("prefix-tuning", **given)
    assert str(error.value) == f"prefix-tuning: {said}"


# --- settings as they are written -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "field", "text", "value"),
    [
        ("loha", "layers_to_transform", "1,2", [1, 2]),
        ("loha", "layers_to_transform", "3", [3]),
        ("trainable-tokens", "token_indices", "1, 2,", [1, 2]),
        ("loha", "target_modules", "12", ["12"]),
        ("loha", "target_modules", "re:", ""),
        ("loha", "exclude_modules", "all-linear", ["all-linear"]),
        ("loha", "modules_to_save", "re:x", ["re:x"]),  # no place for an expression
        ("ia3", "feedforward_modules", "re:.*down", ".*down"),
        ("loha", "target_modules", '{"a": 1}', {"a": 1}),
        ("loha", "r", "x", "x"),
        ("loha", "r", "[" * 100_000, "[" * 100_000),
        ("lokr", "init_weights", "lycoris", "lycoris"),
        ("loha", "nothing", "1", 1),
    ],
)
def test_a_setting_as_it_is_written(name: str, field: str, text: str, value: object) -> None:
    assert settings.parse_setting(name, field, text) == value


@pytest.mark.parametrize(
    ("name", "field", "value", "said"),
    [
        ("loha", "r", 0, "loha: r must be a whole number of at least 1, not 0"),
        ("loha", "r", {1}, 'loha: r must be a whole number of at least 1, not "{1}"'),
        ("oft", "r", -1, "oft: r must be a whole number of at least 0, not -1"),
        ("lora", "lora_dropout", 1.5, "lora: lora_dropout must be a number from 0 to 1, not 1.5"),
        (
            "ia3",
            "feedforward_modules",
            "(",
            'ia3: feedforward_modules must be a list of names (write A,B or ["A","B"]) or a '
            'regular expression (re:REGEX), not "("',
        ),
        (
            "trainable-tokens",
            "token_indices",
            (1, "x"),
            "trainable-tokens: token_indices must be a list of whole numbers from 0: write 1,2 or "
            '[1,2], not [1, "x"]',
        ),
    ],
)
def test_a_value_that_a_setting_cannot_hold(name: str, field: str, value: Any, said: str) -> None:
    with pytest.raises(BenchError) as error:
        settings.check_settings(name, {field: value})
    assert str(error.value).startswith(said)


def test_an_expression_that_does_not_come_to_an_end(
    table: ModuleTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with a repeated group is tried on the model's own names first."""
    from bench.adapters import patterns

    monkeypatch.setattr(patterns, "CPU_SECONDS", 1)
    asked = {"target_modules": ["down_proj"], "feedforward_modules": r"(\w+\.)+down_proj"}
    assert method_parameters(table, method("ia3", **asked)).trainable == 4 * 24
    forever = method("ia3", **{**asked, "feedforward_modules": r"(\w+\.?)+x"})
    with pytest.raises(BenchError) as error:
        method_parameters(table, forever)
    assert str(error.value).startswith(r"ia3: feedforward_modules '(\\w+\\.?)+x': this expression")


def test_types_of_settings() -> None:
    assert settings.type_of("oft", "r") != settings.type_of("loha", "r")
    assert settings.type_of("loha", "task_type") is None
    for field in ("target_modules", "feedforward_modules"):
        assert settings.type_of("ia3", field).fits(".*x")
        assert not settings.type_of("ia3", field).fits("(")
    assert settings.type_of("lokr", "decompose_factor").fits(-1)


# --- sizes that meet a budget ---------------------------------------------------------------------

SIZED = {"lora": 8, "lora-fa": 8, "adalora": 8, "loha": 8, "vera": 8, "fourierft": 8, "lokr": 8,
         "trainable-tokens": 1, "prefix-tuning": 0, "prompt-tuning": 0, "p-tuning": 0}  # fmt: skip


@pytest.mark.parametrize(("name", "budget"), matrix(product(SIZED, (1, 200, 448, 560, 700))))
def test_the_nearest_size_by_trying_all(table: ModuleTable, name: str, budget: int) -> None:
    """Of the sizes 1 to 130 the one whose count is nearest, the smaller of two as near."""
    config, kind = model(LLAMA).transformers_config, METHODS[name]
    common = {"target_modules": tuple(TWO), "task_type": "CAUSAL_LM"}
    given = {k: v for k, v in common.items() if k in kind.common}
    if name == "trainable-tokens":
        del given["target_modules"]

    def count(size: int) -> Parameters | None:
        try:
            return method_parameters(table, method(name, **given).resized(size), config)
        except BenchError:
            return None

    counts = {size: found for size in range(1, 131) if (found := count(size)) is not None}
    size = min(counts, key=lambda s: (abs(counts[s].trainable - budget), s))
    best = counts[size]
    rows = methods_at_budget(table, budget, names=[name], config=config, **common)
    off = best.trainable / budget - 1
    assert rows == [
        BudgetRow(name, f"{kind.size}={size}", best.trainable, best.total, off, kind.source)
    ]


@pytest.mark.parametrize(("name", "most"), [("oft", 4096), ("boft", 16)])
@pytest.mark.parametrize("budget", [1, 500, 560, 608, 760, 1900])
def test_the_nearest_block_size_by_trying_all(
    table: ModuleTable, name: str, most: int, budget: int
) -> None:
    """Powers of two; those of BOFT divide the width of 16."""
    sizes = [2**n for n in range(1, 13) if 2**n <= most]
    asked = {size: method(name, target_modules=TWO).resized(size) for size in sizes}
    counts = {size: method_parameters(table, asked[size]).trainable for size in sizes}
    size = min(sizes, key=lambda s: (abs(counts[s] - budget), s))
    (row,) = methods_at_budget(table, budget, names=[name], target_modules=TWO)
    assert (row.setting, row.trainable) == (f"{name}_block_size={size}", counts[size])


def test_the_largest_size_that_is_tried(table: ModuleTable) -> None:
    (row,) = methods_at_budget(table, 10**12, names=["lora"], target_modules=TWO)
    assert (row.setting, row.trainable) == ("r=262144", 262_144 * 4 * (32 + 24))


def test_rows_without_a_size_or_a_count(table: ModuleTable) -> None:
    rows = methods_at_budget(
        table, 100, target_modules=["k_proj"], names=["ia3", "full", "prompt-tuning"]
    )
    refusal = "prompt-tuning: PEFT needs a task type for it"
    source = {name: METHODS[name].source for name in METHODS}
    assert rows == [
        BudgetRow("ia3", "", 4 * 8, BASE + 4 * 8, 4 * 8 / 100 - 1, source["ia3"]),
        BudgetRow("full", "", BASE, BASE, BASE / 100 - 1, source["full"]),
        BudgetRow("prompt-tuning", "", None, None, None, source["prompt-tuning"], refusal),
    ]
    for targets, said in ((["a", "b"], "a, b"), (".*x", ".*x")):
        with pytest.raises(BenchError) as error:
            methods_at_budget(table, 1, target_modules=targets)
        assert str(error.value) == f"nothing on this model is called {said}"
    with pytest.raises(BenchError) as error:
        methods_at_budget(table, 0)
    assert str(error.value) == "the budget must be at least 1 trainable parameter, not 0"
    with pytest.raises(UnknownName, match="unknown task type 'X'"):
        methods_at_budget(table, 1, target_modules=TWO, task_type="X")
    own = methods_at_budget(
        table, 144, target_modules=["k_proj"], names=["ln-tuning", "trainable-tokens"]
    )
    assert [row.trainable for row in own] == [9 * 16, 9 * 16]


# --- small parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "factor", "pair"),
    [(12, -1, (3, 4)), (7, -1, (1, 7)), (12, 2, (2, 6)), (12, 5, (3, 4)), (12, 6, (6, 2)),
     (12, 1, (1, 12)), (12, 0, (1, 12)), (35, 6, (5, 7)), (36, 5, (4, 9)), (1, -1, (1, 1))],
)  # fmt: skip
def test_factors_of_lokr(number: int, factor: int, pair: tuple[int, int]) -> None:
    found = near_root(number, factor)
    assert (found, *map(type, found)) == (pair, int, int)


@pytest.mark.parametrize(
    ("out", "inside", "both", "factor", "ends"),
    [(12, 35, False, -1, (3,)), (12, 35, True, -1, (3, 2)), (4, 4, True, -1, ()),
     (9, 9, True, -1, (1, 1)), (12, 35, False, 2, (17,)), (36, 4, False, 2, (8,))],
)  # fmt: skip
def test_ranks_after_which_lokr_falls(
    out: int, inside: int, both: bool, factor: int, ends: tuple[int, ...]
) -> None:
    """12 = 3 · 4 and 35 = 5 · 7: the second product is whole from rank 7 / 2 on; the first, where
    it is decomposed too, from 5 / 2 on."""
    settings = {"decompose_factor": factor, "decompose_both": both}
    assert METHODS["lokr"].turns(Module("x", "linear", inside, out), settings) == ends


def test_matrices_by_hand() -> None:
    """A 3-D weight has two matrices for each of its experts; only a module's B can have a bias."""
    assert parameter_matrices(Parameter("x", (3, 4)), 5) == Matrices(15, 20, 0)
    assert parameter_matrices(Parameter("x", (2, 3, 4)), 5) == Matrices(30, 40, 0)
    assert module_matrices(Module("x", "linear", 3, 4), 5) == Matrices(15, 20, 4)
    convolution = Module("x", "convolution2d", 4, 6, kernel=9, groups=2)
    assert module_matrices(convolution, 2) == Matrices(2 * 4 * 9, 6, 6)
    for sides, expected in ((BD, Matrices(5, 20, 4)), ({}, Matrices(15, 20, 4))):
        adapter = AdapterConfig(("q_proj",), r=5, use_bdlora={**sides, "nblocks": 3})
        item = Adapted("q_proj", "", 5, Module("q_proj", "linear", 3, 4))
        assert adapted_matrices(adapter, item) == expected
    adapter = AdapterConfig(("v_proj",), r=5, use_bdlora={**BD, "nblocks": 4})
    item = Adapted("v_proj", "", 5, Module("v_proj", "linear", 3, 4))
    assert adapted_matrices(adapter, item) == Matrices(15, 5, 4)
    attention = Module("x", "multihead_attention", 4, 4)
    assert module_matrices(attention, 5) == Matrices(2 * 5 * 4, 16 * 5, 16)


def test_totals_of_a_model_by_hand() -> None:
    """A 4-bit weight of 15 elements takes 8; its bias, and what is shared, count whole or once."""
    table = ModuleTable(
        "", "Small",
        (Module("a", "linear", 5, 3, True, class_name="Linear4bit"),
         Module("b", "linear", 5, 3, class_name="Linear8bitLt")),
        (Parameter("a.weight", (3, 5)), Parameter("a.bias", (3,)), Parameter("b.weight", (3, 5)),
         Parameter("c", (3, 5), "b.weight")),
    )  # fmt: skip
    assert base_totals(table) == BaseTotals(logical=48, packed=8 + 3 + 15, unique=33)


def test_the_share_that_trains() -> None:
    found = Parameters((Term("a", 3, 2, 1), Term("b", 1, 4, 1)), 10)
    assert (found.trainable, found.total, found.share) == (4, 16, 0.25)
