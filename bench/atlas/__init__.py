"""The atlas: what every model type that transformers knows is made of, stored by version."""

from __future__ import annotations

from bench.atlas.entries import Atlas, Bare, Folded, TypeEntry
from bench.atlas.store import find_atlas, load_atlas, save_atlas, stored_versions

__all__ = [
    "Atlas",
    "Bare",
    "Folded",
    "TypeEntry",
    "find_atlas",
    "load_atlas",
    "save_atlas",
    "stored_versions",
]
