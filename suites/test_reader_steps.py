"""The step that another tool's file describes: what of it the prediction takes, and that what is
wrong with it is told in the file's own words."""

from __future__ import annotations

import argparse
import json
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from model_folders import LLAMA, write_model

from bench.check.answer import Question
from bench.check.answer import check as check_file
from bench.cli import check, main
from bench.errors import BenchError
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


EAGER = [
    ("axolotl", "eager_attention: true\n"),
    ("axolotl", "attn_implementation: eager\n"),
    ("LLaMA-Factory", "flash_attn: disabled\n"),
    ("TRL", "attn_implementation: eager\n"),
    ("ms-swift", "attn_impl: eager\n"),
]


@pytest.mark.parametrize(("tool", "more"), EAGER)
def test_attention_in_eager_code_is_predicted(
    tool: str, more: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `bench memory --attention eager` has it, a multiple of what is predicted without."""
    long = FILES[tool].replace(" 16\n", " 1024\n")
    peaks = []
    for text in (long, long + more):
        path = written(tmp_path, text)
        write_model(tmp_path, LLAMA, max_position_embeddings=1024)
        asked = ["check", str(path), "--gpu-memory", "8GiB", "--no-gradients", "--json"]
        assert main(asked) == 0
        peaks.append(json.loads(capsys.readouterr().out)["prediction"])
    sdpa, eager = peaks
    assert (sdpa["attention"], eager["attention"]) == ("sdpa", "eager")
    assert eager["peak_allocated_bytes"] > 2 * sdpa["peak_allocated_bytes"]


# What a file names → whether it is said beside the figure, which is sdpa's.
KERNELS = [
    ("axolotl", "sdp_attention: true\n", False),
    ("axolotl", "flash_attention: true\n", True),
    ("axolotl", "flash_attention: false\n", False),
    ("axolotl", "flex_attention: true\n", True),
    ("axolotl", "xformers_attention: true\neager_attention: true\n", True),  # the first counts
    ("axolotl", "sage_attention: true\n", True),
    ("axolotl", "attn_implementation: flash_attention_3\n", True),
    ("axolotl", "attn_implementation: kernels-community/flash-attn3\n", True),
    ("axolotl", "attn_implementation: sdpa\n", False),
    ("LLaMA-Factory", "flash_attn: auto\n", False),
    ("LLaMA-Factory", "flash_attn: sdpa\n", False),
    ("LLaMA-Factory", "flash_attn: fa2\n", True),
    ("TRL", "attn_implementation: sdpa\n", False),
    ("TRL", "attn_implementation: flash_attention_2\n", True),
    ("TRL", "attn_implementation: flex_attention\n", True),
    ("TRL", "attn_implementation: kernels-community/flash-attn2\n", True),
    ("ms-swift", "attn_impl: sdpa\n", False),
    ("ms-swift", "attn_impl: flash_attn\n", True),
    ("ms-swift", "attn_impl: flash_attention_2\n", True),
]


@pytest.mark.parametrize(("tool", "more", "said"), KERNELS)
def test_a_kernel_that_is_not_predicted_is_said(
    tool: str, more: str, said: bool, tmp_path: Path
) -> None:
    step = step_of(tmp_path, tool, more)
    assert step.attention == "sdpa"
    key = more.partition(":")[0]
    notes = [note for note in step.notes if note.startswith(key)]
    assert bool(notes) == said
    assert all("is left out of the prediction; sdpa is predicted" in note for note in notes)


@pytest.mark.parametrize(
    ("tool", "model_type", "more", "attention"),
    [
        ("LLaMA-Factory", "gemma2", "", "eager"),
        ("LLaMA-Factory", "gemma2", "flash_attn: sdpa\n", "sdpa"),
        ("LLaMA-Factory", "gpt_oss", "flash_attn: disabled\n", "sdpa"),
        ("LLaMA-Factory", "gpt_oss", "flash_attn: fa3\n", "sdpa"),
        ("ms-swift", "gemma3_text", "", "eager"),
        ("ms-swift", "gemma3_text", "attn_impl: sdpa\n", "sdpa"),
        ("ms-swift", "gemma2", "", "sdpa"),
    ],
)  # fmt: skip
def test_what_a_tool_takes_on_some_models_is_predicted(
    tool: str, model_type: str, more: str, attention: str, tmp_path: Path
) -> None:
    recipe = read_recipe(written(tmp_path, FILES[tool] + more))
    assert recipe.step_on is not None
    model = SimpleNamespace(table=SimpleNamespace(model_type=model_type), config={})
    step = recipe.step_on(model)  # type: ignore[arg-type]
    assert step.attention == attention
    assert any("LLaMA-Factory takes" in note for note in step.notes) == (
        tool == "LLaMA-Factory" and (model_type == "gpt_oss" or not more)
    )


NAMES = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4",
         "flash_attention_5", "flash_attention", "flex_attention", "xformers", "banana", "SDPA",
         "paged|eager", "kernels-community/flash-attn2")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_attention_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """A kernel that is not installed is an ImportError there, and no fault of the file's."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(write_model(tmp_path))
    refuses = False
    try:
        with torch.device("meta"):
            transformers.AutoModelForCausalLM.from_config(config, attn_implementation=name)
    except ValueError:
        refuses = True
    except ImportError:
        pass
    for tool, key in (("TRL", "attn_implementation"), ("ms-swift", "attn_impl")):
        if refuses:
            with pytest.raises(BenchError, match=f"line 7: {key} .*: {tool} refuses it: "):
                step_of(tmp_path, tool, f"{key}: '{name}'\n")
        else:
            step_of(tmp_path, tool, f"{key}: '{name}'\n")


@pytest.mark.parametrize(
    ("tool", "more", "said"),
    [
        ("axolotl", "attn_implementation: ''\n", "line 8: attn_implementation must be text, and"),
        ("TRL", "attn_implementation: ''\n", "line 7: attn_implementation must be text, and not"),
        ("ms-swift", "attn_impl: ''\n", "line 7: attn_impl must be text, and not"),
        ("axolotl", "attn_implementation: banana\n", "attn_implementation banana: axolotl refuses"),
        ("LLaMA-Factory", "flash_attn: banana\n",
         "line 6: flash_attn must be one of auto, disabled, sdpa, fa2, fa3, not 'banana'$"),
        ("LLaMA-Factory", "flash_attn: off\n", "line 6: flash_attn must be .*, not false$"),
        ("LLaMA-Factory", "flash_attn: fa3\n",
         "line 6: flash_attn fa3: LLaMA-Factory refuses it on any model but gpt_oss"),
    ],
)  # fmt: skip
def test_an_attention_that_the_tool_refuses_is_refused(
    tool: str, more: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(BenchError, match=said):
        check_file(written(tmp_path, FILES[tool] + more), Question(gradients=False))


ON = "gradient_checkpointing: true\n"
KWARGS = "gradient_checkpointing_kwargs: {use_reentrant: "


@pytest.mark.parametrize(
    ("tool", "more", "reentrant"),
    [
        ("axolotl", ON, True),  # utils/config normalize_config
        ("axolotl", ON + KWARGS + "false}\n", False),
        ("axolotl", ON + KWARGS + "true}\n", True),
        ("axolotl", ON + "unfrozen_parameters: [x]\n", False),
        ("axolotl", ON + "rl: dpo\n", False),
        ("axolotl", ON + "activation_offloading: hidden_states\n", False),
        ("LLaMA-Factory", "", True),  # model/model_utils/checkpointing.py
        ("LLaMA-Factory", "use_reentrant_gc: false\n", False),
        ("LLaMA-Factory", ON + "use_reentrant_gc: false\n", True),  # Trainer does it once more
        ("LLaMA-Factory", ON + KWARGS + "false}\n", False),
        ("LLaMA-Factory", ON + "disable_gradient_checkpointing: true\n", False),
        ("TRL", "", False),  # trainer/sft_trainer.py __init__
        ("TRL", KWARGS + "true}\n", True),
        ("TRL", "gradient_checkpointing_kwargs: {selective: true}\n", False),
        ("TRL", "activation_checkpointing: true\nactivation_checkpointing_kwargs: "
         "{use_reentrant: true}\n", True),
        ("ms-swift", "", True),  # trainers/mixin.py _fix_gradient_checkpointing
        ("ms-swift", KWARGS + "false}\n", False),
        ("ms-swift", "gradient_checkpointing_kwargs: '{\"use_reentrant\": false}'\n", False),
    ],
)  # fmt: skip
def test_the_way_of_checkpointing_is_the_tools(
    tool: str, more: str, reentrant: bool, tmp_path: Path
) -> None:
    step = step_of(tmp_path, tool, more)
    assert step.gradient_checkpointing
    assert step.reentrant == reentrant
    assert any("checkpointing of every layer" in n for n in step.notes) == ("selective" in more)


def test_new_names_of_checkpointing_go_before_the_old(tmp_path: Path) -> None:
    """transformers 5.23 `TrainingArguments.__post_init__`."""
    step = step_of(tmp_path, "TRL", ON + "activation_checkpointing: false\n")
    assert not step.gradient_checkpointing
    from transformers import TrainingArguments

    args = TrainingArguments(
        str(tmp_path), use_cpu=True, gradient_checkpointing=True, activation_checkpointing=False
    )
    assert not args.gradient_checkpointing


@pytest.mark.parametrize(
    ("tool", "more", "batches"),
    [
        ("axolotl", "", 1),
        ("axolotl", "gradient_accumulation_steps: 4\n", 4),
        ("axolotl", "batch_size: 12\nmicro_batch_size: 3\n", 1),  # the default goes before it
        (
            "axolotl",
            "batch_size: 12\nmicro_batch_size: 3\ngradient_accumulation_steps: null\n",
            4,
        ),
        ("LLaMA-Factory", "", 1),
        ("LLaMA-Factory", "gradient_accumulation_steps: 4\n", 4),
        ("TRL", "", 1),
        ("TRL", "gradient_accumulation_steps: 4\n", 4),
        ("LitGPT", "", 16),  # finetune/lora.py setup
        ("LitGPT", "  global_batch_size: 12\n  micro_batch_size: 3\n", 4),
        ("ms-swift", "", 16),  # trainers/arguments.py __post_init__
        ("ms-swift", "per_device_train_batch_size: 3\n", 6),
        ("ms-swift", "rlhf_type: grpo\n", 1),
        ("ms-swift", "gradient_accumulation_steps: 4\n", 4),
    ],
)
def test_batches_of_a_step_are_the_tools(
    tool: str, more: str, batches: int, tmp_path: Path
) -> None:
    assert step_of(tmp_path, tool, more).accumulation == batches


def test_batches_and_the_way_of_checkpointing_are_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = FILES["TRL"] + KWARGS + "true}\ngradient_accumulation_steps: 4\n"
    status, said = predicted(tmp_path, text, capsys)
    assert status == 0
    assert "-reentrant-acc4: predicted" in said
    assert "left out" not in said
