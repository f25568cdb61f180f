"""What the two runs have recorded that may explain a difference."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from bench.baselines.configuration import COUNTED, changes, other_weights, with_defaults
from bench.baselines.metrics import ALLOCATED, RESERVED, TIME, Metric
from bench.baselines.runs import Record, StoredRun
from bench.units import format_count, one_line

CLUES = 3
"""At most so many parts of a breakdown are named, the largest differences first."""

WORKLOAD = ("batch_size", "seq_len", "step_options")
STRUCTURE = ("rank", "model", "scenario", "task_type", "geometry")
FACTS = (*STRUCTURE, "precision", *WORKLOAD)


def differences(
    baseline: StoredRun,
    contender: StoredRun,
    before: Record,
    after: Record,
    metric: Metric | None = None,
) -> str:
    """The differences recorded between two results of one case, the most specific first, as far as
    they can be the cause of a difference in `metric` (None: in how the case ended)."""
    counted = metric is not None and metric.name in COUNTED
    memory = metric is None or metric.kind in (ALLOCATED, RESERVED) or "bytes" in metric.name
    predicted = metric is not None and metric.name.startswith("predicted")
    parts = "predicted_breakdown" if predicted else "breakdown"
    clues = [
        *_failures(before, after),
        *_facts(before, after, STRUCTURE if counted else FACTS),
        *_configuration(baseline, contender, before, after, metric),
        *filter(None, [other_weights(baseline, contender, before, after, metric)]),
        *_modules(before.detail, after.detail),
        *_numbers(before.detail, after.detail, "adapted_by_role"),
        *_dead_entries(before.detail, after.detail),
        *(() if counted else _numbers(before.detail, after.detail, "operations")),
        *(_numbers(before.detail, after.detail, parts) if memory else ()),
        *version_changes(baseline, contender, _involved(before, metric)),
    ]
    if not clues and baseline.commit != contender.commit:
        clues = [f"commit {baseline.commit or 'unknown'} -> {contender.commit or 'unknown'}"]
    unknown = ""
    if (before.model in baseline.models) != (after.model in contender.models):
        older = baseline if after.model in contender.models else contender
        unknown = f" ({older.label} does not record the model's configuration)"
    return "; ".join(one_line(clue) for clue in clues) or (
        f"nothing recorded explains it: same libraries, same roles{unknown}"
    )


def _configuration(
    baseline: StoredRun, contender: StoredRun, before: Record, after: Record, metric: Metric | None
) -> list[str]:
    """The fields of the model's config.json, and of a user's own adapter, that differ."""
    old, new = baseline.models.get(before.model), contender.models.get(after.model)
    found = changes(old, new, metric) if old and new else []
    mine, theirs = before.detail.get("adapter"), after.detail.get("adapter")
    if isinstance(mine, dict) and isinstance(theirs, dict):
        if before.rank != after.rank:  # told among the facts
            mine, theirs = ({**fields, "r": None} for fields in (mine, theirs))
        found += changes(with_defaults(mine), with_defaults(theirs), metric)
    return [*found[:CLUES], f"and {len(found) - CLUES} more"] if len(found) > CLUES else found


def _involved(record: Record, metric: Metric | None) -> frozenset[str]:
    """What can change the figure: bitsandbytes only where it holds the weights, or is imported."""
    if metric is None:
        return frozenset(("python", "torch", "transformers", "peft", "bitsandbytes"))
    involved = {"transformers", "peft"}
    if metric.name not in COUNTED:
        involved |= {"torch"}
        quantized = str(record.in_precision).startswith(("int8", "nf4", "fp4"))
        if quantized or metric.name == "peak_rss_bytes":
            involved |= {"bitsandbytes"}
    if metric.kind == TIME or metric.name == "peak_rss_bytes":
        involved |= {"python"}
    return frozenset(involved)


def version_changes(
    baseline: StoredRun, contender: StoredRun, involved: Collection[str] | None = None
) -> list[str]:
    """`peft 0.20.0 -> 0.21.2` for every library (of those involved) whose version differs."""
    names = [
        *baseline.versions,
        *(name for name in contender.versions if name not in baseline.versions),
    ]
    if involved is not None:
        names = [name for name in names if name in involved]
    pairs = ((name, baseline.versions.get(name), contender.versions.get(name)) for name in names)
    return [
        f"{name} {old or 'absent'} -> {new or 'absent'}" for name, old, new in pairs if old != new
    ]


def workload_change(before: Record, after: Record) -> str:
    """How batch size, sequence length or the step's other options differ; empty if they do not."""
    return ", ".join(clue for clue in _facts(before, after) if clue.startswith(WORKLOAD))


def _facts(before: Record, after: Record, names: Iterable[str] = FACTS) -> list[str]:
    clues = []
    for name in names:
        old = getattr(before, name, before.detail.get(name))
        new = getattr(after, name, after.detail.get(name))
        unknown = None in (old, new) and before.outcome != after.outcome  # a failed one has it not
        if old != new and not unknown:
            clues.append(f"{name} {old} -> {new}")
    return clues


def _failures(before: Record, after: Record) -> Iterator[str]:
    if before.outcome != after.outcome and "failure" in after.detail:
        yield str(after.detail["failure"])


def _modules(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    old, new = (_names(detail.get("adapted_modules")) for detail in (before, after))
    if old and new:
        for names, what in ((old - new, "no longer adapts"), (new - old, "now adapts")):
            if names:
                more = f" and {len(names) - CLUES} more" if len(names) > CLUES else ""
                yield f"{what} {', '.join(sorted(names)[:CLUES])}{more}"


def _dead_entries(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    old, new = (_names(detail.get("dead_entries")) for detail in (before, after))
    if died := sorted(new - old):
        yield f"dead now: {', '.join(died)}"
    if revived := sorted(old - new):
        yield f"no longer dead: {', '.join(revived)}"


def _names(value: Any) -> set[str]:
    return {str(item) for item in value} if isinstance(value, list) else set()


def _numbers(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> list[str]:
    """The largest differences between two nested tables of numbers."""
    if key not in before or key not in after:
        return []
    old, new = dict(_leaves(before[key])), dict(_leaves(after[key]))
    changed = [name for name in {**old, **new} if old.get(name, 0) != new.get(name, 0)]
    changed.sort(key=lambda name: -abs(new.get(name, 0) - old.get(name, 0)))
    clues = [
        f"{name} {format_count(old.get(name, 0))} -> {format_count(new.get(name, 0))}"
        for name in changed[:CLUES]
    ]
    return [*clues, f"and {len(changed) - CLUES} more"] if len(changed) > CLUES else clues


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield prefix, value
