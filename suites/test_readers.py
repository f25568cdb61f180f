"""Files of other tools: each reaches, and trains, what PEFT makes of the LoraConfig that the tool
builds from it (`fixtures/readers/expected.toml`, written from the tools' sources)."""

from __future__ import annotations

import json
import re
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from matrices import matrix

from bench.check.answer import Question, check
from bench.errors import BenchError
from bench.files import FIXTURES
from bench.readers import READERS, read_recipe
from bench.readers.document import read_document

FILES = FIXTURES / "readers"
EXPECTED: dict[str, dict[str, Any]] = tomllib.loads((FILES / "expected.toml").read_text())
LEDGER_ONLY = Question(gradients=False)


def counted(folder: str, class_name: str, lora: dict[str, Any]) -> tuple[set[str], int, int]:
    """(adapted modules and parameters, trainable, total) as PEFT has them on the meta device."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        config = transformers.AutoConfig.from_pretrained(FIXTURES / folder)
        loader = getattr(transformers, class_name)
        base = getattr(loader, "from_config", loader)(config)
        peft_model = get_peft_model(base, LoraConfig(**lora))
    adapted = {
        ".".join(filter(None, (n.replace(".base_layer", ""), getattr(m, "parameter_name", ""))))
        for n, m in base.named_modules()
        if isinstance(m, BaseTunerLayer)
    }
    return adapted, *peft_model.get_nb_trainable_parameters()


def _kinds(name: str) -> Iterator[object]:
    """The tool, the model, each field that PEFT is given, and whether an entry is dead."""
    expected = EXPECTED[name]
    yield name.partition("/")[0]
    yield expected["model"], expected.get("class")
    yield bool(expected.get("dead"))
    yield from expected["lora"]


@pytest.mark.parametrize("name", matrix(EXPECTED, by=_kinds))
def test_a_file_reaches_and_trains_what_peft_makes_of_it(name: str) -> None:
    expected = EXPECTED[name]
    class_name = expected.get("class", "AutoModelForCausalLM")
    adapted, trainable, total = counted(expected["model"], class_name, expected["lora"])
    found = check(FILES / name, LEDGER_ONLY)
    assert {item.name for item in found.ledger.adapted} == adapted
    assert found.parameters is not None
    assert (found.parameters.trainable, found.parameters.total) == (trainable, total)
    assert list(found.ledger.dead_entries) == expected.get("dead", [])
    assert found.failed == bool(expected.get("dead"))


@pytest.mark.parametrize("name", [name for name in EXPECTED if "step" in EXPECTED[name]])
def test_a_file_describes_its_step(name: str) -> None:
    step = read_recipe(FILES / name).step
    assert step is not None
    fields = {key: value for key, value in asdict(step).items() if key != "notes"}
    silent = {
        "seq_len": None, "autocast": None, "reentrant": False, "compute_dtype": None,
        "liger": False, "attention": "sdpa", "accumulation": 1,
    }  # fmt: skip
    assert fields == {**silent, **EXPECTED[name]["step"]}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_not_covered_is_said_and_nothing_else(name: str) -> None:
    found = check(FILES / name, LEDGER_ONLY)
    wanted = EXPECTED[name].get("notes", [])
    for text in wanted:
        assert any(text in note for note in found.notes)
    assert len(found.notes) == len(wanted)
    step_notes = found.recipe.step.notes if found.recipe.step else ()
    for text in EXPECTED[name].get("step_notes", []):
        assert any(text in note for note in step_notes)


@pytest.mark.parametrize("name", [name for name in EXPECTED if "lines" in EXPECTED[name]])
def test_a_dead_entry_is_found_on_its_line(name: str) -> None:
    found = check(FILES / name, LEDGER_ONLY)
    dead = [f for f in found.findings if f.code == "dead-entry"]
    lines = {f.text.split(" reaches")[0]: f.line for f in dead}
    assert lines == EXPECTED[name]["lines"]
    for entry, line in lines.items():
        assert entry in found.recipe.path.read_text().splitlines()[line - 1]


def test_every_tool_has_six_files_at_least() -> None:
    folders = [name.split("/")[0] for name in EXPECTED]
    assert min(folders.count(folder) for folder in folders) >= 6
    assert len(set(folders)) == len(READERS) + 1
    assert all((FILES / name).exists() for name in EXPECTED)


@pytest.mark.parametrize("file", ["axolotl.yaml", "llama-factory.yaml"])
def test_every_linear_layer_of_other_tools_is_all_linear(file: str) -> None:
    """hiyouga/LlamaFactory issue 2156: what does `lora_target: all` reach?"""
    found = check(FIXTURES / "field" / "tool-configs" / file, LEDGER_ONLY)
    assert found.parameters is not None
    assert (found.parameters.trainable, found.parameters.total) == (19_988_480, 6_758_404_096)
    everything = {"r": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    assert counted("field/tool-configs", "LlamaForCausalLM", everything)[1] == 19_988_480


# Bad input: one line, no traceback, the file named.


def bad(path: Path, said: str) -> None:
    with pytest.raises(BenchError, match=re.escape(said)) as raised:
        check(path, LEDGER_ONLY)
    assert "\n" not in str(raised.value)
    assert path.name in str(raised.value)


def written(tmp_path: Path, text: str, name: str = "config.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "a list at the top"),
        ("", "found nothing"),
        ("just words", "found str"),
        ("base_model: [\n", "not YAML"),
        ("a: 1\n\tb: 2\n", "not YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "not YAML"),
        (BOMB, "its aliases stand for"),
        ("a: &a [*a]\nbase_model: x\n", "its aliases stand for"),
        ("some: file\nof: nobody\n", "a file of no tool that is known here"),
        ("base_model: x\nlora_r: 8\n", "it names no adapter"),
        ("base_model: x\nadapter: lora\nlora_alpha: 8\n", "no lora_r"),
        ("base_model: x\nadapter: lora\nlora_r: 0\nlora_alpha: 8\n", "line 3: lora_r must be"),
        (
            "base_model: x\nadapter: lora\nlora_alhpa: 8\nsequence_len: long\n"
            "micro_batch_size: 0\n",
            "line 4: sequence_len must be a whole number of at least 1, not 'long'; line 5: "
            "micro_batch_size must be a whole number of at least 1, not 0; no lora_r: axolotl has "
            "no default for it, and PEFT takes none; no lora_alpha: axolotl has no default for it, "
            "and PEFT takes none; not understood: lora_alhpa (line 3; did you mean lora_alpha?)",
        ),
        (
            "model_name_or_path: x\nlora_target: all\nlora_rnak: 8\nquantization_bit: 3\n",
            "not understood: lora_rnak (line 3; did you mean lora_rank?)",
        ),
        (
            "base_model: x\nadapter: qlora\nlora_r: 8\nlora_alpha: 8\n",
            "line 2: adapter qlora without load_in_4bit: axolotl refuses it",
        ),
        ("base_model: x\nadapter: llama-adapter\nlora_r: 8\n", "none of lora and qlora"),
        ("model_name_or_path: x\nfinetuning_type: full\nstage: sft\n", "finetuning_type is 'full'"),
        ("model_name_or_path: x\nlora_target: all\nquantization_bit: 3\n", "quantization_bit 3"),
        ("model_name_or_path: x\nlora_r: 8\ndataset_name: y\n", "use_peft is not true"),
        ("checkpoint_dir: a/b\nlora_query: false\nlora_value: false\n", "every lora_* switch"),
        ("checkpoint_dir: a/b\ntrain: {}\n", "none of LoRA's keys"),
        ("model: x\ntuner_type: full\n", "tuner_type is 'full'"),
        ("peft_type: IA3\ntarget_modules: [k]\n", "an adapter of IA3, no LoRA"),
    ],
)
def test_a_file_that_cannot_be_checked_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    bad(written(tmp_path, text), said)


def test_ten_megabytes_are_refused_unread(tmp_path: Path) -> None:
    bad(written(tmp_path, "a: 1\n" * 2_000_000), "10,000,000 bytes")


def test_a_missing_file_and_one_that_is_not_text(tmp_path: Path) -> None:
    bad(tmp_path / "none.yaml", "no such file")
    path = tmp_path / "odd.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    bad(path, "not text in UTF-8")


def test_a_base_model_that_is_not_found_says_where_it_was_looked_for(tmp_path: Path) -> None:
    path = written(tmp_path, "base_model: nobody/nothing\nadapter: lora\nlora_r: 8\nlora_alpha: 8\n"
                             "lora_target_modules: [q_proj]\n")  # fmt: skip
    with pytest.raises(BenchError) as raised:
        check(path, LEDGER_ONLY)
    said = str(raised.value)
    for place in ("nobody/nothing/config.json", f"{tmp_path}/nobody/nothing/config.json",
                  f"{tmp_path}/config.json", "the registered architectures", "cache",
                  "--model", "llama-3-8b"):  # fmt: skip
        assert place in said


@pytest.mark.parametrize("names", [("a.yaml", "b.yml"), ("adapter_config.json", "a.yaml"),
                                   ("args.json", "a.yaml")])  # fmt: skip
def test_two_configurations_in_one_folder_are_refused(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    for name in names:
        written(tmp_path, "{}", name)
    bad(tmp_path, f"holds 2 configurations ({', '.join(sorted(names))})")


def test_a_folder_with_nothing_and_one_with_checkpoints(tmp_path: Path) -> None:
    bad(tmp_path, "nothing to check")
    for step in (100, 200):
        (tmp_path / f"checkpoint-{step}").mkdir()
        written(tmp_path / f"checkpoint-{step}", "{}", "adapter_config.json")
    bad(tmp_path, "holds checkpoint-100, checkpoint-200")


def test_a_pickle_is_refused_with_the_reason(tmp_path: Path) -> None:
    written(tmp_path, '{"peft_type": "LORA", "target_modules": ["q"]}', "adapter_config.json")
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(BenchError, match="a pickle, which runs whatever code"):
        check(tmp_path, LEDGER_ONLY)
    with pytest.raises(BenchError, match="a pickle"):
        check(tmp_path / "adapter_model.bin", LEDGER_ONLY)


def test_litgpt_parts_of_a_fused_projection_are_refused(tmp_path: Path) -> None:
    bad(written(tmp_path, "checkpoint_dir: checkpoints/microsoft/Phi-3-mini-4k-instruct\n"
                          "lora_r: 8\n"), "in one projection; LitGPT adapts parts")  # fmt: skip


def test_trl_takes_a_single_name_out_of_its_list(tmp_path: Path) -> None:
    """So that PEFT reads it as a regular expression, which no whole name fits."""
    path = written(tmp_path, "model_name_or_path: openai-community/gpt2\nuse_peft: true\n"
                             "lora_target_modules: [c_attn]\n")  # fmt: skip
    found = check(path, LEDGER_ONLY)
    assert found.ledger.dead_entries == ("c_attn",)
    assert found.failed
    assert any("takes the one name c_attn out of its list" in note for note in found.notes)
    (entry,) = found.ledger.entries
    assert entry.suggestion == r".*\.c_attn"  # no list of one, which this file is already
    name = json.dumps(entry.suggestion)
    mended = written(tmp_path, "model_name_or_path: openai-community/gpt2\nuse_peft: true\n"
                               f"lora_target_modules: [{name}]\n")  # fmt: skip
    assert not check(mended, LEDGER_ONLY).failed


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    document = read_document(
        written(tmp_path, "# first\nbase: &b\n  x: 1\nlist:\n  - one\n  - two\nlist: [three]\n")
    )
    assert document.line("base") == 2
    assert document.line("base", "x") == 3
    assert document.line("list", item="three") == 7
    assert document.line("nothing") == 1
    assert document.repeated == ("list",)
