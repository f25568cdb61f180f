"""Which modules? A model's role scenarios: what each adapts, costs, and is known for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.choose.table import Choice, ChoiceRow, choose

__all__ = ["Choice", "ChoiceRow", "choose"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first asked for."""
    if name in __all__:
        return getattr(__import__("bench.choose.table", fromlist=[name]), name)
    raise AttributeError(f"module 'bench.choose' has no attribute {name!r}")
