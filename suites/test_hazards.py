"""Hazards and coverage: what they say of heads, experts and ranks is what PEFT does."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import HazardsFound, check_targets
from bench.adapters.config import AdapterConfig
from bench.cli import main
from bench.errors import BenchError
from bench.files.disk import INSTALLED, PACKAGE
from bench.measure.counting import count, inject
from bench.models.architectures import Model, load_model
from bench.models.classes import model_class
from bench.models.modules import LINEAR, Module, ModuleTable, Parameter
from bench.targets import Ledger, match
from bench.targets.hazards import HAZARDS, NOT_AS_WRITTEN, check_hazards, frozen_head_text

TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 24,
        "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}  # fmt: skip
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "vocab_size": 24, "pad_token_id": 0}  # fmt: skip
XLNET = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "vocab_size": 24}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 24}
GPT2 = {"n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": 24}
WAV2VEC2 = {"num_hidden_layers": 1}


def asked(model_type: str, config: dict[str, Any], named: str) -> Model:
    return Model(model_type, {"model_type": model_type, **config}, named)


def said(ledger: Ledger) -> dict[str, str]:
    return {hazard.code: hazard.reason for hazard in ledger.hazards}


@pytest.mark.parametrize(
    ("model", "target", "task_type", "heads", "offer"),
    [
        (asked("bart", BART, "BartForSequenceClassification"), "q_proj", "SEQ_CLS",
         "classification_head.dense, classification_head.out_proj", "name it in"),
        (asked("t5", T5, "T5ForSequenceClassification"), "q", "SEQ_CLS",
         "classification_head.dense, classification_head.out_proj", "name it in"),
        (asked("xlnet", XLNET, "XLNetForSequenceClassification"), "layer_1", "SEQ_CLS",
         "sequence_summary.summary, logits_proj", "name it in"),
        (asked("xlnet", XLNET, "XLNetForSequenceClassification"), "layer_1", None,
         "sequence_summary.summary, logits_proj", "name it in"),
        (asked("wav2vec2", WAV2VEC2, "Wav2Vec2ForSequenceClassification"), "q_proj", "SEQ_CLS",
         "projector", "name it in"),
        (asked("wav2vec2", WAV2VEC2, "Wav2Vec2ForCTC"), "q_proj", None, "lm_head", "name it in"),
        (asked("bert", TEXT, "BertForSequenceClassification"), "query", None, "classifier",
         "give the task type SEQ_CLS, or name it in"),
        (asked("bert", TEXT, "BertForTokenClassification"), "query", None, "classifier",
         "give the task type TOKEN_CLS, or name it in"),
        (asked("bert", TEXT, "BertForMultipleChoice"), "query", None, "classifier", "name it in"),
        (asked("gpt2", GPT2, "GPT2DoubleHeadsModel"), "c_attn", None,
         "multiple_choice_head.summary", "name it in"),
        (asked("bert", TEXT, "BertForSequenceClassification"), "query", "SEQ_CLS", "", ""),
        (asked("bert", TEXT, "BertForMaskedLM"), "query", None, "", ""),
        (asked("llama", TEXT, "LlamaForCausalLM"), "q_proj", None, "", ""),
        (asked("llama", TEXT, "LlamaForSequenceClassification"), "q_proj", "SEQ_CLS", "", ""),
        (asked("bart", BART, "BartForConditionalGeneration"), "q_proj", None, "", ""),
    ],
    ids=lambda value: value.auto_class if isinstance(value, Model) else None,
)  # fmt: skip
def test_heads_that_stay_frozen(
    model: Model, target: str, task_type: str | None, heads: str, offer: str
) -> None:
    ledger = match(model.table, AdapterConfig((target,), task_type=task_type))
    reason = said(ledger).get("frozen-head", "")
    assert reason.partition(":")[0] == heads
    assert f"; {offer} modules_to_save" in reason or not heads
    named = tuple(heads.split(", ")) if heads else ()
    peft = inject(model.build(), ledger.adapter)
    frozen = {n for n, p in peft.named_parameters() if not p.requires_grad}
    for name in named:
        assert any(f".{name}.weight" in n for n in frozen)
        assert not any(f".{name}.modules_to_save" in n for n, _ in peft.named_parameters())
    if "task type" in offer:
        told = AdapterConfig((target,), task_type=offer.split()[4].rstrip(","))
        assert "frozen-head" not in said(match(model.table, told))
    saved = tuple(name.partition(".")[0] for name in named)
    whole = AdapterConfig((target,), task_type=task_type, modules_to_save=saved)
    assert "frozen-head" not in said(match(model.table, whole))


def test_weights_of_heads_are_not_experts() -> None:
    """XLNet's projections are parameters with a matrix for every head; PEFT can adapt them."""
    import torch

    model = asked("xlnet", XLNET, "XLNetLMHeadModel")
    hazards = said(match(model.table, AdapterConfig(("layer_1",))))
    assert "experts-not-reached" not in hazards
    assert hazards["parameters-not-reached"].startswith("8 weights of three dimensions")
    mixtral = asked("mixtral", {**TEXT, "num_local_experts": 2}, "MixtralForCausalLM")
    assert "experts-not-reached" in said(match(mixtral.table, AdapterConfig(("q_proj",))))
    saved = AdapterConfig(("q_proj",), modules_to_save=("experts",))
    assert "experts-not-reached" not in said(match(mixtral.table, saved))

    live = model_class(model.auto_class)(model.transformers_config)
    peft = inject(live, AdapterConfig((), target_parameters=("rel_attn.q",)))
    peft(torch.zeros(1, 3, dtype=torch.long)).logits.sum().backward()
    trained = [p for p in peft.parameters() if p.requires_grad]
    assert len(trained) == 4
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize(
    ("pattern", "rank", "doubled"), [({}, 16, True), ({"gate_up_proj": 4}, 4, False)]
)
def test_a_pattern_for_the_fused_weights_beats_the_doubled_rank(
    pattern: dict[str, int], rank: int, doubled: bool
) -> None:
    mixtral = asked("mixtral", {**TEXT, "num_local_experts": 2}, "MixtralForCausalLM")
    ledger = match(mixtral.table, AdapterConfig(("w1", "w2", "w3"), rank_pattern=pattern))
    assert ("rank-doubled" in said(ledger)) == doubled
    peft = inject(mixtral.build(), ledger.adapter)
    ranks = {
        m.r["default"] for m in peft.modules() if getattr(m, "parameter_name", "") == "gate_up_proj"
    }
    assert ranks == {rank}


def test_a_linear_layer_adapted_through_its_weight_counts() -> None:
    llama = asked("llama", TEXT, "LlamaForCausalLM")
    by_module = match(llama.table, AdapterConfig(("q_proj",)))
    by_weight = match(llama.table, AdapterConfig((), target_parameters=("q_proj.weight",)))
    assert by_weight.weight_coverage == by_module.weight_coverage > 0


def test_a_rank_above_the_width_of_a_layer_is_told() -> None:
    """16 wide, keys and values 8 of two heads' 16: only what is narrower than its rank counts."""
    config = {**TEXT, "num_key_value_heads": 1}
    model = asked("llama", config, "LlamaForCausalLM")
    for rank, narrow in ((8, 0), (9, 2), (16, 2), (17, 4)):
        found = said(match(model.table, AdapterConfig(("q_proj", "k_proj"), r=rank)))
        reason = found.get("rank-above-width", "")
        assert reason.startswith(f"{narrow} of 4 adapted layers") == bool(narrow)
        assert (f"r {rank}, and its smaller side is 8" in reason) == bool(narrow)
    pattern = AdapterConfig(("q_proj", "k_proj"), r=16, rank_pattern={"k_proj": 8})
    assert "rank-above-width" not in said(match(model.table, pattern))


def test_adapters_scaled_by_zero_learn_nothing() -> None:
    """As in PEFT's own step: even behind a trained B no gradient comes."""
    model = asked("llama", TEXT, "LlamaForCausalLM")
    zero = AdapterConfig(("q_proj",), lora_alpha=0)
    assert said(match(model.table, zero))["alpha-zero"].startswith("lora_alpha is 0")
    pattern = AdapterConfig(("q_proj", "k_proj"), alpha_pattern={"k_proj": 0})
    assert said(match(model.table, pattern))["alpha-zero"].startswith("alpha_pattern k_proj is 0")
    assert "alpha-zero" not in said(match(model.table, AdapterConfig(("q_proj",), lora_alpha=1)))

    import torch

    peft = inject(model_class(model.auto_class)(model.transformers_config), zero)
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if "lora_B" in name:
                weight.fill_(1.0)
    peft(torch.ones(1, 3, dtype=torch.long)).logits.sum().backward()
    gradients = [p.grad for p in peft.parameters() if p.requires_grad]
    assert gradients
    assert not any(g is not None and g.any() for g in gradients)


@pytest.mark.skipif(INSTALLED, reason="the pages stay in the repository")
def test_every_hazard_has_its_section() -> None:
    """docs/hazards.md tells each, in alphabetical order, and no other; `--strict`'s are named."""
    page = (Path(__file__).parents[1] / "docs" / "hazards.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## ([\w-]+)\n\n(.+?)(?=^## |\Z)", page, re.M | re.S))
    assert list(sections) == sorted(HAZARDS)
    strict = next(part for part in page.split("\n\n") if part.startswith("`--strict`"))
    assert set(re.findall(r"`([a-z]+-[a-z-]+)`", strict)) == NOT_AS_WRITTEN


def test_the_code_tells_no_other_hazard() -> None:
    sources = "".join(p.read_text() for p in PACKAGE.rglob("*.py"))
    told = re.findall(r'found\["([a-z]+-[a-z-]+)"\] =|Hazard\(\s*"([a-z-]+)"', sources)
    assert {code for pair in told for code in pair if code} == set(HAZARDS)


def test_part_of_the_layers_is_said_once_and_of_stacks() -> None:
    """Entries alike share a line; an entry that reaches all that is called so is no hazard where
    the other layers are adapted too."""
    widths = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4}
    hybrid = asked("bamba", {**TEXT, **widths, "attn_layer_indices": [1]}, "BambaForCausalLM")
    names = ("q_proj", "v_proj")
    reason = said(match(hybrid.table, AdapterConfig(names)))["part-of-the-layers"]
    assert reason.startswith("q_proj, v_proj reach 1 of the 2 layers of language model")
    assert "in_proj (1)" in reason
    both = (*names, "k_proj", "o_proj", "in_proj", "out_proj")
    assert "part-of-the-layers" not in said(match(hybrid.table, AdapterConfig(both)))
    for numbered in (("layers.1.self_attn.q_proj",), r".*\.layers\.([1-9])\.self_attn\.q_proj"):
        one = match(hybrid.table, AdapterConfig(numbered))
        assert (len(one.adapted), "part-of-the-layers" in said(one)) == (1, False)


LLAVA = {
    "text_config": {**TEXT, "model_type": "llama"},
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 16, "num_hidden_layers": 3,
                      "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8,
                      "patch_size": 4},
    "image_token_index": 3,
}  # fmt: skip


def llava() -> Model:
    return asked("llava", LLAVA, "LlavaForConditionalGeneration")


@pytest.mark.parametrize(
    ("targets", "excluded", "adapted"),
    [
        (("q_proj", "v_proj"), None, 4),
        ("all-linear", None, 14),
        ("all-linear", ("down_proj",), 12),
        ("all-linear", r".*\.up_proj", 12),
    ],
)
def test_the_offer_leaves_the_towers_out(targets: Any, excluded: Any, adapted: int) -> None:
    """PEFT adapts the language model alone when the offered expression is written, beside what was
    excluded already."""
    model = llava()
    config = AdapterConfig(targets, exclude_modules=excluded)
    reason = said(match(model.table, config))["tower-adapted"]
    assert "vision model.vision_tower" in reason
    offer = json.loads(reason.partition("exclude_modules=")[2])
    without = match(model.table, replace(config, exclude_modules=offer))
    assert "tower-adapted" not in said(without)
    assert without.dead_fields == ()
    names = count(inject(model.build(), without.adapter)).adapted
    assert len(names) == len(without.adapted) == adapted
    assert all(name.startswith("model.language_model.") for name in names)


class TestGate:
    def test_options(self, capsys, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps(dict(llava().config)))
        command = ["targets", str(tmp_path), "--auto-class", "LlavaForConditionalGeneration",
                   "--target-modules", "q_proj"]  # fmt: skip
        assert main(command) == main([*command, "--strict"]) == 0
        assert main([*command, "--fail-on", "tower-adapted"]) == 1
        assert "hazard tower-adapted, which fails: vision" in capsys.readouterr().out
        assert main([*command, "--fail-on", "all", "--json"]) == 1
        found = json.loads(capsys.readouterr().out)["hazards"]
        assert [(h["code"], h["fails"]) for h in found] == [("tower-adapted", True)]
        assert main([*command, "--fail-on", "all", "--allow", "tower-adapted"]) == 0
        assert main([*command, "--minimum-coverage", "0.9"]) == 1
        assert "at least 90.0% is asked for" in capsys.readouterr().out
        assert main([*command, "--fail-on", "tower-adaptd"]) == 2
        assert "did you mean tower-adapted" in capsys.readouterr().err
        assert main([*command, "--minimum-coverage", "90"]) == 2

    def test_project(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        model = llava().build()
        project = tmp_path / "pyproject.toml"
        assert check_targets(model, ["q_proj"]).hazards
        project.write_text('[tool.lora-target-bench]\nfail-on = ["tower-adapted"]\n')
        with pytest.raises(HazardsFound, match="tower-adapted") as raised:
            check_targets(model, ["q_proj"])
        assert "which fails" in str(raised.value)
        assert raised.value.ledger.hazards
        assert check_targets(model, ["q_proj"], allow=["tower-adapted"])
        project.write_text("[tool.lora-target-bench]\nminimum-coverage = 0.9\n")
        with pytest.raises(HazardsFound, match="low-coverage"):
            check_targets(model, ["q_proj"])
        assert check_targets(model, ["q_proj"], minimum_coverage=0.01)
        for wrong in ('fail_on = ["x"]', 'allow = "x"', 'allow = ["x"]', "minimum-coverage = true"):
            project.write_text(f"[tool.lora-target-bench]\n{wrong}\n")
            with pytest.raises(BenchError, match=r"pyproject.toml: tool.lora-target-bench"):
                check_targets(model, ["q_proj"])

    def test_what_means_something_else_fails_strictly(self) -> None:
        mixtral = asked("mixtral", {**TEXT, "num_local_experts": 2}, "MixtralForCausalLM").build()
        with pytest.raises(HazardsFound, match="rank-doubled"):
            check_targets(mixtral, ["w1", "w2", "w3"])
        assert check_targets(mixtral, ["w1", "w2", "w3"], allow=["rank-doubled"])

    def test_what_passes_is_not_silent(self, caplog) -> None:
        check_targets(llava().build(), ["q_proj"])
        (record,) = caplog.records
        assert (record.name, record.levelname) == ("bench", "WARNING")
        assert "hazard tower-adapted: vision model.vision_tower" in record.getMessage()


@pytest.mark.parametrize(
    ("model", "entry", "share", "rest"),
    [
        # A layer: 2 × 4096² + 2 × 4096 × 1024 + 3 × 4096 × 14336 elements.
        ("llama-3-8b", "v_proj", 4096 * 1024 / 218_103_808, "gate_proj, up_proj, down_proj"),
        # Beside 8 experts of 3 × 4096 × 14336 in two fused weights, and a router of 8 × 4096.
        ("mixtral-8x7b", "k_proj", 4096 * 1024 / (8 * 3 * 58_720_256 + 41_943_040 + 32_768),
         "mlp.experts.gate_up_proj, mlp.experts.down_proj, q_proj"),
    ],
)  # fmt: skip
def test_low_coverage_says_how_much_and_where_the_rest_is(
    model: str, entry: str, share: float, rest: str
) -> None:
    ledger = match(load_model(model).table, AdapterConfig((entry,)))
    (said,) = (h.reason for h in ledger.hazards if h.code == "low-coverage")
    assert said == (
        f"{share:.1%} of the linear weights and 100% of the layers carry an adapter; "
        f"most of the rest is in {rest}"
    )


@pytest.mark.parametrize("fields", [{"layers_to_transform": (0, 1)}, {"exclude_modules": ".*"}])
def test_little_that_was_asked_for_is_no_low_coverage(fields: dict) -> None:
    """Some of the layers on purpose, or nothing at all, which PEFT refuses."""
    ledger = match(load_model("llama-3-8b").table, AdapterConfig(("v_proj",), **fields))
    assert ledger.weight_coverage < 0.02
    assert "low-coverage" not in {h.code for h in ledger.hazards}


def test_a_twentieth_of_the_weights_is_not_low() -> None:
    """At the threshold itself nothing is said; just below it, and of nothing else, it is."""
    for rest, low in ((19, False), (20, True)):
        linear = (Module("a", LINEAR, 1, 1), Module("b", LINEAR, 1, rest))
        weights = (Parameter("a.weight", (1, 1)), Parameter("b.weight", (rest, 1)))
        ledger = match(ModuleTable("", "Small", linear, weights), AdapterConfig(("a",), r=1))
        assert (set(said(ledger)) == {"low-coverage"}) == low


@pytest.mark.parametrize(
    ("class_name", "heads", "task_type", "told", "offer"),
    [
        ("XForSequenceClassification", ["score"], None, "score", "SEQ_CLS"),
        ("XForSequenceClassification", ["score"], "SEQ_CLS", "score", ""),
        ("XForSequenceClassification", ["score.a", "b"], None, "score.a, b", ""),
        ("XForSequenceClassification", ["score.a", "x.score.b.c"], None, "score.a, x.score.b.c",
         "SEQ_CLS"),
        ("XForSequenceClassification", ["score.a", "score.b", "my_score"], None,
         "score.a, score.b, my_score", "SEQ_CLS"),
        ("XForSequenceClassification", ["score.a", "score.b", "score.c", "my_score"], None,
         "score, my_score", "SEQ_CLS"),
        ("XForQuestionAnswering", ["qa_outputs"], "SEQ_CLS", "qa_outputs", "QUESTION_ANS"),
        ("XForCausalLM", ["score"], None, "score", ""),
        ("Other", ["score"], None, "score", ""),
    ],
)  # fmt: skip
def test_what_is_said_of_frozen_heads(
    class_name: str, heads: list[str], task_type: str | None, told: str, offer: str
) -> None:
    either = f"give the task type {offer}, or " if offer else ""
    assert frozen_head_text(class_name, heads, task_type) == (
        f"{told}: beyond the base model, newly initialised unless the checkpoint holds it, and "
        f"stays frozen; {either}name it in modules_to_save"
    )


def test_a_hazard_that_is_none() -> None:
    assert check_hazards(iter(["low-coverage"]), "here") == ("low-coverage",)
    with pytest.raises(BenchError, match=r"^unknown hazard in here: 'low-cover': did you mean low"):
        check_hazards(["low-cover"], "here")


def test_how_an_experts_weight_is_named_in_every_layer() -> None:
    """What follows the last number, and no more than three words of it."""
    names = ("experts.w", "a.b.c.experts.w", "layers.0.x.1.experts.w", "layers.2.a.b.experts.w")
    owners = (Module("layers.2.a"), *(Module(name.rpartition(".")[0]) for name in names))
    weights = tuple(Parameter(name, (2, 3, 4)) for name in names)
    linear = Module("a.l", LINEAR, 1, 1), Parameter("a.l.weight", (1, 1))
    table = ModuleTable("", "Small", (*owners, linear[0]), (*weights, linear[1]))
    reason = said(match(table, AdapterConfig(("l",))))["experts-not-reached"]
    assert reason == (
        "4 fused expert weights, 99% of the model, get no adapter: they are parameters, which only "
        'target_parameters reaches: ["experts.w", "c.experts.w", "b.experts.w"]'
    )
    (way,) = match(table, AdapterConfig(("2.a", "l"))).ways_out
    assert way.endswith('leave it out; for its experts target_parameters=["b.experts.w"]')


def test_experts_are_told_by_their_class_too() -> None:
    owner, weight = Module("a.ff", class_name="MyExperts"), Parameter("a.ff.w", (2, 3, 4))
    linear = Module("l", LINEAR, 1, 1), Parameter("l.weight", (1, 1))
    table = ModuleTable("", "Small", (owner, linear[0]), (weight, linear[1]))
    assert "experts-not-reached" in said(match(table, AdapterConfig(("l",))))


def test_a_head_is_told_by_its_first_word_where_the_base_model_is_not_known() -> None:
    names = ("classifier.dense", "my.classifier", "score", "a")
    linear = tuple(Module(name, LINEAR, 1, 1) for name in names)
    table = ModuleTable("", "Small", linear, tuple(Parameter(f"{n}.weight", (1, 1)) for n in names))
    reason = said(match(table, AdapterConfig(("a",))))["frozen-head"]
    assert reason.startswith("classifier.dense, score: beyond the base model")


def test_nothing_is_covered_where_nothing_is_linear() -> None:
    table = ModuleTable(
        "", "Small", (Module("e", "embedding", 3, 2),), (Parameter("e.weight", (3, 2)),)
    )
    ledger = match(table, AdapterConfig(("e",)))
    assert (len(ledger.adapted), ledger.weight_coverage, ledger.layer_coverage) == (1, 0, 0)
