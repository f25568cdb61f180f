"""What the tools' own checks refuse of keys that stand together: every rule of `fixtures/tools/`,
met and not met, and the rules of libraries that are here against these."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.cli import main
from bench.errors import BenchError
from bench.files import FIXTURES
from bench.readers import READERS, read_recipe
from bench.readers.document import Document, read_document
from bench.readers.recipe import Reader
from bench.readers.refusals import Refusal
from bench.readers.values import parsed

BASES: dict[str, dict[str, Any]] = {
    "axolotl": {"base_model": "x", "adapter": "lora", "lora_r": 8, "lora_alpha": 16,
                "lora_target_modules": ["q_proj"]},
    "LLaMA-Factory": {"model_name_or_path": "x", "finetuning_type": "lora", "lora_target": "all"},
    "TRL": {"model_name_or_path": "x", "use_peft": True, "lora_r": 8},
    "LitGPT": {"checkpoint_dir": "a/b", "lora_r": 8},
    "ms-swift": {"model": "x", "tuner_type": "lora", "lora_rank": 8},
}  # fmt: skip
TAKEN: dict[str, list[tuple[bool, dict[str, Any]]]] = json.loads(
    (FIXTURES / "readers" / "refused.json").read_text(encoding="utf-8")
)
RULES = [(reader, rule) for reader in READERS for rule in reader.refused]
IDS = [f"{reader.tool}-{'-'.join(rule.when)}" for reader, rule in RULES]
# Values to choose from; of a pattern its own words come first.
POOL = ({"k": 1}, True, False, 2, 4, 3, 0.5, "x", ["q_proj"], "a,b", "2", "mpt-7b", "adamw_8bit",
        "flash_adamw", "AdamW", "SGD", "lm_head", "bf16-true", 2.5, -1)  # fmt: skip
ABSENT = object()


def taken(reader: Reader, key: str, value: object) -> object:
    """What the tool makes of the value for that key; None where it takes none such."""
    kind = reader.kinds.get(key)
    try:
        return value if kind is None else kind.parse(reader.parser, value)
    except (ValueError, TypeError):
        return None


def meets(value: object, wanted: bool | str) -> bool:
    """Whether a value meets one condition of a rule."""
    if isinstance(wanted, bool):
        return bool(value) == wanted
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, list):
        text = ",".join(map(str, value))
    return bool(re.fullmatch(wanted, "" if value is None or isinstance(value, dict) else text))


def values(reader: Reader, key: str, wanted: bool | str, met: bool) -> Iterator[object]:
    """Values for a key that meet, or do not meet, one condition; ABSENT for none in the file."""
    words = re.findall(r"[\w.]+", wanted) if isinstance(wanted, str) else []
    for value in (*words, *reader.choices.get(key, ()), *POOL):
        read = taken(reader, key, value)
        if read is not None and meets(read, wanted) == met:
            yield value
    if meets(reader.defaults.get(key), wanted) == met:
        yield ABSENT
    yield None


def put(file: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """The file with one key, which may lie in a table, set to a value or taken away."""
    *outer, name = key.split(".")
    file = {k: dict(v) if isinstance(v, dict) else v for k, v in file.items()}
    table = file.setdefault(outer[0], {}) if outer else file
    table.pop(name, None)
    return file if value is ABSENT else {**file, outer[0]: {**table, name: value}} if outer else {
        **file, name: value}  # fmt: skip


def met_by(reader: Reader, rule: Refusal, chosen: int) -> dict[str, Any]:
    """A file that meets the rule; of keys of which any one does, the `chosen`."""
    file = BASES[reader.tool]
    for names, wanted in rule.when.items():
        keys = names.split("|")
        if wanted is False:
            for key in keys:
                file = put(file, key, None if reader.defaults.get(key) else ABSENT)
        else:
            key = keys[chosen % len(keys)]
            file = put(file, key, next(values(reader, key, wanted, True)))
    return file


def document(reader: Reader, file: dict[str, Any], path: Path) -> Document:
    path.write_text(yaml.safe_dump(file, sort_keys=False))
    return parsed(read_document(path), reader.kinds, reader.parser)


@pytest.mark.parametrize(("reader", "rule"), RULES, ids=IDS)
def test_a_file_that_meets_a_rule_is_refused_with_the_lines(
    reader: Reader, rule: Refusal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    most = max(len(names.split("|")) for names in rule.when)
    for chosen in range(most):
        path = tmp_path / "train.yaml"
        held = document(reader, met_by(reader, rule, chosen), path)
        assert not held.wrong
        said = rule.said(reader.tool, held, reader.defaults)
        assert said is not None
        assert said.endswith(f": {rule.why}")
        with pytest.raises(BenchError) as raised:
            read_recipe(path)
        assert said in str(raised.value)
        lines = re.match(r"lines? ([\d, and]+): ", said)
        assert lines
        text = path.read_text().splitlines()
        keys = {name.split(".")[-1] for names in rule.when for name in names.split("|")}
        for line in map(int, re.findall(r"\d+", lines[1])):
            assert text[line - 1].strip().partition(":")[0] in keys
    assert main(["check", str(path), "--no-gradients"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(("reader", "rule"), RULES, ids=IDS)
def test_a_file_without_one_of_the_conditions_is_not_refused_for_it(
    reader: Reader, rule: Refusal, tmp_path: Path
) -> None:
    whole = met_by(reader, rule, 0)
    for names, wanted in rule.when.items():
        first, *others = names.split("|")
        file = whole
        for key in (first, *filter(reader.defaults.get, others)):
            absent = wanted is True and not reader.defaults.get(key)
            other = ABSENT if absent else next(values(reader, key, wanted, False))
            file = put(file, key, other)
        path = tmp_path / "train.yaml"
        held = document(reader, file, path)
        assert rule.said(reader.tool, held, reader.defaults) is None


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.tool)
def test_every_key_of_a_rule_is_read_with_a_kind_of_its_own(reader: Reader) -> None:
    keys = {key for rule in reader.refused for names in rule.when for key in names.split("|")}
    kinds = {*reader.kinds, *reader.fields, reader.model_key}
    assert keys <= kinds
    assert reader.defaults.keys() <= keys
    assert len({tuple(rule.when.items()) for rule in reader.refused}) == len(reader.refused)
    page = (FIXTURES.parent / "docs" / "check.md").read_text(encoding="utf-8")
    assert f"| {reader.tool} | {len(reader.refused)} |" in page


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.tool)
def test_what_the_tool_itself_refuses_is_refused_and_nothing_else(
    reader: Reader, tmp_path: Path
) -> None:
    """`refused.json`: what the tools' own parsers and checks made of the same keys."""
    path = tmp_path / "train.yaml"
    other = []
    for refuses, more in TAKEN[reader.tool]:
        held = document(reader, {**BASES[reader.tool], **more}, path)
        try:
            read_recipe(path)
            said = ""
        except BenchError as error:
            said = str(error)
        silent = [
            rule.said(reader.tool, held, reader.defaults) for rule in reader.refused if rule.silent
        ]
        if bool(said) != refuses and not any(silent):
            other.append((more, said))
    assert other == []


def test_both_halves_are_refused_by_transformers_and_one_is_not(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    alone = {"output_dir": str(tmp_path), "use_cpu": True}
    TrainingArguments(**alone, fp16=True)
    with pytest.raises(ValueError, match="fp16 and bf16"):
        TrainingArguments(**alone, bf16=True, fp16=True)


def test_trl_refuses_two_quantizations_itself() -> None:
    trl = pytest.importorskip("trl")
    trl.ModelConfig(load_in_4bit=True)
    with pytest.raises(ValueError, match="8 bit and 4 bit"):
        trl.ModelConfig(load_in_4bit=True, load_in_8bit=True)


@pytest.mark.parametrize(
    ("tool", "more", "said"),
    [
        ("axolotl", {"lora_target_modules": ["q_proj", "*k_proj"]},
         "line 7: lora_target_modules: axolotl refuses *k_proj, which is no regular expression"),
        ("LitGPT", {"train": {"micro_batch_size": 32}},
         "line 4: train.micro_batch_size 32: LitGPT refuses more than train.global_batch_size, 16"),
        ("LLaMA-Factory", {"quantization_bit": 4, "pissa_init": True, "resize_vocab": True},
         "lines 4 and 5: quantization_bit 4 with pissa_init: LLaMA-Factory refuses it: PiSSA takes "
         "the weights apart, which quantized ones do not allow; lines 4 and 6: quantization_bit 4 "
         "with resize_vocab: LLaMA-Factory refuses it: quantized weights keep their length"),
        ("LLaMA-Factory", {"pissa_init": True, "stage": "dpo"},
         "lines 4 and 5: pissa_init with stage dpo and pref_loss sigmoid (the default): LLaMA"),
        ("ms-swift", {"packing": True}, "line 4: packing without attn_impl: ms-swift refuses it"),
    ],
)  # fmt: skip
def test_what_is_refused_is_told_in_the_files_own_words(
    tool: str, more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump({**BASES[tool], **more}, sort_keys=False))
    with pytest.raises(BenchError) as raised:
        read_recipe(path)
    assert said in str(raised.value)


def test_a_value_that_was_misread_meets_no_rule(tmp_path: Path) -> None:
    """One fault, told once: qlora without load_in_4bit is not refused beside it."""
    path = tmp_path / "train.yaml"
    file = {**BASES["axolotl"], "adapter": "qlora", "load_in_4bit": "perhaps"}
    path.write_text(yaml.safe_dump(file, sort_keys=False))
    with pytest.raises(BenchError) as raised:
        read_recipe(path)
    assert "load_in_4bit must be true or false" in str(raised.value)
    assert "refuses" not in str(raised.value)


def test_a_length_that_is_null_is_left_open_for_trl(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump({**BASES["TRL"], "max_length": None}))
    step = read_recipe(path).step
    assert step is not None
    assert step.seq_len is None
    assert any("max_length is null" in note for note in step.notes)
