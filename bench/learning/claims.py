"""What has been claimed about the choice of modules, and whether it holds here.

Every claim is tested on differences seed by seed: at one seed two arms start from the same weights
and see the same batches. With d > 0 for what is claimed and the margin m (nats, fixed before the
run), from the 95 % interval of the mean of d:

| verdict | interval of d |
|---|---|
| holds | wholly above m |
| does not hold here | wholly below -m |
| no difference beyond the margin | anything else; `resolved` says whether it lies within ± m |

A claim about several pairs holds where it does for all of them, and does not where it does not for
one. "At least as good" (≥) is tested as "better": no difference beyond the margin is no evidence
against it, and is told as what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from bench.errors import BenchError, check_known
from bench.learning.ranking import common_seeds, interval_of
from bench.learning.records import Shown
from bench.learning.study import Claim
from bench.statistics import Interval

HOLDS, DOES_NOT, NO_DIFFERENCE = "holds", "does not hold here", "no difference beyond the margin"
MEMORY_MARGIN = 0.01
"""Share by which peaks, which are exact, must differ."""
TIME_MARGIN = 0.02
RATE_MARGIN = 0.5
"""Decades: the rates that are tried are so far apart."""


@dataclass(frozen=True)
class Ruling:
    """The verdict on a claim. evidence: a line for each comparison, with its interval."""

    claim: Claim
    verdict: str
    evidence: tuple[str, ...]
    seeds: int


@dataclass(frozen=True)
class _Compared:
    """One comparison: sign as in `Interval.beyond`, and what is told of it."""

    sign: int
    told: str


def rulings(claims: Sequence[Claim], margin: float, shown: Mapping[str, Shown]) -> list[Ruling]:
    """A verdict on every claim; "not tested" where its arms have not two seeds in common. margin:
    nats."""
    found = []
    for claim in claims:
        check_known("kind of claim", claim.kind, _KINDS)
        try:
            found.append(_KINDS[claim.kind](claim, margin, shown))
        except _Missing as missing:
            why = f"not tested: {missing}"
            found.append(Ruling(claim, "not tested", (why,), 0))
    return found


class _Missing(BenchError):
    """An arm has not been trained with enough seeds, or diverged."""


def _arms(names: Sequence[str], shown: Mapping[str, Shown]) -> list[Shown]:
    for name in names:
        losses = shown[name].losses if name in shown else {}
        if len(losses) < 2:
            raise _Missing(f"{name} has not been trained with two seeds or more")
        if not all(map(math.isfinite, losses.values())):
            raise _Missing(f"{name} diverged")
    return [shown[name] for name in names]


def _common(shown: Sequence[Shown]) -> list[int]:
    seeds = common_seeds(shown)
    if len(seeds) < 2:
        names = ", ".join(one.arm.name for one in shown)
        raise _Missing(f"{names} have not been trained with two seeds in common")
    return seeds


def _differences(better: Shown, worse: Shown) -> list[float]:
    """By how much the loss of `worse` is above that of `better`, seed by seed."""
    seeds = _common([better, worse])
    return [worse.losses[s] - better.losses[s] for s in seeds]


def _told(interval: Interval, margin: float, unit: str = "nats") -> str:
    within = ", within the margin" if interval.within(margin) else ""
    return f"{interval.mean:+.3f} {unit} [{interval.low:+.3f}, {interval.high:+.3f}]{within}"


def _verdict(compared: Sequence[_Compared]) -> str:
    signs = [one.sign for one in compared]
    if min(signs) > 0:
        return HOLDS
    return DOES_NOT if min(signs) < 0 else NO_DIFFERENCE


def _finding(claim: Claim, compared: Sequence[_Compared], seeds: int) -> Ruling:
    return Ruling(claim, _verdict(compared), tuple(one.told for one in compared), seeds)


def _pair(better: Shown, worse: Shown, margin: float) -> _Compared:
    interval = interval_of(_differences(better, worse))
    told = f"{worse.arm.name} less {better.arm.name}: {_told(interval, margin)}"
    return _Compared(interval.beyond(margin), told)


def _better(claim: Claim, margin: float, shown: Mapping[str, Shown]) -> Ruling:
    """Each of `better` has a lower loss than each of `worse`."""
    better, worse = (_arms(claim.arms[key], shown) for key in ("better", "worse"))
    compared = [_pair(b, w, margin) for b, w in product(better, worse)]
    return _finding(claim, compared, len(common_seeds([*better, *worse])))


def _spread(claim: Claim, margin: float, shown: Mapping[str, Shown]) -> Ruling:
    """The losses of `sets` (each a choice of modules at rising ranks) spread wider between modules
    at one rank, on average, than between ranks for one choice."""
    sets = [_arms(names, shown) for names in claim.arms["sets"]]
    seeds = _common([one for arms in sets for one in arms])

    def spread(values: list[float]) -> float:
        return max(values) - min(values)

    by_seed, modules, ranks = [], [], []
    for seed in seeds:
        table = [[one.losses[seed] for one in arms] for arms in sets]
        columns = [list(column) for column in zip(*table, strict=True)]
        modules.append(sum(map(spread, columns)) / len(columns))
        ranks.append(sum(map(spread, table)) / len(table))
        by_seed.append(modules[-1] - ranks[-1])
    interval = interval_of(by_seed)
    told = (
        f"spread between modules {sum(modules) / len(seeds):.3f} nats, between ranks "
        f"{sum(ranks) / len(seeds):.3f}: {_told(interval, margin)}"
    )
    return _finding(claim, [_Compared(interval.beyond(margin), told)], len(seeds))


def _rate(claim: Claim, margin: float, shown: Mapping[str, Shown]) -> Ruling:
    """The best rate of `with` is `expected` times that of `full`, within half a decade either way:
    the tuning's seeds, whose rates are known to half a decade."""
    names = [str(claim.arms[key]) for key in ("with", "full")]
    if missing := [name for name in names if name not in shown]:
        raise _Missing(f"{missing[0]} has not been tuned")
    lora, full = (shown[name].tuned for name in names)
    seeds = sorted(lora.keys() & full.keys())
    if len(seeds) < 2:
        raise _Missing("the rates have not been tuned with two seeds or more")
    decades = [math.log10(lora[s].rate / full[s].rate) for s in seeds]
    interval = interval_of(decades)
    expected = math.log10(float(claim.arms["expected"]))
    low, high = expected - RATE_MARGIN, expected + RATE_MARGIN
    if low - 1e-9 <= interval.low and interval.high <= high + 1e-9:
        sign = 1
    else:
        sign = -1 if interval.low > high or interval.high < low else 0
    edges = sum(lora[s].at_edge or full[s].at_edge for s in seeds)
    told = (
        f"{10**interval.mean:.3g} times [{10**interval.low:.3g}, {10**interval.high:.3g}]; "
        f"by seed {', '.join(f'{10**d:.3g}' for d in decades)}"
    )
    told += f"; in {edges} of {len(seeds)} the best is at the edge of those tried" if edges else ""
    return _finding(claim, [_Compared(sign, told)], len(seeds))


def _shift(claim: Claim, margin: float, shown: Mapping[str, Shown]) -> Ruling:
    """`with` is better than `without` under the shift (their first arms), and not without it (their
    second)."""
    (helped, plain_with), (bare, plain_without) = (
        _arms(claim.arms[key], shown) for key in ("with", "without")
    )
    under, outside = _pair(helped, bare, margin), _pair(plain_with, plain_without, margin)
    sign = under.sign
    if sign > 0 and outside.sign > 0:
        sign = -1  # it helps, and not for the shift
    told = (f"under the shift, {under.told}", f"without it, {outside.told}")
    return Ruling(claim, _verdict([_Compared(sign, "")]), told, len(common_seeds([helped, bare])))


def _cost(claim: Claim, margin: float, shown: Mapping[str, Shown]) -> Ruling:
    """Each of `worse` takes more memory at the peak and more time a step than each of `better`.

    Memory is counted tensor by tensor, and exact; the time is the processor's, of the median step,
    seed by seed.
    """
    better, worse = (_arms(claim.arms[key], shown) for key in ("better", "worse"))
    compared = []
    for less, more in product(better, worse):
        peaks = [_peak(one) for one in (less, more)]
        ratio = peaks[1] / peaks[0] - 1
        sign = (ratio > MEMORY_MARGIN) - (ratio < -MEMORY_MARGIN)
        names = f"{more.arm.name} against {less.arm.name}"
        compared.append(
            _Compared(sign, f"{names}: peak memory {ratio:+.1%} ({peaks[0]:,} to {peaks[1]:,} B)")
        )
        seeds = _common([less, more])
        for one in (less, more):
            if not all(one.fitted[seed].step_seconds for seed in seeds):
                raise _Missing(f"the steps of {one.arm.name} were not timed")
        logs = [math.log(more.fitted[s].step_seconds / less.fitted[s].step_seconds) for s in seeds]
        found = interval_of(logs)
        ratios = [math.exp(value) - 1 for value in (found.mean, found.low, found.high)]
        told = f"{names}: step time {ratios[0]:+.1%} [{ratios[1]:+.1%}, {ratios[2]:+.1%}]"
        compared.append(_Compared(found.beyond(math.log1p(TIME_MARGIN)), told))
    return _finding(claim, compared, len(common_seeds([*better, *worse])))


def _peak(one: Shown) -> int:
    for fitted in one.fitted.values():
        if fitted.peak_allocated_bytes is not None:
            return fitted.peak_allocated_bytes
    raise _Missing(f"the memory of {one.arm.name} was not followed")


_KINDS: Mapping[str, Callable[[Claim, float, Mapping[str, Shown]], Ruling]] = {
    "better": _better,
    "spread": _spread,
    "rate": _rate,
    "shift": _shift,
    "cost": _cost,
}
