"""What a total beside the number tells: with the adapter or without it, in 4 bits or not."""

from __future__ import annotations

from collections.abc import Sequence

from bench.explain.found import Found
from bench.models.modules import CONV1D, LINEAR, ModuleTable


def packed_total(table: ModuleTable) -> int:
    """The elements that a model in 4 bits stores: two of a linear layer's in one byte, the output
    embedding's not. What PEFT up to 0.10 printed as the total on such a model had the adapter's
    added."""
    halved = sum(
        m.weight_elements // 2
        for m in table.modules
        if m.kind in (LINEAR, CONV1D) and m.name != table.output_embedding
    )
    return table.total_parameters - halved


def remark(
    table: ModuleTable, trainable: int, total: int | None, exact: Sequence[Found], every: int
) -> str:
    """What is said of the total beside `exact`, which are what is left of `every` answers."""
    base, packed = table.total_parameters, packed_total(table)
    if total is None:
        return ""
    left_out = f"; with another total: {every - len(exact)}, left out" * (every > len(exact))
    if any(f.total == total for f in exact):
        return f"the total fits{left_out}"
    if any(f.total - base + packed == total for f in exact):
        return (
            f"the total fits a model in 4 bits, whose stored elements were counted: {packed:,} "
            f"(packed, two weights in one) and {total - packed:,}; unpacked it is "
            f"{exact[0].total:,}{left_out}"
        )
    if total == base:
        return f"the total {total:,} is the base model's: the adapter is not in it"
    if total == packed:
        return f"the total {total:,} is the base model's in 4 bits, packed: no adapter is in it"
    if exact:
        return (
            f"the total {total:,} does not fit: it would be {exact[0].total:,} "
            f"({total - exact[0].total:+,})"
        )
    return (
        f"total less trainable is {total - trainable:,}, the base model has {base:,} "
        f"({packed:,} stored elements in 4 bits)"
    )
