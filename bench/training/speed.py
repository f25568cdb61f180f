"""How fast this machine computes in half precision, and so which reduced geometry it measures.

A processor without instructions for bfloat16 has it computed element by element: ten times as slow
as float32, where one that has them is twice as fast. bf16, int8 and nf4 steps compute in it, which
are three in five of the measured cases; float16 takes instructions that few processors have at all.

`python -m lora_target_bench.training.speed` prints the ratio. It is a process of its own so that
whoever asks imports no torch, and one thread whatever it has been told.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

SLOW = 4.0
"""From this ratio on half precision is slow: processors lie to either side, 0.5 to 1.5 or 10."""

_TOKENS, _IN, _OUT = 64, 320, 1120
_PAIRS = 7
_SECONDS = 120.0


def is_slow(ratio: float | None) -> bool:
    """Whether products in bfloat16 that take `ratio` times as long as in float32 ask for a smaller
    geometry; not where nothing could be measured (None)."""
    return ratio is not None and ratio >= SLOW


def half_ratio() -> float | None:
    """How many times as long as in float32 a layer's products take in bfloat16, measured in a
    process of its own; None where that fails: whatever it is, the first case meets it and says so.
    """
    one = {f"{pool}_NUM_THREADS": "1" for pool in ("OMP", "MKL", "OPENBLAS")}
    command = [sys.executable, "-P", "-m", "lora_target_bench.training.speed"]
    try:
        done = subprocess.run(
            command, env={**os.environ, **one}, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=_SECONDS, check=True,
        )  # fmt: skip
        return float(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def measured_ratio() -> float:
    """The median over interleaved pairs, by this process's own time: another one that takes the
    processor meanwhile takes none of it."""
    import torch

    torch.set_num_threads(1)

    def products(dtype: torch.dtype) -> Callable[[], None]:
        """Forward, and the gradients of input and weight: each another layout to the library."""
        inputs, weight, gradient = (
            torch.ones(shape, dtype=dtype)
            for shape in ((_TOKENS, _IN), (_OUT, _IN), (_TOKENS, _OUT))
        )

        def run() -> None:
            torch.nn.functional.linear(inputs, weight)
            gradient @ weight
            gradient.t() @ inputs

        return run

    single, half = products(torch.float32), products(torch.bfloat16)
    _seconds(single), _seconds(half)  # the first of each prepares what is kept
    return median(_seconds(half) / _seconds(single) for _ in range(_PAIRS))


def _seconds(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    print(measured_ratio())
