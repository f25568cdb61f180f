"""The stored learning runs: complete, told on the page as they are, and cited by `bench choose`."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest
from documents import script
from matrices import matrix

from bench.baselines import compare, gate
from bench.files import RESULTS
from bench.learning.claims import DOES_NOT, HOLDS, NO_DIFFERENCE, rulings
from bench.learning.ranking import common_seeds, interval_of
from bench.learning.records import Shown, shown_in
from bench.learning.signal import Signal, against
from bench.learning.study import said_of, studies
from bench.reports.learning import PROBE, cited, learning_figure

ROOT = Path(__file__).resolve().parents[2]
STORED = [name for name in studies() if any((RESULTS / "learning" / name).glob("*.json"))]


@pytest.fixture(scope="module")
def page():
    return script("_learning")


def test_the_page_tells_the_stored_runs(page) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.written(text), "out of date: python docs/_learning.py"


@pytest.mark.parametrize("study", STORED)
def test_every_claim_has_its_verdict(page, study: str) -> None:
    run, _ = page.runs_of(study)
    said = said_of(study)
    found = rulings(said.claims, said.margin, shown_in(run))
    assert [one.claim.name for one in found if one.verdict not in VERDICTS] == []
    assert all(one.seeds >= 5 for one in found)
    assert all(one.evidence for one in found)


VERDICTS = (HOLDS, DOES_NOT, NO_DIFFERENCE)


@pytest.mark.parametrize("study", STORED)
def test_arms_at_one_budget_are_within_one_percent_of_it(page, study: str) -> None:
    """Of the trainable parameters that the runs report, heads (alike in all) included."""
    run, _ = page.runs_of(study)
    counts = [
        one.arm.trainable
        for one in shown_in(run).values()
        if one.arm.budget and one.arm.name != "everything"
    ]
    budget = shown_in(run)["everything"].arm.trainable
    assert len(counts) >= 10
    assert all(abs(count / budget - 1) <= 0.011 for count in counts)


@pytest.mark.parametrize("study", STORED)
def test_every_arm_has_at_least_three_seeds(page, study: str) -> None:
    run, _ = page.runs_of(study)
    assert {n: len(s.fitted) for n, s in shown_in(run).items() if len(s.fitted) < 3} == {}


@pytest.mark.parametrize("study", STORED)
def test_a_second_run_passes_the_gate(page, study: str) -> None:
    """One that was cut short in the arms that it has."""
    run, other = page.runs_of(study)
    if other is None:
        pytest.skip(f"{study}: one run is stored")
    verdicts = [v for v in compare(run, other) if v.record in other.records]
    assert len(verdicts) > 10
    assert gate(verdicts) == []


@pytest.mark.parametrize("study", matrix(STORED, by=lambda study: {"a study"}))
def test_the_picture_has_a_point_an_arm(page, study: str) -> None:
    pytest.importorskip("matplotlib")
    run, _ = page.runs_of(study)
    figure = learning_figure(run)
    named = {text.get_text() for text in figure.axes[0].texts}
    plain = {n for n, s in shown_in(run).items() if s.arm.precision == "fp32" and not s.arm.shift}
    assert named == plain
    assert len(figure.axes) == 3


def test_what_is_made_of_the_runs_has_their_figures(page) -> None:
    """The prose above the tables is written by hand: its figures are those of the stored runs."""
    prose = " ".join(page.PAGE.read_text("utf-8").partition(page.BEGIN)[0].split())
    small, mini = (shown_in(page.runs_of(study)[0]) for study in ("smollm2", "minilm"))

    def loss(shown: Shown) -> float:
        return fmean(shown.losses.values())

    def millions(shown: Shown) -> str:
        return f"{shown.arm.trainable / 1e6:.3g} M"

    def at_one_budget(shown: dict[str, Shown]) -> list[Shown]:
        arms = (s for s in shown.values() if s.arm.budget and not s.arm.shift)
        return sorted((s for s in arms if s.arm.precision == "fp32"), key=loss)

    def signal(study: str, shown: dict[str, Shown]) -> Signal:
        return against(page.runs_of(study)[0].options[PROBE], at_one_budget(shown))

    of_all, of_mini = signal("smollm2", small), signal("minilm", mini)
    apart = loss(small["everything-shifted"]) - loss(small["everything-embedding-head-shifted"])
    ratio = small["published-3"].arm.trainable / small["published-5"].arm.trainable
    above = loss(small["published-3"]) - loss(small["published-5"])
    better = loss(mini["published-5"]) - loss(mini["everything"])
    drift = fmean(fit.forgetting or 0 for fit in mini["published-5"].fitted.values())
    wide = interval_of([
        mini["attention"].losses[seed] - mini["feed-forward"].losses[seed]
        for seed in common_seeds([mini["attention"], mini["feed-forward"]])
    ])  # fmt: skip
    orders = [[one.arm.name for one in at_one_budget(shown)] for shown in (small, mini)]
    assert orders[0][:2] == ["feed-forward", "down"]
    assert orders[0][-2:] == ["query", "key"]
    assert orders[1][4] == "everything"
    assert [*map(len, orders)] == [12, 11] == [len(of_all.arms), len(of_mini.arms)]
    assert of_mini.singles == 6
    for said in (
        f"twelve arms at one budget of {millions(small['everything'])} trainable",
        f"eleven arms at one budget of {mini['everything'].arm.trainable / 1e6:.2f} M",
        f"embeddings and head are worth {apart:.1f} nats",
        f"and {ratio:.1f} times the parameters for nothing",
        f"it lies {above:.2f} nats above all-linear",
        f"tau is {of_all.tau:.2f}.",
        f"{millions(mini['published-3'])} trainable parameters against "
        f"{mini['published-5'].arm.trainable / 1e6:.2f} M",
        f"(its drift is {drift:.1f})",
        f"and lies {better:.2f} nats below",
        f"an interval that is {wide.high - wide.low:.2f} nats wide",
        f"tau is {of_mini.tau:.2f} over the eleven arms at one budget, and "
        f"{of_mini.single_tau:.2f} over the six of one role alone",
    ):
        assert said in prose


def test_choose_cites_what_was_trained_here() -> None:
    lines = cited()
    assert [line.partition("(")[2].partition(",")[0] for line in lines] == STORED
    assert all("tau between seeds" in line for line in lines)
