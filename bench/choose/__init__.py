"""Which modules? A model's role scenarios: what each adapts, costs, and is known for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.choose.table import Choice, Row, choose

__all__ = ["Choice", "Row", "choose"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first asked for."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("bench.choose.table"), name)
    raise AttributeError(f"module 'bench.choose' has no attribute {name!r}")
