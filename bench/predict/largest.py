"""The largest batch, length or rank whose predicted step fits a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.training.cases import BATCH_SIZE, RANK, SEQ_LEN, value_of, with_value
from bench.training.options import MOST_TOKENS

if TYPE_CHECKING:
    from bench.predict.result import Prediction
    from bench.training.cases import Case

LARGEST = {BATCH_SIZE: 1 << 16, SEQ_LEN: 1 << 20, RANK: 1 << 12}
"""Where the search ends, if the memory does not end it before."""


MOST_WALKED = 300_000
"""Operations of a step, beyond which no longer sequence is tried of a model that goes through it
token by token: half a minute's trace."""


def walks_beyond(known: Mapping[int, int], value: int, most: int) -> bool:
    """Whether a step at a larger value has more than `most` operations, on the line through the two
    largest that are known (value: operations); False of a model that has as many at each."""
    if len(known) < 2 or value <= max(known):
        return False
    low, high = sorted(known)[-2:]
    each = (known[high] - known[low]) / (high - low)
    return each * high > known[high] / 4 and known[high] + each * (value - high) > most


@dataclass(frozen=True)
class Solution:
    """The largest value that fits, and the prediction at it; `bounded` where the search ended for
    another reason than memory: the model's position limit, the largest value tried, or that more
    take too many operations to trace."""

    what: str
    value: int
    prediction: Prediction
    bounded: bool


def solve(
    case: Case, what: str, predict: Callable[[Case], Prediction], limit: int | None = None
) -> Solution:
    """Search the largest value of `what` for which `predict`, which must know a GPU, says it fits.

    Memory grows with each of the three, nearly in proportion: the search starts from the case's
    own value, and places each trial where the line between the last two margins meets zero.
    `limit` is the largest value allowed. Raises BenchError where the smallest does not fit.
    """
    largest = min(LARGEST[what], limit or LARGEST[what]) if what in LARGEST else 1
    if case.task.has_length and what in {BATCH_SIZE, SEQ_LEN}:
        other = case.step.seq_len if what == BATCH_SIZE else case.step.batch_size
        largest = min(largest, MOST_TOKENS // other)
    done: dict[int, Prediction] = {}
    walked: list[int] = []

    def margin(value: int) -> int:
        operations = {tried: found.operations for tried, found in done.items()}
        if what == SEQ_LEN and walks_beyond(operations, value, MOST_WALKED):
            walked.append(value)
            return -1
        found = done[value] = predict(with_value(case, what, value))
        if found.fit is None:
            raise BenchError("--solve needs --gpu or --gpu-memory: there is nothing to fit")
        return found.fit.margin_bytes

    found = largest_fitting(value_of(case, what), largest, margin)
    if found is None:
        first = done[1]
        assert first.fit is not None
        raise BenchError(
            f"{first.case}: not even a {what} of 1 fits {first.fit.gpu}: "
            f"{-first.fit.margin_bytes:,} bytes are missing"
        )
    value, bounded = found
    return Solution(what, value, done[value], bounded or value + 1 in walked)


def largest_fitting(
    start: int, largest: int, margin: Callable[[int], int]
) -> tuple[int, bool] | None:
    """(the largest value from 1 to `largest` that leaves a margin of at least 0 bytes, whether
    `largest` ended the search); None where not even 1 does. `margin` falls as the value grows."""
    margins: dict[int, int] = {}

    def fits(value: int) -> bool:
        margins[value] = margin(value)
        return margins[value] >= 0

    start = min(start, largest)
    low, high = (start, 0) if fits(start) else (0, start)
    if not low:
        if start == 1 or not fits(1):
            return None
        low = 1
    while low < largest and (not high or high - low > 1):
        guess = _between(low, high, margins) if high else min(_beyond(low, margins), largest)
        if fits(guess):
            low = guess
        else:
            high = guess
    return low, not high


def settled(near: int, largest: int, fits: Callable[[int], bool]) -> int:
    """The largest value from 1 to `largest` that fits, 0 if not even 1 does, searched for around a
    value that is near it, in steps that double. What fits does not depend on where the search
    begins: a value fits wherever a larger one does."""
    step, low, high = 1, 0, largest + 1
    at = min(near + 1, largest)  # what does not fit first: between that and what does lies `near`
    while low < at < high:
        if fits(at):
            low, at = at, min(at + step, high)
        else:
            high, at = at, max(at - step, low)
        if low and high <= largest:
            break
        step *= 2
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def _beyond(low: int, margins: Mapping[int, int]) -> int:
    """A larger value than any that fits so far: a little beyond where the line meets zero."""
    below = max((value for value in margins if value < low), default=None)
    if below is None or margins[below] <= margins[low]:
        return 2 * low
    slope = (margins[below] - margins[low]) / (low - below)
    return min(low + 1 + int(margins[low] / slope), 4 * low)


def _between(low: int, high: int, margins: Mapping[int, int]) -> int:
    """A value inside: by the line, or the middle when the line has come close to an end already."""
    share = margins[low] / (margins[low] - margins[high])
    guess = low + int(share * (high - low))
    edge = (high - low) // 16
    if not low + edge < guess < high - edge:
        tried = sum(low <= value <= high for value in margins)
        guess = (low + high) // 2 if tried > 3 else guess
    return min(max(guess, low + 1), high - 1)
