"""Figures as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.units import (
    counted,
    format_bytes,
    format_change,
    format_count,
    format_flops,
    format_percent,
    format_quantity,
    format_seconds,
    format_spread,
    one_line,
    significant,
)

PROPERTY = settings(max_examples=200, derandomize=True, deadline=None, database=None)
BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.000 KiB"),
        (1024**2 - 1, "1.000 MiB"),  # 1023.999 KiB would read 1,024 KiB
        (900 * 1024**2, "900.0 MiB"),
        (1536 * 1024**2, "1.500 GiB"),
        (140 * 1024**3, "140.0 GiB"),
    ],
)
def test_bytes(value: int, expected: str) -> None:
    assert format_bytes(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0 s"),
        (0.0025, "2.50 ms"),
        (0.9999, "1.00 s"),
        (12.34, "12.3 s"),
        (3.2e-7, "320 ns"),
        (1.5e-5, "15.0 µs"),
        (125.4, "125 s"),
    ],
)
def test_seconds(value: float, expected: str) -> None:
    assert format_seconds(value) == expected


def test_a_median_and_its_spread_share_a_unit() -> None:
    assert format_spread(0.812, 0.012) == "812 ± 12 ms"
    assert format_spread(1.234, 0.05) == "1.23 ± 0.05 s"
    assert format_spread(1.234, 0.004) == "1.234 ± 0.004 s"
    assert format_spread(1.234, 0.0) == "1.23 ± 0.00 s"


def test_shares_as_published() -> None:
    assert format_percent(100 * 98304 / 331294720) == "0.0297 %"
    assert format_percent(100 * 12582912 / 343779328) == "3.66 %"


def test_changes() -> None:
    assert format_change(1.102) == "+10.2 %"
    assert format_change(0.969) == "-3.1 %"
    assert format_change(1.00001) == format_change(0.99999) == "±0.0 %"
    assert format_change(math.inf) == "from zero"
    assert format_change(1_772_544) == "× 1,772,544"


def test_quantities_by_unit() -> None:
    assert format_quantity(786432, "count") == "786,432"
    assert format_quantity(786432, "operations") == "786,432"
    assert format_quantity(2048, "bytes") == "2.000 KiB"
    assert format_quantity(0.5, "seconds") == "500 ms"
    assert format_quantity(1.5e12, "flops") == format_flops(1.5e12) == "1.500 TFLOP"
    assert format_quantity("abc", "text") == "abc"
    assert format_count(1.25) == "1.250"


def test_one_line_is_safe_on_a_terminal() -> None:
    assert one_line("a\n b\t\x1b[31mc") == "a b ?[31mc"


@PROPERTY
@given(st.integers(0, 2**59))
def test_bytes_are_right_to_four_figures_and_below_1024(value: int) -> None:
    figure, unit = format_bytes(value).split()
    number = float(figure.replace(",", ""))
    assert number < 1024
    assert number * BYTES[unit] == pytest.approx(value, rel=6e-4)


@PROPERTY
@given(st.floats(1e-9, 1e6))
def test_significant_figures_lose_no_more_than_they_say(value: float) -> None:
    assert float(significant(value, 3).replace(",", "")) == pytest.approx(value, rel=5.1e-3)
    assert "e" not in significant(value, 3)


def test_one_case_is_no_cases() -> None:
    assert [counted(n, "case") for n in (0, 1, 2, 1127)] == [
        "0 cases", "1 case", "2 cases", "1,127 cases",
    ]  # fmt: skip
