"""The inverse: the configuration behind a number of trainable parameters."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from atlas_types import STORED, needs_atlas, stored_atlas
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matrices import matrix
from model_folders import write_model
from random_models import Drawn, models

from bench.adapters.config import AdapterConfig
from bench.cli import main
from bench.cli.explain import read_line
from bench.errors import BenchError
from bench.explain import SEARCHED_RANK, Search, explain
from bench.files import FIXTURES
from bench.formulas import lora_parameters
from bench.measure.counting import count, inject
from bench.models.architectures import load_model
from bench.models.modules import read_table
from bench.reports.explained import explanation_text
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


SIDES = {"q_proj": 128, "k_proj": 96, "v_proj": 96, "o_proj": 128, "gate_proj": 192,
         "up_proj": 192, "down_proj": 192}  # fmt: skip
"""in + out of a layer's, hidden 64, intermediate 128, two of four heads for keys and values."""


@pytest.mark.parametrize("trainable", [1, 289, 290, 1_000, 3_071, 100_003, 10**9])
def test_the_nearest_is_the_nearest_of_all_that_is_tried(tmp_path: Path, trainable: int) -> None:
    """Of every set in k of three layers at every rank, r · k · Σ (in + out), and with DoRA of all
    of them: none is nearer than the first, and what is said of each is what it trains."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
              "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
              "num_key_value_heads": 2, "vocab_size": 500}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    table = load_model(str(tmp_path)).table
    answer = explain(table, trainable)
    sets = {sum(s) for n in range(1, 8) for s in combinations(SIDES.values(), n)}
    ranks = range(1, SEARCHED_RANK + 1)
    least = min(abs(r * k * s - trainable) for s in sets for k in (1, 2, 3) for r in ranks)
    assert not answer.exact
    assert abs(answer.nearest[0].trainable - trainable) <= least
    for found in (*answer.nearest, *answer.nearest_popular):
        assert lora_parameters(match(table, found.adapter)).trainable == found.trainable
    if trainable == 289:
        assert answer.nearest[0].adapter.target_modules == ("k_proj",)
        assert answer.nearest[0].trainable == 3 * 96
        said = explanation_text("x", answer)
        assert "r 1; k_proj: 288 (-1)" in said
        assert (
            "the nearest of the popular sets:\n  r 1; q_proj, v_proj (query and value): 672" in said
        )


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
    some = [found for found in answer.exact if found.adapter.layers_to_transform]
    assert len(some) > len(answer.exact) / 2
    for found in some[:3]:
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
    assert "1,572,865 trainable parameters on opt-350m: not found among" in capsys.readouterr().out
    assert main([*asked, "1572865", "--json"]) == 1
    assert "r 1 to 1024" in json.loads(capsys.readouterr().out)["searched"]
    assert main([*asked, "1572864", "--total", "332769280", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["exact"][0]["adapter"]["r"] == 16
    assert answer["exact"][0]["total"] == 332_769_280
    assert main(["explain", "opt-350k", "--trainable", "1"]) == 2
    assert "unknown architecture" in capsys.readouterr().err


FIELD = FIXTURES / "field"


@pytest.mark.parametrize(
    ("case", "trainable", "total", "r", "said"),
    matrix([
        ("gemma4-26b-moe", 32 * (1_161_600 + 690_768), 25_865_209_648, 32,
         "attention and feed-forward"),
        ("gemma4-26b-moe", 62_290_432, 25_868_224_304, 32, "all-linear"),
        ("qwen2.5-vl-3b-llm-only", 29_933_568, 3_784_556_544, 16, "language model only"),
        ("qwen2.5-vl-3b-llm-only", 37_152_768, 3_791_775_744, 16, "the seven names"),
        ("nemotron-nano-9b-v2", 18_061_312, None, 16, "attention and feed-forward"),
        ("gpt-neox-20b-halved", 8_650_752, 20_563_218_432, 8, "default"),
        ("llama3-8b-bnb-4bit", 41_943_040, 8_072_204_288, 16, "every linear layer"),
    ], by=lambda case, trainable, total, r, said: {case}),
)  # fmt: skip
def test_field_cases(case: str, trainable: int, total: int | None, r: int, said: str) -> None:
    """The first answer is what was trained, and PEFT counts the same of it."""
    model = load_model(str(FIELD / case))
    answer = explain(model.table, trainable, total)
    found = answer.exact[0]
    assert (found.trainable, found.adapter.r) == (trainable, r)
    assert said in found.note
    if total:
        assert answer.remark.startswith("the total fits")
    counted = count(inject(model.build(), found.adapter))
    assert (counted.trainable, counted.total) == (trainable, found.total)


def test_language_model_only() -> None:
    """No module of the vision tower: the answer's configuration holds them out."""
    table = load_model(str(FIELD / "qwen2.5-vl-3b-llm-only")).table
    adapter = explain(table, 29_933_568).exact[0].adapter
    adapted = [a.name for a in match(table, adapter).adapted]
    assert len(adapted) == 36 * 7
    assert not [name for name in adapted if "visual" in name]


@pytest.mark.parametrize(
    ("case", "trainable", "r", "packed", "total"),
    [
        ("gpt-neox-20b-halved", 8_650_752, 8, 10_588_901_376, "20,563,218,432"),
        # 32 layers of linear weights halved; embedding, head and 65 norms as they are.
        ("llama3-8b-bnb-4bit", 41_943_040, 16,
         32 * (2 * 4096 * (4096 + 1024) + 3 * 4096 * 14336) // 2 + 2 * 128256 * 4096 + 65 * 4096,
         "8,072,204,288"),
    ],
)  # fmt: skip
def test_a_total_of_packed_elements(
    case: str, trainable: int, r: int, packed: int, total: str
) -> None:
    """A model in 4 bits: the linear weights halved, and the adapter."""
    answer = explain(load_model(str(FIELD / case)).table, trainable, packed + trainable)
    assert answer.exact[0].adapter.r == r
    for said in ("4 bits", f"{packed:,}", total):
        assert said in answer.remark


def test_a_number_that_nothing_gives() -> None:
    answer = explain(load_model(str(FIELD / "nemotron-nano-9b-v2")).table, 1_234_567)
    assert answer.exact == ()
    assert answer.tried > 1_000
    assert all(found.total > found.trainable > 0 for found in answer.nearest)


def test_old_expert_names_on_fused_experts(tmp_path: Path) -> None:
    """Qwen3-30B-A3B with the seven names: PEFT turns gate, up and down into the experts' fused
    weights, gate and up with twice the rank."""
    config = {
        "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "head_dim": 128,
        "num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768, "intermediate_size": 6144,
        "vocab_size": 151936, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "architectures": ["Qwen3MoeForCausalLM"],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    attention = (2048 + 4096) * 2 + (2048 + 512) * 2
    experts = 128 * (2 * (1536 + 2048) + (2048 + 768))
    trainable = 48 * 16 * (attention + experts)
    assert trainable == 994_836_480
    found = explain(load_model(str(tmp_path)).table, trainable).exact[0]
    assert ({*found.adapter.target_modules}, found.adapter.r) == (SEVEN, 16)


TYPES = sorted(stored_atlas().types) if STORED else []


def _kinds(name: str) -> set[object]:
    """What the search tells apart: the kinds and roles of modules, experts, the model's size."""
    found = stored_atlas().types[name]
    parts = {part for module in found.projections for part in (module.kind, module.role)}
    return {*parts, bool(found.bare), len(str(found.parameters))}


DEAR = {"step3p5", "qwen3_next", "EvollaModel"}
"""Of many kinds of layers each: two thirds of what all others take, and nothing of its own."""
SAMPLE = [
    pytest.param(name, marks=[pytest.mark.evidence] * (name in DEAR))
    for name in TYPES[:: max(1, len(TYPES) // 30)][:30]
]


@needs_atlas
@pytest.mark.parametrize("name", matrix(SAMPLE, _kinds))
def test_no_number_ends_in_a_traceback(name: str) -> None:
    """Thirty types of the atlas × twenty numbers, small, odd, huge, and the model's own."""
    table = stored_atlas().types[name].table(name)
    search = Search(table)
    base = table.total_parameters
    ones = [1, 2, 3, 7, 64, 1000, 65_537, 1_000_000, 1_234_567, 29_933_568, 10**12, 2**62]
    answers = [search.explain(n) for n in [*ones, *(max(1, base // d) for d in (1, 2, 3, 7, 100))]]
    answers += [search.explain(n, n + base) for n in (4096, 16_384, 999_999)]
    assert len(answers) == 20
    for answer in answers:
        text = explanation_text(name, answer)
        assert f"{answer.trainable:,}" in text
        assert all(found.trainable == answer.trainable for found in answer.exact)


@pytest.mark.parametrize("digits", ["9" * 23, "9" * 5000, "1" + "0" * 13 + "1"])
def test_a_number_that_no_model_has_is_too_large(digits: str) -> None:
    with pytest.raises(BenchError, match="10,000,000,000,000 is most") as caught:
        read_line(digits)
    assert len(str(caught.value)) < 120


def test_what_is_not_shown_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of every set of a tiny Llama's seven linear layers at every rank, by hand."""
    sizes = {"q_proj": (32, 32), "k_proj": (32, 16), "v_proj": (32, 16), "o_proj": (32, 32),
             "gate_proj": (32, 48), "up_proj": (32, 48), "down_proj": (48, 32)}  # fmt: skip
    trainable = 2 * 16 * (32 + 32)  # q_proj alone at r 16
    sets = [s for n in range(1, 8) for s in combinations(sizes, n)]
    per_rank = [2 * sum(sum(sizes[name]) for name in names) for names in sets]
    every = sum(trainable % each == 0 for each in per_rank)
    assert main(["explain", str(write_model(tmp_path)), "--trainable", str(trainable)]) == 0
    text = capsys.readouterr().out
    assert "not shown: up to " in text
    assert main(["explain", str(tmp_path), "--trainable", str(trainable), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["exact"]) == 10 < every <= 10 + answer["not_shown"]
    few = explain(load_model("phi-3-mini").table, 25_165_824)
    assert len(few.exact) < 10
    assert few.more == few.more_some_layers
