"""Code beside a model's files is not run, and nobody is asked whether it may, unless it is trusted:
transformers asks whoever is at the terminal, and a pipe of "y" would answer."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path

import pytest
from model_folders import write_model

import bench
from bench.cli import main

ASKING = ("from_pretrained", "from_config")
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
    "projection_dim": 16,
}  # fmt: skip


@pytest.fixture
def ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Path:
    """A folder with code, and a terminal that says yes. What is made by the code, if it runs."""
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'a').write('it did')\n"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "code_of_mine.py").write_text(code)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    return marker


def _nothing_ran(ran: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """One line was said and nothing asked; that line."""
    told = capsys.readouterr()
    assert not told.out
    assert not ran.exists()
    assert told.err.count("\n") == 1
    return told.err


@pytest.mark.parametrize("command", ["learn", "choose"])
def test_a_tokenizer_of_its_own(
    ran: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    mine = ran.parent / "mine"
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=20, num_hidden_layers=2, **sizes)).save_pretrained(mine)
    own = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code_of_mine.Mine", None]}}
    (mine / "tokenizer_config.json").write_text(json.dumps(own))
    text = ran.parent / "text.txt"
    text.write_text("\n\n".join(f"a b c d {n}" for n in range(200)))
    asked = ["--weights", str(mine), "--data", str(text)]
    if command == "choose":
        asked = [str(mine), "--gpu-memory", "1GiB", "--seq-len", "16", "--precision", "fp32",
                 "--probe", *asked]  # fmt: skip
    capsys.readouterr()
    assert main([command, *asked]) == 2
    said = _nothing_ran(ran, capsys)
    assert f"{mine}: its tokenizer needs code of its own (auto_map in tokenizer_config" in said
    assert "which is not run here" in said


def test_a_class_that_only_its_code_has(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers knows the type, and no class of the task for it."""
    mine = ran.parent / "mine"
    own = {"auto_map": {"AutoModelForSeq2SeqLM": "code_of_mine.Mine"}, "_name_or_path": str(mine)}
    write_model(mine, **own)
    asked = ["targets", str(mine), "--target-modules", "q_proj"]
    assert main([*asked, "--auto-class", "AutoModelForSeq2SeqLM"]) == 2
    assert "which is only run with --trust-remote-code" in _nothing_ran(ran, capsys)


@pytest.mark.parametrize("command", ["targets", "memory"])
def test_a_part_with_code_of_its_own(
    ran: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers loads the parts of a model by their own configurations, and asks for each."""
    mine = ran.parent / "mine"
    part = {"model_type": "trocr", "hidden_size": 32, "_name_or_path": str(mine),
            "auto_map": {"AutoModel": "code_of_mine.Mine"}}  # fmt: skip
    config = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"],
              "text_config": part, "vision_config": VISION}  # fmt: skip
    (mine / "config.json").write_text(json.dumps(config))
    assert main([command, str(mine), "--target-modules", "q_proj"]) == 2
    assert "cannot be built from this config" in _nothing_ran(ran, capsys)


def test_nobody_is_asked_where_transformers_loads_by_itself(
    ran: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoConfig

    from bench.compat import unasked

    mine = ran.parent / "mine"
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "code_of_mine.Mine"}}
    (mine / "config.json").write_text(json.dumps(own))
    with unasked(), pytest.raises(ValueError, match="trust_remote_code"):
        AutoConfig.from_pretrained(mine)
    assert not capsys.readouterr().out
    assert not ran.exists()


def test_every_call_that_could_run_code_says_whether_it_may() -> None:
    unsaid, seen = [], 0
    for path in Path(bench.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        said = [
            id(node)
            for call in calls
            if any(keyword.arg == "trust_remote_code" for keyword in call.keywords)
            for node in (call.func, *call.args)
        ]
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Attribute) and node.attr in ASKING):
                continue
            seen += 1
            if getattr(node.value, "id", "") != "PeftConfig" and id(node) not in said:
                unsaid.append(f"{path.name}:{node.lineno}")
    assert not unsaid
    assert seen > 8  # those that are there are found
