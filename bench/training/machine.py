"""The machine and the library versions that a run was made with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_VERSIONED = ("torch", "transformers", "peft", "bitsandbytes", "pytest-benchmark")
# One thread: on small shared machines two were erratic.
MEASURING_THREADS = 1


INSTRUCTION_SETS = frozenset(
    "f16c fma avx avx2 avx_vnni avx_ne_convert avx512f avx512bw avx512dq avx512vl avx512_vnni "
    "avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16 amx_fp16 "
    "asimd asimdhp fphp asimddp bf16 i8mm sve sve2 svebf16 sme".split()
)
"""What matrix products, and half precision above all, are computed with: x86's, then ARM's."""

_OVERRIDES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
"""Variables that keep a library from using what the processor has."""

_MODEL = {
    "cpu family": "family", "model": "model", "stepping": "stepping",
    "CPU implementer": "implementer", "CPU part": "part", "CPU variant": "variant",
}  # fmt: skip

CGROUPS, GROUPS_OF = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_UNLIMITED_BYTES = 1 << 60


def versions() -> dict[str, str]:
    """Python's version and those of the installed libraries; a missing one is left out."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Accelerator:
    """A GPU or its like. memory_bytes: of one."""

    name: str
    count: int
    memory_bytes: int
    driver: str | None = None
    cuda: str | None = None


@dataclass(frozen=True)
class Machine:
    """Where a run was measured. `id` names its folder under `results/`; threads: those that torch
    computed with.

    processor: its name, which many share; model: its family, model and stepping;
    instruction_sets: those of INSTRUCTION_SETS that it has, and what overrides them. None where an
    older run does not say. cpu_limit, memory_limit_bytes: of a container, None without one.
    """

    id: str
    system: str
    processor: str
    cpu_count: int
    memory_bytes: int
    threads: int
    accelerator: Accelerator | None = None
    model: str | None = None
    instruction_sets: frozenset[str] | None = None
    cpu_limit: float | None = None
    memory_limit_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As a stored run holds it."""
        sets = self.instruction_sets
        return {**asdict(self), "instruction_sets": None if sets is None else sorted(sets)}


@cache
def accelerator() -> Accelerator | None:
    """The GPUs here; None without any."""
    import torch

    if not torch.cuda.is_available():
        return None
    first = torch.cuda.get_device_properties(0)
    return Accelerator(
        name=first.name,
        count=torch.cuda.device_count(),
        memory_bytes=first.total_memory,
        driver=_driver(),
        cuda=str(torch.version.cuda),
    )


def gpu_facts() -> dict[str, Any]:
    """The first GPU's name, compute capability and memory (bytes), as a measured step has them."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
    }


def machine(threads: int = MEASURING_THREADS) -> Machine:
    """This machine. Whether two runs come from one machine not the id alone decides."""
    import psutil

    gpu = accelerator()
    kind = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()) if gpu else "cpu"
    cores = os.cpu_count() or 1
    facts = _processor()
    sets = set(facts.get("flags", facts.get("Features", "")).split()) & INSTRUCTION_SETS
    overrides = {f"{name}={os.environ[name]}" for name in _OVERRIDES if name in os.environ}
    return Machine(
        id=f"{platform.system().lower()}-{platform.machine()}-{kind}-{cores}cores",
        system=platform.system(),
        processor=facts.get("model name") or platform.processor() or platform.machine(),
        cpu_count=cores,
        memory_bytes=psutil.virtual_memory().total,
        threads=threads,
        accelerator=gpu,
        model=" ".join(f"{_MODEL[key]} {facts[key]}" for key in _MODEL if key in facts) or None,
        instruction_sets=frozenset(sets | overrides),
        **limits(cores),
    )


def _processor() -> Mapping[str, str]:
    """What Linux says of the first processor; nothing elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def usable_processors() -> int:
    """On how many processors this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limits(cores: int, root: Path = CGROUPS, groups: Path = GROUPS_OF) -> Mapping[str, Any]:
    """What a container, or whoever started this process, lets it have of the machine: processors
    (a share of time, or those that it may run on) and bytes; None where that is everything.

    Linux's control groups, version 2 (`cpu.max`, `memory.max`) and 1; of nested ones the tightest.
    """
    usable = usable_processors()
    processors = [float(usable)] if usable < cores else []
    memory = []
    for folder in _control_groups(root, groups):
        quota, period = _numbers(folder / "cpu.max")
        if quota is None:
            quota, period = (
                _numbers(folder / f"cpu.cfs_{name}_us")[0] for name in ("quota", "period")
            )
        if quota and period and quota > 0:
            processors.append(quota / period)
        for name in ("memory.max", "memory.limit_in_bytes"):
            most = _numbers(folder / name)[0]
            if most and most < _UNLIMITED_BYTES:
                memory.append(int(most))
    return {
        "cpu_limit": min(processors, default=None),
        "memory_limit_bytes": min(memory, default=None),
    }


def _control_groups(root: Path, groups: Path) -> Iterator[Path]:
    """The folders of this process's groups, and of those around them."""
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for tree in {root / controllers, *(root / c for c in controllers.split(","))}:
            inside = tree / path.strip("/")
            while True:
                yield inside
                if inside == tree:
                    break
                inside = inside.parent


def _numbers(file: Path) -> tuple[float | None, float | None]:
    """The first two numbers in a file; None for "max", and where there is none."""
    try:
        words = file.read_text(encoding="utf-8").split()
    except OSError:
        return None, None
    first, second = ([*(w if w.lstrip("-").isdigit() else "" for w in words), "", ""])[:2]
    return (float(first) if first else None), (float(second) if second else None)


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip() if done.stdout else "unknown"
