"""What `tox run -e tests` and `tox run -e evidence` run, and which cases of a matrix stay."""

from __future__ import annotations

import re
from configparser import ConfigParser
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import test_measure_memory
import test_predict_autocast
import test_predict_cpu
import test_predict_ranks
import test_wheel
from matrices import facts, matrix

from bench.training.cases import Case

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("slow", "wheel", "evidence")


def _marks(each: Any) -> set[str]:
    return {mark.name for mark in each.marks}


@pytest.mark.skipif(not (ROOT / "tox.ini").exists(), reason="runs in a checkout")
def test_each_test_is_run_by_one_environment_and_by_no_other() -> None:
    """All that is not slow, and the wheel's, which are slow and evidence; by the same command."""
    assert {mark.name for mark in test_wheel.pytestmark} >= set(NAMES)
    tox = ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    said = [tox[f"testenv:{name}"]["commands"].strip() for name in ("tests", "evidence")]
    chosen = [re.search(r'-m "(.+?)"', command)[1] for command in said]  # type: ignore[index]
    assert len({c.replace(e, "") for c, e in zip(said, chosen, strict=True)}) == 1
    # An expression that does not name it leaves out what is slow, whatever else it says.
    assert all("slow" in expression for expression in chosen)
    for marks in product((False, True), repeat=3):
        slow, wheel, evidence = marks
        if wheel and not (slow and evidence):
            continue
        named = dict(zip(NAMES, marks, strict=True))
        runs = sum(bool(eval(expression, {}, named)) for expression in chosen)
        assert runs == (wheel or not slow), named
    assert "tests,evidence" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_few_cases_show_all_that_differs() -> None:
    cases = [*product("abc", (1, 2))]
    found = matrix(cases)
    assert [each.values for each in found] == cases
    kept = [each.values for each in found if not each.marks]
    assert {first for first, _ in kept} == set("abc")
    assert {second for _, second in kept} == {1, 2}
    assert len(kept) == 3
    assert all(_marks(each) == {"evidence"} for each in found if each.marks)
    by_number = matrix(cases, by=lambda letter, number: {number})
    assert [each.values for each in by_number if not each.marks] == [("a", 1), ("a", 2)]


@pytest.mark.parametrize("name", ["slow", "evidence"])
def test_what_is_marked_shows_nothing_and_stays_so(name: str) -> None:
    slow = pytest.param("a", 1, id="one", marks=getattr(pytest.mark, name))
    found = matrix([slow, ("a", 2), pytest.param("a", 1, id="same")])
    assert found[0] is slow
    assert [_marks(each) for each in found] == [{name}, set(), set()]
    assert found[2].id == "same"


@pytest.mark.parametrize(
    "cases",
    [
        test_measure_memory.CASES,
        test_predict_autocast.CASES,
        test_predict_cpu.CASES,
        test_predict_cpu.QUANTIZED,
        test_predict_ranks.CASES,
    ],
    ids=["measure_memory", "autocast", "cpu", "quantized", "ranks"],
)
def test_every_kind_of_a_real_matrix_stays(cases: list[Case]) -> None:
    kept = [each.values[0] for each in matrix(cases) if not each.marks]
    assert 0 < len(kept) < len(cases)
    for told in (
        lambda case: case.precision,
        lambda case: case.config["model_type"],
        lambda case: case.step.loop,
        lambda case: case.step.parallel,
        lambda case: case.step.optimizer,
        lambda case: case.step.gradient_checkpointing,
        lambda case: case.step.autocast,
    ):
        assert {*map(told, kept)} == {*map(told, cases)}
    assert {f for case in kept for f in facts(case)} == {f for case in cases for f in facts(case)}
