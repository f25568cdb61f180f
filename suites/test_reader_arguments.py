"""Every argument of trl's commands: what its own parser refuses of a file is refused here, at the
line, and what it makes of the rest is what is predicted."""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_reader_choices import BASE, BY_TOOL, refused
from test_reader_steps import FILES, step_of

from bench.errors import BenchError
from bench.readers import read_recipe

TRL = BY_TOOL["TRL"]
PASSED_OVER = {key for keys in TRL.passed_over.values() for key in keys}


@cache
def commands() -> dict[str, tuple[Any, list[tuple[Any, Any]]]]:
    """Each command's parser, with the actions as it made them, and their defaults."""
    trl = pytest.importorskip("trl")
    from trl.scripts.grpo import GRPOScriptArguments
    from trl.scripts.rloo import RLOOScriptArguments

    script = {"GRPO": GRPOScriptArguments, "RLOO": RLOOScriptArguments}
    found = {}
    for name in ("SFT", "DPO", "GRPO", "KTO", "Reward", "RLOO", "Distillation"):
        kinds = (script.get(name, trl.ScriptArguments), getattr(trl, f"{name}Config"),
                 trl.ModelConfig, trl.DatasetMixtureConfig)  # fmt: skip
        parser = trl.TrlParser(kinds)
        found[name] = (parser, [(action, action.default) for action in parser._actions])
    return found


def actions() -> Iterator[tuple[Any, Any]]:
    """(parser, one of its arguments), of every command; the switches `--no_...` are no keys."""
    for parser, held in commands().values():
        yield from ((parser, a) for a, _ in held if isinstance(a, argparse._StoreAction))


def arguments() -> list[str]:
    return sorted({action.dest for _, action in actions()})


def taken_by(parser: Any, action: Any, text: str) -> bool:
    """Whether the argument's own type makes something of a text."""
    with contextlib.suppress(argparse.ArgumentError):
        parser._get_value(action, text)
        return True
    return False


def read_by_trl(name: str, folder: Path, more: dict[str, Any]) -> tuple[Any, ...] | None:
    """What a command makes of a file; None where it refuses it."""
    parser, held = commands()[name]
    for action, default in held:
        action.default = copy.deepcopy(default)
    path = folder / "asked.yaml"
    path.write_text(yaml.safe_dump({**BASE, **more}))
    before = dict(os.environ)
    try:
        read: tuple[Any, ...] = parser.parse_args_and_config(args=["--config", str(path)])
        return read
    except (SystemExit, ValueError, TypeError, AttributeError, ArithmeticError, LookupError):
        return None
    finally:
        os.environ.clear()
        os.environ.update(before)


TEXTS = ("banana", "", "true", "No", "5", "-5", "1.5", "1e3", "[]", "underflow_overflow")


def test_every_argument_is_of_the_kind_of_its_type(tmp_path: Path) -> None:
    """A text that the type of an argument refuses in every command is refused; of an argument that
    is passed over nothing else is."""
    types: dict[str, list[tuple[Any, Any]]] = {}
    for parser, action in actions():
        types.setdefault(action.dest, []).append((parser, action))
    # These end with the type of what is in the text, which `__post_init__` looks for.
    later = {
        key for kind in ("json", "file", "list", "text", "name", "whole")
        for key in TRL.passed_over.get(kind, ())
    } | {"pad_to_multiple_of"}  # fmt: skip
    for key, held in types.items():
        for text in TEXTS:
            theirs = not any(taken_by(parser, action, text) for parser, action in held)
            said = refused(tmp_path, FILES["TRL"] + yaml.safe_dump({key: text}))
            if theirs:
                assert f"{key} must be" in said, (key, text)
            elif key in PASSED_OVER - later:
                assert f"{key} must be" not in said, (key, text)


def test_the_arguments_that_are_passed_over_are_trls() -> None:
    known = {*arguments(), "env"}  # which the parser takes away before
    over = [key for keys in TRL.passed_over.values() for key in keys]
    assert set(over) <= known
    assert len(over) == len(set(over))
    assert not set(over) & {*TRL.said, *TRL.said_of_step, *TRL.fields}


def test_a_plain_value_of_its_type_is_taken(tmp_path: Path) -> None:
    plain = {"boolean": (True, False, "yes", 0), "count": (8, "8", 8.0), "number": (0.5, 8, "0.5"),
             "json": ({"a": 1}, '{"a": 1}', ""), "file": ({}, "here.json", '{"a": 1}'),
             "list": ([],), "whole": (1, "1")}  # fmt: skip
    beside = {"log_completions_hub_repo": {"log_completions": True},
              "dataloader_prefetch_factor": {"dataloader_num_workers": 1},
              "load_best_model_at_end": {"eval_strategy": "steps"}}  # fmt: skip
    for kind, values in plain.items():
        for key in TRL.passed_over[kind]:
            for value in values:
                more = {**beside.get(key, {}), key: value}
                assert refused(tmp_path, FILES["TRL"] + yaml.safe_dump(more)) == "", more


# What `__post_init__` wants of other arguments too, of one command alone, or of the machine; and
# what it opens as a file, by the number of a stream too.
LEFT = {"accelerator_config", "ddp_backend", "deepspeed", "fsdp_config", "generation_batch_size",
        "num_generations", "vllm_importance_sampling_clip_min"}  # fmt: skip
VALUES = ("banana", "", "true", "5", "-1.5", "{'a':1}", '{"a": 1}', "[]", [1], ["a"], {"a": 1},
          True, False, None, 5, 0, -1, 1.5, -0.5)  # fmt: skip


@pytest.mark.evidence
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_trl_refuses_is_refused_at_its_line(value: object, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    for key in (key for key in arguments() if key not in LEFT):
        names = [n for n, (_, held) in commands().items() if any(a.dest == key for a, _ in held)]
        try:
            theirs = all(read_by_trl(name, tmp_path, {key: value}) is None for name in names)
        except (OSError, ImportError):  # a file that is not there, a package
            continue
        wanted = theirs and not (key == "tf32" and value)  # which wants another GPU
        if wanted or (value is None and key in PASSED_OVER):
            said = refused(tmp_path, FILES["TRL"] + yaml.safe_dump({key: value}))
            assert (f"{key} " in said) == wanted, (key, value)


ASKED = [
    ("max_grad_norm: x\n", "max_grad_norm must be a number, not 'x'"),
    ("tf32: banana\n", "tf32 must be true or false, not 'banana'"),
    ("fsdp: banana\n", "fsdp must be true, false, or words out of full_shard, "),
    ("fsdp: 'true'\n", "fsdp must be true, false, or words"),
    ("fsdp: full_shard banana\n", "fsdp must be true, false, or words"),
    ("fsdp: [hybrid_shard]\n", "fsdp without fsdp_config.version: TRL refuses it"),
    ("max_steps: many\n", "max_steps must be a whole number, not 'many'"),
    ("lora_alpha: '1.5'\n", "lora_alpha must be a whole number, not '1.5'"),
    ("debug: banana\n", "debug must be a list or underflow_overflow or tpu_metrics_debug"),
    ("pad_to_multiple_of: banana\n", "pad_to_multiple_of must be a whole number or auto or none"),
    ("logging_steps:\n", "logging_steps must be a number, not null"),
    ("logging_steps: 0\n", "logging_steps 0 with logging_strategy steps (the default): TRL"),
    ("save_steps: 2.5\n", "save_steps 2.5 with save_strategy steps (the default): TRL refuses"),
    ("warmup_steps: -1\n", "warmup_steps -1: TRL refuses it"),
    ("torch_empty_cache_steps: 0\n", "torch_empty_cache_steps must be a whole number of at least"),
    ("dataloader_prefetch_factor: 2\n", "dataloader_prefetch_factor 2 with dataloader_num_worker"),
    ("load_best_model_at_end: true\n", "load_best_model_at_end with save_strategy steps (the def"),
    ("env: x\n", "env must be a table of keys, not 'x'"),
    ("gradient_checkpointing_kwargs: \"{'a': 1}\"\n", "_kwargs must be a table of keys, or one in "
     "JSON, not "),
    ("deepspeed: \"{'a': 1}\"\n", "deepspeed must be a table of keys, one in JSON, or the path of"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "said"), ASKED, ids=[more.strip() for more, _ in ASKED])
def test_an_argument_that_trl_refuses_is_refused(more: str, said: str, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    assert read_by_trl("SFT", tmp_path, yaml.safe_load(more)) is None
    told = refused(tmp_path, FILES["TRL"] + more)
    assert said in told
    assert "line 7" in told or "lines 7" in told
    assert "\n" not in told


TAKEN = ["fsdp: full_shard auto_wrap", "fsdp: true", "fsdp: []", "logging_steps: 0.5",
         "logging_strategy: epoch\nlogging_steps: 0", "debug: [underflow_overflow]",
         "load_best_model_at_end: true\nsave_strategy: best", "max_steps: 1000.0",
         "load_best_model_at_end: true\neval_strategy: epoch\nsave_strategy: epoch",
         "dataloader_prefetch_factor: 2\ndataloader_num_workers: 1", "save_steps: 2.0",
         "pad_to_multiple_of: '64'", "warmup_steps: 0.1", "learning_rate: 1e-4",
         "fsdp: hybrid_shard\nfsdp_config: {version: 1}"]  # fmt: skip


@pytest.mark.parametrize("more", TAKEN)
def test_an_argument_that_trl_takes_is_taken(more: str, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    assert read_by_trl("SFT", tmp_path, yaml.safe_load(more)) is not None
    assert refused(tmp_path, f"{FILES['TRL']}{more}\n") == ""


@pytest.mark.parametrize(
    "more", ["", "bf16:\n", "bf16: false\n", "fp16: true\n", "fp16: true\nbf16:\n",
             "fp16: false\nbf16:\n", "bf16: 'yes'\n"],
)  # fmt: skip
def test_the_autocast_is_trls(more: str, tmp_path: Path) -> None:
    """SFTConfig: bf16 is on where it is null and fp16 is not."""
    pytest.importorskip("trl")
    from trl import SFTConfig

    values = {"use_cpu": True, "output_dir": str(tmp_path), **(yaml.safe_load(more) or {})}
    if values.get("bf16") == "yes":
        values["bf16"] = True  # the parser's
    args = SFTConfig(**values)
    theirs = "fp16" if args.fp16 else "bf16" if args.bf16 else None
    assert step_of(tmp_path, "TRL", more).autocast == theirs


def test_bf16_that_is_null_is_off_where_the_tool_has_it_so(tmp_path: Path) -> None:
    """axolotl and LLaMA-Factory: null is no `auto`."""
    assert step_of(tmp_path, "axolotl").autocast == "bf16"
    assert step_of(tmp_path, "axolotl", "bf16:\n").autocast is None
    assert step_of(tmp_path, "LLaMA-Factory", "bf16:\n").autocast is None


KWARGS = "gradient_checkpointing_kwargs"


@pytest.mark.parametrize("key", [KWARGS, "activation_checkpointing_kwargs"])
def test_kwargs_as_text_are_read_as_json(key: str, tmp_path: Path) -> None:
    """With texts in it that transformers takes for what they look like."""
    pytest.importorskip("trl")
    for text in ('{"use_reentrant": true}', '{"use_reentrant": "true"}',
                 '{"use_reentrant": "false"}', '{"use_reentrant": "0"}', ""):  # fmt: skip
        read = read_by_trl("SFT", tmp_path, {key: text})
        assert read is not None
        theirs = (getattr(read[1], KWARGS) or {}).get("use_reentrant", False)
        step = step_of(tmp_path, "TRL", yaml.safe_dump({key: text}))
        assert step.reentrant == bool(theirs), text


@pytest.mark.parametrize("text", ["banana", "[]", "{'a': 1}", '{"a": ', "5", " {}", "[" * 9999])
@pytest.mark.parametrize("tool", ["TRL", "LLaMA-Factory", "ms-swift", "axolotl"])
def test_kwargs_as_text_that_is_no_table_are_refused(tool: str, text: str, tmp_path: Path) -> None:
    """The tools put the table's keys in, or read it: a text has none."""
    said = refused(tmp_path, FILES[tool] + yaml.safe_dump({KWARGS: text}))
    assert f"{KWARGS} must be a table of keys" in said


@pytest.mark.parametrize("value", ["false", "banana", "", 5])
@pytest.mark.parametrize("tool", ["TRL", "LLaMA-Factory", "ms-swift", "axolotl"])
def test_a_text_within_the_table_is_refused(tool: str, value: object, tmp_path: Path) -> None:
    """No parser looks into a table: torch has it for true."""
    text = FILES[tool] + yaml.safe_dump({KWARGS: {"use_reentrant": value}})
    assert f"{KWARGS}.use_reentrant must be true or false, without quotes, not" in refused(
        tmp_path, text
    )
    with pytest.raises(BenchError, match=rf"line {text.count(chr(10))}: "):
        read_recipe(tmp_path / "train.yaml")
