"""What would make a step fit that does not: each change alone, and the fewest together.

Every change is predicted, none is estimated: what two save together is not the sum of what each
saves. A trace is made once, however many sets it is part of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.models.precision import precision
from bench.training.liger import predicts_liger
from bench.training.options import KEEP_OUTPUT, PLAIN, SDPA

if TYPE_CHECKING:
    from bench.predict.result import Prediction
    from bench.training.cases import Case

_Change = Callable[["Case"], "Case | None"]
MOST_TOGETHER = 4
TRIALS = {2: 5, 3: 3, 4: 2}
"""How many sets of so many changes are predicted, those that save most alone first."""
SETS = 3
SHORTEST = 128
"""Tokens: no shorter sequence is proposed."""


@dataclass(frozen=True)
class Lever:
    """Changes of a step by name, the case with them, and its prediction. `saves_bytes` is of the
    peak reserved."""

    names: tuple[str, ...]
    case: Case
    prediction: Prediction
    saves_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the changed step surely fits."""
        return self.prediction.fit is not None and self.prediction.fit.fits


@dataclass(frozen=True)
class Ways:
    """Each change alone, those that save most first; and the smallest sets that fit, each a change
    or several, none of them holding another. `refused` says why the rest that applies, by name, is
    neither: what the GPU or the libraries say of the changed step."""

    single: tuple[Lever, ...]
    sets: tuple[Lever, ...]
    refused: Mapping[str, str] = field(default_factory=dict)


def _step(case: Case, **changes: object) -> Case:
    return replace(case, step=replace(case.step, **changes))  # type: ignore[arg-type]


def _checkpointing(case: Case) -> Case | None:
    return None if case.step.gradient_checkpointing else _step(case, gradient_checkpointing=True)


def _quantized(name: str) -> _Change:
    def change(case: Case) -> Case | None:
        kind = precision(case.precision)
        already = kind.stored or (kind.quantized and kind.bits == 4)
        if already and not (name == "nf4-dq" and case.precision == "nf4"):
            return None
        return replace(case, precision=name)

    return change


def _optimizer(name: str) -> _Change:
    def change(case: Case) -> Case | None:
        adamw = case.step.optimizer.startswith(("adamw", "paged-adamw"))
        return _step(case, optimizer=name) if adamw and case.step.optimizer != name else None

    return change


def _shorter(case: Case) -> Case | None:
    half = case.step.seq_len // 2
    return _step(case, seq_len=half) if half >= SHORTEST else None


def _smaller_batch(case: Case) -> Case | None:
    step = case.step
    if step.batch_size == 1 or step.packed:
        return None
    return _step(case, batch_size=1, accumulation=step.accumulation * step.batch_size)


def _nothing_saved(case: Case) -> Case | None:
    if not case.adapter.get("modules_to_save") or case.task.name not in ("causal-lm", "seq2seq"):
        return None
    return replace(case, adapter={**case.adapter, "modules_to_save": None})


def _fused_attention(case: Case) -> Case | None:
    return _step(case, attention=SDPA) if case.step.attention in ("eager", "math") else None


def _output_dropped(case: Case) -> Case | None:
    return _step(case, loop=PLAIN) if case.step.loop == KEEP_OUTPUT else None


def _liger(case: Case) -> Case | None:
    return _step(case, liger=True) if predicts_liger(case) and not case.step.liger else None


NOTHING_SAVED = "no embeddings or head trained whole"
CHANGES: dict[str, _Change] = {
    "gradient checkpointing": _checkpointing,
    "4-bit weights": _quantized("nf4"),
    "4-bit weights, double quantization": _quantized("nf4-dq"),
    "8-bit optimizer": _optimizer("adamw-8bit"),
    "paged 8-bit optimizer": _optimizer("paged-adamw-8bit"),
    "half the length": _shorter,
    "batches of one, accumulated": _smaller_batch,
    NOTHING_SAVED: _nothing_saved,
    "fused attention": _fused_attention,
    "a loop that drops the output": _output_dropped,
    "Liger's kernels": _liger,
}


def ways_to_fit(
    case: Case, now: Prediction, predict: Callable[[Case], Prediction], without: Sequence[str] = ()
) -> Ways:
    """Every change that applies, but for those in `without`, and what together fits. `predict` must
    know the GPU."""
    known: dict[str, Prediction] = {}
    refused: dict[str, str] = {}

    def tried(names: Sequence[str]) -> Lever | None:
        changed = case
        for name in names:
            after = CHANGES[name](changed)
            if after is None:
                return None
            changed = after
        key = repr(changed)
        if key not in known:
            try:
                known[key] = predict(changed)
            except BenchError as error:  # of the changed step: a pinned kernel in bf16
                refused[" + ".join(names)] = str(error)
                return None
        found = known[key]
        saved = now.peak_reserved_bytes - found.peak_reserved_bytes
        return Lever(tuple(names), changed, found, saved)

    names = [name for name in CHANGES if name not in without]
    single = [lever for name in names if (lever := tried((name,))) is not None]
    single.sort(key=lambda lever: -lever.saves_bytes)
    useful = [lever.names[0] for lever in single if lever.saves_bytes > 0]
    sets = [lever for lever in single if lever.fits]
    for size in range(2, MOST_TOGETHER + 1):
        if sets:
            break
        for together in list(_together(useful, size))[: TRIALS[size]]:
            lever = tried(together)
            if lever is not None and lever.fits:
                sets.append(lever)
    return Ways(tuple(single), tuple(sets[:SETS]), refused)


def _together(names: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """Sets of changes, those that save most alone first; none holds two of one kind."""
    kinds = {name: _kind(name) for name in names}
    places = {name: place for place, name in enumerate(names)}
    found = [
        each for each in combinations(names, size) if len({kinds[name] for name in each}) == size
    ]
    found.sort(key=lambda each: sum(places[name] for name in each))
    yield from found


def _kind(name: str) -> str:
    return next((kind for kind in ("4-bit", "optimizer") if kind in name), name)
