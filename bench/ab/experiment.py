"""How often the comparison is right: `bench ab --experiment N`, stored in results/.

Two workers of one environment are compared many times over: with themselves (A/A), with one whose
steps take 10 % longer, and with one whose steps take 3 % longer.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from bench.ab.launches import LAUNCHES, ROUNDS, WIDTH, PairedRounds, TakeStep, take_rounds
from bench.baselines import Record, StoredRun, Thresholds, Verdict, compare
from bench.files import OWN_RESULTS, write_atomically
from bench.measure import Session, StepTime
from bench.training.cases import Case, StepOptions
from bench.training.machine import machine, versions

SLOWDOWNS = (0, 10, 3)
"""Percent, taken in turn, so that a noisy hour falls on all three."""

TARGETS = {0: 49 / 50, 10: 48 / 50, 3: 48 / 50}
"""The share of comparisons that must come out right: A/A unchanged in every time metric, 10 %
called regressed in its step time, 3 % not called regressed at the threshold of 5 %."""

STEP = "step_seconds"
CASE = Case(
    model="small",
    config={
        "model_type": "distilbert", "dim": 64, "hidden_dim": 256, "n_layers": 2, "n_heads": 4,
        "vocab_size": 500, "num_labels": 3,
    },
    auto_class="AutoModelForSequenceClassification",
    scenario="same",
    adapter={"r": 8, "lora_alpha": 8, "target_modules": ["q_lin", "v_lin"], "task_type": "SEQ_CLS"},
    precision="fp32",
    step=StepOptions(batch_size=2, seq_len=32),
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One comparison: its injected slowdown (percent), verdict by time metric, and how sure."""

    slowdown: int
    verdicts: dict[str, str]
    ratio: float
    interval: tuple[float, float]
    launches: int
    seconds: float
    load: float

    @property
    def right(self) -> bool:
        """Whether it says of this slowdown what it should."""
        if self.slowdown == 0:
            return set(self.verdicts.values()) == {"unchanged"}
        return (self.verdicts[STEP] == "regressed") == (self.slowdown == 10)


def compare_once(
    session: Session, slowdown: int, rounds: int = ROUNDS, launches: tuple[int, int] = LAUNCHES
) -> Comparison:
    """Measure the case beside itself, the contender's steps `slowdown` percent longer."""
    begun = time.monotonic()
    other = CASE if slowdown == 0 else replace(CASE, scenario=f"slower-{slowdown}")
    with ExitStack() as workers:

        def launch() -> tuple[TakeStep, TakeStep]:
            workers.close()
            first, second = (workers.enter_context(session.start(c)) for c in (CASE, other))
            first.prepare()
            second.prepare()
            return first.step, second.step

        taken = take_rounds(launch, rounds, launches)
    verdicts = {each.metric: each for each in _verdicts(taken)}
    step = verdicts[STEP]
    assert step.ratio is not None
    assert step.interval is not None
    low, high = step.interval
    return Comparison(
        slowdown,
        {name: each.verdict for name, each in verdicts.items()},
        round(step.ratio, 4),
        (round(low, 4), round(high, 4)),
        taken.launches,
        round(time.monotonic() - begun, 1),
        round(os.getloadavg()[0], 1),
    )


def _verdicts(taken: PairedRounds) -> list[Verdict]:
    token = {"interleaved": uuid4().hex, "launches": taken.launches}

    def run(name: str, steps: Sequence[StepTime]) -> StoredRun:
        metrics: dict[str, Any] = {
            f"{phase}_seconds": tuple(getattr(step, f"{key}_seconds") for step in steps)
            for phase, key in (
                ("step", "total"), ("forward", "forward"), ("backward", "backward"),
                ("optimizer", "optimizer"),
            )
        }  # fmt: skip
        record = Record(CASE.id, "ab", CASE.model, "same", 8, "fp32", "ok", metrics, token)
        return StoredRun(name, versions(), machine(), {CASE.id: record})

    pair = run("baseline", taken.baseline), run("contender", taken.contender)
    return compare(*pair, Thresholds())


def tally(found: Sequence[Comparison]) -> dict[str, Any]:
    """How many came out right, by slowdown, and whether that meets the target."""
    summary = {}
    for slowdown in dict.fromkeys(each.slowdown for each in found):
        mine = [each for each in found if each.slowdown == slowdown]
        right = sum(each.right for each in mine)
        step = Counter(each.verdicts[STEP] for each in mine)
        summary[f"{slowdown} %"] = {
            "comparisons": len(mine),
            "right": right,
            "target": TARGETS[slowdown],
            "met": right >= TARGETS[slowdown] * len(mine),
            "step_verdicts": dict(sorted(step.items())),
            "any_time_verdict": sum(set(each.verdicts.values()) != {"unchanged"} for each in mine),
            "smallest_ratio": min(each.ratio for each in mine),
            "largest_ratio": max(each.ratio for each in mine),
            "launches": [min(each.launches for each in mine), max(each.launches for each in mine)],
            "loads": [min(each.load for each in mine), max(each.load for each in mine)],
        }
    return summary


def experiment_file(folder: Path | None) -> Path:
    """Where the comparisons of this machine are stored; in results/experiments if not told."""
    return (folder or OWN_RESULTS / "experiments") / f"side-by-side-{machine().id}.json"


def run_experiment(comparisons: int, path: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """So many comparisons of each kind, the slowdowns in turn; stored in `path` after each turn.
    The summary."""
    found: list[Comparison] = []
    with Session(device="cpu", preload=("bench.ab.slower",), clock="processor") as session:
        for number in range(comparisons):
            for slowdown in SLOWDOWNS:
                each = compare_once(session, slowdown)
                found.append(each)
                say(
                    f"{number + 1}/{comparisons} {slowdown} %: {each.verdicts[STEP]}, "
                    f"{each.interval[0]} to {each.interval[1]}, {each.launches} launches, "
                    f"{each.seconds} s, load {each.load}" + ("" if each.right else "  WRONG")
                )
            write_atomically(path, _document(found))
    return tally(found)


def _document(found: Sequence[Comparison]) -> str:
    """The JSON to store, one comparison a line."""
    head = {
        "about": "interleaved comparisons of one case with itself and with injected slowdowns",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine().to_dict(),
        "versions": versions(),
        "case": CASE.id,
        "settings": {
            "clock": "processor", "rounds": ROUNDS, "launches": LAUNCHES, "width": WIDTH,
        },
        "summary": tally(found),
    }  # fmt: skip
    rows = ",\n".join(f"  {json.dumps(asdict(each))}" for each in found)
    return f'{json.dumps(head, indent=1)[:-2]},\n "comparisons": [\n{rows}\n ]\n}}\n'
