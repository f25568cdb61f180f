"""docs/trainers.md: its table is what the stored measurements say."""

from __future__ import annotations

import csv
from pathlib import Path

ROOT = Path(__file__).parents[2]
MARKS = "<!-- fixtures/measured/trainers.csv -->\n", "<!-- end -->\n"
GOAL = 0.5
"""Percent of the measured peak."""


def rows() -> list[dict[str, str]]:
    with (ROOT / "fixtures" / "measured" / "trainers.csv").open() as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def off(row: dict[str, str]) -> float:
    """Percent that the prediction lies above what was measured."""
    return 100 * (int(row["predicted_bytes"]) / int(row["measured_bytes"]) - 1)


def table() -> str:
    """The rows as Markdown: MiB, and the difference in percent."""
    lines = [
        "| loop | precision | checkpointed | batch | measured, MiB | predicted, MiB | difference |",
        "| :--- | :--- | :--- | :--- | ---: | ---: | ---: |",
    ]
    for row in rows():
        measured, predicted = (int(row[f"{k}_bytes"]) / 2**20 for k in ("measured", "predicted"))
        what = " | ".join(row[k] for k in ("loop", "precision", "checkpointed", "batch"))
        lines.append(f"| {what} | {measured:.2f} | {predicted:.2f} | {off(row):+.3f} % |")
    worst = max(abs(off(row)) for row in rows())
    return "\n".join([*lines, "", f"The worst of the {len(rows())} is {worst:.3f} % off.", ""])


def test_the_page_has_the_table() -> None:
    text = (ROOT / "docs" / "trainers.md").read_text(encoding="utf-8")
    begin, end = (text.index(mark) for mark in MARKS)
    assert text[begin + len(MARKS[0]) : end] == table()


def test_every_row_is_within_the_goal() -> None:
    assert len(rows()) == 36
    assert max(abs(off(row)) for row in rows()) <= GOAL
