"""The step that another tool's file describes: what of it the prediction takes, and that what is
wrong with it is told in the file's own words."""

from __future__ import annotations

import argparse
import re
from functools import cache
from pathlib import Path

import pytest
from model_folders import LLAMA, write_model

from bench.cli import check, main
from bench.readers import READERS, read_recipe
from bench.readers.recipe import Reader, RecipeStep
from bench.training.options import StepOptions

FILES = {
    "axolotl": "base_model: .\nadapter: lora\nlora_r: 4\nlora_alpha: 8\nsequence_len: 16\n"
               "lora_target_modules: [q_proj]\noptimizer: adamw_torch\n",
    "LLaMA-Factory": "model_name_or_path: .\nlora_rank: 4\nlora_target: q_proj\ncutoff_len: 16\n"
                     "optim: adamw_torch\n",
    "TRL": "model_name_or_path: .\nuse_peft: true\nlora_r: 4\nlora_target_modules: [q_proj, v_proj]"
           "\nmax_length: 16\noptim: adamw_torch\n",
    "LitGPT": "checkpoint_dir: .\nlora_r: 4\ntrain:\n  max_seq_length: 16\n",
    "ms-swift": "model: .\ntuner_type: lora\nlora_rank: 4\ntarget_modules: [q_proj]\n"
                "max_length: 16\noptim: adamw_torch\n",
}  # fmt: skip
TOOLS = tuple(FILES)


def written(folder: Path, text: str) -> Path:
    write_model(folder, LLAMA, max_position_embeddings=64)
    path = folder / "train.yaml"
    path.write_text(text)
    return path


def step_of(folder: Path, tool: str, more: str = "") -> RecipeStep:
    recipe = read_recipe(written(folder, FILES[tool] + more))
    assert recipe.tool == tool
    assert recipe.step is not None
    return recipe.step


@cache
def options_of_check() -> frozenset[str]:
    parser = argparse.ArgumentParser()
    check.add_options(parser.add_argument)
    return frozenset(option for each in parser._actions for option in each.option_strings)


def predicted(
    folder: Path, text: str, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[int, str]:
    """(exit status, all that was said), which names no option that `bench check` does not have."""
    path = written(folder, text)
    status = main(["check", str(path), "--gpu-memory", "1GiB", "--no-gradients", *more])
    out, err = capsys.readouterr()
    strange = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", out + err)) - options_of_check()
    assert not strange
    return status, out + err


OFF = {
    "axolotl": "gradient_checkpointing: false\n"
               "gradient_checkpointing_kwargs: {use_reentrant: true}\n",
    "LLaMA-Factory": "disable_gradient_checkpointing: true\nuse_reentrant_gc: true\n",
    "TRL": "gradient_checkpointing: false\ngradient_checkpointing_kwargs: {use_reentrant: true}\n",
    "ms-swift": "gradient_checkpointing: false\n"
                "gradient_checkpointing_kwargs: {use_reentrant: true}\n",
}  # fmt: skip


@pytest.mark.parametrize("tool", OFF)
def test_a_way_of_checkpointing_is_left_where_it_is_off(
    tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LLaMA-Factory's `use_reentrant_gc` is on where the file is silent."""
    status, said = predicted(tmp_path, FILES[tool] + OFF[tool], capsys)
    assert (status, "checkpointed" in said, "reentrant" in said) == (0, False, False)
    if tool == "LLaMA-Factory":
        silent = FILES[tool] + "disable_gradient_checkpointing: true\n"
        assert predicted(tmp_path, silent, capsys) == (status, said)


LARGE = {
    "axolotl": "micro_batch_size: 2000000\n",
    "LLaMA-Factory": "per_device_train_batch_size: 2000000\n",
    "TRL": "per_device_train_batch_size: 2000000\n",
    "LitGPT": "  micro_batch_size: 2000000\n  global_batch_size: 2000000\n",
    "ms-swift": "per_device_train_batch_size: 2000000\n",
}


@pytest.mark.parametrize("tool", TOOLS)
def test_more_than_a_step_has_is_told_by_key_and_line(
    tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = FILES[tool] + LARGE[tool]
    key = LARGE[tool].partition(":")[0].strip()
    line = next(n for n, each in enumerate(text.splitlines(), 1) if each.strip().startswith(key))
    status, said = predicted(tmp_path, text, capsys)
    assert status == 2
    assert re.search(rf"train.yaml: line {line}: (train\.)?{key} is 2,000,000: ", said)
    assert predicted(tmp_path, FILES[tool].replace("16", "65"), capsys)[0] == 1
    assert predicted(tmp_path, FILES[tool].replace(": 16", ": 9000000000"), capsys)[0] == 2


@pytest.mark.parametrize("reader", READERS, ids=TOOLS)
def test_the_keys_of_a_step_are_those_that_the_reader_reads(reader: Reader) -> None:
    step = reader.step
    assert set(step) <= StepOptions.__dataclass_fields__.keys()
    keys = {key for keys in step.values() for key in keys}
    assert keys <= reader.kinds.keys()
