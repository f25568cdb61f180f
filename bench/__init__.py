"""What a LoRA configuration reaches, what it costs, and whether anything changed."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.adapters.config import AdapterConfig
    from bench.check.targets import DeadEntries, HazardsFound, check_targets
    from bench.check.training import MemoryCallback
    from bench.errors import BenchError
    from bench.predict.live import predict_memory

__version__ = "0.3.0"
__all__ = [
    "AdapterConfig",
    "BenchError",
    "DeadEntries",
    "HazardsFound",
    "MemoryCallback",
    "check_targets",
    "predict_memory",
]

_HOMES = {
    "AdapterConfig": "bench.adapters.config",
    "BenchError": "bench.errors",
    "DeadEntries": "bench.check.targets",
    "HazardsFound": "bench.check.targets",
    "MemoryCallback": "bench.check.training",
    "check_targets": "bench.check.targets",
    "predict_memory": "bench.predict.live",
}


def _scripts_of_others() -> list[str]:
    """Folders `bench` without an `__init__.py` on the path: Python lets an installed package go
    before them, and their modules, which a repository may import, would be gone."""
    found = (os.path.join(entry or os.getcwd(), __name__) for entry in sys.path)
    return [f for f in found if os.path.isdir(f) and not os.path.exists(f"{f}/__init__.py")]


if __name__ == "bench":
    __path__ = [*__path__, *_scripts_of_others()]


def __getattr__(name: str) -> Any:
    """The public names, each imported when it is first asked for: `import bench` costs nothing."""
    if name in _HOMES:
        # Not import_module: `lora_target_bench` gives these files an `__import__` of their own.
        return getattr(__import__(_HOMES[name], fromlist=[name]), name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
