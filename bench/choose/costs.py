"""What each row costs: its predicted peak, whether that fits, the limits that do, its FLOPs."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.predict.gpus import Fit, Gpu, fit
from bench.predict.largest import LARGEST, largest_fitting, settled
from bench.process import STOPPING
from bench.training.cases import BATCH_SIZE, RANK, SEQ_LEN, value_of
from bench.training.machine import usable_processors

if TYPE_CHECKING:
    from bench.predict.replay import Replayed
    from bench.training.cases import Case


@dataclass(frozen=True)
class Limit:
    """The largest value that fits; `bounded` where the model's positions or the largest value
    tried ended the search, and not memory."""

    value: int
    bounded: bool


@dataclass(frozen=True)
class Cost:
    """One row's predicted step. Bytes; FLOPs of one step.

    `limits` holds the largest rank, length and batch that fit, each with the others as asked for;
    None where not even 1 does. `traced_layers` says how many layers the prediction was stretched
    from, None where the step was traced whole. `error` says why there is no prediction.
    """

    peak_allocated_bytes: int = 0
    peak_reserved_bytes: int = 0
    flops: int = 0
    fit: Fit | None = None
    limits: dict[str, Limit | None] = field(default_factory=dict)
    traced_layers: int | None = None
    error: str = ""


@dataclass(frozen=True)
class CostAsked:
    """One row to predict: `length_limit` is the number of the model's positions, None where there
    is no such limit; `has_length` is False for images."""

    case: Case
    gpu: Gpu
    length_limit: int | None
    has_length: bool = True


def cost(asked: CostAsked) -> Cost:
    """Predict one row; an error of the prediction is in the answer.

    The search for a limit goes along lines through sizes that were traced; what it finds is then
    predicted, and the next larger value too.
    """
    from bench.predict.evidence import interval
    from bench.predict.journal import Untraceable
    from bench.predict.result import device_of
    from bench.predict.stretch import Stretched

    gpu, case = asked.gpu, asked.case
    try:
        step = Stretched(case, device_of(case, gpu))
        own = step.replayed()
    except BenchError as error:
        return Cost(error=str(error))

    within = interval(case.precision, case.step.loop)

    def held(step: Replayed) -> Fit:
        return fit(gpu, step.peak_allocated_bytes, step.peak_reserved_bytes, within)

    def limit(what: str) -> Limit | None:
        largest = min(LARGEST[what], (what == SEQ_LEN and asked.length_limit) or LARGEST[what])

        def estimate(value: int) -> int:
            try:
                return held(step.estimated(what, value)).margin_bytes
            except Untraceable:  # too long, as `fits` finds
                return -1

        untraced: list[int] = []

        def fits(value: int) -> bool:
            try:
                return held(step.replayed(what, value)).margin_bytes >= 0
            except BenchError:  # a branch that depends on data: not known to fit
                untraced.append(value)
                return False

        near = largest_fitting(value_of(case, what), largest, estimate)
        value = settled(near[0] if near else 0, largest, fits)
        return Limit(value, value == largest or value + 1 in untraced) if value else None

    wanted = (RANK, SEQ_LEN, BATCH_SIZE) if asked.has_length else (RANK, BATCH_SIZE)
    return Cost(
        peak_allocated_bytes=own.peak_allocated_bytes,
        peak_reserved_bytes=own.peak_reserved_bytes,
        flops=step.trace.flops,
        fit=held(own),
        limits={what: limit(what) for what in wanted},
        traced_layers=step.layers,
    )


def costs(
    rows: Sequence[CostAsked], progress: Callable[[int], None], processes: int | None = None
) -> list[Cost]:
    """Every row's cost, in the rows' order, predicted side by side; `progress` hears how many are
    done. A step on meta uses one core, and says the same in whichever process it is traced."""
    found: dict[int, Cost] = {}
    count = min(processes or usable_processors(), len(rows))
    if count < 2 or "fork" not in multiprocessing.get_all_start_methods():
        for number, row in enumerate(rows):
            found[number] = cost(row)
            progress(len(found))
        return [found[number] for number in range(len(rows))]
    with _pool(count) as pool:
        started = {pool.submit(cost, row): number for number, row in enumerate(rows)}
        try:
            for done in as_completed(started):
                found[started[done]] = done.result()
                progress(len(found))
        except BrokenProcessPool:
            raise BenchError(
                f"a process that predicts was killed, perhaps for the memory that {count} of them "
                "take together: taskset -c 0 before the command makes it one"
            ) from None
    return [found[number] for number in range(len(rows))]


@contextmanager
def _pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that begin with what is imported here; none outlives an error or Ctrl-C."""
    import importlib

    import bench.predict.stretch  # noqa: F401

    for name in ("transformers", "peft", "bitsandbytes"):
        importlib.import_module(name)
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), initializer=_alone)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _alone() -> None:
    import gc

    import torch

    for number in STOPPING:  # of a group: the process that began this one tells
        signal.signal(number, lambda number, _: os._exit(128 + number))
    gc.freeze()  # what is imported stays: no collection has to look through it
    torch.set_num_threads(1)
