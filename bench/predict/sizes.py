"""What of a case is searched for: its batch size, its sequence length, its rank."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bench.errors import BenchError, UnknownName

if TYPE_CHECKING:
    from bench.training.cases import Case

BATCH_SIZE, SEQ_LEN, RANK = "batch-size", "seq-len", "rank"
SOLVABLE = (BATCH_SIZE, SEQ_LEN, RANK)


def check_has_length(case: Case) -> None:
    """Raise BenchError for images: the model's config fixes their size, there is no length."""
    if not case.task.has_length:
        raise BenchError(f"sequence length: {case.model} takes images, which have none")


def with_value(case: Case, what: str, value: int) -> Case:
    """The case with another batch size, sequence length or rank.

    Raises UnknownName for anything else, and BenchError for the length of images.
    """
    if what == BATCH_SIZE:
        return replace(case, step=replace(case.step, batch_size=value))
    if what == SEQ_LEN:
        check_has_length(case)
        return replace(case, step=replace(case.step, seq_len=value))
    if what == RANK:
        return replace(case, adapter={**case.adapter, "r": value})
    raise UnknownName("value to solve for:", what, SOLVABLE)


def value_of(case: Case, what: str) -> int:
    """The case's own value of `what`."""
    return {
        BATCH_SIZE: case.step.batch_size,
        SEQ_LEN: case.step.seq_len,
        RANK: int(case.adapter.get("r", 8)),
    }.get(what, 1)
