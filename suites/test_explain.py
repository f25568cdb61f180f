"""The inverse: the configuration behind a number of trainable parameters."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import Drawn, models

from bench.adapters.config import AdapterConfig
from bench.cli import main
from bench.errors import BenchError
from bench.explain import explain
from bench.formulas import lora_parameters
from bench.measure.counting import count, inject
from bench.models.modules import read_table
from bench.scenarios.subjects import load_model
from bench.targets import match

SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
C = ("c_attn", "c_fc")


def first(model: str, trainable: int, total: int | None = None) -> AdapterConfig:
    return explain(load_model(model).table, trainable, total).exact[0].adapter


# Published lines, whose configuration is known: the first answer is the one that was meant.
@pytest.mark.parametrize(
    ("model", "trainable", "total", "targets", "r", "task_type"),
    [
        ("llama-3-8b", 20_971_520, 8_051_232_768, SEVEN, 8, None),
        ("llama-3-8b", 41_943_040, 8_072_204_288, SEVEN, 16, None),
        ("llama-3-8b", 3_407_872, None, {"q_proj", "v_proj"}, 8, None),
        ("opt-350m", 1_572_864, 332_769_280, {"q_proj", "v_proj"}, 16, None),
        ("opt-125m", 294_912, 125_534_208, {"q_proj", "v_proj"}, 8, None),
        ("phi-3-mini", 8_912_896, None, {"o_proj", "down_proj"}, 16, None),
        ("phi-3-mini", 25_165_824, 3_846_245_376,
         {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}, 16, None),
        ("gpt2", 294_912, 124_734_720, {"c_attn"}, 8, None),
        ("t5-base", 884_736, None, {"q", "v"}, 8, None),
        ("distilbert-base-uncased", 739_586, 67_694_596, {"q_lin", "v_lin"}, 8, "SEQ_CLS"),
        ("distilbert-base-uncased", 147_456, None, {"q_lin", "v_lin"}, 8, None),
    ],
)  # fmt: skip
def test_published_lines(
    model: str, trainable: int, total: int | None, targets: set[str], r: int, task_type: str | None
) -> None:
    found = first(model, trainable, total)
    assert (set(found.target_modules or ()), found.r, found.task_type) == (targets, r, task_type)


@pytest.mark.parametrize(
    "fields",
    [
        {"bias": "all"},
        {"bias": "lora_only"},
        {"use_dora": True},
        {"modules_to_save": ("wte", "lm_head")},
        {"modules_to_save": ("wte", "lm_head"), "ensure_weight_tying": True},
        {"target_modules": (*C, "wte")},
    ],
    ids=lambda fields: "-".join(f"{key}" for key in fields),
)
def test_finds_what_was_trained(fields: dict) -> None:
    """Biases, DoRA, saved and tied embeddings: the configuration is among the answers."""
    table = load_model("gpt2").table
    adapter = AdapterConfig(**{"target_modules": C, "r": 8, **fields})
    counted = lora_parameters(match(table, adapter))
    answer = explain(table, counted.trainable, counted.total)
    assert answer.exact
    assert "fits" in answer.remark
    plain = ("r", "bias", "use_dora", "modules_to_save", "ensure_weight_tying")
    assert any(
        set(found.adapter.target_modules or ()) == set(adapter.target_modules or ())
        and all(getattr(found.adapter, name) == getattr(adapter, name) for name in plain)
        for found in answer.exact
    )


def test_experts() -> None:
    """Fused experts are reached by target_parameters; the answer names them."""
    table = load_model("mixtral-8x7b").table
    adapter = AdapterConfig(
        ("q_proj", "v_proj"), r=8,
        target_parameters=("experts.gate_up_proj", "experts.down_proj"),
    )  # fmt: skip
    counted = lora_parameters(match(table, adapter))
    answer = explain(table, counted.trainable)
    assert any(
        set(found.adapter.target_parameters) == set(adapter.target_parameters)
        and set(found.adapter.target_modules or ()) == {"q_proj", "v_proj"}
        for found in answer.exact
    )


def test_what_a_total_tells() -> None:
    table = load_model("llama-3-8b").table
    assert "base model's" in explain(table, 20_971_520, 8_030_261_248).remark
    assert "does not fit" in explain(table, 20_971_520, 8_051_232_769).remark
    assert "less trainable" in explain(table, 12_345_677, 9_000_000_000).remark


def test_no_configuration_gives_it() -> None:
    """An answer too, with the nearest, none of which is it."""
    answer = explain(load_model("llama-3-8b").table, 12_345_677)
    assert answer.exact == ()
    assert answer.nearest
    distances = [abs(found.trainable - 12_345_677) for found in answer.nearest]
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_some_of_the_layers() -> None:
    """Where nothing on all layers fits: query and value at rank 8 on 10 of 32, as PEFT counts."""
    model = load_model("llama-3-8b")
    answer = explain(model.table, 1_064_960)
    (found,) = (
        f for f in answer.exact
        if {*f.adapter.target_modules} == {"q_proj", "v_proj"} and f.adapter.r == 8
    )  # fmt: skip
    assert found.adapter.layers_to_transform == tuple(range(10))
    assert "10 of 32" in found.note
    counted = count(inject(model.build(), found.adapter))
    assert (counted.trainable, counted.total) == (1_064_960, found.total)


def test_some_of_the_layers_of_two_stacks() -> None:
    """PEFT's layer numbers reach the encoder and the decoder; the answers are PEFT's counts."""
    model = load_model("t5-base")
    adapter = AdapterConfig(("q", "v"), r=5, layers_to_transform=tuple(range(7)))
    trainable = count(inject(model.build(), adapter)).trainable
    answer = explain(model.table, trainable)
    assert answer.exact
    for found in answer.exact[:3]:
        assert found.adapter.layers_to_transform
        counted = count(inject(model.build(), found.adapter))
        assert (counted.trainable, counted.total) == (trainable, found.total)


def test_a_model_without_a_token_embedding() -> None:
    """ViT: its input embedding cuts patches; query and value at rank 16, as PEFT counts them."""
    model = load_model("vit-base")
    adapter = AdapterConfig(("q_proj", "v_proj"), r=16)
    counted = count(inject(model.build(), adapter))
    found = explain(model.table, counted.trainable, counted.total).exact[0].adapter
    assert ({*found.target_modules}, found.r) == ({*adapter.target_modules}, 16)


def test_full_fine_tuning(capsys: pytest.CaptureFixture[str]) -> None:
    """The model's own size is an answer."""
    asked = ["explain", "llama-3-8b", "--trainable", "8030261248"]
    assert main(asked) == 0
    assert "full fine-tuning" in capsys.readouterr().out
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["full_fine_tuning"] is True


@settings(
    max_examples=40, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip
@given(st.data())
def test_every_answer_is_right(data: st.DataObject) -> None:
    """Whatever is listed as exact trains the number; what was trained is counted as found."""
    kinds = ("llama", "phi3", "gpt2", "bert", "distilbert", "opt")
    drawn: Drawn = data.draw(models(kinds))
    table = read_table(drawn.build())
    names = data.draw(st.lists(st.sampled_from(drawn.names[:4]), min_size=1, unique=True))
    r = data.draw(st.sampled_from([1, 2, 4, 8, 16]))
    counted = lora_parameters(match(table, AdapterConfig(tuple(names), r=r)))
    answer = explain(table, counted.trainable, counted.total)
    assert answer.exact
    for found in answer.exact:
        again = lora_parameters(match(table, found.adapter))
        assert (again.trainable, again.total) == (found.trainable, found.total)
        assert again.trainable == counted.trainable


def test_wrong_input() -> None:
    table = load_model("opt-125m").table
    with pytest.raises(BenchError, match="at least 1"):
        explain(table, 0)
    with pytest.raises(BenchError, match="smaller"):
        explain(table, 10, 5)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    """0 when something gives the number, 1 when nothing does; one JSON object a line."""
    asked = ["explain", "opt-350m", "--trainable"]
    assert main([*asked, "1572864"]) == 0
    assert "r 16; q_proj, v_proj" in capsys.readouterr().out.replace("v_proj, q_proj",
                                                                     "q_proj, v_proj")  # fmt: skip
    assert main([*asked, "1572865"]) == 1
    assert "that was tried trains exactly 1,572,865" in capsys.readouterr().out
    assert main([*asked, "1572865", "--json"]) == 1
    assert "r 1 to 1024" in json.loads(capsys.readouterr().out)["searched"]
    assert main([*asked, "1572864", "--total", "332769280", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["exact"][0]["adapter"]["r"] == 16
    assert answer["exact"][0]["total"] == 332_769_280
    assert main(["explain", "opt-350k", "--trainable", "1"]) == 2
    assert "unknown architecture" in capsys.readouterr().err
