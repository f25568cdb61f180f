"""How long the atlas takes: to rebuild, and to answer from module tables against one injection a
case, both in one run. Some minutes.

`pytest suites/test_atlas_speed.py -m slow` prints the figures. All times are the processor's, so
that other work on the machine does not count.
"""

from __future__ import annotations

from contextlib import suppress
from time import process_time
from zlib import crc32

import pytest
from atlas_types import INSTALLED, needs_atlas, stored_atlas

from bench.adapters import ALL_LINEAR, AdapterConfig
from bench.atlas import find_atlas, load_atlas
from bench.atlas.build import build_atlas, build_model
from bench.atlas.reach import SEVEN
from bench.errors import BenchError

pytestmark = needs_atlas

RANKS = (4, 8, 16, 32, 64, 128)
SCENARIOS = (
    ("q_proj",), ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("gate_proj", "up_proj", "down_proj"), SEVEN, ("query", "value"), ("query_key_value",),
    ("c_attn", "c_proj"), ("fc1", "fc2"), ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    r".*\.(q|v)_proj", ALL_LINEAR,
)  # fmt: skip
INJECTED = 60


@pytest.mark.slow
def test_tables_answer_fifty_times_faster_than_injection(record_property, capsys) -> None:
    """Every type × 12 scenarios × 6 ranks from tables, all of them, with loading the atlas; and
    one `get_peft_model` a case, timed on a sample of the same cases. Building the model that is
    injected does not count, though each injection needs a new one."""
    cases, by_tables = _time_tables()
    a_case, building = _time_injection()
    figures = {
        "cases": cases,
        "tables_seconds": by_tables,
        "injection_seconds": a_case * cases,
        "building_seconds": building * cases,
        "times_faster": a_case * cases / by_tables,
    }
    for name, value in figures.items():
        record_property(name, value)
    with capsys.disabled():
        print(
            f"\n{cases:,} cases, seconds of the processor: {by_tables:.1f} from tables; "
            f"{a_case * cases:,.0f} by get_peft_model (from {INJECTED} cases), besides "
            f"{building * cases:,.0f} to build the models: "
            f"{figures['times_faster']:.0f} times faster"
        )
    assert figures["times_faster"] >= 50


@pytest.mark.slow
def test_rebuild_of_the_whole_atlas(record_property, capsys) -> None:
    """Every type, with two processes: under two minutes on two cores, under 3 GiB, and the same
    atlas again."""
    from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

    before = getrusage(RUSAGE_CHILDREN)
    built = build_atlas(jobs=2)
    after = getrusage(RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # Linux counts the largest resident set of a process in KiB.
    resident = (getrusage(RUSAGE_SELF).ru_maxrss + 2 * after.ru_maxrss) * 1024
    record_property("rebuild_seconds", seconds)
    record_property("rebuild_resident_bytes", resident)
    with capsys.disabled():
        print(
            f"\nrebuild of {built.known} model types: {seconds:.0f} seconds of the processor, at "
            f"most {resident / 2**30:.2f} GiB resident"
        )
    assert built.types == stored_atlas().types
    assert seconds < 2 * 120
    assert resident < 3 * 2**30


def _time_tables() -> tuple[int, float]:
    """The number of cases, and the seconds that all of them take."""
    from bench.formulas import lora_parameters
    from bench.targets import match

    started = process_time()
    cases = 0
    for model_type, entry in load_atlas(find_atlas(INSTALLED)).types.items():
        table = entry.table(model_type)
        for targets in SCENARIOS:
            for r in RANKS:
                ledger = match(table, AdapterConfig(targets, r=r))
                if not ledger.refusals:
                    lora_parameters(ledger)
                cases += 1
    return cases, process_time() - started


def _time_injection() -> tuple[float, float]:
    """Seconds a case: for the injection with counting its parameters, and for the model."""
    from bench.counting import count, inject

    drawn = sorted(stored_atlas().types, key=lambda t: crc32(t.encode()))[:INJECTED]
    inject(build_model("bert")[0], AdapterConfig(("query",)))  # imports
    injection = building = 0.0
    for number, model_type in enumerate(drawn):
        started = process_time()
        model = build_model(model_type)[0]
        built = process_time()
        adapter = AdapterConfig(SCENARIOS[number % len(SCENARIOS)], r=RANKS[number % len(RANKS)])
        with suppress(BenchError):  # PEFT refuses it, which is an answer too
            count(inject(model, adapter))
        building += built - started
        injection += process_time() - built
    return injection / INJECTED, building / INJECTED
