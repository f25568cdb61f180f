"""The fields of the other methods: each of PEFT's is known, and comes to what PEFT makes of it."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from matrices import matrix
from method_models import counted_of, formula_of, model_called

from bench.errors import BenchError
from bench.formulas.kinds import METHODS, UNCOUNTED
from bench.formulas.methods import method, method_ledger, method_parameters, uncounted_fields
from bench.measure.counting import count_method
from bench.models.architectures import Model


def test_every_method_and_every_field_of_peft_is_known() -> None:
    """Each is counted, changes nothing, or is refused as one that PEFT has: none is unknown. A new
    PEFT fails here until somebody says what it brings."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS_OF

    names = {kind.value.lower().replace("_", "-") for kind in CONFIGS_OF}
    assert names == (set(METHODS) - {"full", "lora-fa"}) | UNCOUNTED
    for name, kind in METHODS.items():
        if name == "full":
            continue
        theirs = {f.name for f in dataclasses.fields(getattr(peft, kind.peft_class))}
        known = {*kind.settings, *kind.common, *({"bias"} if kind.bias else ())}
        assert theirs - known - uncounted_fields(kind) == set(), name
        assert known <= theirs, name
        assert not known & uncounted_fields(kind), name
        for key in theirs - known:
            said = f"^{name}: (PEFT has {key}, and no |{key} goes into an adapter_config)"
            with pytest.raises(BenchError, match=said):
                method(name, **{key: 1})
    with pytest.raises(BenchError, match=r"^hra: PEFT has this method, and no closed form"):
        method("hra")


PATTERNS: list[tuple[str, dict[str, Any]]] = [
    ("loha", {"rank_pattern": {"q_proj": 2, r"layers\.1\..*": 3}, "alpha_pattern": {"v_proj": 4}}),
    ("lokr", {"rank_pattern": {"v_proj": 40, "^model.layers.0.self_attn.q_proj": 3}, "r": 4}),
    ("lokr", {"alpha_pattern": {"q_proj": 2}}),
    ("fourierft", {"n_frequency": 10, "n_frequency_pattern": {"q_proj": 7, r"1\..*\.v_proj": 9}}),
    ("fourierft", {"n_frequency_pattern": {"layers.0.self_attn.q_proj": 7}}),
    *((name, {"fan_in_fan_out": True}) for name in ("vera", "oft", "boft", "fourierft", "ia3")),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "fields"), PATTERNS, ids=str)
def test_patterns_and_orientation(name: str, fields: dict[str, Any]) -> None:
    """Ranks and frequencies of single layers, as PEFT looks them up (FourierFT behind a dot)."""
    given = {"target_modules": ["q_proj", "v_proj"], **fields}
    if name == "ia3":
        given["feedforward_modules"] = []
    model = model_called("llama")
    formula = formula_of(model, name, **given)
    assert not isinstance(formula, str), formula
    assert formula == counted_of(model, name, **given)
    changes = {"rank_pattern", "n_frequency_pattern"} & fields.keys()
    bare = {k: v for k, v in given.items() if k not in fields or k in ("r", "n_frequency")}
    assert (formula != formula_of(model, name, **bare)) == bool(changes)


LAYERED = [n for n, k in METHODS.items() if "layers_to_transform" in k.common]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "layers"), matrix(product([n for n in LAYERED if n != "lora-fa"], (2, 3)))
)
def test_layers_beside_any_targets(name: str, layers: int) -> None:
    """LoRA, AdaLoRA and FourierFT refuse layers beside a string; the others take them, look at none
    beside an expression, and of all-linear make names first, of twenty and more their endings."""
    whole = model_called("llama")
    model = replace(whole, config={**whole.config, "num_hidden_layers": layers})
    names: list[Any] = ["all-linear", r".*\.(q|v)_proj", ["q_proj", "v_proj"]]
    for targets in names:
        for given in (
            {"layers_to_transform": 0},
            {"layers_to_transform": [0, -1]},
            {"layers_to_transform": [7]},
            {"layers_to_transform": [1], "layers_pattern": "layers"},
            {"layers_to_transform": [1], "layers_pattern": ["nolayers"]},
            {"layers_pattern": "layers"},
        ):
            asked = {"target_modules": targets, **given}
            if name == "fourierft":
                asked["n_frequency"] = 10
            formula, counted = formula_of(model, name, **asked), _by_peft(model, name, asked)
            if isinstance(formula, str) or isinstance(counted, str):
                assert isinstance(formula, str) == isinstance(counted, str), (formula, counted)
            else:
                assert formula == counted, asked


def _by_peft(model: Model, name: str, asked: dict[str, Any]) -> tuple[int, int] | str:
    network = model.build()
    if name == "boft":
        network = network.to_empty(device="cpu")
        network.tie_weights()
    needed = {"total_step": 1000} if name == "adalora" else {}
    try:
        found = count_method(network, METHODS[name].peft_class, {**asked, **needed})
    except (BenchError, ValueError) as error:
        return str(error)
    return found.trainable, found.total


def test_layers_without_effect_are_told() -> None:
    table = model_called("llama").table  # 14 linear layers

    def dead(**given: Any) -> list[str]:
        return [str(d) for d in method_ledger(table, method("vera", **given)).dead_fields]

    beside = {"target_modules": ".*q_proj", "layers_to_transform": [0], "layers_pattern": "layers"}
    told = "no effect, PEFT looks at no layers where target_modules is a regular expression"
    assert dead(**beside) == [f"layers_to_transform: {told}", f"layers_pattern: {told}"]
    (full,) = dead(target_modules="all-linear", layers_to_transform=[0])
    assert "looks at no layer of a module that is named in full" in full
    (ledger,) = method_ledger(table, method("loha", target_modules="all-linear")).entries
    assert ledger.entry == "all-linear"
    keys = {"q_proj": 3, "model.layers.0.self_attn.q_proj": 4}
    asked = method("fourierft", target_modules=["q_proj"], n_frequency_pattern=keys)
    (field,) = method_ledger(table, asked).dead_fields
    assert str(field).startswith("n_frequency_pattern model.layers.0.self_attn.q_proj: no effect")
    asked = method("loha", target_modules=["q_proj"], rank_pattern={"q_proj": 3, "nope": 4})
    assert [f.entry for f in method_ledger(table, asked).dead_fields] == ["nope"]


@pytest.mark.parametrize("key", ["(", "((a|aa)+)+_proj"])
def test_a_key_that_is_no_expression_or_a_bomb(key: str) -> None:
    names = ["a" * 60 + "x"]
    table = model_called("llama").table
    long = replace(table.modules[1], name="." + names[0])
    asked = method("fourierft", target_modules=["q_proj"], n_frequency_pattern={key: 3})
    with pytest.raises(BenchError, match="n_frequency_pattern"):
        method_parameters(replace(table, modules=(*table.modules, long)), asked)
