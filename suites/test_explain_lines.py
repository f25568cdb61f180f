"""The line that PEFT prints, as `bench explain` is given it: its numbers, and its percentage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cli import main
from bench.cli.explain import read_line, share_notes
from bench.errors import BenchError


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("40370176", (40_370_176, None)),
        ("40,370,176", (40_370_176, None)),
        ("40_370_176", (40_370_176, None)),
        ("trainable params: 3,407,872 || all params: 8,033,669,120 || trainable%: 0.0424",
         (3_407_872, 8_033_669_120)),
        ("trainable params: 3407872 || all params: 8033669120 || trainable%: 0.0424",
         (3_407_872, 8_033_669_120)),
    ],
)  # fmt: skip
def test_numbers_as_they_are_printed(written: str, read: tuple[int, int | None]) -> None:
    assert read_line(written) == read


@pytest.mark.parametrize("written", ["", "many", "1,2,3", "4.5", "0x10", "all params: 5", "1e6",
                                     "9" * 30])  # fmt: skip
def test_numbers_that_are_none(written: str) -> None:
    with pytest.raises(BenchError, match="--trainable"):
        read_line(written)


def test_a_pasted_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The whole line answers, total included; what the answers have in common is said once."""
    line = "trainable params: 1,572,864 || all params: 332,769,280 || trainable%: 0.4727"
    assert main(["explain", "opt-350m", "--trainable", line]) == 0
    said = capsys.readouterr().out
    assert "the total fits" in said
    assert said.count("332,769,280") == 1


@pytest.mark.parametrize(
    ("share", "right"),
    [("0.2349", True), ("0.23", True), ("0", True), ("0.23492561", True), ("0.2349256068911", True),
     ("0.2348", False), ("0.24", False), ("99", False), ("0.2349233", False)],
)  # fmt: skip
def test_a_percentage_that_contradicts_its_line_is_told(share: str, right: bool) -> None:
    """294,912 of 125,534,208 are 0.2349256068911... %, by hand; fewer digits are rounded."""
    text = f"trainable params: 294,912 || all params: 125,534,208 || trainable%: {share}"
    said = share_notes(text, *read_line(text))
    assert (said == []) == right
    assert right or f"trainable% {share}, and 294,912 of 125,534,208 are 0.2349" in said[0]


def test_the_answer_says_what_its_line_contradicts(capsys: pytest.CaptureFixture[str]) -> None:
    line = "trainable params: 1,572,864 || all params: 332,769,280 || trainable%: 99"
    assert main(["explain", "opt-350m", "--trainable", line]) == 0
    assert capsys.readouterr().out.startswith("note: the line says trainable% 99, and 1,572,864")


def test_answers_of_another_total_are_left_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """DoRA on every linear layer of a ViT, and its biases in the place of the magnitudes: the same
    number, of another total."""
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "vit", "architectures": ["ViTForImageClassification"]})
    )
    asked = ["explain", str(tmp_path), "--trainable", "1416210"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "bias lora_only" in said
    assert main([*asked, "--total", "87216404"]) == 0
    said = capsys.readouterr().out
    assert "bias lora_only" not in said
    assert "the total fits; with another total: 1, left out" in said
    assert main([*asked, "--total", "87216405"]) == 0
    assert "does not fit" in capsys.readouterr().out
