"""A stored run of `bench learn` with a right digest, and anything in its detail: one line, with the
place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.baselines import KEY, seal
from bench.cli import main
from bench.files import RESULTS

FIT = ("records", "*", "detail", "fits", 0)
TUNING = ("records", "*", "detail", "tuning", "1000")
SIGNAL = ("detail", "options", "early_signal")
FORGED: list[tuple[tuple[Any, ...], Any, str]] = [
    (FIT, [], "fits 1: expected a table, found a list"),
    ((*FIT[:-1],), {}, "fits: expected a list"),
    ((*FIT, "losses"), [1.0], "fits 1: losses: expected a table"),
    ((*FIT, "losses"), {"x": 1.0}, "fits 1: losses: expected a whole number for a key, found 'x'"),
    ((*FIT, "losses"), {"01": 1.0}, "fits 1: losses: expected 1 for a key, found '01'"),
    ((*FIT, "losses", "24"), 1e300, "fits 1: losses: 24: expected a number from 0 to 1e+39"),
    ((*FIT, "losses", "24"), "low", "fits 1: losses: 24: expected a number"),
    ((*FIT, "rate"), "x", "fits 1: rate: expected a number"),
    ((*FIT, "rate"), 0, "fits 1: rate: expected a number from 1e-12"),
    ((*FIT, "seed"), None, "fits 1: seed: expected a whole number"),
    ((*FIT, "seed"), [1], "fits 1: seed: expected a whole number"),
    ((*FIT, "forgetting"), "much", "fits 1: forgetting: expected a number"),
    ((*FIT, "gradient_norms"), [], "fits 1: gradient_norms: expected a table"),
    ((*FIT, "step_seconds"), None, "fits 1: step_seconds: expected a number"),
    ((*FIT, "step_seconds"), 1e-320, "fits 1: step_seconds: expected 0 (no step was timed) or"),
    ((*FIT, "peak_allocated_bytes"), 0, "fits 1: peak_allocated_bytes: expected a whole number"),
    ((*FIT, "diverged"), "no", "fits 1: diverged: expected a whole number"),
    ((*FIT, "other"), 1, "fits 1"),
    (("records", "*", "detail", "fits", 1, "seed"), 0, "fits 2: seed: 0 stands there twice"),
    (("records", "*", "detail", "ranks"), [], "detail: ranks: expected text"),
    (("records", "*", "detail", "reached"), {"query": "x"}, "reached: query: expected a whole"),
    (TUNING, 1, "tuning: 1000: expected a table"),
    ((*TUNING, "rate"), 0, "tuning: 1000: rate: expected a number"),
    ((*TUNING, "losses"), {}, "tuning: 1000: losses: expected the losses of a rate"),
    ((*TUNING, "losses"), {"x": {}}, "tuning: 1000: losses: expected a rate for a key"),
    ((*TUNING, "losses"), {"nan": {}}, "tuning: 1000: losses: nan: expected a number"),
    (SIGNAL, [1.0], "detail: options: early_signal: expected a table"),
    ((*SIGNAL, "query"), "x", "early_signal: query: expected a number"),
    ((*SIGNAL, "query"), 1e200, "early_signal: query: expected a number"),
    ((*SIGNAL, "query"), [], "early_signal: query: expected a number"),
]


def forged(path: Path, place: tuple[Any, ...], value: Any) -> str:
    document = json.loads((RESULTS / "learning" / "minilm" / "0001_first.json").read_text())
    table = document[KEY]
    for key in place[:-1]:
        table = table[next(iter(table)) if key == "*" else key]
    table[place[-1]] = value
    (path / "run.json").write_text(json.dumps(seal(document)))
    return str(path / "run.json")


@pytest.mark.parametrize(("place", "value", "told"), FORGED)
def test_what_is_none_of_the_suite_is_refused_with_its_place(
    place: tuple[Any, ...],
    value: Any,
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = forged(tmp_path, place, value)
    for format in ("terminal", "json") if place[:3] != SIGNAL else ("terminal",):
        assert main(["learn", "minilm", "--read", file, "--format", format]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert f"{file}: " in err
        assert told in err


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("place", [(*FIT, "forgetting"), (*FIT, "gradient_norms", "head")])
def test_a_word_for_a_float_that_is_no_number_is_read(
    place: tuple[Any, ...], value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As JSON holds what a diverged training left."""
    assert main(["learn", "minilm", "--read", forged(tmp_path, place, value)]) == 0
    assert "Does it learn?" in capsys.readouterr().out


def test_arms_without_two_seeds_in_common_test_no_claim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((RESULTS / "learning" / "minilm" / "0001_first.json").read_text())
    for number, record in enumerate(document[KEY]["records"].values()):
        for fit in record["detail"]["fits"]:
            fit["seed"] += 100 * number
    (tmp_path / "run.json").write_text(json.dumps(seal(document)))
    assert main(["learn", "minilm", "--read", str(tmp_path / "run.json"), "--format", "json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    claims = {row["claim"]: row["evidence"] for row in rows if row["kind"] == "claim"}
    tested = [name for name, told in claims.items() if "two seeds in common" not in told[0]]
    assert tested == ["ten-times-the-rate"]  # of tuning's seeds


def test_steps_that_were_not_timed_test_no_claim_on_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run of two steps none is timed."""
    document = json.loads((RESULTS / "learning" / "minilm" / "0001_first.json").read_text())
    for record in document[KEY]["records"].values():
        for fit in record["detail"]["fits"]:
            fit["step_seconds"] = 0.0
    (tmp_path / "run.json").write_text(json.dumps(seal(document)))
    for format in ("terminal", "json"):
        command = ["learn", "minilm", "--read", str(tmp_path / "run.json"), "--format", format]
        assert main(command) == 0
    assert "were not timed" in capsys.readouterr().out
