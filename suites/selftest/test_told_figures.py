"""Figures that a sentence tells are those of the stored runs that it speaks of."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median

import pytest
from documents import script

from bench.baselines import load_stored
from bench.baselines.runs import Record
from bench.training.parallel import COMPARED

ROOT = Path(__file__).parents[2]
H200 = "linux-x86_64-nvidia-h200-16cores"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
         "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen")  # fmt: skip

pytestmark = pytest.mark.skipif(
    not (ROOT / "docs").is_dir(), reason="an installation has no documents"
)


def told(path: str, pattern: str) -> tuple[str, ...]:
    """What the groups of a pattern are in a document, read as one line."""
    text = " ".join((ROOT / path).read_text(encoding="utf-8").split())
    (found,) = re.findall(pattern, text)
    return found if isinstance(found, tuple) else (found,)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """Every measured record of the H200's three runs."""
    found = (load_stored(str(ROOT / "results"), f"{H200}/{number:04}") for number in (1, 2, 3))
    return [each for run in found for each in run.records.values() if "flops" in each.metrics]


def test_the_context_of_the_h200(records: list[Record]) -> None:
    """What the process holds there beside what its allocator has reserved, in GiB."""
    by_kind = defaultdict(set)
    for record in records:
        beside = int(record.metrics["process_bytes"]) - int(record.metrics["peak_reserved_bytes"])
        by_kind[record.precision == "int8"].add(f"{beside / 2**30:.2f}")
    (most,), (int8,) = by_kind[False], by_kind[True]
    pattern = r"On the H200 it was ([\d.]+) GiB, in int8 ([\d.]+) GiB"
    assert told("docs/prediction.md", pattern) == (most, int8)


def test_the_h200s_times(records: list[Record]) -> None:
    def step(record: Record) -> float:
        seconds = record.metrics["step_seconds"]
        assert isinstance(seconds, tuple)
        return 1000 * median(seconds)

    by_kind = defaultdict(list)
    for record in records:
        by_kind[record.model, record.precision].append(record)
    ranges = []
    for precision in ("fp16", "nf4", "int8"):
        times = [step(r) for r in by_kind["phi-3-medium", precision] if r.scenario != "published-6"]
        ranges += [f"{min(times):.0f}", f"{max(times):.0f}"]
    pattern = r"takes (\d+) to (\d+) ms in fp16, (\d+) to (\d+) in nf4, (\d+) to (\d+) in int8"
    assert list(told("results/README.md", pattern)) == ranges
    unstable = []
    for model in ("opt-350m", "distilbert-base-uncased"):
        mine = [r for r in records if r.model == model]
        unstable += [str(sum("unstable" in r.detail for r in mine)), str(len(mine))]
    pattern = r"the times of (\d+) of the (\d+) OPT cases and of (\d+) of the (\d+) DistilBERT"
    assert list(told("results/README.md", pattern)) == unstable


def test_the_t4s_steps_on_the_h200() -> None:
    lines = (ROOT / "results" / H200 / "t4-steps.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]

    def off(step: dict[str, dict[str, int]], figure: str) -> float:
        return 100 * (step["predicted"][figure] / step["measured"][figure] - 1)

    allocated = [off(step, "peak_allocated_bytes") for step in steps]
    reserved = [abs(off(step, "peak_reserved_bytes")) for step in steps]
    exact, low = allocated.count(0), [each for each in allocated if each < 0]
    assert len(steps) == exact + len(low)
    pattern = (
        r"(\w+) of the steps that somebody measured on a T4 .*?\. (\w+) are exact to the byte in "
        r"the peak allocated, (\w+) ([\d.]+) % low; reserved within ([\d.]+) %, "
        r"([\d.]+) % on average"
    )
    assert told("results/README.md", pattern) == (
        WORDS[len(steps)], WORDS[exact].capitalize(), WORDS[len(low)], f"{-min(low):.2f}",
        f"{max(reserved):.1f}", f"{fmean(reserved):.1f}",
    )  # fmt: skip


@pytest.mark.parametrize("path", ["docs/prediction.md", "docs/design/sharded.md"])
def test_how_many_kinds_of_models_were_stepped_on_several_ranks(path: str) -> None:
    assert told(path, r"(\w+) kinds of models") == (WORDS[len(COMPARED)],)


def test_what_commands_take() -> None:
    page = script("_durations")
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.written(text), "out of date: python docs/_durations.py"
