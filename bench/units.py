"""Numbers for people: bytes, seconds, counts and shares, rounded but never misleading.

Data keeps raw bytes and seconds; a unit is chosen here, when a figure is about to be read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

MIB, GIB = 1 << 20, 1 << 30
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
SECOND_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
FLOP_UNITS = ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP")


def significant(value: float, digits: int = 3) -> str:
    """`value` to `digits` significant figures, trailing zeros kept, never in exponent form."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def _scaled(value: float, base: int, names: tuple[str, ...], digits: int) -> str:
    """`value` in the largest unit in which its rounded figure stays below `base`."""
    scaled, step = float(value), 0
    while step < len(names) - 1 and float(f"{abs(scaled):.{digits - 1}e}") >= base:
        scaled, step = scaled / base, step + 1
    figure = f"{scaled:,.0f}" if step == 0 else significant(scaled, digits)
    return f"{figure} {names[step]}"


def format_bytes(value: float) -> str:
    """Bytes in binary units, four significant figures: 1 % of a peak stays visible."""
    return _scaled(value, 1024, BYTE_UNITS, 4)


def format_flops(value: float) -> str:
    """Floating-point operations in decimal units, four significant figures."""
    return _scaled(value, 1000, FLOP_UNITS, 4)


def _second_unit(value: float) -> tuple[float, str]:
    for scale, name in SECOND_UNITS:
        if float(f"{abs(value) / scale:.2e}") >= 1:
            return scale, name
    return SECOND_UNITS[0] if value == 0 else SECOND_UNITS[-1]


def format_seconds(value: float) -> str:
    """Seconds as s, ms, µs or ns, three significant figures."""
    scale, name = _second_unit(value)
    return f"{significant(value / scale)} {name}"


def format_spread(median: float, spread: float) -> str:
    """A median and its spread (both in seconds) in one unit: `812 ± 12.0 ms`."""
    scale, name = _second_unit(median)
    decimals = len(significant(median / scale).partition(".")[2])
    if spread > 0:  # a small spread shows one figure of its own, within reason
        decimals = max(decimals, min(-math.floor(math.log10(spread / scale)), decimals + 2))
    return f"{median / scale:,.{decimals}f} ± {spread / scale:,.{decimals}f} {name}"


def format_count(value: float) -> str:
    """A whole number with thousands separated; a fraction keeps four figures."""
    return f"{value:,.0f}" if float(value).is_integer() else significant(value, 4)


def first_of(names: Sequence[str], most: int = 3) -> str:
    """The first of them between commas, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(number: int, noun: str) -> str:
    """`1 case`, `1,127 cases`: a number and what it counts (a noun whose plural ends in s)."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_percent(value: float) -> str:
    """A percentage (already times 100), three significant figures: `0.237 %`."""
    return f"{significant(value)} %"


def format_change(ratio: float) -> str:
    """What a ratio (new / old) means as a change: `+10.2 %`, `-3.1 %`, `× 120`, `from zero`."""
    if math.isinf(ratio):
        return "from zero"
    if ratio >= _TIMES:
        return f"× {ratio:,.0f}"
    change = f"{(ratio - 1) * 100:+.1f}"
    return "±0.0 %" if change in ("+0.0", "-0.0") else f"{change} %"


_TIMES = 100
"""From here on a percentage is harder to read than how many times as much it is."""


def format_quantity(value: float | str, unit: str) -> str:
    """`value` of a metric whose unit is count, operations, bytes, seconds, flops, nats or text."""
    if isinstance(value, str):
        return value
    if unit == "bytes":
        return format_bytes(value)
    if unit == "seconds":
        return format_seconds(value)
    if unit == "flops":
        return format_flops(value)
    if unit == "nats":
        return f"{value:.4f}"
    return format_count(value)


def one_line(text: object) -> str:
    """Any text on one line, without control characters: safe in a table and on a terminal."""
    joined = " ".join(str(text).split())
    return "".join(character if character.isprintable() else "?" for character in joined)


def harmless(text: str) -> str:
    """Text of several lines with every control character spelled out: what a terminal would obey
    (a name from somebody else's file may hold it) it shows instead."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def harmless_line(text: str) -> str:
    """The same on one line: a line break is spelled out too."""
    return harmless(text).replace("\n", "\\n").replace("\t", "\\t")


def text_of(lines: Iterable[str]) -> str:
    """Lines as one text. A line break within one is spelled out: it came with a name from somebody
    else's file, which would begin a line of its own, and say there what it likes."""
    return "\n".join(line.replace("\n", "\\n") for line in lines)


def reading_text(done: int, of: int) -> str:
    """How many bytes of a model's weights are read, for a line of progress; "" once all are."""
    return f"reading the weights: {format_bytes(done)} of {format_bytes(of)}" if done < of else ""
