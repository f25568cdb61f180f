"""Answers for the whole atlas from module tables, against one injection a case, side by side.

pytest suites/test_atlas_speed.py -m slow -s
"""

from __future__ import annotations

import time
from zlib import crc32

import pytest
from atlas_types import INSTALLED, needs_atlas, stored_atlas

from bench.adapters import ALL_LINEAR, AdapterConfig
from bench.atlas import find_atlas, load_atlas
from bench.atlas.reach import SCENARIOS, peft_names

pytestmark = needs_atlas

RANKS = (4, 8, 16, 32, 64, 128)
TWELVE = (
    ("q_proj",), ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("gate_proj", "up_proj", "down_proj"), SCENARIOS["seven-names"].target_modules,
    ("query", "value"), ("query_key_value",), ("c_attn", "c_proj"), ("fc1", "fc2"),
    ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), r".*\.(q|v)_proj", ALL_LINEAR,
)  # fmt: skip


@pytest.mark.slow
def test_tables_answer_fifty_times_faster_than_injection(record_property, capsys) -> None:
    """The whole atlas × 12 scenarios × 6 ranks from tables, all of it, with loading the atlas;
    against one `get_peft_model` a case, which is timed on a sample and multiplied up."""
    from bench.formulas import lora_parameters
    from bench.targets import match

    started = time.perf_counter()
    cases = 0
    for model_type, entry in load_atlas(find_atlas(INSTALLED)).types.items():
        table = entry.table(model_type)
        for targets in TWELVE:
            for r in RANKS:
                ledger = match(table, AdapterConfig(targets, r=r))
                if not ledger.refusals:
                    lora_parameters(ledger)
                cases += 1
    by_tables = time.perf_counter() - started
    drawn = sorted(stored_atlas().types, key=lambda t: crc32(t.encode()))[:30]
    started = time.perf_counter()
    for number, model_type in enumerate(drawn):
        peft_names(model_type, AdapterConfig(TWELVE[number % len(TWELVE)]))
    by_injection = (time.perf_counter() - started) / len(drawn) * cases
    with capsys.disabled():
        print(
            f"\n{cases:,} cases: {by_tables:.0f} s from tables; {by_injection:,.0f} s by injection "
            f"(from {len(drawn)} timed cases); {by_injection / by_tables:.0f} times faster"
        )
    record_property("times_faster", by_injection / by_tables)
    assert by_injection >= 50 * by_tables
