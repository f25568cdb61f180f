"""Predicted steps for people: one in full, several as a table that says which GPU they fit;
and what would make one fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.models.precision import precision
from bench.predict.evidence import interval
from bench.predict.gpus import UNCERTAIN, YES, Fit, Gpu, fit
from bench.predict.largest import Solution
from bench.predict.result import Prediction, limits_of
from bench.reports.layout import Report, Table, aligned
from bench.units import (
    GIB,
    format_bytes,
    format_count,
    format_flops,
    format_percent,
    format_seconds,
    one_line,
    text_of,
)

if TYPE_CHECKING:
    from bench.predict.levers import Lever, Ways
    from bench.training.cases import Case

GPU_SIZES = (24, 48, 80)
"""GiB of the GPUs that a table of several cases has a column for."""
UNQUANTIZED_SHARE = 0.1
"""Of the linear and expert weights: a quantized precision that leaves more is worth a note."""
PART_WORDS = {
    "weights": "weights",
    "quantization_state": "quantization state",
    "adapters": "adapters and saved modules",
    "gradients": "gradients",
    "optimizer_state": "optimizer state",
    "activations": "activations",
    "logits_and_loss": "logits and loss",
    "communication": "gathered, and to be sent",
    "kernel_workspace": "kernel workspace",
    "other": "other",
}
"""The parts of a peak, from what stays to what comes and goes, and their names for people."""
_RIGHT = frozenset(("r", "trainable", "predicted peak allocated", "predicted peak reserved"))


def prediction_rows(
    predictions: Sequence[Prediction], gpu: Gpu | None = None
) -> list[dict[str, object]]:
    """Raw figures, one row a prediction, with what fits `gpu`, or each usual size of GPU."""
    rows = []
    for p in predictions:
        row: dict[str, object] = {
            "kind": "predicted",
            "case": p.case,
            "peak_allocated_bytes": p.peak_allocated_bytes,
            "peak_reserved_bytes": p.peak_reserved_bytes,
            "trainable_parameters": p.trainable_parameters,
            "flops": p.flops,
            "operations": p.operations,
        }
        for g in _gpus(gpu):
            row[f"fits {g.name}"] = _fit(g, p).verdict
        rows.append(row)
    return rows


def prediction_report(predictions: Sequence[Prediction], gpu: Gpu | None = None) -> Report:
    """The table: one model, several scenarios, ranks and precisions of it, the same step."""
    gpus = _gpus(gpu)
    header = ("scenario", "r", "precision", "trainable", "predicted peak allocated",
              "predicted peak reserved", *(f"fits {g.name}" for g in gpus))  # fmt: skip
    rows = []
    for p in predictions:
        peaks = p.peak_allocated_bytes, p.peak_reserved_bytes
        fits = [_fit(g, p).verdict for g in gpus]
        rows.append((
            p.scenario, str(p.rank), p.precision, format_count(p.trainable_parameters),
            *map(format_bytes, peaks), *fits,
        ))  # fmt: skip
    first = predictions[0]
    said = dict.fromkeys(note for p in predictions for note in notes(p))
    assumed = dict.fromkeys(f"assumed: {each}" for p in predictions for each in p.assumptions)
    caption = f"{first.model}, {first.step}; {', '.join(_versions(first))}"
    return Report(
        "Predicted GPU memory of a training step",
        (caption,),
        (Table("", header, tuple(rows), leading=1, right=_RIGHT),),
        (f"Predicted, not measured. {_sentence(limits_of(first))}", *assumed, *said),
    )


def notes(p: Prediction) -> list[str]:
    """What to say of this prediction beyond what holds for every one."""
    return [note for note in (_unquantized(p), _other_kernel(p)) if note]


def _other_kernel(p: Prediction) -> str:
    """Where torch would take cuDNN's attention, of which no allocation is known."""
    if not p.cudnn_first or p.fit is None:
        return ""
    return (
        f"{p.fit.gpu}: torch prefers cuDNN's attention there (with cuDNN above 9.15), whose "
        "workspaces are not known; PyTorch's own kernel is predicted in its place, which "
        "TORCH_CUDNN_SDPA_DEPRIORITIZED=1 makes torch take"
    )


def _unquantized(p: Prediction) -> str:
    """Where a quantized precision leaves much as it is: how much, of what kind, and why."""
    if not precision(p.precision).quantized or (
        p.quantized_layers and p.unquantized_share <= UNQUANTIZED_SHARE
    ):
        return ""
    much = "no layer of this model"
    if p.quantized_layers:
        held = format_percent(100 * (1 - p.unquantized_share))
        much = f"only {held} of this model's linear and expert weights"
    left = [f"{format_bytes(size)} of {_kind(k)}" for k, size in p.unquantized_bytes.items()]
    stay = f"; what stays as it is: {', '.join(left)}" if left else ""
    return f"{p.model}: transformers quantizes {much} in {p.precision}{stay}"


def _kind(kind: str) -> str:
    """What is left unquantized, and why: bitsandbytes replaces modules of class Linear alone."""
    if kind == "experts":
        return "expert weights (fused into parameters, which are no linear layers)"
    if kind in ("Linear", "Conv1D"):
        return "linear layers that this model's class keeps"
    return f"{kind} (linear layers of a class of their own)"


def prediction_text(done: Prediction | Solution) -> str:
    """One prediction, or what was solved for and the prediction there."""
    lines = []
    p = done.prediction if isinstance(done, Solution) else done
    if isinstance(done, Solution):
        why = (
            "the largest that was tried or that the model takes"
            if done.bounded
            else "one more does not"
        )
        lines.append(f"largest {done.what} that fits: {done.value} ({why})")
    cpu = p.device == "cpu"
    lines += [
        f"{p.case}: predicted{' for the CPU' if cpu else ', not measured'}",
        f"  peak allocated  {format_bytes(p.peak_allocated_bytes)}",
        *([] if cpu else [f"  peak reserved   {format_bytes(p.peak_reserved_bytes)}"]),
        f"  the peak lies in {p.peak_phase}, at {p.peak_operation}; it is made of",
    ]
    parts = []
    for name, size in sorted(p.breakdown.items(), key=lambda item: -item[1]):
        if size:
            share = format_percent(100 * size / p.peak_allocated_bytes)
            share = "< 0.01 %" if 1e4 * size < p.peak_allocated_bytes else share
            parts.append((PART_WORDS[name], format_bytes(size), share))
    lines += [
        *(f"    {line}" for line in aligned(parts, "lrr")),
        f"  trainable parameters {format_count(p.trainable_parameters)}",
        f"  a step: {p.step}",
        f"    {format_flops(p.flops)}, {format_count(p.operations)} operations, "
        f"{format_bytes(p.bytes_moved)} moved, {format_count(p.tokens_per_step)} tokens",
    ]
    if p.modelled_step_seconds is not None and p.fit is not None:
        least = format_seconds(p.modelled_step_seconds)
        lines.append(
            f"  modelled step time on {p.fit.gpu}: at least {least} "
            "(roofline of published peak rates; real steps take longer)"
        )
    if p.fit is not None:
        lines.append(_fit_line(p))
    lines += [f"  assumed: {each}" for each in p.assumptions]
    lines += [f"  note: {note}" for note in notes(p)]
    if not cpu:
        lines.append(f"  holds for: {'; '.join(limits_of(p))}")
    return text_of(lines)


def prediction_json(done: Prediction | Solution) -> dict[str, Any]:
    """One JSON object: the prediction with its notes, and what was solved for."""
    if isinstance(done, Prediction):
        return {**done.to_dict(), "notes": notes(done)}
    solved = {"what": done.what, "value": done.value, "bounded": done.bounded}
    return {**prediction_json(done.prediction), "solved": solved}


def beside_text(predicted: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """Predicted beside measured, a row each: both have `peak_allocated_bytes`,
    `peak_reserved_bytes` (None or 0 where the device has none) and `peak_by_phase`."""
    rows = [
        (words, predicted[name], measured[name])
        for words, name in (
            ("peak allocated", "peak_allocated_bytes"), ("peak reserved", "peak_reserved_bytes"),
        )
    ]  # fmt: skip
    for phase, seen in measured["peak_by_phase"].items():
        rows.append((f"in {phase}", predicted["peak_by_phase"].get(phase, 0), seen))
    lines = []
    for name, said, seen in rows:
        if seen is None and name == "peak reserved":  # a GPU's allocator alone reserves
            continue
        off = 100 * (said / seen - 1) if seen else 0
        difference = f"{'-' if off < 0 else '+'}{format_percent(abs(off))}"
        found = f"{format_bytes(seen):>10}  {difference}" if seen else "not measured on this device"
        lines.append((name, format_bytes(said), found))
    table = (f"  {line}" for line in aligned(lines, "lrl"))
    return text_of(["predicted, measured, difference", *table])


def _fit(gpu: Gpu, p: Prediction) -> Fit:
    within = interval(p.precision, p.loop, p.gpus)
    return fit(gpu, p.peak_allocated_bytes, p.peak_reserved_bytes, within)


def _fit_line(p: Prediction) -> str:
    found = p.fit
    assert found is not None
    context = f"beside {format_bytes(found.context_bytes)} for the CUDA context"
    reserved = f"{format_bytes(found.low_bytes)} to {format_bytes(found.high_bytes)} reserved"
    margin = format_bytes(abs(found.margin_bytes))
    evidence = f" ({found.why})"
    if found.verdict == YES:
        return f"  fits {found.gpu}: yes, {margin} to spare {context}: {reserved}{evidence}"
    if found.verdict == UNCERTAIN:
        return f"  fits {found.gpu}: uncertain {context}: {reserved}{evidence}"
    least = format_bytes(found.low_bytes + found.context_bytes - found.memory_bytes)
    close = "; what is allocated would fit without fragmentation" if found.allocated_fits else ""
    return (
        f"  fits {found.gpu}: no, at least {least} too large {context}: {reserved}{evidence}{close}"
    )


def _gpus(gpu: Gpu | None) -> list[Gpu]:
    return [gpu] if gpu else [Gpu(f"{size} GB", size * GIB) for size in GPU_SIZES]


def _versions(p: Prediction) -> list[str]:
    return [
        f"{name} {p.versions[name]}"
        for name in p.versions
        if name not in ("python", "pytest-benchmark")
    ]


def _sentence(parts: Sequence[str]) -> str:
    joined = "; ".join(parts)
    return f"{joined[0].upper()}{joined[1:]}."


def ways_text(ways: Ways, command: Callable[[Case], str]) -> str:
    """Every change, sorted by what it saves of the peak reserved, those that were left out, and the
    smallest sets that fit, each as the command that repeats it."""
    lines = ["  alone, of the peak reserved:"] if ways.single else []
    alone = [(each.names[0], _saved(each), "fits" if each.fits else "") for each in ways.single]
    lines += [f"    {line}" for line in aligned(alone, "lrl")]
    lines += [f"  left out: {names}: {one_line(why)}" for names, why in ways.refused.items()]
    if not ways.sets:
        lines.append("  no set of these changes that was tried surely fits")
    for lever in ways.sets:
        lines.append(f"  fits with {' + '.join(lever.names)}:")
        lines.append(f"    {command(lever.case)}")
    return text_of(lines)


def ways_json(ways: Ways, command: Callable[[Case], str]) -> dict[str, Any]:
    """The same, JSON-safe."""

    def said(lever: Lever) -> dict[str, Any]:
        return {
            "changes": list(lever.names),
            "saves_bytes": lever.saves_bytes,
            "peak_reserved_bytes": lever.prediction.peak_reserved_bytes,
            "fits": lever.fits,
            "command": command(lever.case),
        }

    return {
        "alone": [said(each) for each in ways.single],
        "fit": [said(each) for each in ways.sets],
        "left_out": dict(ways.refused),
    }


def _saved(lever: Lever) -> str:
    size = format_bytes(abs(lever.saves_bytes))
    return size if lever.saves_bytes >= 0 else f"-{size}"
