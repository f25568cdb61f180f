"""The machine and the library versions that a run was made with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "pytest-benchmark")
# One thread: on small shared machines two were erratic.
MEASURING_THREADS = 1


def versions() -> dict[str, str]:
    """Python's version and those of the installed libraries; a missing one is left out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def accelerator() -> dict[str, Any] | None:
    """Name, count, memory (bytes), driver and CUDA version of the GPUs; None without any."""
    import torch

    if not torch.cuda.is_available():
        return None
    first = torch.cuda.get_device_properties(0)
    return {
        "name": first.name,
        "count": torch.cuda.device_count(),
        "memory_bytes": first.total_memory,
        "driver": _driver(),
        "cuda": str(torch.version.cuda),
    }


def machine(threads: int = MEASURING_THREADS) -> dict[str, Any]:
    """What the stored run says of the machine. `id` names its folder under `results/`."""
    import psutil

    gpu = accelerator()
    kind = re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()) if gpu else "cpu"
    cores = os.cpu_count() or 1
    return {
        "id": f"{platform.system().lower()}-{platform.machine()}-{kind}-{cores}cores",
        "system": platform.system(),
        "processor": _processor(),
        "cpu_count": cores,
        "memory_bytes": psutil.virtual_memory().total,
        "threads": threads,
        "accelerator": gpu,
    }


def _processor() -> str:
    if sys.platform == "linux":
        try:
            with open("/proc/cpuinfo", encoding="utf-8") as lines:
                for line in lines:
                    if line.startswith("model name"):
                        return line.partition(":")[2].strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip() if done.stdout else "unknown"
