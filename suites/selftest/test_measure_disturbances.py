"""What slows a step down and is not the step: noticed, and named in the record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.baselines.runlog import Recorder
from bench.measure import StepTime, disturbances
from bench.measure.disturbances import THREADS, CpuThrottling, GpuThrottling, waited_seconds
from bench.scenarios.subjects import Request, select

# Two processes that compute on one processor: each waits for the other. `sys.argv[1]`: how many.
COMPETE = """
import os, sys, time
from bench.measure.disturbances import waited_seconds

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
children = []
for _ in range(int(sys.argv[1])):
    if not (child := os.fork()):
        while True:
            pass
    children.append(child)
before = waited_seconds()
begun = time.process_time()
while time.process_time() < begun + 0.2:
    pass
print(waited_seconds() - before)
for child in children:
    os.kill(child, 9)
"""


@pytest.mark.skipif(not list(THREADS.glob("*/schedstat")), reason="no schedstat in this kernel")
def test_waiting_for_the_processor_is_noticed() -> None:
    """Half a share at most each: 0.2 s of computing take as long a wait, or more."""
    said = subprocess.run(
        [sys.executable, "-c", COMPETE, "1"], capture_output=True, text=True, check=True
    )
    assert float(said.stdout) > 0.1


def test_waiting_is_summed_over_the_threads(tmp_path: Path) -> None:
    for thread, text in {"7": "5000 2000000000 3\n", "8": "1 500000000 1\n"}.items():
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(text)
    (tmp_path / "9").mkdir()  # it has ended
    assert waited_seconds(tmp_path) == 2.5
    assert waited_seconds(tmp_path / "none") == 0.0


def test_thermal_events_are_told_once(tmp_path: Path) -> None:
    counters = [tmp_path / f"cpu{n}" / "thermal_throttle" / "core_throttle_count" for n in (0, 1)]
    for counter in counters:
        counter.parent.mkdir(parents=True)
        counter.write_text("3\n")
    throttling = CpuThrottling(tmp_path)
    assert not throttling.happened()
    counters[1].write_text("4\n")
    assert throttling.happened()
    assert not throttling.happened()


class _NVMLError(Exception):
    """NVML's "Not Supported"."""


def _card(monkeypatch: pytest.MonkeyPatch, reasons: list[int]) -> None:
    """Stand in for NVML and a card that gives these reasons in turn, then no more. The bits are
    those of NVIDIA's nvml.h."""

    def read(handle: object) -> int:
        assert handle == "handle"
        if not reasons:
            raise _NVMLError
        return reasons.pop(0)

    nvml = SimpleNamespace(
        nvmlDeviceGetCurrentClocksThrottleReasons=read,
        nvmlClocksThrottleReasonHwSlowdown=0x08,
        nvmlClocksThrottleReasonSwThermalSlowdown=0x20,
        nvmlClocksThrottleReasonHwThermalSlowdown=0x40,
        nvmlClocksThrottleReasonHwPowerBrakeSlowdown=0x80,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr("bench.training.memory.nvml_handle", lambda gpu: "handle")


def test_a_card_tells_why_its_clocks_are_low(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle (0x1) and a power cap (0x4) are no disturbance; heat is."""
    _card(monkeypatch, [0x0, 0x1 | 0x4, 0x4 | 0x40])
    throttling = disturbances.watch(0)
    assert isinstance(throttling, GpuThrottling)
    assert [throttling.happened() for _ in range(2)] == [False, True]
    assert not throttling.happened()  # it has stopped telling: no reason to fail a case


def test_where_the_card_does_not_tell_the_processor_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML knows a MIG slice, a virtual GPU or one in WSL, but not why its clocks are low."""
    _card(monkeypatch, [])
    assert isinstance(disturbances.watch(0), CpuThrottling)


def _step(seconds: float = 1.0, **disturbed: float) -> StepTime:
    return StepTime(seconds, seconds, 0.0, 0.0, **disturbed)


@pytest.mark.parametrize(
    ("rounds", "reason"),
    [
        ([_step()] * 5, None),
        ([_step(waited_seconds=0.04)] * 5, None),
        ([_step()] * 4 + [_step(waited_seconds=0.24)], None),
        ([_step()] * 4 + [_step(waited_seconds=0.26)], "other processes took over 5% of the time"),
        ([_step(waited_seconds=0.5)] * 5, "other processes took over 5% of the time"),
        ([_step(throttled=True)] * 2 + [_step()] * 3, "throttled in 2 of 5 rounds"),
        ([_step(), _step(2.0)] * 3, "interquartile range over 10% of the median"),
    ],
)
def test_the_record_says_why_times_are_not_to_be_trusted(
    rounds: list[StepTime], reason: str | None
) -> None:
    request = Request(models=("opt-350m",), scenarios=("query",), precisions=("fp32",))
    (subject,) = select(request).measured.values()
    recorder = Recorder("measurement", subject)
    recorder.times(rounds)
    assert recorder.detail.get("unstable") == reason
