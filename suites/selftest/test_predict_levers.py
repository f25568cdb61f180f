"""What would make a step fit: every change is predicted, the sets are as small as can be."""

from __future__ import annotations

import json
import shlex

import pytest

from bench.cli import main

pytestmark = pytest.mark.usefixtures("traced_once")
CONFIG = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "vocab_size": 8000,
          "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
          "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
STEP = ("--target-modules", "all-linear", "--rank", "64", "--batch-size", "2", "--seq-len", "512")


def _said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    status = main([*words, "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return str(folder)


def test_each_change_and_the_sets_that_fit(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A memory between what the step takes and what it takes with every change."""
    _, plain = _said(capsys, "memory", model, *STEP)
    assert "ways_to_fit" not in plain
    needed = plain["peak_reserved_bytes"]
    size = f"{(needed // 2 + 2**29) >> 10}KiB"
    status, found = _said(capsys, "memory", model, *STEP, "--gpu-memory", size)
    assert (status, found["fit"]["verdict"]) == (1, "no")
    alone, fit = found["ways_to_fit"]["alone"], found["ways_to_fit"]["fit"]
    saved = [change["saves_bytes"] for change in alone]
    assert saved == sorted(saved, reverse=True)
    assert {"gradient checkpointing", "4-bit weights", "half the length"} <= {
        change["changes"][0] for change in alone
    }
    for change in alone:
        assert change["peak_reserved_bytes"] == needed - change["saves_bytes"]
    assert fit
    assert len({len(each["changes"]) for each in fit}) == 1  # none holds another
    single = {each["changes"][0] for each in alone if each["fits"]}
    assert all(len(each["changes"]) == 1 for each in fit) == bool(single)
    repeated, again = _said(capsys, *shlex.split(fit[0]["command"])[1:])
    assert repeated == 0
    assert again["peak_reserved_bytes"] == fit[0]["peak_reserved_bytes"]


def test_nothing_is_tried_where_it_fits_or_nothing_was_asked(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ((), ("--gpu-memory", "24GiB")):
        assert main(["memory", model, *STEP, *more]) == 0
        assert "fits with" not in capsys.readouterr().out


@pytest.mark.evidence
def test_what_cannot_be_made_to_fit_is_said(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", model, *STEP, "--gpu-memory", "513MiB"]) == 1
    assert "no set of these changes that was tried surely fits" in capsys.readouterr().out


@pytest.mark.evidence
def test_a_change_that_the_gpu_refuses_is_left_out(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """4-bit weights compute in bf16, which the efficient kernel does not take on a T4."""
    asked = ("--precision", "fp16", "--gpu", "t4", "--attention", "efficient")
    long = ("--seq-len", "2048", "--batch-size", "512")
    status, found = _said(capsys, "memory", model, *STEP[:4], *long, *asked)
    assert (status, found["fit"]["verdict"]) == (1, "no")
    changes = {name for each in found["ways_to_fit"]["alone"] for name in each["changes"]}
    assert "gradient checkpointing" in changes
    assert "4-bit weights" not in changes
    left = found["ways_to_fit"]["left_out"]
    assert set(left) == {"4-bit weights", "4-bit weights, double quantization"}
    assert all("efficient" in why for why in left.values())
    assert main(["memory", model, *STEP[:4], *long, *asked]) == 1
    said = capsys.readouterr().out
    for change, why in left.items():
        assert f"  left out: {change}: {why}\n" in said
