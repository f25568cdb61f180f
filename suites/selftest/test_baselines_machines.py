"""What makes two machines two, and what may be named as a cause."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_baselines import MIB, QUERY, STEP, sample
from verdict_edits import Edit, both, found, metric, only, peft

from bench.baselines import METRICS, parse_run, seal
from bench.baselines.machines import MEMORY, other_machine
from bench.training.machine import Accelerator, Machine, limits

GPU = {"name": "NVIDIA H200", "count": 1, "memory_bytes": 150_000_000_000}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "linux-aarch64-cpu"}, "id linux-x86_64-cpu -> linux-aarch64-cpu"),
        ({"threads": 2}, "threads 1 -> 2"),
        ({"processor": "Another"}, "processor "),
        ({"model": "family 26 model 2"}, "processor model not recorded -> family 26 model 2"),
        ({"instruction_sets": ["avx2"]}, "instruction sets recorded in one run alone"),
        ({"cpu_count": 64}, "cores "),
        ({"cpu_limit": 1.5}, "processor limit none -> 1.5 cores"),
        ({"memory_limit_bytes": 2**30}, "memory limit none -> 1.000 GiB"),
        ({"memory_bytes": 5}, "memory "),
        ({"accelerator": GPU}, "accelerator none -> 1 x NVIDIA H200"),
    ],
)
def test_another_machine_is_incomparable_where_it_matters(
    change: dict[str, Any], said: str
) -> None:
    kinds = {"reserved", "time"} | ({"allocated"} if "accelerator" in change else set())

    def edit(body: dict[str, Any]) -> None:
        body["machine"].update(change)
        for record in body["records"].values():  # nothing would be unchanged if compared
            for name, value in record["metrics"].items():
                twice = [2 * item for item in value] if isinstance(value, list) else 2 * value
                record["metrics"][name] = twice

    verdicts = found(edit)
    assert len(verdicts) == 9
    for item in verdicts:
        kind = METRICS[item.metric].kind
        assert (item.verdict == "incomparable") == (kind in kinds), item
        assert (item.verdict == "changed") == (kind == "exact"), item
        if kind in kinds:
            assert said in item.explanation


def test_two_processors_of_one_name_are_two_machines() -> None:
    """Both call themselves AMD EPYC; one has what half precision is computed with."""

    def processor(model: int, *sets: str) -> Edit:
        known = {"model": f"family 25 model {model}", "instruction_sets": ["avx2", "fma", *sets]}
        return lambda body: body["machine"].update(known)

    with_it = processor(17, "avx512f", "avx512_bf16")
    assert found(with_it, with_it) == []
    verdicts = found(both(processor(17), metric(STEP, "step_seconds", [3.0] * 5)), with_it)
    assert {item.verdict for item in verdicts} == {"incomparable"}
    assert {METRICS[item.metric].kind for item in verdicts} == {"reserved", "time"}
    assert {item.explanation for item in verdicts} == {
        "another machine: without avx512_bf16 avx512f"
    }
    assert "processor model family 25 model 1 -> family 25 model 17" in str(
        found(processor(17), processor(1))
    )


def test_an_older_run_is_read_with_what_pytest_benchmark_knew_of_its_processor() -> None:
    document = sample()
    cpu = {"family": 26, "model": 2, "stepping": 1, "flags": ["fpu", "avx2", "avx512_bf16"]}
    document["machine_info"] = {"cpu": cpu}
    found = parse_run(seal(document), "a run").machine
    assert found.model == "family 26 model 2 stepping 1"
    assert found.instruction_sets == {"avx2", "avx512_bf16"}


def test_another_driver_is_another_machine() -> None:
    def gpu(driver: str) -> Edit:
        return lambda body: body["machine"].update(accelerator={**GPU, "driver": driver})

    kinds = {METRICS[item.metric].kind for item in found(gpu("570"), gpu("560"))}
    assert kinds == {"reserved", "time"}


def test_only_what_can_be_the_cause_is_named() -> None:
    """No release of torch, and of nothing that runs a step, changes a count."""

    def upgrade(body: dict[str, Any]) -> None:
        body["versions"].update(
            {"torch": "9", "pytest-benchmark": "9", "bitsandbytes": "9", "python": "3.99"}
        )

    def why(*edits: Edit) -> str:
        return only(both(upgrade, *edits)).explanation

    counted = why(metric(QUERY, "adapted_layers", 7))
    assert "9" not in counted, counted
    assert "peft 0.21.2 -> 8" in why(peft("8"), metric(QUERY, "adapted_layers", 7))
    slower = why(metric(STEP, "step_seconds", [9.0] * 5))
    assert "torch" in slower
    assert "python" in slower
    assert "bitsandbytes" not in slower  # the case is fp32
    assert "pytest-benchmark" not in slower


def test_container_limits(tmp_path: Path) -> None:
    """Version 2 of control groups, then 1; of nested ones the tightest."""
    cores = len(os.sched_getaffinity(0))
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    groups = tmp_path / "groups"
    groups.write_text("0::/a/b\n")
    assert limits(cores, tmp_path, groups) == {"cpu_limit": None, "memory_limit_bytes": None}
    (inner / "cpu.max").write_text("max 100000\n")
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "cpu.max").write_text("50000 100000\n")
    (inner.parent / "memory.max").write_text("1048576\n")
    assert limits(cores, tmp_path, groups) == {"cpu_limit": 0.5, "memory_limit_bytes": 2**20}
    assert limits(cores + 1, tmp_path / "x", tmp_path / "x")["cpu_limit"] == cores
    for controller, file, text in (
        ("cpu,cpuacct", "cpu.cfs_quota_us", "150000"),
        ("cpu,cpuacct", "cpu.cfs_period_us", "100000"),
        ("memory", "memory.limit_in_bytes", str(2**31)),
    ):
        (tmp_path / "v1" / controller / "x").mkdir(parents=True, exist_ok=True)
        (tmp_path / "v1" / controller / "x" / file).write_text(f"{text}\n")
    groups.write_text("4:cpu,cpuacct:/x\n9:memory:/x\n")
    assert limits(cores, tmp_path / "v1", groups) == {
        "cpu_limit": 1.5,
        "memory_limit_bytes": 2**31,
    }


MACHINE = Machine("a", "Linux", "A processor", 4, 1000 * MIB, 1)
GIB = 1024**3
TWO_GPUS = Accelerator("GPU", 2, 3 * GIB)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({}, {}, ""),
        ({}, {"system": "Other"}, ""),
        ({}, {"memory_bytes": 1010 * MIB}, ""),  # a kernel's own share
        ({}, {"memory_bytes": 1011 * MIB}, "memory 1,000 MiB -> 1,011 MiB"),
        ({}, {"memory_bytes": 990 * MIB}, ""),
        ({}, {"memory_bytes": 989 * MIB}, "memory 1,000 MiB -> 989.0 MiB"),
        ({}, {"id": "b", "threads": 2}, "id a -> b, threads 1 -> 2"),
        ({"processor": "x"}, {"processor": "y"}, "processor x -> y"),
        ({"model": "17"}, {}, "processor model 17 -> not recorded"),
        ({"cpu_count": 2}, {}, "cores 2 -> 4"),
        ({"cpu_limit": 1.5}, {"cpu_limit": 2.0}, "processor limit 1.5 cores -> 2 cores"),
        ({"cpu_limit": 1.5}, {}, "processor limit 1.5 cores -> none"),
        ({"memory_limit_bytes": GIB}, {}, "memory limit 1.000 GiB -> none"),
        ({"accelerator": TWO_GPUS}, {},
         "accelerator 2 x GPU (3.000 GiB) -> none, driver unknown -> none"),
        ({"accelerator": TWO_GPUS}, {"accelerator": replace(TWO_GPUS, driver="570")},
         "driver unknown -> 570"),
        ({"instruction_sets": frozenset({"avx", "fma", "amx"})},
         {"instruction_sets": frozenset({"avx", "sve", "asimd"})},
         "without amx fma, with asimd sve"),
        ({"instruction_sets": frozenset({"avx"})}, {"instruction_sets": frozenset({"avx"})}, ""),
        ({"instruction_sets": frozenset()}, {}, "instruction sets recorded in one run alone"),
        ({}, {"instruction_sets": frozenset()}, "instruction sets recorded in one run alone"),
    ],
)  # fmt: skip
def test_what_makes_another_machine(old: dict, new: dict, said: str) -> None:
    whole = f"another machine: {said}" if said else ""
    assert other_machine(replace(MACHINE, **old), replace(MACHINE, **new)) == whole


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ({"id": "b"}, True),
        ({"memory_bytes": 2 * GIB}, True),
        ({"accelerator": TWO_GPUS}, True),
        ({"memory_limit_bytes": GIB}, True),
        ({"threads": 2}, False),
        ({"processor": "y"}, False),
        ({"model": "17"}, False),
        ({"instruction_sets": frozenset()}, False),
        ({"cpu_count": 9}, False),
        ({"cpu_limit": 1.0}, False),
    ],
)
def test_how_a_case_ends_depends_on_memory_alone(change: dict, matters: bool) -> None:
    assert bool(other_machine(MACHINE, replace(MACHINE, **change), MEMORY)) == matters
