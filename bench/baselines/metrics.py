"""The metrics a stored run may hold, and how much of a change each kind tolerates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bench.errors import BenchError, UnknownName, lookup

EXACT, ALLOCATED, RESERVED, TIME, LOSS = "exact", "allocated", "reserved", "time", "loss"

DEFAULT_THRESHOLDS: dict[str, float] = {ALLOCATED: 0.01, RESERVED: 0.05, TIME: 0.05, LOSS: 0.02}
"""Relative change that a kind tolerates, as a fraction. Exact metrics tolerate none."""


@dataclass(frozen=True)
class Metric:
    """One figure of a case.

    kind: exact (compared for equality), allocated (what tensors occupy), reserved (what the
    process or the caching allocator holds), time (compared by confidence interval) or loss (one
    value a seed, compared seed by seed).
    unit: count, bytes, seconds, flops, operations, nats or text, as stored.
    """

    name: str
    kind: str
    unit: str
    label: str
    lower_is_better: bool = True


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("adapted_layers", EXACT, "count", "layers adapted"),
        Metric("dead_entries", EXACT, "count", "dead entries"),
        Metric("modules", EXACT, "count", "modules"),
        Metric("trainable_parameters", EXACT, "count", "trainable parameters"),
        Metric("total_parameters", EXACT, "count", "total parameters"),
        Metric("ledger_digest", EXACT, "text", "names of the adapted layers"),
        Metric("dtypes", EXACT, "text", "dtypes"),
        Metric("operations", EXACT, "operations", "operations"),
        Metric("flops", EXACT, "flops", "FLOPs"),
        Metric("allocated_bytes_total", EXACT, "bytes", "allocated in total"),
        Metric("predicted_peak_allocated_bytes", EXACT, "bytes", "predicted peak allocated"),
        Metric("predicted_peak_reserved_bytes", EXACT, "bytes", "predicted peak reserved"),
        Metric("predicted_flops", EXACT, "flops", "predicted FLOPs"),
        Metric("predicted_operations", EXACT, "operations", "predicted operations"),
        Metric("loaded_bytes", ALLOCATED, "bytes", "allocated when loaded"),
        Metric(
            "first_step_peak_allocated_bytes", ALLOCATED, "bytes", "first step's peak allocated"
        ),
        Metric("peak_allocated_bytes", ALLOCATED, "bytes", "peak allocated"),
        Metric("peak_reserved_bytes", RESERVED, "bytes", "peak reserved"),
        Metric("process_bytes", RESERVED, "bytes", "process on the GPU"),
        Metric("peak_rss_bytes", RESERVED, "bytes", "peak RSS"),
        Metric("step_seconds", TIME, "seconds", "step time"),
        Metric("forward_seconds", TIME, "seconds", "forward time"),
        Metric("backward_seconds", TIME, "seconds", "backward time"),
        Metric("optimizer_seconds", TIME, "seconds", "optimizer time"),
        Metric("evaluation_loss", LOSS, "nats", "evaluation loss"),
    )
}


def metric_named(name: str, where: str = "") -> Metric:
    """The metric of that name; UnknownName, naming `where`, if there is none."""
    return lookup(f"metric in {where}:" if where else "metric", name, METRICS)


@dataclass(frozen=True)
class Thresholds:
    """How much each metric may change, as a fraction of the baseline.

    Layers are laid over the defaults, and the last layer that knows a metric decides: pyproject,
    then a scenario's fixture, then the command line. Within a layer a metric's own entry counts
    before its kind's. A layer with a scenario applies to that scenario only.
    """

    layers: tuple[tuple[str | None, Mapping[str, float]], ...] = ()

    def of(self, metric: Metric, scenario: str | None = None) -> float:
        """The fraction for `metric`; 0 for an exact metric."""
        for scope, layer in reversed(self.layers):
            if scope in (None, scenario):
                for key in (metric.name, metric.kind):
                    if key in layer:
                        return layer[key]
        return DEFAULT_THRESHOLDS.get(metric.kind, 0.0)

    def with_table(
        self, table: Mapping[str, object], where: str, scenario: str | None = None
    ) -> Thresholds:
        """These with a layer on top, keys metrics or kinds, values as `5%`, `"0.05"` or 0.05.

        BenchError, naming `where`, for an unknown key, an exact metric, or no such fraction.
        """
        layer = {_key(key, where): _fraction(value, where) for key, value in table.items()}
        return Thresholds((*self.layers, (scenario, layer))) if layer else self

    def with_options(self, options: Iterable[str], where: str = "--threshold") -> Thresholds:
        """These with a layer on top, from strings such as `step_seconds=10%` or `time=0.1`."""
        table: dict[str, object] = {}
        for option in options:
            key, equals, value = option.partition("=")
            if not equals:
                raise BenchError(f"{where} {option!r}: expected METRIC=NUMBER, as in time=10%")
            table[key.strip()] = value
        return self.with_table(table, where)


def _key(key: str, where: str) -> str:
    kind = METRICS[key].kind if key in METRICS else key
    if kind == EXACT:
        raise BenchError(
            f"{where}: {key} has no threshold: exact figures are equal or changed "
            "(a change is accepted by storing a new baseline, or allowed as changed:PATTERN)"
        )
    if kind not in DEFAULT_THRESHOLDS:
        known = [name for name, metric in METRICS.items() if metric.kind != EXACT]
        raise UnknownName(f"metric in {where}:", key, [*known, *DEFAULT_THRESHOLDS])
    return key


def _fraction(value: object, where: str) -> float:
    text = str(value).strip()
    percent = text.endswith("%")
    try:
        number = float(text.removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        raise BenchError(f"{where}: {value!r} is not a threshold: write 10% or 0.1") from None
    if not math.isfinite(number) or number < 0:
        raise BenchError(f"{where}: {value!r} is not a threshold: it must be 0 or more, and finite")
    if number > 1 and not percent:
        raise BenchError(f"{where}: {value!r} would be {number:.0%}: write 10% or 0.1")
    return number
