"""What became of a case: plain data, shared by the worker that meets it and the parent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bench.files import parse

OK = "ok"
OOM = "oom"
CRASHED = "crashed"
TIMED_OUT = "timed-out"
DIVERGED = "diverged"

LOAD = "load"
FIRST_STEP = "first-step"
STEADY_STEP = "steady-step"
TIMING = "timing"
LOSS_CHECK = "loss-check"


@dataclass(frozen=True)
class Outcome:
    """How a case ended, in which phase, and the largest allocation until then.

    `name` is "ok", "oom", "crashed", "timed-out" or "diverged"; `phase` is "load", "first-step",
    "steady-step", "timing" or "loss-check".
    """

    name: str = OK
    phase: str = TIMING
    message: str = ""
    peak_allocated_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return asdict(self)


class CaseFailed(Exception):
    """A case did not end well. `outcome` is what to record; the session goes on with the next."""

    def __init__(self, case_id: str, outcome: Outcome) -> None:
        super().__init__(f"{case_id}: {outcome.name} in {outcome.phase}: {outcome.message}")
        self.case_id = case_id
        self.outcome = outcome

    def __reduce__(self) -> tuple[type[CaseFailed], tuple[str, Outcome]]:
        """An exception is made again from its arguments, not from its message."""
        return CaseFailed, (self.case_id, self.outcome)


@dataclass(frozen=True)
class StepTime:
    """One training step by the worker's clock, in seconds. The phases sum to the total.

    `throttled`: the processor or the GPU was slowed down meanwhile, by heat or by power.
    `waited_seconds`: how long threads of the worker stood ready while other processes had the
    processors.
    """

    total_seconds: float
    forward_seconds: float
    backward_seconds: float
    optimizer_seconds: float
    throttled: bool = False
    waited_seconds: float = 0.0


@dataclass(frozen=True)
class Measurement:
    """Everything about a case that is not a step time. Bytes are bytes.

    Exact and repeatable: the tracked bytes, counts and operations. On CUDA,
    `peak_allocated_bytes` and its kin are the caching allocator's; on the CPU they are tracked
    storages. `breakdown_by_phase` says what each phase of the steady step took at its peak (all
    that is there meanwhile included), `breakdown` the highest of them, which sums to the step's.
    `peak_rss_bytes` holds the interpreter and its libraries too: `rss_before_bytes` of it was there
    before the case, and `file_pages_bytes` are pages of files. `allocated_bytes_total`,
    `operations` and `flops` are of one steady step.
    """

    outcome: Outcome
    load_peak_allocated_bytes: int
    loaded_bytes: int
    first_step_peak_allocated_bytes: int
    peak_allocated_bytes: int
    breakdown_by_phase: dict[str, dict[str, int]]
    peak_reserved_bytes: int | None
    process_bytes: int | None
    """NVML's view of the process on the GPU; None on the CPU or where NVML does not know it."""
    peak_rss_bytes: int
    rss_before_bytes: int
    file_pages_bytes: int
    loss: float
    trainable_parameters: int
    adapted_layers: int
    quantized_layers: int
    tokens_per_step: int
    """Tokens that count (padding left out), or images."""
    operations: dict[str, int]
    flops: int
    allocated_bytes_total: int
    threads: int
    device: str

    @property
    def peak_by_phase(self) -> dict[str, int]:
        """The peak allocated in each phase of the steady step, in bytes."""
        return {phase: sum(parts.values()) for phase, parts in self.breakdown_by_phase.items()}

    @property
    def breakdown(self) -> dict[str, int]:
        """What the steady step's peak was made of, in bytes."""
        return max(self.breakdown_by_phase.values(), key=lambda parts: sum(parts.values()))

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe values that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """The measurement that `to_dict` wrote; BenchError on an unknown or missing key."""
        return parse(data, cls, "a measurement")
