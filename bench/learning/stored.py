"""What a stored run of the learning suite has beside its metrics, as it is read.

A file with a right digest may hold anything there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from bench.baselines.runs import MOST_COUNTED, Record
from bench.errors import BenchError
from bench.files import finite, parse

_Count = Annotated[int, Meta(ge=0, le=MOST_COUNTED)]
_Bytes = Annotated[int, Meta(ge=1, le=MOST_COUNTED)]
# No 32-bit number is greater; the squares and the powers of all these are numbers.
_Loss = Annotated[float, Meta(ge=0, le=1e39)]
_Rate = Annotated[float, Meta(ge=1e-12, le=1e6)]
_Seconds = Annotated[float, Meta(ge=0, le=1e9)]
_LEAST_SECONDS = 1e-9
_NoNumber = Literal["nan", "inf", "-inf"]
"""As JSON holds a float that is none (`finite`)."""
_Norm = _Loss | _NoNumber
_Drift = Annotated[float, Meta(ge=-1e39, le=1e39)] | _NoNumber


@dataclass(frozen=True)
class Fit:
    """One of `fits`: `records.Fitted`, its steps as text."""

    seed: _Count
    rate: _Rate
    losses: dict[str, _Loss | None]
    forgetting: _Drift | None = None
    tokens: _Count = 0
    gradient_norms: dict[str, _Norm] = field(default_factory=dict)
    step_seconds: _Seconds = 0.0
    peak_allocated_bytes: _Bytes | None = None
    flops: _Loss | None = None
    diverged: _Count = 0


@dataclass(frozen=True)
class Tuning:
    """One of `tuning`: `records.Tuned`, its rates and steps as text."""

    rate: _Rate
    losses: dict[str, dict[str, _Loss | None]]


@dataclass(frozen=True)
class Detail:
    """What of a record's detail is read again."""

    matched: bool
    shifted: bool
    ranks: str
    reached: dict[str, _Count]
    tuning: dict[str, Tuning]
    fits: list[Fit]


_READ = tuple(Detail.__dataclass_fields__)


def read_detail(record: Record, file: str = "") -> Detail:
    """The detail of a record of this suite. BenchError, with the place in `file`, for one that is
    none."""
    where = f"{file}: {record.id}: detail" if file else f"{record.id}: detail"
    given = {name: record.detail[name] for name in _READ if name in record.detail}
    found = parse(finite(given), Detail, where)
    seeds = [fit.seed for fit in found.fits]
    for number, fit in enumerate(found.fits, 1):
        place = f"{where}: fits {number}"
        if fit.seed in seeds[: number - 1]:
            raise BenchError(f"{place}: seed: {fit.seed} stands there twice")
        check_whole_keys(fit.losses, f"{place}: losses")
        if 0 < fit.step_seconds < _LEAST_SECONDS:
            raise BenchError(
                f"{place}: step_seconds: expected 0 (no step was timed) or {_LEAST_SECONDS:g} or "
                f"more, found {fit.step_seconds!r}"
            )
    check_whole_keys(found.tuning, f"{where}: tuning")
    for seed, tuned in found.tuning.items():
        place = f"{where}: tuning: {seed}: losses"
        if not tuned.losses:
            raise BenchError(f"{place}: expected the losses of a rate, found none")
        for rate, losses in tuned.losses.items():
            _rate(rate, place)
            check_whole_keys(losses, f"{place}: {rate}")
    return found


def check_whole_keys(table: Mapping[str, Any], where: str) -> None:
    """BenchError for a key that is no whole number (a seed or a step), or stands there twice."""
    for key in table:
        if not (key.isascii() and key.isdigit() and len(key) <= len(str(MOST_COUNTED))):
            raise BenchError(f"{where}: expected a whole number for a key, found {key!r:.80}")
        if key != str(int(key)):
            raise BenchError(f"{where}: expected {int(key)} for a key, found {key!r:.80}")


def _rate(key: str, where: str) -> None:
    try:
        value = float(key)
    except ValueError:
        raise BenchError(f"{where}: expected a rate for a key, found {key!r:.80}") from None
    parse(value, _Rate, f"{where}: {key:.80}")


def read_norms(value: Any, file: str, key: str) -> dict[str, float]:
    """Gradient norms by role, of a run's options; {} where there are none (None)."""
    where = f"{file}: detail: options: {key}"
    found = parse({} if value is None else finite(value), dict[str, _Norm], where)
    return {role: float(norm) for role, norm in found.items()}
