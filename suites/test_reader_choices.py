"""Keys that take one of some texts: what the tool's own parser takes for them, and no other."""

from __future__ import annotations

import dataclasses
import re
import typing
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_reader_steps import FILES, TOOLS

from bench.cli import main
from bench.errors import BenchError
from bench.readers import READERS, read_recipe
from bench.readers.recipe import Reader

BY_TOOL = {reader.tool: reader for reader in READERS}
BASE = {"model_name_or_path": "x", "dataset_name": "y", "use_peft": True, "output_dir": "out",
        "use_cpu": True, "bf16": False}  # fmt: skip


@cache
def parser_of_trl() -> Any:
    from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser

    return TrlParser, (ScriptArguments, SFTConfig, ModelConfig)


def trl_refuses(folder: Path, more: dict[str, Any]) -> bool:
    """Whether TRL's own parser refuses a file."""
    make, kinds = parser_of_trl()
    path = folder / "asked.yaml"
    path.write_text(yaml.safe_dump({**BASE, **more}))
    try:
        make(kinds).parse_args_and_config(args=["--config", str(path)])
    except (SystemExit, ValueError):
        return True
    return False


def refused(folder: Path, text: str) -> str:
    path = folder / "train.yaml"
    path.write_text(text)
    try:
        read_recipe(path)
    except BenchError as error:
        return str(error)
    return ""


def enumerations() -> dict[str, type[Enum]]:
    """The keys of TRL's step that are of an enumeration. `debug` is several words in one text, of
    things that no step is counted with."""
    from trl import SFTConfig

    found = {}
    for name, hint in typing.get_type_hints(SFTConfig).items():
        kinds = [k for k in (hint, *typing.get_args(hint)) if isinstance(k, type)]
        enums = [kind for kind in kinds if issubclass(kind, Enum)]
        if enums:
            found[name] = enums[0]
    return found


def test_the_enumerations_of_trl_are_known_with_their_texts() -> None:
    pytest.importorskip("trl")
    from transformers.trainer_utils import SchedulerType

    found = enumerations()
    assert set(found) >= {"optim", "lr_scheduler_type", "save_strategy", "eval_strategy"}
    for key, kind in found.items():
        assert list(BY_TOOL["TRL"].choices[key]) == [str(each.value) for each in kind], key
    from peft import TaskType

    assert set(BY_TOOL["TRL"].choices["lora_task_type"]) == {each.value for each in TaskType}
    taken = set(BY_TOOL["axolotl"].choices["lr_scheduler"]) - {"one_cycle", "rex"}
    assert taken == {each.value for each in SchedulerType}


VALUES = ("banana", "", False, 5, "no", "steps", "Epoch", "adamw_torch", "ADAMW_TORCH",
          "adamw-torch", "cosine", "adamw_apex_fused")  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_trl_takes_what_its_reader_takes(value: object, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    for key in enumerations():
        said = refused(tmp_path, FILES["TRL"] + yaml.safe_dump({key: value}))
        more = {"eval_steps": 1} if key == "eval_strategy" else {}
        assert bool(said) == trl_refuses(tmp_path, {key: value, **more}), (key, said)


OPTIMIZER = {"axolotl": "optimizer", "LLaMA-Factory": "optim", "TRL": "optim",
             "LitGPT": "optimizer", "ms-swift": "optim"}  # fmt: skip
OWN = {
    "axolotl": ("adamw_torch_fused", "muon", "flash_adamw", "adamw_apex_fused"),
    "LLaMA-Factory": ("paged_adamw_32bit", "adamw_apex_fused"),
    "TRL": ("adamw_8bit", "stable_adamw"),
    "LitGPT": ("AdamW", "SGD", "torch.optim.RMSprop", "bitsandbytes.optim.PagedAdamW"),
    "ms-swift": ("adamw_torch_fused", "adamw_hf"),
}


def without_optimizer(tool: str) -> str:
    return re.sub(r"optim(izer)?: .*\n", "", FILES[tool])


@pytest.mark.parametrize("tool", TOOLS)
def test_an_optimizer_that_there_is_not_is_refused_at_its_line(
    tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, key = without_optimizer(tool), OPTIMIZER[tool]
    line = text.count("\n") + 1
    assert f"line {line}: {key}" in refused(tmp_path, f"{text}{key}: banana\n")
    assert main(["check", str(tmp_path / "train.yaml"), "--no-gradients"]) == 2
    assert f"line {line}: {key}" in capsys.readouterr().err
    for name in OWN[tool]:
        assert refused(tmp_path, f"{text}{key}: {name}\n") == "", name


def test_an_optimizer_of_the_tools_that_is_not_predicted_is_called_no_slip(tmp_path: Path) -> None:
    for tool, name in (("axolotl", "muon"), ("TRL", "lomo"), ("LitGPT", "SGD")):
        text = f"{without_optimizer(tool)}{OPTIMIZER[tool]}: {name}\n"
        assert refused(tmp_path, text) == ""
        step = read_recipe(tmp_path / "train.yaml").step
        assert step is not None
        assert step.optimizer == ""
        assert f"optimizer {name} is not predicted" in step.notes


def test_a_slip_in_a_long_list_of_names_is_told_with_the_nearest(tmp_path: Path) -> None:
    said = refused(tmp_path, f"{without_optimizer('TRL')}optim: adamw_toch\n")
    assert "optim must be one of adamw_torch, adamw_torch_fused, adamw_torch_xla, ... (" in said
    assert said.endswith("not 'adamw_toch'; did you mean adamw_torch?")


def test_the_optimizers_of_litgpt_are_those_of_torch(tmp_path: Path) -> None:
    import torch

    for name in dir(torch.optim):
        kind = getattr(torch.optim, name)
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
            said = refused(tmp_path, f"{FILES['LitGPT']}optimizer: {name}\n")
            assert bool(said) == (name == "Optimizer"), name


SIZES = {
    "axolotl": ("micro_batch_size", "gradient_accumulation_steps", "sequence_len"),
    "LLaMA-Factory": ("per_device_train_batch_size", "gradient_accumulation_steps", "cutoff_len"),
    "TRL": ("per_device_train_batch_size", "gradient_accumulation_steps", "max_length"),
    "ms-swift": ("per_device_train_batch_size", "gradient_accumulation_steps", "max_length"),
}


@pytest.mark.parametrize("tool", SIZES)
def test_a_size_of_nothing_is_refused(tool: str, tmp_path: Path) -> None:
    """The parsers take any whole number; no step has so few rows, batches or tokens."""
    for key in SIZES[tool]:
        text = re.sub(rf"{key}: .*\n", "", FILES[tool])
        for value in (0, -1):
            said = refused(tmp_path, f"{text}{key}: {value}\n")
            assert f"{key} must be a whole number of at least 1, not {value}" in said
    for key in ("micro_batch_size", "global_batch_size", "max_seq_length"):
        said = refused(tmp_path, f"checkpoint_dir: .\nlora_r: 4\ntrain: {{{key}: 0}}\n")
        assert f"train.{key} must be a whole number of at least 1, not 0" in said


@pytest.mark.parametrize("reader", READERS, ids=TOOLS)
def test_choices_are_texts_without_repetition(reader: Reader) -> None:
    for key, texts in reader.choices.items():
        assert len(set(texts)) == len(texts), key
        assert not any(each.endswith(("Names", "Type")) for each in texts), key
        assert dataclasses.is_dataclass(reader.kinds[key])
