"""What losses say of claims, and how far a ranking comes again: losses by hand, nothing trained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.learning.arms import Arm
from bench.learning.claims import DOES_NOT, HOLDS, NO_DIFFERENCE, rulings
from bench.learning.ranking import ranking
from bench.learning.records import Fitted, Shown, Tuned
from bench.learning.study import Claim


def arm_with(name: str, losses: list[float], **more) -> Shown:
    fitted = {
        seed: Fitted(seed, 1e-3, {0: 2.0, 6: loss}, step_seconds=more.get("seconds", 1.0),
                     peak_allocated_bytes=more.get("peak", 100))
        for seed, loss in enumerate(losses)
    }  # fmt: skip
    arm = Arm(name, "lora", None, 10, 20, budget=True, reached={name: 4})
    return Shown(arm, {}, fitted)


def verdict(kind: str, shown: list[Shown], **arms) -> str:
    (found,) = rulings([Claim("c", "it is so", "somebody", kind, arms)], 0.02,
                        {one.arm.name: one for one in shown})  # fmt: skip
    return found.verdict


LOW, HIGH = [0.50, 0.60, 0.70, 0.55, 0.65], [0.61, 0.69, 0.80, 0.66, 0.75]
NOISE = [0.10, 0.90, 0.55, 0.80, 0.65]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [(LOW, HIGH, HOLDS), (HIGH, LOW, DOES_NOT), (LOW, LOW, NO_DIFFERENCE),
     (LOW, NOISE, NO_DIFFERENCE)],
)  # fmt: skip
def test_better_is_decided_seed_by_seed(a, b, expected) -> None:
    shown = [arm_with("a", a), arm_with("b", b)]
    assert verdict("better", shown, better=["a"], worse=["b"]) == expected


def test_one_pair_against_it_is_enough() -> None:
    shown = [arm_with("a", LOW), arm_with("b", HIGH), arm_with("c", [0.3] * 5)]
    assert verdict("better", shown, better=["a"], worse=["b", "c"]) == DOES_NOT


def test_a_shift_has_to_matter() -> None:
    shown = [arm_with("a", LOW), arm_with("b", HIGH)]
    assert verdict("shift", shown, **{"with": ["a", "a"], "without": ["b", "a"]}) == HOLDS
    assert verdict("shift", shown, **{"with": ["a", "a"], "without": ["b", "b"]}) == DOES_NOT
    assert verdict("shift", shown, **{"with": ["a", "a"], "without": ["a", "b"]}) == NO_DIFFERENCE


def test_costs_are_compared_in_memory_and_time() -> None:
    cheap, dear = arm_with("a", LOW), arm_with("b", LOW, peak=110, seconds=1.2)
    assert verdict("cost", [cheap, dear], better=["a"], worse=["b"]) == HOLDS
    assert verdict("cost", [dear, cheap], better=["b"], worse=["a"]) == DOES_NOT
    same_time = arm_with("b", LOW, peak=110)
    assert verdict("cost", [cheap, same_time], better=["a"], worse=["b"]) == NO_DIFFERENCE


def test_rates_are_ten_times_or_not() -> None:
    def tuned(name: str, rates: list[float]) -> Shown:
        grid = {rate: {1: 1.0} for rate in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)}
        return Shown(Arm(name, "", None, 1, 1), {s: Tuned(r, grid) for s, r in enumerate(rates)})

    facts = {"with": "a", "full": "f", "expected": 10.0}
    full = tuned("f", [1e-4] * 5)
    assert verdict("rate", [tuned("a", [1e-3] * 5), full], **facts) == HOLDS
    assert verdict("rate", [tuned("a", [1e-4] * 5), full], **facts) == DOES_NOT
    mixed = tuned("a", [1e-3, 1e-4, 1e-2, 1e-3, 1e-4])
    assert verdict("rate", [mixed, full], **facts) == NO_DIFFERENCE


def test_modules_against_ranks() -> None:
    def sets(modules: float, ranks: float) -> list[Shown]:
        return [
            arm_with(f"{m}{r}", [x + modules * m + ranks * r for x in LOW])
            for m in (0, 1) for r in (0, 1)
        ]  # fmt: skip

    names = [["00", "01"], ["10", "11"]]
    assert verdict("spread", sets(0.3, 0.1), sets=names) == HOLDS
    assert verdict("spread", sets(0.1, 0.3), sets=names) == DOES_NOT
    assert verdict("spread", sets(0.1, 0.1), sets=names) == NO_DIFFERENCE


def test_a_ranking_tells_how_far_it_comes_again() -> None:
    same = ranking([arm_with("a", LOW), arm_with("b", HIGH), arm_with("c", [1.0] * 5)])
    assert [place.arm.name for place in same.places] == ["a", "b", "c"]
    assert same.tau == 1.0
    assert same.believed
    drawn = ranking([arm_with("a", NOISE), arm_with("b", NOISE[::-1]), arm_with("c", [0.6] * 5)])
    assert not drawn.believed


def test_two_arms_say_nothing_of_an_order() -> None:
    """They are in order or reversed, whatever foretells them; and no figure is "nan"."""
    from bench.reports.learning import early_said

    arms = [arm_with("up", LOW), arm_with("query", HIGH)]
    norms = {"up": 1.0, "query": 2.0, "key": 3.0}
    assert early_said(norms, arms).endswith("cannot be said of 2 arms.")
    arms.append(arm_with("key", [1.0] * 5))
    assert early_said(norms, arms).endswith(
        "-1.00 over 3 arms, -1.00 over those of one role alone."
    )
    both = replace(arms[0], arm=replace(arms[0].arm, name="both", reached={"up": 4, "key": 4}))
    assert early_said(norms, [both, *arms[1:]]).endswith(
        "over 3 arms, and it cannot be said of the 2 of one role alone."
    )
