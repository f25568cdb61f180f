"""Predictions held against memory that others measured.

Each row of `fixtures/published/measurements.csv` says what its batch, length and metric were, and
how the published run differs from the step that is predicted.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.compat import patched, private
from bench.errors import BenchError
from bench.files import FIXTURES, kept_rows, keyed, parse, parse_rows, read_json, read_rows
from bench.predict.result import Prediction, predict
from bench.reports.layout import Report, Table, markdown_cell, markdown_table
from bench.training.cases import Case, StepOptions
from bench.units import format_bytes

FILE = FIXTURES / "published" / "measurements.csv"
COLLECTED = FIXTURES / "published" / "measurements_2.csv"
"""Published figures as they were found, with how much of each run is known: A everything, B a step
that can be predicted in principle, C too little."""
KEPT_FILE = FIXTURES / "published" / "predicted.json"
"""What is predicted of each row, in bytes, so that a page can be written without predicting."""
BEGIN, END = "<!-- published: begin -->", "<!-- published: end -->"
NOT_PREDICTED = FIXTURES / "published" / "not_predicted.csv"
"""Why rows of COLLECTED that are of class A or B have no row in FILE."""
LITGPT = "litgpt"
_UNITS = {"B": 1, "GB": 1000**3, "GiB": 1024**3}
_ROW = keyed((
    "id", "model", "config", "target_modules", "r", "precision", "batch_size", "seq_len",
    "gradient_checkpointing", "padded", "keeps_inputs", "use_dora", "lora_dropout",
    "autocast_adapter_dtype", "autocast", "kbit_preparation", "length", "code",
    "published", "unit", "metric", "within", "differs", "source",
), str)  # fmt: skip


@dataclass(frozen=True)
class PublishedFigure:
    """One published figure, in bytes, and the case that comes closest to its run.

    `length` says where the sequence length is from: "stated", "longest sample" (of the data set,
    which sets the peak), "upper bound", "fitted", or "as fitted on ID". `keeps_inputs`: an earlier
    bitsandbytes, whose 4-bit layers keep their inputs for the backward pass. `code`: "litgpt" for
    a run of LitGPT's own model and step, which `bench.predict.litgpt` has; else transformers'.
    `within`: the error that is tolerated, as a fraction; None where too little is known of the run
    to hold it against.
    """

    id: str
    case: Case
    bytes: int
    metric: str
    length: str
    keeps_inputs: bool
    code: str
    within: float | None
    differs: str
    source: str

    def comparable(self, p: Prediction) -> int:
        """The predicted figure that this metric is compared with."""
        if "after loading" in self.metric:
            return p.loaded_bytes
        return p.peak_allocated_bytes if "allocated" in self.metric else p.peak_reserved_bytes


def load_published(path: Path = FILE) -> list[PublishedFigure]:
    """Every row. Raises BenchError, naming file and row, for what is missing or wrong."""
    return parse_rows(path, _ROW, _published)


def _published(row: dict[str, str]) -> PublishedFigure:
    if row["unit"] not in _UNITS:
        raise ValueError(f"unit {row['unit']!r}: one of {', '.join(_UNITS)}")
    adapter = {
        "r": int(row["r"]),
        "target_modules": row["target_modules"].split(),
        "use_dora": row["use_dora"] == "True",
        "lora_dropout": float(row["lora_dropout"]),
        "task_type": "CAUSAL_LM",
    }
    step = StepOptions(
        batch_size=int(row["batch_size"]),
        seq_len=int(row["seq_len"]),
        gradient_checkpointing=row["gradient_checkpointing"] == "True",
        padded=row["padded"] == "True",
        autocast_adapter_dtype=row["autocast_adapter_dtype"] == "True",
        autocast=row["autocast"] or None,
        kbit_preparation=row["kbit_preparation"] == "True",
    )
    case = Case(
        row["model"], json.loads(row["config"]), "AutoModelForCausalLM", row["id"], adapter,
        row["precision"], step,
    )  # fmt: skip
    return PublishedFigure(
        id=row["id"],
        case=case,
        bytes=round(float(row["published"]) * _UNITS[row["unit"]]),
        metric=row["metric"],
        length=row["length"],
        keeps_inputs=row["keeps_inputs"] == "True",
        code=row["code"],
        within=float(row["within"]) / 100 if row["within"] else None,
        differs=row["differs"],
        source=row["source"],
    )


def not_predicted() -> dict[str, str]:
    """Why each collected row of class A or B that has no prediction has none, by its id.

    Raises BenchError where one of them has neither, or both.
    """
    collected = {row["id"] for row in read_rows(COLLECTED) if row["predictability"] in "AB"}
    reasons = {row["id"]: row["reason"] for row in read_rows(NOT_PREDICTED)}
    predicted = {row.id[:6] for row in load_published() if row.id.startswith("m2-")}
    if wrong := (collected ^ (predicted | set(reasons))) | (predicted & set(reasons)):
        raise BenchError(f"{NOT_PREDICTED}: not once predicted or explained: {sorted(wrong)}")
    return reasons


def predict_published(row: PublishedFigure) -> int:
    """What is predicted of the row's figure, in bytes. A LitGPT run whose longest sample came first
    has its peak there; where any batch may be as long, while the graph of the last is still there.
    """
    if row.code == LITGPT:
        from bench.predict.litgpt import peaks

        first, second = peaks(row.case)
        return first if row.length == "longest sample" else max(first, second)
    with _inputs_kept() if row.keeps_inputs else contextlib.nullcontext():
        return row.comparable(predict(row.case))


def load_predicted(path: Path = KEPT_FILE) -> dict[str, int]:
    """The kept predictions, bytes by the row's id. Raises BenchError for what is missing or
    wrong."""
    kept = parse(read_json(path), keyed(("versions", "rows"), dict[str, Any]), str(path))
    rows = parse(kept["rows"], dict[str, int], f"{path}: rows")
    if wrong := {row.id for row in load_published()} ^ set(rows):
        raise BenchError(f"{path}: rows without a prediction, or the reverse: {sorted(wrong)}")
    return rows


def write_predicted(kept: Mapping[str, int], versions: Mapping[str, str], path: Path) -> None:
    """Keep these predictions, a row a line."""
    path.write_text(kept_rows(versions, kept), encoding="utf-8")


def published_section() -> str:
    """The table and its notes in Markdown, between their marks, from what is kept."""
    rows, kept = load_published(), load_predicted()
    report = published_report(rows, [kept[row.id] for row in rows])
    (table,) = report.tables
    grid = [" ".join(line.split()) for line in markdown_table(table).splitlines()]
    parts = [BEGIN, "\n".join(grid), *map(markdown_cell, report.notes), END]
    return "\n\n".join(parts)


@contextlib.contextmanager
def _inputs_kept() -> Iterator[None]:
    """While active, 4-bit layers keep their inputs, as bitsandbytes once had it."""
    product = private("4-bit product")
    forward = product.forward

    def keeping(ctx: Any, a: Any, *args: Any, **kwargs: Any) -> Any:
        ctx.input_kept = a
        return forward(ctx, a, *args, **kwargs)

    with patched((product, "forward", staticmethod(keeping))):
        yield


def published_report(rows: Sequence[PublishedFigure], predicted: Sequence[int]) -> Report:
    """Published and predicted (bytes), with the error of the prediction."""
    cells: list[tuple[str, ...]] = []
    differences: dict[str, int] = {}
    for row, size in zip(rows, predicted, strict=True):
        number = differences.setdefault(row.differs, len(differences) + 1)
        step = row.case.step
        cells.append((
            row.id, f"{step.batch_size} × {step.seq_len}", row.length, row.metric,
            format_bytes(row.bytes), format_bytes(size),
            f"{100 * (size / row.bytes - 1):+.1f} %", str(number),
        ))  # fmt: skip
    header = ("run", "step", "length", "published as", "published", "predicted", "error", "differs")
    right = frozenset(("published", "predicted", "error"))
    notes = [f"{number}: {text}" for text, number in differences.items()]
    reasons = Counter(not_predicted().values())
    left = "; ".join(f"{count} × {why}" for why, count in reasons.most_common())
    notes.append(
        "Rows whose name begins with m2- are of fixtures/published/measurements_2.csv, under its "
        f"ids. Of its rows of class A and B, {reasons.total()} are not predicted: {left}"
    )
    caption = "Error: predicted less published, in percent of the published figure."
    title = "Predicted memory against what others measured"
    return Report(title, (caption,), (Table("", header, tuple(cells), right=right),), tuple(notes))
