"""How many steps a case takes: invented times through the decision that real ones go through."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from itertools import cycle

import pytest

from bench.baselines import load_run
from bench.measure import Rounds, StepTime
from bench.statistics import MINIMUM_ROUNDS, NARROW, is_narrow, ratio_interval


def _taken(times: Iterator[float], rounds: Rounds) -> list[float]:
    def step() -> StepTime:
        seconds = next(times)
        return StepTime(seconds, seconds, 0.0, 0.0)

    return [each.total_seconds for each in rounds.take(step)]


def test_steady_steps_are_five_after_the_warm_up() -> None:
    warm_up = iter([9.0, *[0.010, 0.0101, 0.0099] * 9])
    assert len(_taken(warm_up, Rounds())) == 1 + MINIMUM_ROUNDS
    assert Rounds().least == MINIMUM_ROUNDS


def test_steps_that_never_agree_end_at_the_most() -> None:
    assert len(_taken(cycle([0.010, 0.013]), Rounds(warmup=0))) == 20
    assert len(_taken(cycle([0.010, 0.013]), Rounds(most=7, warmup=0))) == 7


def test_slow_steps_are_the_least_however_they_differ() -> None:
    assert len(_taken(cycle([0.1, 0.2]), Rounds(warmup=0))) == MINIMUM_ROUNDS
    assert len(_taken(cycle([0.04, 0.06]), Rounds(warmup=0))) == 10  # of half a second


def test_it_ends_with_the_first_step_that_makes_it_narrow() -> None:
    """Two late steps among the first; the interval is then too wide until others outnumber them."""
    taken = _taken(iter([0.010, 0.014, 0.010, 0.015, *[0.0101] * 40]), Rounds(warmup=0))
    assert MINIMUM_ROUNDS < len(taken) < 20
    assert is_narrow(taken)
    assert not any(is_narrow(taken[:n]) for n in range(MINIMUM_ROUNDS, len(taken)))


def test_narrow_by_hand() -> None:
    """Of five, the median of a resample is the least one in 1 of 17: the interval is the range."""
    least, most = 1 - 0.99 * NARROW, 1 + 0.99 * NARROW
    assert is_narrow([least, 1.0, 1.0, 1.0, most])
    assert not is_narrow([least, 1.0, 1.0, 1.0, 1 + 1.02 * NARROW])
    assert not is_narrow([1.0] * (MINIMUM_ROUNDS - 1))
    assert not is_narrow([0.0, *[1.0] * 9])


@pytest.mark.parametrize("number", [1, 3, 40])
def test_a_number_that_is_asked_for_is_taken(number: int) -> None:
    assert len(_taken(cycle([1.0]), Rounds.exactly(number))) == number
    assert len(_taken(cycle([1.0, 2.0]), Rounds.exactly(number, warmup=2))) == number + 2


def test_a_slowdown_is_told_that_five_steps_do_not_show_and_none_where_there_is_none() -> None:
    """On a busy machine, simulated: 5 % of noise, and every tenth step late by half."""
    noise = random.Random(18)

    def busy() -> Iterator[float]:
        while True:
            late = noise.expovariate(2) if noise.random() < 0.1 else 0.0
            yield 0.01 * math.exp(noise.gauss(0, 0.05)) * (1 + late)

    def told(rounds: Rounds, slower: float) -> int:
        pairs = [(_taken(busy(), rounds), _taken(busy(), rounds)) for _ in range(12)]
        slow = [(old, [slower * seconds for seconds in new]) for old, new in pairs]
        return sum(ratio_interval(old, new).beyond(0.05) != 0 for old, new in slow)

    assert told(Rounds(), 1.0) == 0
    assert told(Rounds(), 1.15) >= 10
    assert told(Rounds.exactly(MINIMUM_ROUNDS), 1.15) <= 7


def test_a_stored_case_has_the_rounds_that_its_times_ask_for(
    run: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    result = run("--precision", "fp32", "--seq-len", "8", "-k", "test_step",
                 "--benchmark-save=x", "--benchmark-storage=runs")  # fmt: skip
    assert result.ret == pytest.ExitCode.OK
    (file,) = (pytester.path / "runs").glob("0001_*.json")
    (timed,) = json.loads(file.read_text())["benchmarks"]
    (case,) = load_run(file).records.values()
    times = case.metrics["step_seconds"]
    assert timed["stats"]["rounds"] == len(times)
    assert Rounds().enough(times)
    assert not Rounds().enough(times[:-1])
