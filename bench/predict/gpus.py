"""GPUs by their figures, and what they say of a step: does it fit, how fast could it be.

The figures live in `fixtures/gpus.toml`, each with its source.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.errors import BenchError, UnknownName
from bench.files import FIXTURES, parse, read_toml
from bench.training.options import CUDNN, FLASH
from bench.units import GIB

CONTEXT_BYTES = GIB // 2
"""What the CUDA context and the libraries' code take outside the allocator: an assumption, since
it differs by GPU, driver and by which kernels were loaded (0.3 to 0.6 GiB is usual)."""
AMPERE = 8.0
"""Compute capability from which on there is bfloat16 arithmetic, in the efficient attention kernel
too, and a flash kernel at all."""
HOPPER = 9.0
"""The one compute capability for which it is known what cuDNN's attention allocates."""
YES, NO, UNCERTAIN = "yes", "no", "uncertain"
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB)?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Gpu:
    """One GPU. Memory in bytes, as programs see it, bandwidth in bytes a second, dense rates in
    operations a second by dtype, compute capability as in 8.6."""

    name: str
    memory_bytes: int
    capability: float = 8.0
    bandwidth: float | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    also: tuple[str, ...] = ()

    def rate(self, dtype: str) -> float:
        """Peak operations a second in `dtype`; a dtype without units of its own runs as float32."""
        return self.rates.get(dtype) or self.rates["float32"]


@dataclass(frozen=True)
class _Written:
    """A GPU as the file has it: memory in GiB, dense rates by dtype; `also`, what drivers call it
    where that is not its name."""

    name: str
    capability: float
    memory_gib: float
    memory_source: str
    bandwidth: float
    source: str
    float32: float
    also: tuple[str, ...] = ()
    float16: float | None = None
    bfloat16: float | None = None
    int8: float | None = None

    def read(self) -> Gpu:
        rates = {n: getattr(self, n) for n in ("float32", "float16", "bfloat16", "int8")}
        return Gpu(
            self.name, round(self.memory_gib * GIB), self.capability, self.bandwidth,
            {name: rate for name, rate in rates.items() if rate is not None}, self.source,
            self.also,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Work:
    """One operation's work: floating-point operations, bytes read and written, and the dtype it
    computes in ("float32"; "int8" for integer products)."""

    flops: int
    bytes: int
    dtype: str


@dataclass(frozen=True)
class PeakRange:
    """Within what a step's peak reserved lies, as shares of the predicted one, and why."""

    low: float
    high: float
    why: str


@dataclass(frozen=True)
class Fit:
    """Whether a predicted peak fits a GPU. All in bytes.

    What has to fit is the peak reserved and the CUDA context. Measured steps say within what the
    peak lies, `low_bytes` to `high_bytes` (`why` says which steps): "yes" where all of that fits,
    "no" where none of it does, "uncertain" between. The margin is to the highest of it, negative
    where that is too large. `allocated_fits` says whether what is really in use would fit: then a
    less fragmented allocator could be enough.
    """

    gpu: str
    memory_bytes: int
    context_bytes: int
    low_bytes: int
    high_bytes: int
    why: str
    margin_bytes: int
    verdict: str
    allocated_fits: bool

    @property
    def fits(self) -> bool:
        """Whether it surely does."""
        return self.verdict == YES

    @property
    def doubt(self) -> str:
        """What is said against it, "" where it surely fits."""
        said = {YES: "", NO: f"does not fit {self.gpu}", UNCERTAIN: f"may not fit {self.gpu}"}
        return said[self.verdict]


def bfloat16_note(gpu: Gpu | None) -> str:
    """What to say of a step in bfloat16 on a GPU without units for it; "" where there are some.

    NVIDIA's CUDA C++ Programming Guide lists bfloat16 arithmetic from compute capability 8.0 on;
    below it torch emulates it (`torch.cuda.is_bf16_supported(including_emulation=False)`).
    """
    if gpu is None or gpu.capability >= AMPERE:
        return ""
    return (
        f"{gpu.name} has no hardware for bfloat16 (compute capability {gpu.capability:g}; it needs "
        f"{AMPERE:g}): torch emulates it, slowly, and some tools refuse bf16 there; fp16 is what "
        "such a GPU computes in"
    )


def check_attention(forced: str | None, capability: float) -> None:
    """Raise BenchError for an attention kernel that a GPU of this compute capability has not."""
    if forced == CUDNN and capability != HOPPER:
        raise BenchError(
            f"--attention {CUDNN}: what cuDNN's kernel allocates is known for GPUs of compute "
            f"capability {HOPPER} (--gpu h100 or h200), and this one has {capability}"
        )
    if forced == FLASH and capability < AMPERE:
        raise BenchError(
            f"--attention {FLASH}: the kernel needs a GPU of compute capability {AMPERE} or later, "
            f"and this one has {capability}"
        )


def load_gpus(path: Path | None = None) -> dict[str, Gpu]:
    """Every GPU by key. Raises BenchError, naming file and key, on anything unknown."""
    path = path or FIXTURES / "gpus.toml"
    file = parse(read_toml(path), dict[Literal["gpu"], dict[str, Any]], str(path))
    return {
        key: parse(values, _Written, f"{path}: gpu.{key}").read()
        for key, values in file["gpu"].items()
    }


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`, by its key or its name, as nvidia-smi prints it too; UnknownName with
    the nearest known ones."""
    gpus = load_gpus()
    wanted = _plain(name)
    for key, gpu in gpus.items():
        if wanted in (key, *map(_plain, (gpu.name, *gpu.also))):
            return gpu
    several = [key for key in gpus if key.startswith(f"{wanted}-")]
    raise UnknownName("GPU", name, several or gpus, "(or give --gpu-memory)")


def _plain(name: str) -> str:
    """Its words without those of its maker: "nvidia geforce rtx 4090" is an rtx-4090."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    words = re.sub(r"^(?:(?:nvidia|tesla|geforce)-)+", "", words)
    return re.sub(r"(?<=\d)-gi?b\b", "gb", words)


def gpu_with_memory(text: str) -> Gpu:
    """A nameless GPU of a size such as "24GiB"; BenchError otherwise. "24GB" is the same: a card's
    memory comes in powers of two, whatever the box calls it."""
    match = _SIZE.fullmatch(text)
    unit = (match[2] or "").lower() if match else ""
    if match is None or not unit:
        raise BenchError(f"--gpu-memory {text!r}: expected a size with its unit, such as 24GiB")
    power = "bkmgt".index(unit[0])
    size = float(match[1]) * 1024**power
    if not 0 < size < math.inf:
        raise BenchError(f"--gpu-memory {text!r}: the size must be greater than 0")
    return Gpu(f"{match[1]} {match[2]}", int(size))


def fit(gpu: Gpu, peak_allocated_bytes: int, peak_reserved_bytes: int, within: PeakRange) -> Fit:
    """Hold predicted peaks (bytes) against a GPU's memory, the reserved one with its interval."""
    usable = gpu.memory_bytes - CONTEXT_BYTES
    low = max(peak_allocated_bytes, round(peak_reserved_bytes * within.low))
    high = round(peak_reserved_bytes * within.high)
    return Fit(
        gpu=gpu.name,
        memory_bytes=gpu.memory_bytes,
        context_bytes=CONTEXT_BYTES,
        low_bytes=low,
        high_bytes=high,
        why=within.why,
        margin_bytes=usable - high,
        verdict=YES if high <= usable else NO if low > usable else UNCERTAIN,
        allocated_fits=peak_allocated_bytes <= usable,
    )


def step_seconds(gpu: Gpu, work: Mapping[Work, int], moved_bytes: int) -> float | None:
    """A model of the step time, from below: every operation takes the longer of its arithmetic at
    the peak rate and its memory traffic at the full bandwidth, and nothing waits.

    Real steps take longer, small ones by far: launches, and rates that no kernel reaches. None for
    a GPU of which only the memory is known. The roofline: Williams, Waterman and Patterson,
    Communications of the ACM 52 (4), 2009.
    """
    if gpu.bandwidth is None:
        return None
    bandwidth = gpu.bandwidth
    each = (
        max(w.flops / gpu.rate(w.dtype), w.bytes / bandwidth)
        for w, times in work.items()
        for _ in range(times)
    )
    return math.fsum((*each, moved_bytes / bandwidth))
