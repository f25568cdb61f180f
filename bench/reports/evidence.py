"""How good predictions are, as one table: of everything that is stored in `fixtures/measured/`.

Only stored files are read, and torch is not: what was measured, and what was predicted of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.files import FIXTURES, read_rows
from bench.predict.evidence import Agreement, agreement, agreement_of, load_kept, load_measured
from bench.training.options import PHASES

BEGIN, END = "<!-- evidence -->", "<!-- end of evidence -->"
TRAINERS = FIXTURES / "measured" / "trainers.csv"
CPU = FIXTURES / "measured" / "cpu.csv"
LIGER = FIXTURES / "measured" / "liger.csv"
GPU = FIXTURES / "measured" / "gpu.csv"
_HEADER = (
    "| measured | figure | cases | mean error | worst |",
    "| :--- | :--- | ---: | ---: | ---: |",
)
_T4 = "a Tesla T4, by others; nothing fitted"
_RIVAL = "the same, as fitcheck-llm 0.3.1 states it, which was fitted on these rows"
_GPU = "an NVIDIA H200: Phi-3-medium, OPT-350m, DistilBERT at full size in fp16, int8, nf4"
_TRAINERS = {
    "trainer": "`transformers.Trainer` on the CPU, by torch.profiler",
    "sft": "`trl.SFTTrainer` on the CPU, by torch.profiler",
}


@dataclass(frozen=True)
class Compared:
    """One step's peak, measured and predicted, in bytes; `kind` is the loop or the model."""

    kind: str
    measured_bytes: int
    predicted_bytes: int


def load_compared(path: Path) -> list[Compared]:
    """The rows of a table with `measured_bytes` and `predicted_bytes`, whose first column is the
    kind; lines that begin with `#` say where it is from. BenchError for what is wrong."""
    found = []
    for row in read_rows(path):
        try:
            measured, predicted = int(row["measured_bytes"]), int(row["predicted_bytes"])
        except KeyError as missing:
            raise BenchError(f"{path}: missing key {missing}") from None
        except (TypeError, ValueError):
            raise BenchError(f"{path}: {row}: a size is not a whole number of bytes") from None
        found.append(Compared(next(iter(row.values())), measured, predicted))
    return found


def evidence_table() -> str:
    """The table in Markdown, without marks."""
    return "\n".join((*_HEADER, *_t4(), *_stated(), *_gpu(), *_on_the_cpu()))


def evidence_section() -> str:
    """The table between its marks, as a page holds it."""
    return f"{BEGIN}\n{evidence_table()}\n{END}"


def _t4() -> Iterator[str]:
    kept = load_kept()
    rows = [row for row in load_measured() if row.id in kept]
    yield _line(_T4, "peak allocated", agreement("peak_allocated_bytes", rows, kept))
    phases = [kept[row.id][p] / row.bytes_of(p) - 1 for row in rows for p in PHASES]
    yield _line(_T4, "peak of forward, backward, optimizer", agreement_of(phases))
    name = "peak_reserved_bytes"
    found = agreement(name, rows, kept)
    row = max(rows, key=lambda row: abs(kept[row.id][name] / row.bytes_of(name) - 1))
    what = f"{row.model.rpartition('/')[2]}, {'nf4' if row.quantized else 'fp16'}, {row.attention}"
    step = f"{row.batch_size} × {row.seq_len}"
    yield _line(_T4, f"peak reserved (worst: {what}, {step})", found)


def _stated() -> Iterator[str]:
    yield f"| {_RIVAL} | peak allocated | 49 | 0.7 % | 4.6 % |"
    yield f"| {_RIVAL} | the whole process | 49 | 2.4 % | 13.9 % |"


def _gpu() -> Iterator[str]:
    rows = load_compared(GPU)
    for figure in dict.fromkeys(row.kind for row in rows):
        yield _line(_GPU, figure, _agreement(row for row in rows if row.kind == figure))


def _on_the_cpu() -> Iterator[str]:
    trainers = load_compared(TRAINERS)
    for loop, words in _TRAINERS.items():
        yield _line(words, "peak", _agreement(row for row in trainers if row.kind == loop))
    words = "Liger's own kernels on the CPU, by Triton's interpreter and torch.profiler"
    yield _line(words, "peak", _agreement(load_compared(LIGER)))
    words = "this project's own step on the CPU, by torch.profiler"
    yield _line(words, "peak", _agreement(load_compared(CPU)))


def _agreement(rows: Iterable[Compared]) -> Agreement:
    return agreement_of(row.predicted_bytes / row.measured_bytes - 1 for row in rows)


def _line(measured: str, figure: str, found: Agreement) -> str:
    mean, worst = _percent(found.mean), _percent(found.worst, "+")
    return f"| {measured} | {figure} | {found.rows} | {mean} | {worst} |"


def _percent(share: float, sign: str = "") -> str:
    """Three digits after the point where two would say nothing."""
    digits = 2 if abs(share) >= 1e-4 else 4
    return f"{100 * share:{sign}.{digits}f} %"
