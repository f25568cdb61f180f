"""What a training step takes on a GPU, predicted without one: memory, FLOPs, a model of its time.

Importing this costs nothing: torch is loaded when the first prediction is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.predict.gpus import gpu_with_memory
    from bench.predict.largest import Solution, solve
    from bench.predict.result import Prediction, predict

__all__ = [
    "Prediction",
    "Solution",
    "gpu_with_memory",
    "predict",
    "solve",
]

_HOMES = {
    "Prediction": "result",
    "Solution": "largest",
    "gpu_with_memory": "gpus",
    "predict": "result",
    "solve": "largest",
}


def __getattr__(name: str) -> Any:
    """The public names, each imported when it is first asked for."""
    if name in _HOMES:
        return getattr(__import__(f"bench.predict.{_HOMES[name]}", fromlist=[name]), name)
    raise AttributeError(f"module 'bench.predict' has no attribute {name!r}")
