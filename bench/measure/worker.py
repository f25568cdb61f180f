"""The child's side: loads one case, measures it, and answers the parent's requests.

The first message holds the set-up: the case, device, threads, clock and memory limit. Then come
requests (`bench.measure.messages`) to "prepare", "step" and "check_loss"; notes are {"phase": ...,
"peak": ...}, and what failed is an outcome. After a failure the worker ends: its state cannot be
trusted.
"""

from __future__ import annotations

import faulthandler
import gc
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import torch

from bench.measure import disturbances, outcome
from bench.measure.disturbances import Throttling, waited_seconds
from bench.measure.messages import Line
from bench.measure.outcome import Measurement, Outcome, StepTime
from bench.models.precision import precision
from bench.training import loading, memory, storages
from bench.training.cases import Case
from bench.training.cost import CostCounter
from bench.training.loops import run_step

_LOOKED_AT_AFTER = 4
"""Steps, each of them worth three of the forward passes that tell whether the loss has fallen."""


class Diverged(Exception):
    """The loss is not finite, or does not fall."""


def serve(line: Line) -> None:
    """Answer requests until the parent closes its end or one fails."""
    faulthandler.enable()
    try:
        worker = Worker(line, line.receive())
        while True:
            request = line.receive()
            try:
                answer = {"result": worker.answer(request)}
            except Exception as error:
                traceback.print_exc()
                answer = {"failed": worker.outcome_of(error).to_dict()}
            line.send(answer)
            if "failed" in answer:
                return
    except EOFError:
        return


class Worker:
    """One case in one process."""

    def __init__(self, line: Line, setup: Mapping[str, Any]) -> None:
        self._line = line
        self._case = Case.from_dict(setup["case"])
        self._device: str = setup["device"]
        self._on_gpu = self._device.startswith("cuda")
        self._tracker = memory.MemoryTracker(device=torch.device(self._device).type)
        self._phase = outcome.LOAD
        self._peak = 0
        self._reserved = 0
        self._first_loss = math.nan  # under the seed's dropout mask: see loading.prepared
        self._steps = 0
        self._throttling: Throttling | None = None
        self._read = {"wall": time.perf_counter, "processor": time.process_time}[setup["clock"]]
        self._threads: int = setup["threads"]
        torch.set_num_threads(self._threads)
        if self._on_gpu:
            torch.cuda.set_device(self._device)
        if (limit := setup["memory_limit_bytes"]) is not None:
            self._limit_memory(limit)

    def answer(self, request: Mapping[str, Any]) -> Any:
        """Carry out one request; the result is JSON-safe."""
        match request["do"]:
            case "prepare":
                return self.prepare().to_dict()
            case "step":
                return asdict(self.timed_step())
            case "check_loss":
                return self.check_loss(request["steps"])
        raise ValueError(f"unknown request {request!r}")

    def outcome_of(self, error: Exception) -> Outcome:
        """What to record for an exception that ended a request."""
        peak = max(self._peak, self._phase_peak())
        return Outcome(_status(error), self._phase, _message(error), peak)

    def prepare(self) -> Measurement:
        """Load the case; run a first and a steady step with memory and operations tracked."""
        memory.reset_peak_rss()
        rss_before = memory.peak_rss_bytes()
        tracker = self._tracker

        self._begin(outcome.LOAD)
        # The model's tensors are filed below; what else stays are the quantizer's cached tables.
        quantized = precision(self._case.precision).quantized
        tracker.storages.category = "quantization_state" if quantized else "weights"
        with tracker:
            training = self._training = loading.load(self._case, self._device)
        for tensor in training.batch.values():
            tracker.storages.tag(tensor, "activations")
        storages.tag_model(tracker.storages, training.model)
        loaded = torch.cuda.memory_allocated() if self._on_gpu else tracker.storages.live_bytes
        load_peak = self._phase_peak()
        # Whether a collection falls into a step must not decide its peak or its time.
        gc.disable()

        with storages.tagged_gradients(tracker.storages, training.model):
            self._begin(outcome.FIRST_STEP)
            self._first_loss = self._tracked_step()
            first_peak = self._phase_peak()
            storages.tag_model(
                tracker.storages, training.model
            )  # int8 scales move at the first forward pass
            storages.tag_optimizer(tracker.storages, training.optimizer)

            self._begin(outcome.STEADY_STEP)
            tracker.observer = cost = CostCounter()
            made = tracker.storages.made_bytes
            by_phase: dict[str, dict[str, int]] = {}
            loss = self._tracked_step(by_phase)
            tracker.observer = None
        peak = max(sum(parts.values()) for parts in by_phase.values())
        gpu = torch.cuda.current_device() if self._on_gpu else None
        self._note(outcome.TIMING)
        return Measurement(
            outcome=Outcome(peak_allocated_bytes=max(self._peak, peak)),
            load_peak_allocated_bytes=load_peak,
            loaded_bytes=loaded,
            first_step_peak_allocated_bytes=first_peak,
            peak_allocated_bytes=peak,
            breakdown_by_phase=by_phase,
            peak_reserved_bytes=None if gpu is None else self._reserved,
            process_bytes=None if gpu is None else memory.nvml_process_bytes(gpu),
            peak_rss_bytes=memory.peak_rss_bytes(),
            rss_before_bytes=rss_before,
            file_pages_bytes=memory.file_pages_bytes(),
            loss=loss,
            trainable_parameters=training.trainable_parameters,
            adapted_layers=training.adapted_layers,
            quantized_layers=training.quantized_layers,
            tokens_per_step=training.tokens,
            operations=dict(sorted(cost.operations.items())),
            flops=cost.flops,
            allocated_bytes_total=tracker.storages.made_bytes - made,
            threads=self._threads,
            device=torch.cuda.get_device_name() if self._on_gpu else "cpu",
        )

    def timed_step(self) -> StepTime:
        """One step, nothing tracked, between two readings of this process's clock."""
        self._phase = outcome.TIMING
        gc.collect()
        waited = waited_seconds()
        clock = _CudaClock() if self._on_gpu else CpuClock(self._read)
        self._require_finite(self.one_step(clock.mark).item())
        measured = clock.step_time()
        waited = waited_seconds() - waited
        if self._throttling is None:  # the first step is a warm-up
            gpu = torch.cuda.current_device() if self._on_gpu else None
            self._throttling = disturbances.watch(gpu)
        throttled = self._throttling.happened()
        return replace(measured, throttled=throttled, waited_seconds=waited)

    def check_loss(self, steps: int) -> dict[str, float]:
        """The loss on the fixed batch before the first step, and now: it must have fallen.

        Both under the dropout mask of the seed, in the dtype of the model's own loss: bf16 in T5,
        which tells losses near 7.7 apart by 1/32. Where the steps so far were not enough, trains
        on until it has, a few at a time; raises Diverged if there were `steps` of them in vain.
        """
        self._phase = outcome.LOSS_CHECK
        before, after = self._first_loss, self._loss_under_fixed_mask()
        while not after < before and self._steps < steps:
            for _ in range(min(_LOOKED_AT_AFTER, steps - self._steps)):
                self._require_finite(self.one_step().item())
            after = self._loss_under_fixed_mask()
        if not after < before:
            raise Diverged(
                f"the loss did not fall in {self._steps} steps: {before:.6g} to {after:.6g}"
            )
        return {"before": before, "after": after}

    def one_step(self, mark: Any = None) -> torch.Tensor:
        self._steps += 1
        marks = {} if mark is None else {"mark": mark}
        return run_step(self._training, **marks)

    def _tracked_step(self, by_phase: dict[str, dict[str, int]] | None = None) -> float:
        """The loss of a step; what each of its phases took at its peak goes to `by_phase`."""
        tracker, running = self._tracker, ""

        def mark(phase: str) -> None:
            nonlocal running
            if by_phase is not None and running:
                self._end_phase(running, by_phase)
            running = phase
            tracker.storages.category = "optimizer_state" if phase == "optimizer" else "activations"
            self._note(self._phase)

        with tracker:
            loss = self.one_step(mark)
        return self._require_finite(loss.item())

    def _end_phase(self, phase: str, by_phase: dict[str, dict[str, int]]) -> None:
        """Keep what a phase took at its peak, if more than it did before in this step, and start
        the next one's."""
        parts = self._breakdown(self._phase_peak())
        if sum(parts.values()) > sum(by_phase.get(phase, {}).values()):
            by_phase[phase] = parts
        self._start_peak()

    def _loss_under_fixed_mask(self) -> float:
        # In train mode: bitsandbytes repacks 4-bit weights for good when evaluated on a CPU.
        torch.manual_seed(self._case.step.seed)
        with torch.no_grad():
            loss = self._training.model(**self._training.batch).loss
        return self._require_finite(loss.item())

    def _require_finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss}")
        return loss

    def _begin(self, phase: str) -> None:
        gc.collect()
        if self._on_gpu:
            torch.cuda.synchronize()
        self._start_peak()
        self._note(phase)

    def _start_peak(self) -> None:
        """The peak is what is there now, from here on."""
        self._peak = max(self._peak, self._phase_peak())
        self._tracker.storages.reset_peak()
        if self._on_gpu:
            self._reserved = max(self._reserved, torch.cuda.max_memory_reserved())
            torch.cuda.reset_peak_memory_stats()

    def _note(self, phase: str) -> None:
        self._phase = phase
        note = {"phase": phase, "peak": max(self._peak, self._phase_peak())}
        self._line.send({"note": note})

    def _phase_peak(self) -> int:
        return (
            torch.cuda.max_memory_allocated() if self._on_gpu else self._tracker.storages.peak_bytes
        )

    def _breakdown(self, peak: int) -> dict[str, int]:
        """The tracked categories; what the allocator adds by rounding and inside kernels counts
        as activations, so that the sum is the peak."""
        parts = dict(self._tracker.storages.peak_by_category)
        parts["activations"] += peak - sum(parts.values())
        return parts

    def _limit_memory(self, limit: int) -> None:
        if self._on_gpu:
            total = torch.cuda.get_device_properties(self._device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
            return
        import resource

        # The libraries' own data were there before: the limit is on what the case adds.
        bound = memory.private_data_bytes() + limit
        resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))


class CpuClock:
    """Reads one of the process's clocks at each mark."""

    def __init__(self, read: Callable[[], float] = time.perf_counter) -> None:
        self._read = read
        self._readings: list[tuple[str, float]] = []

    def mark(self, phase: str) -> None:
        self._readings.append((phase, self._read()))

    def step_time(self) -> StepTime:
        return _by_phase(self._readings, lambda start, end: end - start)


class _CudaClock:
    """Records an event at each mark; the device's own times, read after it has finished."""

    def __init__(self) -> None:
        torch.cuda.synchronize()
        self._events: list[tuple[str, torch.cuda.Event]] = []

    def mark(self, phase: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append((phase, event))

    def step_time(self) -> StepTime:
        torch.cuda.synchronize()
        return _by_phase(self._events, lambda start, end: start.elapsed_time(end) / 1000)


def _by_phase(
    readings: Sequence[tuple[str, Any]], between: Callable[[Any, Any], float]
) -> StepTime:
    """Seconds in each phase, summed where a step accumulates several batches."""
    spent = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}
    for (phase, start), (_, end) in pairwise(readings):
        spent[phase] += between(start, end)
    forward, backward, optimizer = spent.values()
    return StepTime(forward + backward + optimizer, forward, backward, optimizer)


_OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc")


def _status(error: BaseException) -> str:
    if isinstance(error, Diverged):
        return outcome.DIVERGED
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return outcome.OOM
    text = str(error).lower()
    if any(phrase in text for phrase in _OUT_OF_MEMORY):
        return outcome.OOM
    return outcome.CRASHED


def _message(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, Diverged):
        return text
    return f"{type(error).__name__}: {text}"[:500]
