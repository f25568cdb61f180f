"""How long things take, and how much memory: a benchmark that prints its figures. Some minutes.

`pytest suites/selftest/test_speed.py -m slow`. Not in the default run, which no busy machine
should fail. Processor time wherever that says enough, so that other work does not count.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import process_time
from typing import Any
from zlib import crc32

import pytest
from atlas_types import INSTALLED, needs_atlas, stored_atlas
from measure_support import shared_session, tiny_case

from bench.adapters.config import ALL_LINEAR, AdapterConfig
from bench.atlas import find_atlas, load_atlas
from bench.atlas.build import build_atlas, build_model
from bench.errors import BenchError
from bench.explain import explain
from bench.formulas import lora_parameters
from bench.measure.reach import SEVEN
from bench.models.architectures import load_model
from bench.targets import match

pytestmark = pytest.mark.slow

RANKS = (4, 8, 16, 32, 64, 128)
SCENARIOS = (
    ("q_proj",), ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("gate_proj", "up_proj", "down_proj"), SEVEN, ("query", "value"), ("query_key_value",),
    ("c_attn", "c_proj"), ("fc1", "fc2"), ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    r".*\.(q|v)_proj", ALL_LINEAR,
)  # fmt: skip
INJECTED = 60
ROOT = Path(__file__).resolve().parents[2]

Told = Callable[..., None]


@pytest.fixture
def told(record_property: Any, capsys: pytest.CaptureFixture[str]) -> Told:
    """Prints figures by name, and writes them into the report."""

    def tell(**figures: float) -> None:
        for name, value in figures.items():
            record_property(name, value)
        with capsys.disabled():
            print("\n" + ", ".join(f"{name} {value:,.5g}" for name, value in figures.items()))

    return tell


def run(*arguments: str) -> tuple[float, float]:
    """Wall seconds and largest resident GiB of a new interpreter."""
    code = (
        "import os, resource, subprocess, sys, time\n"
        "begun = time.perf_counter()\n"
        "subprocess.run([sys.executable, *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)\n"
        "seconds = time.perf_counter() - begun\n"
        "print(seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, gib = done.stdout.split()
    return float(seconds), float(gib)


def test_collecting(told: Told) -> None:
    """Without importing torch: under five seconds."""
    seconds, _ = run("-m", "pytest", "suites", "--collect-only", "-q")
    told(collecting_seconds=seconds)
    assert seconds < 5


def test_counts_and_parameters(told: Told) -> None:
    """Both suites on two cores: under 60 seconds and 3 GiB."""
    suites = ("suites/test_counts.py", "suites/test_parameters.py")
    seconds, gib = run("-m", "pytest", *suites, "-q", "-n", "2", "-p", "no:cacheprovider")
    told(suites_seconds=seconds, suites_gib_of_one_process=gib)
    assert seconds < 60
    assert 2 * gib < 3


def test_the_ledger_of_an_8b_model(told: Told) -> None:
    """The command with its imports under 6 seconds and 1.5 GiB; a further scenario under 0.1 s."""
    seconds, gib = run("-m", "bench", "targets", "llama-3-8b", "--target-modules", "q_proj,v_proj")
    table = load_model("llama-3-8b").table
    begun = process_time()
    for targets in SCENARIOS:
        match(table, AdapterConfig(targets, r=8))
    further = (process_time() - begun) / len(SCENARIOS)
    told(command_seconds=seconds, command_gib=gib, further_scenario_seconds=further)
    assert seconds < 6
    assert gib < 1.5
    assert further < 0.1


def test_the_formulas_of_an_8b_model(told: Told) -> None:
    """Its ledgers × 12 scenarios × 6 ranks: under 50 ms."""
    table = load_model("llama-3-8b").table
    ledgers = [match(table, AdapterConfig(t, r=r)) for t in SCENARIOS for r in RANKS]
    begun = process_time()
    for ledger in ledgers:
        lora_parameters(ledger)
    told(formulas=len(ledgers), seconds=process_time() - begun)
    assert process_time() - begun < 0.05


def test_explaining_a_number_of_an_8b_model(told: Told) -> None:
    """Under two seconds, the model's table read."""
    table = load_model("llama-3-8b").table
    begun = process_time()
    explain(table, 20_971_520, 8_051_232_768)
    told(explain_seconds=process_time() - begun)
    assert process_time() - begun < 2


def test_the_start_of_a_worker(told: Told) -> None:
    """Until a tiny model is loaded, stepped twice and its memory taken: under half a second."""
    session = shared_session()
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        with session.start(tiny_case("opt")) as running:
            running.prepare()
            taken.append(time.perf_counter() - begun)
    seconds = min(taken)  # the first waits for the session's imports
    told(worker_start_seconds=seconds)
    assert seconds < 0.5


def test_what_the_engine_adds_to_a_step(told: Told) -> None:
    """The clock's median against a bare loop's, in turn in one process: under 1 %."""
    import torch

    from bench.measure.worker import CpuClock
    from bench.training.loading import load
    from bench.training.step import training_step

    torch.set_num_threads(1)
    t = load(tiny_case("opt", batch_size=8, seq_len=64))

    def by_the_clock() -> float:
        clock = CpuClock()
        training_step(t.model, t.batch, t.optimizer, t.scaler, clock.mark)
        return clock.step_time().total_seconds

    def bare() -> float:
        start = time.perf_counter()
        t.model(**t.batch).loss.backward()
        t.optimizer.step()
        t.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    for _ in range(3):
        by_the_clock()
        bare()
    overheads = []
    for _ in range(5):  # a busy machine disturbs one attempt or another
        pairs = [(by_the_clock(), bare()) for _ in range(25)]
        ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
        overheads.append(ours / theirs - 1)
    told(least_overhead=min(overheads), median_overhead=statistics.median(overheads))
    assert min(overheads) < 0.01


PREDICTION = """
import json, resource, sys, time
import bitsandbytes, peft, torch, transformers
from dataclasses import replace
from bench.training.cases import StepOptions
from bench.predict import predict
from bench.scenarios.subjects import Request, select

torch.set_num_threads(1)
model, scenario, precision = sys.argv[1:]
request = Request(models=(model,), scenarios=(scenario,), full_geometry=True)
(subject,) = select(request).structural.values()
case = replace(subject, precision=precision).case(StepOptions(batch_size=1, seq_len=2048))
start = time.process_time()
predict(case)
seconds = time.process_time() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "bytes": peak}))
"""


@pytest.mark.parametrize("precision", ["fp16", "int8", "nf4"])
@pytest.mark.parametrize(
    ("model", "scenario", "limit"),
    [("llama-3-8b", "everything", 6), ("phi-3-medium", "published-3", 10)],
)
def test_a_prediction(told: Told, model: str, scenario: str, limit: float, precision: str) -> None:
    """Seconds of one core after imports; the process's peak resident size in all."""
    arguments = [sys.executable, "-c", PREDICTION, model, scenario, precision]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    told(prediction_seconds=found["seconds"], prediction_gib=found["bytes"] / 2**30)
    assert found["seconds"] < limit
    assert found["bytes"] < 1.5 * 2**30


@needs_atlas
def test_tables_answer_fifty_times_faster_than_injection(told: Told) -> None:
    """Every type × 12 scenarios × 6 ranks from tables, all of them, with loading the atlas; and
    one `get_peft_model` a case, timed on a sample of the same cases. Building the model that is
    injected does not count, though each injection needs a new one."""
    cases, by_tables = _time_tables()
    a_case, building = _time_injection()
    faster = a_case * cases / by_tables
    told(
        cases=cases,
        tables_seconds=by_tables,
        injection_seconds=a_case * cases,
        building_seconds=building * cases,
        times_faster=faster,
    )
    assert faster >= 50


@needs_atlas
def test_rebuild_of_the_whole_atlas(told: Told) -> None:
    """Every type, with two processes: under two minutes on two cores, under 3 GiB, and the same
    atlas again."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    built = build_atlas()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # Linux counts the largest resident set of a process in KiB.
    itself = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gib = (itself + 2 * after.ru_maxrss) / 2**20
    told(types=built.known, processor_seconds=seconds, at_most_resident_gib=gib)
    assert built.types == stored_atlas().types
    assert seconds < 2 * 120
    assert gib < 3


def _time_tables() -> tuple[int, float]:
    """The number of cases, and the seconds that all of them take."""
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
    from bench.measure.counting import count, inject

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
