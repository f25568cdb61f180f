"""Predictions against memory that others measured on GPUs, where enough is known of the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.reports.published import (
    FILE,
    Published,
    load_published,
    not_predicted,
    predict_published,
)
from bench.units import format_bytes

ROWS = [row for row in load_published() if row.within is not None]
QUICK = ("litgpt-phi-1.5-bf16-b1", "litgpt-phi-1.5-nf4-dq-b1")


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.id, marks=[] if row.id in QUICK else pytest.mark.slow)
        for row in ROWS
    ],
)
def test_prediction_is_near_the_published_figure(row: Published) -> None:
    predicted = row.comparable(predict_published(row))
    assert predicted == pytest.approx(row.bytes, rel=row.within)


def test_what_is_held_against_is_what_was_measured() -> None:
    """Every row names its source, and only one length was fitted to a published figure."""
    rows = load_published()
    assert all(row.source and row.differs for row in rows)
    assert [row.id for row in rows if row.length == "fitted"] == ["metamathqa-r32"]
    assert len({row.id for row in rows}) == len(rows) >= 30
    assert len(ROWS) >= 20


def test_every_collected_row_is_predicted_or_says_why_not() -> None:
    reasons = not_predicted()
    assert len(reasons) + sum(row.id.startswith("m2-") for row in load_published()) == 88
    assert all(len(reason) > 10 for reason in reasons.values())


def test_the_page_has_every_row() -> None:
    """docs/prediction.md, from `bench published`: each row with its published figure, and the
    reason beside each that is more than 5 % off."""
    page = (Path(__file__).parents[2] / "docs" / "prediction.md").read_text(encoding="utf-8")
    for row in load_published():
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {row.id} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[4] == format_bytes(row.bytes)
        error = float(cells[6].removesuffix(" %"))
        assert row.within is None or abs(error) <= 100 * row.within
        assert f"\n{cells[7]}: {row.differs}\n" in page, row.id


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("GB", "stones"), "unit 'stones': one of B, GB, GiB"),
        (("published", "publisched"), "did you mean published?"),
        ((",bf16,", ",bf17,"), "unknown precision 'bf17'"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    file = tmp_path / "measurements.csv"
    file.write_text(FILE.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    with pytest.raises(BenchError, match=said.replace("?", r"\?")):
        load_published(file)
