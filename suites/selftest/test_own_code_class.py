"""Which class is built where a model's own code is run: the one that transformers' auto class of
the task builds, held against transformers itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from model_folders import write_model
from warm import Warm

CODE = """
from torch import nn
from transformers import LlamaConfig as Theirs
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel

class MineConfig(Theirs):
    model_type = "mine"

class LlamaConfig(Theirs):
    pass

def more(model, config):
    for layer in model.layers:
        layer.extra_proj = nn.Linear(config.hidden_size, config.hidden_size)

class Mine(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        more(self.model, config)

class MineOfMine(Mine):
    config_class = MineConfig

class MineSorting(LlamaForSequenceClassification):
    def __init__(self, config):
        super().__init__(config)
        more(self.model, config)

class MineBase(LlamaModel):
    def __init__(self, config):
        super().__init__(config)
        more(self, config)
"""
# Prints the class that transformers builds, and its extra projections.
ORACLE = """
import sys, torch, transformers
folder, auto = sys.argv[1:]
config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
with torch.device("meta"):
    model = getattr(transformers, auto).from_config(config, trust_remote_code=True)
print(type(model).__name__, sum(name.endswith("extra_proj") for name, _ in model.named_modules()))
"""
PROJECT = Path(__file__).resolve().parents[2]
LM, BASE = "AutoModelForCausalLM", "AutoModel"
SORTING, TOKENS = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
ASKED = ("--target-modules", "q_proj,extra_proj", "--rank", "4")


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(PROJECT), *sys.path])
    return subprocess.run(
        [sys.executable, *arguments],
        check=False, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths},
    )  # fmt: skip


def _write(folder: Path, named: str, own: dict[str, str], **more: Any) -> None:
    """A folder `own` with its code, and an adapter beside it."""
    kept = {auto: f"code_of_mine.{name}" for auto, name in own.items()}
    write_model(folder / "own", architectures=[named], auto_map=kept, **more)
    (folder / "own" / "code_of_mine.py").write_text(CODE)


@pytest.mark.parametrize(
    ("named", "own", "auto", "more"),
    [
        ("LlamaForCausalLM", {LM: "Mine"}, LM, {}),
        ("Mine", {LM: "Mine", BASE: "MineBase"}, LM, {}),
        ("LlamaForSequenceClassification", {LM: "Mine", SORTING: "MineSorting"}, SORTING, {}),
        ("LlamaModel", {LM: "Mine", BASE: "MineBase"}, BASE, {}),
        ("MineBase", {BASE: "MineBase"}, BASE, {}),
        ("LlamaForCausalLM", {"AutoConfig": "LlamaConfig"}, LM, {}),
        ("LlamaForCausalLM", {"AutoConfig": "MineConfig", LM: "MineOfMine"}, LM, {}),
        ("LlamaForCausalLM", {"AutoConfig": "MineConfig", LM: "MineOfMine"}, LM,
         {"model_type": "mine"}),
        ("LlamaForCausalLM", {BASE: "MineBase"}, LM, {}),
        ("LlamaForTokenClassification", {LM: "Mine"}, TOKENS, {}),
    ],
    ids=["of-transformers", "its-own", "sorting", "base", "its-own-base", "config-of-that-name",
         "its-own-config", "its-own-type", "base-alone", "another-task"],
)  # fmt: skip
def test_the_class_that_transformers_builds(
    tmp_path: Path, named: str, own: dict[str, str], auto: str, more: dict[str, str], warm: Warm
) -> None:
    _write(tmp_path, named, own, **more)
    theirs = _run(tmp_path, "-c", ORACLE, "own", auto)
    assert theirs.returncode == 0, theirs.stderr
    built, extra = theirs.stdout.split()
    done = _run(tmp_path, "-m", "bench", "targets", "own", *ASKED, "--trust-remote-code")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert f"own ({built})" in said
    assert f"extra_proj {extra} modules" in said or extra == "0"
    assert ("extra_proj reaches nothing" in said) == (extra == "0")
    passed_over = extra == "0" and own.keys() - {"AutoConfig"}
    assert (f"auto_map has no code for {auto}" in said) == bool(passed_over)
    if passed_over:
        (other,) = own
        assert f"--auto-class {other} runs the code that it has" in said
        given = _run(tmp_path, "-m", "bench", "targets", "own", *ASKED, "--trust-remote-code",
                     "--auto-class", other)  # fmt: skip
        assert f"own ({own[other]})" in given.stdout
    assert "which was not run" not in said


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({LM: "Missing"}, "AutoModelForCausalLM cannot be built from this config"),
        ({"AutoConfig": "MineConfig"}, "AutoModelForCausalLM cannot be built from this config"),
        ({"AutoConfig": "Missing"}, "its own code fails: "),
    ],
    ids=["class", "config-without-class", "config"],
)
def test_what_transformers_cannot_build_is_refused(
    tmp_path: Path, own: dict[str, str], said: str, warm: Warm
) -> None:
    _write(tmp_path, "LlamaForCausalLM", own)
    assert _run(tmp_path, "-c", ORACLE, "own", LM).returncode != 0
    done = _run(tmp_path, "-m", "bench", "targets", "own", *ASKED, "--trust-remote-code")
    assert done.returncode == 2
    assert said in done.stderr


def test_code_in_a_file_that_is_not_there_is_refused(tmp_path: Path, warm: Warm) -> None:
    _write(tmp_path, "LlamaForCausalLM", {LM: "Mine"})
    (tmp_path / "own" / "code_of_mine.py").unlink()
    done = _run(tmp_path, "-m", "bench", "targets", "own", *ASKED, "--trust-remote-code")
    assert done.returncode == 2
    assert "code_of_mine.py" in done.stderr


def test_every_command_asks_for_the_same_class(tmp_path: Path, warm: Warm) -> None:
    _write(tmp_path, "LlamaForCausalLM", {LM: "Mine"})
    adapter = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "extra_proj"],
               "task_type": "CAUSAL_LM", "base_model_name_or_path": "own"}  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    trained = set()
    for command in ("targets", "memory", "check"):
        asked = ("own", *ASKED, "--task-type", "CAUSAL_LM")
        asked = (str(tmp_path), "--no-gradients") if command == "check" else asked
        done = _run(tmp_path, "-m", "bench", command, *asked, "--trust-remote-code", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        trained.add(json.loads(done.stdout)["trainable_parameters"])
    assert len(trained) == 1
    counts = _run(tmp_path, "-m", "pytest", str(PROJECT / "suites" / "test_counts.py"), "-q",
                  "--model", "own", "--adapter", "adapter_config.json", "-k", "user",
                  "--trust-remote-code", "-p", "no:cacheprovider")  # fmt: skip
    assert counts.returncode == 0, counts.stdout[-2000:] + counts.stderr
    assert "1 passed" in counts.stdout


def test_a_class_of_transformers_given_beside_the_code_is_refused(
    tmp_path: Path, warm: Warm
) -> None:
    """It would be built in the code's place, and the step would be the code's."""
    _write(tmp_path, "LlamaForCausalLM", {LM: "Mine"})
    asked = ("-m", "bench", "targets", "own", *ASKED, "--auto-class", "LlamaForCausalLM")
    done = _run(tmp_path, *asked, "--trust-remote-code")
    assert done.returncode == 2
    assert f"which --trust-remote-code asks for: --auto-class {LM}" in done.stderr
    alone = _run(tmp_path, *asked)
    assert alone.returncode == 0
    assert "own (LlamaForCausalLM)" in alone.stdout
