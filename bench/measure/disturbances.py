"""What made a step longer and is not the step: heat, power, other processes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

THREADS = Path("/proc/self/task")
CPUS = Path("/sys/devices/system/cpu")
_COUNTERS = "cpu[0-9]*/thermal_throttle/*_throttle_count"


def waited_seconds(threads: Path = THREADS) -> float:
    """Seconds for which this process's threads could run and had to wait for a processor, so far.

    Linux counts it for each thread: the second number in its `schedstat`, in nanoseconds (the
    kernel's Documentation/scheduler/sched-stats.rst). 0 where the kernel does not say.
    """
    waited = 0
    for path in threads.glob("*/schedstat"):
        with suppress(OSError):  # a thread that has just ended
            waited += int(path.read_text().split()[1])
    return waited / 1e9


class CpuThrottling:
    """Linux counts each processor's thermal events; a virtual machine may show no counters."""

    def __init__(self, cpus: Path = CPUS) -> None:
        self._counters = sorted(cpus.glob(_COUNTERS))
        self._before = self._events()

    def happened(self) -> bool:
        """Whether there were events since the last call (or since this was made)."""
        before, self._before = self._before, self._events()
        return self._before > before

    def _events(self) -> int:
        return sum(int(path.read_text()) for path in self._counters)


class GpuThrottling:
    """NVML's reasons for reduced clocks: hardware slowdown, heat, power brake.

    Raises NVML's error where the card does not tell: a slice of one (MIG), a virtual one, in WSL.
    """

    def __init__(self, handle: Any) -> None:
        import pynvml

        self._handle = handle
        self._read = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons
        self._slow = (
            pynvml.nvmlClocksThrottleReasonHwSlowdown
            | pynvml.nvmlClocksThrottleReasonSwThermalSlowdown
            | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
            | pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
        )
        self._read(handle)

    def happened(self) -> bool:
        """Whether the clocks are reduced for one of these reasons now."""
        with suppress(Exception):  # as for nvml_handle; and a case must not fail of it
            return bool(self._read(self._handle) & self._slow)
        return False


Throttling = CpuThrottling | GpuThrottling


def watch(gpu: int | None) -> Throttling:
    """What tells of throttling on GPU number `gpu` (torch's); on the CPU for None, and where NVML
    does not know the GPU or does not tell of its clocks."""
    from bench.training.memory import nvml_handle  # which brings torch

    if gpu is not None and (handle := nvml_handle(gpu)) is not None:
        with suppress(Exception):
            return GpuThrottling(handle)
    return CpuThrottling()
