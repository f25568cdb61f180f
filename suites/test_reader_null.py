"""A key without a value (`lora_r:`): refused where the tool hands it on to what takes none, and
otherwise what the tool makes of it, which is not always its default."""

from __future__ import annotations

import contextlib
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from model_folders import LLAMA, write_model
from test_reader_choices import BASE, BY_TOOL, parser_of_trl
from test_reader_steps import FILES, step_of

from bench.errors import BenchError
from bench.readers import READERS, read_recipe
from bench.readers.recipe import Reader, Recipe

TRL = BY_TOOL["TRL"]
OF_OTHER_COMMANDS = ("max_seq_length", "torch_dtype", "num_generations", "use_vllm")
"""Keys that `trl sft` refuses with any value: of older versions, of `trl grpo`."""
PASSED_OVER = {key for keys in TRL.passed_over.values() for key in keys}
"""Of which `test_reader_arguments.py` asks the parser."""
KEYS = sorted({key for key in (*TRL.kinds, *TRL.fields) if "." not in key}
              - {*OF_OTHER_COMMANDS, *PASSED_OVER})  # fmt: skip


@cache
def tiny(folder: Path) -> Any:
    import transformers

    return transformers.AutoConfig.from_pretrained(write_model(folder))


def by_trl(folder: Path, more: dict[str, Any]) -> tuple[Any, Any, int] | None:
    """(the step's arguments, the LoRA configuration, trainable parameters) as TRL and PEFT have
    them; None where either refuses."""
    import torch
    import transformers
    from peft import get_peft_model
    from trl import get_peft_config, get_quantization_config

    make, kinds = parser_of_trl()
    path = folder / "asked.yaml"
    path.write_text(yaml.safe_dump({**BASE, "lora_target_modules": ["q_proj", "v_proj"], **more}))
    with contextlib.suppress(SystemExit, ValueError, TypeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, step, model = make(kinds).parse_args_and_config(args=["--config", str(path)])
        rows = step.train_batch_size * step.gradient_accumulation_steps  # as Trainer multiplies
        assert rows
        get_quantization_config(model)
        lora = get_peft_config(model)
        with torch.device("meta"):
            made = transformers.AutoModelForCausalLM.from_config(tiny(folder))
        return step, lora, get_peft_model(made, lora).get_nb_trainable_parameters()[0]
    return None


def by_reader(folder: Path, more: dict[str, Any]) -> Recipe | None:
    file = {"model_name_or_path": ".", "use_peft": True, "bf16": False,
            "lora_target_modules": ["q_proj", "v_proj"], **more}  # fmt: skip
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(file, sort_keys=False))
    (key,) = (key for key, value in more.items() if value is None)
    try:
        return read_recipe(path)
    except BenchError as error:
        said = str(error)
    assert re.search(rf"line \d+: {key} must be .*, not null", said)
    return None


def test_trl_takes_the_nulls_that_its_reader_takes(tmp_path: Path) -> None:
    """Every key that is read, but for `use_peft`: TRL makes an adapter where that is null, and of
    that nobody would say so."""
    pytest.importorskip("trl")
    refused = set()
    for key in KEYS:
        more = {"load_in_4bit": True} if "bnb" in key else {}
        theirs, ours = (
            by_trl(tmp_path, {**more, key: None}),
            by_reader(tmp_path, {**more, key: None}),
        )
        if key == "use_peft":
            assert ours is None
            continue
        assert (ours is None) == (theirs is None), key
        if ours is None or theirs is None:
            refused.add(key)
            continue
        step, lora, _ = theirs
        if key != "lora_target_modules":
            assert {**ours.fields, "target_modules": lora.target_modules} == {
                "r": lora.r, "lora_alpha": lora.lora_alpha, "lora_dropout": lora.lora_dropout,
                "task_type": lora.task_type, "target_modules": lora.target_modules,
            }  # fmt: skip
        assert ours.step is not None
        assert ours.step.seq_len == step.max_length, key
        assert ours.step.gradient_checkpointing == step.gradient_checkpointing, key
    assert refused >= {"lora_r", "lora_alpha", "lora_dropout", "optim", "bnb_4bit_quant_type"}


def test_a_null_that_is_of_no_use_is_taken(tmp_path: Path) -> None:
    """Without quantization nobody looks at its type."""
    assert by_trl(tmp_path, {"bnb_4bit_quant_type": None}) is not None
    assert by_reader(tmp_path, {"bnb_4bit_quant_type": None}) is not None


NEEDED = {"load_in_4bit": "load_in_4bit: true\n", "quantization_bit": "quantization_bit: 4\n"}
HELD = [
    (reader, when, key) for reader in READERS for when, keys in reader.not_null.items()
    for key in keys
]  # fmt: skip


def without(text: str, key: str) -> str:
    return "".join(
        line for line in text.splitlines(keepends=True) if not line.startswith(f"{key}:")
    )


@pytest.mark.parametrize(
    ("reader", "when", "key"), HELD, ids=[f"{reader.tool}-{key}" for reader, _, key in HELD]
)
def test_a_null_is_refused_at_its_line(reader: Reader, when: str, key: str, tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA)
    text = without(FILES[reader.tool], key)
    outer, _, name = key.rpartition(".")
    if reader.tool == "LitGPT":
        text = without(text, "train").replace("  max_seq_length: 16\n", "")
    lines = f"{outer}:\n  {name}:\n" if outer else f"{NEEDED.get(when, '')}{key}:\n"
    path = tmp_path / "train.yaml"
    path.write_text(text + lines)
    line = (text + lines).count("\n")
    with pytest.raises(BenchError, match=rf"line {line}: {key} must be .*, not null") as raised:
        read_recipe(path)
    assert "\n" not in str(raised.value)
    assert "it names no" not in str(raised.value)
    assert "trains the whole model" not in str(raised.value)


@pytest.mark.parametrize(
    ("tool", "more", "field", "value"),
    [
        (
            "axolotl",
            "lora_dropout:\n",
            "lora_dropout",
            None,
        ),  # schemas/peft.py: 0.0, as PEFT has it
        ("LLaMA-Factory", "lora_alpha:\n", "lora_alpha", 8),  # twice the rank
        ("TRL", "lora_task_type:\n", "task_type", None),
        ("ms-swift", "target_regex:\n", "target_modules", ["q_proj"]),
    ],
)
def test_a_null_is_what_the_tool_makes_of_it(
    tool: str, more: str, field: str, value: object, tmp_path: Path
) -> None:
    step_of(tmp_path, tool, more)
    assert read_recipe(tmp_path / "train.yaml").fields.get(field) == value


def test_accumulation_of_axolotl_that_is_null_needs_a_batch_size(tmp_path: Path) -> None:
    """utils/config normalize_config divides it."""
    with pytest.raises(
        BenchError, match=r"line 8: gradient_accumulation_steps must be .*, not null"
    ):
        step_of(tmp_path, "axolotl", "gradient_accumulation_steps:\n")
    step = step_of(
        tmp_path, "axolotl", "gradient_accumulation_steps:\nbatch_size: 4\nmicro_batch_size: 2\n"
    )
    assert step.accumulation == 2
    said = step_of(tmp_path, "axolotl", "batch_size: 4\nmicro_batch_size: 2\n").notes
    assert any(note.startswith("batch_size: axolotl takes one batch a step") for note in said)
