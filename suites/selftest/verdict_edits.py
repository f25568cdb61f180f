"""Edits of the sample run, and the verdicts between it and its edited copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from test_baselines import run_with

from bench.baselines import (
    Verdict,
    compare,
)

Edit = Callable[[dict[str, Any]], None]


BASE = run_with(name="base")


def metric(record: str, name: str, value: Any) -> Edit:
    def edit(body: dict[str, Any]) -> None:
        body["records"][record]["metrics"][name] = value

    return edit


def both(*edits: Edit) -> Edit:
    def edit(body: dict[str, Any]) -> None:
        for each in edits:
            each(body)

    return edit


def outcome(record: str, word: str) -> Edit:
    def edit(body: dict[str, Any]) -> None:
        body["records"][record]["outcome"] = word
        if word != "ok":
            body["records"][record]["metrics"].pop("step_seconds", None)

    return edit


def peft(version: str) -> Edit:
    return lambda body: body["versions"].update(peft=version)


def found(edit: Edit, base: Edit | None = None, **options: Any) -> list[Verdict]:
    """The verdicts other than unchanged between the sample (after `base`) and its edited copy."""
    baseline = run_with(base, "base") if base else BASE
    verdicts = compare(baseline, run_with(edit), **options)
    return [item for item in verdicts if item.verdict != "unchanged"]


def only(edit: Edit, base: Edit | None = None, **options: Any) -> Verdict:
    (verdict,) = found(edit, base, **options)
    return verdict
