"""What a LoRA configuration reaches, what it costs, and whether anything changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.adapters.config import AdapterConfig
    from bench.check.targets import DeadEntries, check_targets
    from bench.errors import BenchError

__version__ = "0.1.0"
__all__ = ["AdapterConfig", "BenchError", "DeadEntries", "check_targets"]

_HOMES = {
    "AdapterConfig": "bench.adapters.config",
    "BenchError": "bench.errors",
    "DeadEntries": "bench.check.targets",
    "check_targets": "bench.check.targets",
}


def __getattr__(name: str) -> Any:
    """The public names, each imported when it is first asked for: `import bench` costs nothing."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
