"""Questions from public threads, each with its right answer, and PEFT's own count beside it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.adapters.config import AdapterConfig
from bench.cli import main
from bench.errors import BenchError
from bench.files import FIXTURES, read_toml
from bench.formulas import lora_parameters
from bench.models.architectures import load_model
from bench.targets import Ledger, match

FIELD = FIXTURES / "field"
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def adapter_of(case: str, file: str = "adapter_config") -> AdapterConfig:
    return AdapterConfig.from_file(FIELD / case / f"{file}.json")


@pytest.fixture
def answer(peft_count):
    """The ledger of a configuration; where PEFT takes it, counted by PEFT as by the formulas."""

    def of(case: str, adapter: str | AdapterConfig = "adapter_config") -> tuple[Ledger, int, int]:
        config = adapter_of(case, adapter) if isinstance(adapter, str) else adapter
        model = load_model(str(FIELD / case)).for_task(config.task_type)
        ledger = match(model.table, config, model.role_of)
        if ledger.refusals:
            with pytest.raises(BenchError):
                peft_count(model, config)
            return ledger, 0, model.table.total_parameters
        counted, found = peft_count(model, config), lora_parameters(ledger)
        assert sorted(a.name for a in ledger.adapted) == sorted(counted.adapted)
        assert (found.trainable, found.total) == (counted.trainable, counted.total)
        return ledger, counted.trainable, counted.total

    return of


def told(*command: Any) -> list[str]:
    return ["targets", *map(str, command)]


def case_command(case: str, file: str, *more: str) -> list[str]:
    return told(FIELD / case, "--adapter", FIELD / case / f"{file}.json", *more)


def hazards(ledger: Ledger) -> dict[str, str]:
    return {hazard.code: hazard.reason for hazard in ledger.hazards}


def in_stacks(ledger: Ledger) -> dict[str, tuple[int, int, int]]:
    """Kind → modules adapted, layers reached, layers."""
    return {r.stack.kind: (r.modules, r.layers, len(r.stack.layers)) for r in ledger.stacks}


def pattern_in(text: str, field: str) -> str:
    """The regular expression that a sentence offers for a field, as JSON reads it."""
    found = re.search(rf"{field}=(\"(?:[^\"\\]|\\.)*\")", text)
    assert found, text
    return str(json.loads(found[1]))


def test_every_case_has_its_source() -> None:
    sources = read_toml(FIELD / "sources.toml")
    assert {folder.name for folder in FIELD.iterdir() if folder.is_dir()} == set(sources)
    for values in sources.values():
        assert set(values) == {"source", "question", "answer"}


class TestGemma4Experts:
    case = "gemma4-26b-moe"

    def test_all_linear(self, answer) -> None:
        ledger, trainable, total = answer(self.case)
        assert (trainable, total) == (62_290_432, 25_868_224_304)
        assert in_stacks(ledger) == {
            "vision": (190, 27, 27), "language": (235, 30, 30), "connector": (1, 0, 0)
        }  # fmt: skip
        assert "60 fused expert weights, 88% of the model" in hazards(ledger)["experts-not-reached"]
        assert "vision model.vision_tower" in hazards(ledger)["tower-adapted"]

    def test_seven_names_raise_and_both_ways_out_work(self, answer) -> None:
        """In the vision tower q_proj is a container whose inner `linear` is the projection."""
        ledger, *_ = answer(self.case, "adapter_seven_names")
        assert ledger.refusals
        leave_out, both = ledger.ways_out
        assert "q_proj.linear" in leave_out
        given = adapter_of(self.case, "adapter_seven_names")
        excluded = replace(given, exclude_modules=pattern_in(leave_out, "exclude_modules"))
        language, trainable, _ = answer(self.case, excluded)
        assert trainable == 32 * 1_161_600  # attention and feed-forward of the language model
        assert in_stacks(language)["vision"][0] == 0
        everything = replace(given, target_modules=pattern_in(both, "target_modules"))
        _, trainable, total = answer(self.case, everything)
        assert (trainable, total) == (59_275_776, 25_865_209_648)


class TestGptOssNames:
    case = "gpt-oss-20b-names"

    def test_published_recipe(self, answer) -> None:
        _, trainable, total = answer(self.case)
        assert (trainable, total) == (15_040_512, 20_929_797_696)

    def test_names_of_a_quantized_checkpoint(self, answer) -> None:
        ledger, trainable, _ = answer(self.case, "adapter_projs")
        assert trainable == 7_962_624  # attention alone
        offers = {e.entry: e.suggestion for e in ledger.entries if e.dead}
        assert offers == {
            f"{name}s": f'target_parameters=["mlp.experts.{name}"] (24 layers)'
            for name in ("gate_up_proj", "down_proj")
        }


class TestBareLayers:
    case = "llama3-bare-layers"

    def test_no_layer_number_can_be_read(self, answer) -> None:
        ledger, *_ = answer(self.case)
        assert ledger.refusals
        for entry in ledger.entries:
            assert entry.cause == (
                "32 modules whose layer number cannot be read, for layers_to_transform"
            )
            assert entry.suggestion == 'layers_pattern="layers" beside layers_to_transform'

    def test_with_the_pattern(self, answer) -> None:
        ledger, trainable, _ = answer(self.case, "adapter_fixed")
        assert (trainable, len(ledger.adapted)) == (425_984, 8)


class TestDoubleQuantization:
    case = "llama3-8b-bnb-4bit"

    @pytest.mark.parametrize(
        ("targets", "rank", "trainable", "total"),
        [
            (SEVEN, 16, 41_943_040, 8_072_204_288),
            ("all-linear", 8, 20_971_520, 8_051_232_768),
        ],
    )
    def test_counts_are_the_unquantized_ones(
        self, answer, targets, rank: int, trainable: int, total: int
    ) -> None:
        assert answer(self.case, AdapterConfig(targets, r=rank))[1:] == (trainable, total)

    def test_a_registered_model_as_loaded(self, capsys) -> None:
        command = ["llama-3-8b", "--target-modules", "all-linear", "--precision", "nf4-dq"]
        assert main(told(*command, "--json")) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["trainable_parameters"] == 20_971_520
        assert found["base_totals"]["packed"] == 4_540_600_320


class TestOldNames:
    case = "mllama-11b-old-names"

    def test_only_the_vision_entries_are_alive(self, answer) -> None:
        ledger, trainable, total = answer(self.case)
        assert (trainable, total) == (1_146_880, 10_671_367_715)
        assert len(ledger.dead_entries) == 49
        alive = [e for e in ledger.entries if not e.dead]
        assert len(alive) == 4
        assert all(e.entry.startswith("vision_model.") for e in alive)

    def test_each_offer_is_the_same_module(self, answer) -> None:
        """One module each, where the name has moved to; and PEFT finds all of them."""
        ledger, *_ = answer(self.case)
        dead = [e for e in ledger.entries if e.dead]
        for entry in dead:
            rest = entry.entry.removeprefix("language_model.model.")
            assert entry.suggestion == f"language_model.{rest}"
        given = adapter_of(self.case)
        renamed = replace(given, target_modules=tuple(e.suggestion for e in dead))
        assert len(answer(self.case, renamed)[0].adapted) == 49

    def test_few_lines(self, capsys) -> None:
        assert main(case_command(self.case, "adapter_config", "--strict")) == 1
        assert len(capsys.readouterr().out.splitlines()) < 30


class TestHybrid:
    case = "nemotron-nano-9b-v2"

    def test_defaults_reach_four_layers(self, answer) -> None:
        ledger, trainable, total = answer(self.case, "adapter_default")
        assert (trainable, total) == (1_933_312, 8_890_160_640)
        assert in_stacks(ledger) == {"language": (16, 4, 56)}
        assert "in_proj (27)" in hazards(ledger)["part-of-the-layers"]
        assert "low-coverage" in hazards(ledger)

    def test_defaults_can_fail(self, capsys) -> None:
        command = case_command(self.case, "adapter_default")
        assert main(command) == 0
        assert main([*command, "--fail-on", "low-coverage"]) == 1
        assert main([*command, "--minimum-coverage", "0.9"]) == 1
        assert main([*command, "--minimum-coverage", "0.9", "--allow", "low-coverage"]) == 0

    def test_seven_names(self, answer) -> None:
        ledger, trainable, _ = answer(self.case)
        assert (trainable, ledger.dead_entries) == (18_061_312, ("gate_proj",))

    def test_mamba_names(self, answer) -> None:
        adapted = answer(self.case, AdapterConfig(("in_proj",)))[0].adapted
        assert len(adapted) == 27
        for name in ("out_proj", "conv1d"):
            refused = answer(self.case, AdapterConfig(("in_proj", name)))[0]
            assert refused.ways_out == (f"leave out {name}",)
        everything = answer(self.case, AdapterConfig("all-linear", r=16))[0]
        assert everything.ways_out == ('exclude_modules=["out_proj"]',)
        held_out = AdapterConfig("all-linear", r=16, exclude_modules=("out_proj",))
        assert not answer(self.case, held_out)[0].refusals


class TestBasenames:
    case = "qwen2-vl-basenames"

    def test_the_entries_at_fault_and_what_to_write(self, answer) -> None:
        ledger, *_ = answer(self.case)
        assert ledger.refusals
        ways = dict(way.split(":", 1) for way in ledger.ways_out)
        assert set(ways) == {"0", "2"}
        assert ways["0"].endswith("write merger.mlp.0")
        assert ways["2"].endswith("write merger.mlp.2")
        kept = [e for e in adapter_of(self.case).target_modules or () if not e.isdigit()]
        written = AdapterConfig((*kept, "merger.mlp.0", "merger.mlp.2"))
        assert not answer(self.case, written)[0].refusals

    def test_without_the_numbers(self, answer) -> None:
        ledger, trainable, total = answer(self.case, "adapter_without_numbers")
        assert (trainable, total) == (14_494_912, 2_223_480_512)
        said = hazards(ledger)
        assert said["mixed-kinds"].endswith("model.visual.patch_embed.proj, a Conv3d")
        assert "part-of-the-layers" not in said
        assert answer(self.case, AdapterConfig("all-linear"))[1:] == (14_610_432, 2_223_596_032)


class TestLanguageOnly:
    case = "qwen2.5-vl-3b-llm-only"

    def test_the_feed_forward_names_are_in_both_towers(self, answer) -> None:
        ledger, trainable, total = answer(self.case)
        assert (trainable, total) == (37_152_768, 3_791_775_744)
        assert in_stacks(ledger) == {
            "vision": (96, 32, 32), "connector": (0, 0, 0), "language": (252, 36, 36)
        }  # fmt: skip
        assert set(hazards(ledger)) == {"tower-adapted"}
        pattern = pattern_in(hazards(ledger)["tower-adapted"], "exclude_modules")
        without = replace(ledger.adapter, exclude_modules=pattern)
        assert answer(self.case, without)[1:] == (29_933_568, 3_784_556_544)

    def test_trained_in_each_stack(self, capsys) -> None:
        main([*case_command(self.case, "adapter_config"), "--json"])
        stacks = json.loads(capsys.readouterr().out)["stacks"]
        trained = {s["kind"]: s["trainable_parameters"] for s in stacks}
        assert trained == {"vision": 7_219_200, "connector": 0, "language": 29_933_568}

    def test_a_regular_expression_on_the_language_model(self, answer) -> None:
        ledger, *counts = answer(self.case, "adapter_language_only")
        assert counts == [29_933_568, 3_784_556_544]
        assert hazards(ledger) == {}
        assert in_stacks(ledger)["language"] == (252, 36, 36)

    def test_a_list_of_containers_excludes_nothing(self, answer, capsys) -> None:
        ledger, trainable, _ = answer(self.case, "adapter_exclude_list")
        assert (trainable, len(ledger.adapted)) == (41_363_456, 414)
        (dead,) = ledger.dead_fields
        assert "162 modules inside model.visual are adapted all the same" in dead.reason
        assert main(case_command(self.case, "adapter_exclude_list", "--strict")) == 1
        written = json.loads(dead.suggestion.removeprefix("the string "))
        offered = replace(ledger.adapter, exclude_modules=written)
        assert answer(self.case, offered)[1] == 29_933_568

    def test_the_prefix_of_before_4_52(self, answer) -> None:
        ledger, *_ = answer(self.case, "adapter_old_prefix")
        (entry,) = ledger.entries
        assert entry.cause == "model.layers is now model.language_model.layers"
        changed = replace(ledger.adapter, target_modules=entry.suggestion)
        assert answer(self.case, changed)[1:] == (29_933_568, 3_784_556_544)


class TestAll:
    case = "tool-configs"

    @pytest.mark.parametrize("word", ["all", "all_linear", "*", ".*", "ALL-LINEAR", "linear"])
    def test_words_of_tools(self, answer, word: str) -> None:
        ledger, *_ = answer(self.case, AdapterConfig((word,)))
        assert ledger.entries[0].suggestion.startswith('the string "all-linear"')

    def test_all_linear(self, answer) -> None:
        assert answer(self.case, AdapterConfig("all-linear"))[1:] == (19_988_480, 6_758_404_096)


def test_the_file_beside_the_model_is_named(tmp_path: Path, capsys) -> None:
    main(told(FIELD / "llama3-bare-layers", "--json"))
    taken = json.loads(capsys.readouterr().out)["adapter_file"]
    assert taken == str(FIELD / "llama3-bare-layers" / "adapter_config.json")
    main(told(FIELD / "llama3-bare-layers"))
    assert taken in capsys.readouterr().out.splitlines()[0]
    main(told(FIELD / "llama3-bare-layers", "--target-modules", "q_proj", "--json"))
    assert json.loads(capsys.readouterr().out)["adapter_file"] is None
