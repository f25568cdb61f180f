"""What a LoRA configuration reaches, what it costs, and whether anything changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.adapters.config import AdapterConfig
    from bench.check.targets import DeadEntries, HazardsFound, check_targets
    from bench.check.training import MemoryCallback
    from bench.errors import BenchError
    from bench.predict.live import predict_memory

__version__ = "0.2.0"
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


def __getattr__(name: str) -> Any:
    """The public names, each imported when it is first asked for: `import bench` costs nothing."""
    if name in _HOMES:
        # Not import_module: `lora_target_bench` gives these files an `__import__` of their own.
        return getattr(__import__(_HOMES[name], fromlist=[name]), name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
