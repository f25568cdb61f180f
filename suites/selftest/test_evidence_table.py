"""README.md's table of evidence is what the stored measurements and predictions say."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli import main
from bench.errors import BenchError
from bench.predict.evidence import interval, load_kept, load_measured
from bench.reports.evidence import (
    BEGIN,
    CPU,
    END,
    GPU,
    TRAINERS,
    evidence_section,
    evidence_table,
    load_compared,
    refreshed,
)

ROOT = Path(__file__).parents[2]


def test_the_readme_has_the_table() -> None:
    """`bench published --evidence README.md` brings it up to date."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if not text.partition(BEGIN)[2].partition(END)[0].strip():
        pytest.skip("README.md has no table of evidence: bench published --evidence README.md")
    assert refreshed(text, evidence_section()) == text


def _row(begin: str) -> list[str]:
    (line,) = (line for line in evidence_table().splitlines() if line.startswith(f"| {begin}"))
    return [cell.strip() for cell in line.strip("|").split("|")][2:]


def _percents(cells: list[str]) -> list[float]:
    return [float(cell.removesuffix(" %")) for cell in cells]


def test_rows_are_what_the_files_say() -> None:
    """By hand from the files: the mean of the sizes of the errors, and the largest."""
    rows, kept = load_measured(), load_kept()
    count, *shares = _row("a Tesla T4, by others; nothing fitted | peak allocated |")
    off = [
        100 * (kept[row.id]["peak_allocated_bytes"] / row.peak_allocated_bytes - 1) for row in rows
    ]
    assert int(count) == len(rows) == 49
    assert _percents(shares) == pytest.approx(
        [sum(map(abs, off)) / 49, max(off, key=abs)], abs=0.005
    )
    for path, begin, loops in (
        (TRAINERS, "`trl.SFTTrainer`", ("sft",)),
        (TRAINERS, "`transformers.Trainer`", ("trainer",)),
        (CPU, "this project's own step", None),
    ):
        with path.open(encoding="utf-8") as lines:
            found = [
                100 * (int(row["predicted_bytes"]) / int(row["measured_bytes"]) - 1)
                for row in csv.DictReader(line for line in lines if not line.startswith("#"))
                if loops is None or row["loop"] in loops
            ]
        count, *shares = _row(begin)
        assert int(count) == len(found) >= 18
        assert _percents(shares) == pytest.approx(
            [sum(map(abs, found)) / len(found), max(found, key=abs)], abs=0.005
        )


def test_the_rivals_figures_stand_in_the_same_table() -> None:
    assert _row("the same, as fitcheck-llm 0.3.1 states it, which was fitted on these rows | peak "
                "allocated") == ["49", "0.7 %", "4.6 %"]  # fmt: skip


def test_a_page_is_brought_up_to_date_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    assert main(["published", "--evidence", str(page)]) == 0
    assert (
        page.read_text(encoding="utf-8") == f"before\n{BEGIN}\n{evidence_table()}\n{END}\nafter\n"
    )


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}"])
def test_a_page_without_marks_is_left_as_it_is(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    assert main(["published", "--evidence", str(page)]) == 2
    assert "are not there" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == text


def test_wrong_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    with pytest.raises(BenchError, match="no such file"):
        load_compared(file)
    file.write_text("case,measured_bytes,predicted_bytes\na,1,b\n", encoding="utf-8")
    with pytest.raises(BenchError, match="whole number"):
        load_compared(file)


def test_torch_is_not_needed() -> None:
    code = "import sys; from bench.reports.evidence import evidence_table; evidence_table(); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("kind", ["fp16", "nf4"])
def test_the_own_steps_margin_holds_every_step_that_was_measured(kind: str) -> None:
    """By hand from the two tables: a T4's rows, and those of the H200 in that precision."""
    rows = csv.DictReader(line for line in GPU.read_text().splitlines() if not line.startswith("#"))
    own = [
        int(row["measured_bytes"]) / int(row["predicted_bytes"])
        for row in rows
        if (row["figure"], row["precision"]) == ("peak reserved", kind)
    ]
    kept = load_kept()
    others = [
        row.peak_reserved_bytes / kept[row.id]["peak_reserved_bytes"]
        for row in load_measured()
        if row.quantized == (kind == "nf4")
    ]
    assert len(own) == 13
    found = interval(kind, "plain")
    assert (found.low, found.high) == (min(1.0, *own, *others), max(1.0, *own, *others))
    assert f"the {'4-bit' if kind == 'nf4' else kind} steps measured on an H200 and" in found.why


def test_random_weights_say_nothing_of_trained_ones_in_int8() -> None:
    found = interval("int8", "plain")
    assert found.high == interval("bf16", "plain").high > 1.1
    assert "which have no outlier columns" in found.why
