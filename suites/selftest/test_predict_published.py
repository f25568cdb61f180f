"""Predictions against memory that others measured on GPUs, where enough is known of the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from matrices import matrix

from bench.errors import BenchError
from bench.predict import evidence
from bench.reports.evidence import goals_section, refreshed
from bench.reports.published import (
    FILE,
    PublishedFigure,
    load_predicted,
    load_published,
    not_predicted,
    predict_published,
    published_section,
)
from bench.units import format_bytes

ROWS = [row for row in load_published() if row.within is not None]
QUICK = (*(row.id for row in ROWS if row.code), "metamathqa-r32")


@pytest.mark.parametrize(
    "row",
    matrix(
        (
            pytest.param(row, id=row.id, marks=[] if row.id in QUICK else pytest.mark.slow)
            for row in ROWS
        ),
        by=lambda row: {row.code, row.case.config.get("model_type"), row.case.precision},
    ),
)
def test_prediction_is_near_the_published_figure(row: PublishedFigure) -> None:
    predicted = predict_published(row)
    assert predicted == pytest.approx(row.bytes, rel=row.within)
    assert predicted == pytest.approx(load_predicted()[row.id], rel=1e-3)  # what the page shows


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


def test_the_page_is_what_the_data_say() -> None:
    """docs/prediction.md: `bench published --page` brings it up to date from what is kept."""
    page = (Path(__file__).parents[2] / "docs" / "prediction.md").read_text(encoding="utf-8")
    assert refreshed(page, published_section()) == page
    assert refreshed(page, goals_section()) == page
    kept = load_predicted()
    for row in load_published():
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {row.id} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[4:6] == [format_bytes(row.bytes), format_bytes(kept[row.id])]
        error = float(cells[6].removesuffix(" %"))
        assert row.within is None or abs(error) <= 100 * row.within
        assert row.differs.split(";")[0] in page, row.id


def test_goals_are_counted_from_what_is_stored() -> None:
    """By hand: the largest error of the peak allocated, and how many published rows are near."""
    table = {line.split(" | ")[0].strip("| "): line for line in goals_section().splitlines()}
    kept, rows = evidence.load_kept(), evidence.load_measured()
    name = "peak_allocated_bytes"
    worst = max((kept[row.id][name] / row.bytes_of(name) - 1 for row in rows), key=abs)
    assert f"{100 * worst:+.2f} %" in table["Tesla T4, peak allocated"]
    assert table["Tesla T4, peak allocated"].endswith("| no |")
    far = sum(abs(load_predicted()[row.id] / row.bytes - 1) > 0.05 for row in load_published())
    assert f"{far} are farther off" in table["published figures of others"]
    assert "4.6 %" in table["Tesla T4, peak allocated"]


@pytest.mark.parametrize("said", ["{", '{"versions": {}, "rows": {"m2-1": 1}}', "[]"])
def test_kept_predictions_that_are_not(tmp_path: Path, said: str) -> None:
    file = tmp_path / "predicted.json"
    file.write_text(said, encoding="utf-8")
    with pytest.raises(BenchError, match=r"predicted\.json"):
        load_predicted(file)


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
