"""Stored runs made by hand for the tests of reports, and their tables read back."""

from __future__ import annotations

import re
from typing import Any

from test_baselines import MIB, sample

from bench.baselines import KEY, StoredRun, parse_run, seal

GPU = {
    "name": "NVIDIA H200",
    "count": 1,
    "memory_bytes": 140 * 1024**3,
    "driver": "570.1",
    "cuda": "12.8",
}


def case(model: str, precision: str | None, **record: Any) -> dict[str, Any]:
    detail = {"batch_size": 2, "seq_len": 64} if precision else {}
    return {
        "suite": "steps" if precision else "parameters",
        "model": model,
        "scenario": "query",
        "rank": 8,
        "precision": precision,
        "outcome": "ok",
        "metrics": {},
        "detail": detail,
    } | record


def run_of(*cases: dict[str, Any], name: str = "mine", **machine: Any) -> StoredRun:
    document = sample(
        name, records={f"suites/test_x.py::test[{i}]": c for i, c in enumerate(cases)}
    )
    document[KEY]["machine"] |= machine
    return parse_run(seal(document), name)


def cells(text: str) -> list[list[str]]:
    """The cells of every Markdown table row."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def many() -> StoredRun:
    names = ("fp32", "bf16", "fp16", "int8", "nf4")
    metrics = {
        "adapted_layers": 120,
        "trainable_parameters": 12_582_912,
        "total_parameters": 343_779_328,
        "peak_allocated_bytes": 12345 * MIB,
        "peak_rss_bytes": 23456 * MIB,
        "step_seconds": [1.2, 1.3, 1.25, 1.21, 1.33],
    }
    return run_of(
        *(
            case("phi-3-medium-128k", name, scenario=scenario, metrics=metrics)
            for scenario in ("query", "attention-with-output", "everything-and-the-head")
            for name in names
        ),
        case("phi-3-medium-128k", "fp32", scenario="x", outcome="oom"),
    )
