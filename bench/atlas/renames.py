"""What modules were called in the stored earlier releases: the names that have moved since, kept in
`fixtures/atlas/renames.json`, by which a saved name is traced to its new one."""

from __future__ import annotations

import json
from functools import cache

from bench.atlas.diff import FUSED_INTO, RENAMED, SPLIT, diff_atlases
from bench.atlas.store import ROOT, find_atlas, load_atlas, stored_versions
from bench.files import read_json

FILE = ROOT / "renames.json"
Renames = dict[str, dict[str, list[tuple[str, list[str]]]]]


def find_renames() -> Renames:
    """Model type → version, the latest first → (old name, new names), stars for numbers; from every
    stored atlas to the newest."""
    *earlier, newest = stored_versions()
    new = load_atlas(find_atlas(newest))
    found: Renames = {}
    for version in reversed(earlier):
        for change in diff_atlases(load_atlas(find_atlas(version)), new):
            if change.kind in (RENAMED, FUSED_INTO, SPLIT):
                by_version = found.setdefault(change.model_type, {})
                names = [(name, list(change.new)) for name in change.old]
                by_version.setdefault(version, []).extend(names)
    return dict(sorted(found.items()))


def as_text(found: Renames) -> str:
    """One line a model type."""
    lines = [f"{json.dumps(kind)}: {json.dumps(names)}" for kind, names in found.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


@cache
def renames_of(model_type: str) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """(version, old name, new names) of a model type as the file has them."""
    stored = read_json(FILE).get(model_type, {})
    return tuple(
        (version, old, tuple(new)) for version, names in stored.items() for old, new in names
    )
