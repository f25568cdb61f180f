"""The figures of `docs/atlas.md`, from the stored atlases.

A page is prose with blocks between marks; `refresh` writes the blocks anew and leaves the rest:

    <!-- figures: headline -->
    ...
    <!-- end of figures -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache

from bench.atlas.diff import change_lines, diff_atlases
from bench.atlas.entries import Atlas
from bench.atlas.headline import (
    DEAD_ENTRY,
    RAISES,
    UNKNOWN_TYPE,
    WORKS,
    default_outcomes,
    headline,
    missed_roles,
)
from bench.atlas.reach import load_reach
from bench.atlas.reviewed import with_roles
from bench.atlas.store import find_atlas, load_atlas, stored_versions
from bench.errors import BenchError, UnknownName
from bench.models.roles import ROLES

SEVEN, ALL = "seven-names", "all-linear"
SHOWN_CHANGES = ("mixtral", "vit")
_BLOCK = re.compile(
    r"(?P<start><!-- figures: (?P<name>.*?) -->\n).*?(?P<end><!-- end of figures -->)", re.DOTALL
)


def refresh(text: str, where: str) -> str:
    """`text` with every block written anew. Raises BenchError, naming `where`, for a block that
    nothing is known of, and for a text without any."""

    def block(found: re.Match[str]) -> str:
        if found["name"] not in BLOCKS:
            raise UnknownName(f"block of figures in {where}:", found["name"], BLOCKS)
        return f"{found['start']}{BLOCKS[found['name']]()}\n{found['end']}"

    new, number = _BLOCK.subn(block, text)
    if not number:
        raise BenchError(f"{where}: holds no block of figures, <!-- figures: headline --> ...")
    return new


@cache
def _newest() -> Atlas:
    return load_atlas(find_atlas(stored_versions()[-1]))


def _size() -> str:
    atlases = [load_atlas(find_atlas(version)) for version in stored_versions()]
    rows = [
        (a.transformers, f"{a.known}", f"{len(a.types)} ({len(a.types) / a.known:.1%})",
         f"{len(a.causal_lms)}", f"{_share(*a.role_coverage())}")
        for a in atlases
    ]  # fmt: skip
    columns = ("transformers", "model types", "built", "causal LMs", "linear modules with a role")
    return _table(columns, rows)


def _headline() -> str:
    atlas = _newest()
    seven, every = headline(atlas, SEVEN), headline(atlas, ALL)
    sentence = (
        f"Of {seven.types} causal-LM types of transformers {atlas.transformers}, the seven names "
        f"reach everything in **{len(seven.everything)}**, part in **{len(seven.part)}**, nothing "
        f"in **{len(seven.nothing)}**; `all-linear` reaches everything in "
        f"{len(every.everything)}, part in {len(every.part)}, nothing in {len(every.nothing)}."
    )
    outcomes = list(default_outcomes(atlas).values())
    defaults = (
        f"PEFT's default mapping works for **{outcomes.count(WORKS)} of {len(outcomes)}** of its "
        f"keys (peft {load_reach(find_atlas(atlas.transformers)).peft})."
    )
    return f"{sentence} {defaults}"


def _missed() -> str:
    atlas = _newest()
    found = headline(atlas, SEVEN)
    part = missed_roles(atlas, found.part, SEVEN)
    nothing = missed_roles(atlas, found.nothing, SEVEN)
    roles = sorted({*part, *nothing}, key=lambda r: (-_types(part, r) - _types(nothing, r), r))
    rows = [
        (ROLES[role], f"{_types(part, role)}", f"{_types(nothing, role)}",
         _shortened([*part.get(role, ()), *nothing.get(role, ())]))
        for role in roles
    ]  # fmt: skip
    columns = ("what is missed", "types reached in part", "types not reached", "such as")
    return _table(columns, rows)


def _nothing() -> str:
    atlas = _newest()
    return "\n\n".join(
        f"{name}: {_names(headline(atlas, scenario).nothing)}."
        for name, scenario in (("The seven names", SEVEN), ("`all-linear`", ALL))
    )


def _defaults() -> str:
    meanings = {
        UNKNOWN_TYPE: "transformers knows no such model type",
        RAISES: "PEFT raises",
        DEAD_ENTRY: "injects, with entries that reach nothing",
    }
    outcomes = default_outcomes(_newest())
    rows = [
        (meaning, _names(key for key, found in outcomes.items() if found == outcome))
        for outcome, meaning in meanings.items()
    ]
    return _table(("what happens", "keys"), rows)


def _unbuilt() -> str:
    reasons: dict[str, list[str]] = {}
    for model_type, reason in _newest().unbuilt.items():
        reasons.setdefault(reason, []).append(model_type)
    rows = [(reason, _names(types)) for reason, types in reasons.items()]
    return _table(("reason", "types"), rows)


def _changes() -> str:
    old = [version for version in stored_versions() if version.startswith("4.")][-1]
    before, after = with_roles(load_atlas(find_atlas(old))), with_roles(_newest())
    changes = [c for c in diff_atlases(before, after) if c.model_type in SHOWN_CHANGES]
    command = (
        f"$ bench atlas --diff {before.transformers} {after.transformers} "
        f"--types {','.join(SHOWN_CHANGES)}"
    )
    return "\n".join(("```console", command, *change_lines(changes), "```"))


BLOCKS: dict[str, Callable[[], str]] = {
    "size": _size,
    "headline": _headline,
    "missed": _missed,
    "nothing": _nothing,
    "defaults": _defaults,
    "unbuilt": _unbuilt,
    "changes": _changes,
}


def _types(found: dict[str, tuple[str, ...]], role: str) -> int:
    return len(found.get(role, ()))


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,}"


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _shortened(names: list[str]) -> str:
    return _names(names[:3]) + (", ..." if len(names) > 3 else "")


def _table(columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
    from tabulate import tabulate

    return str(tabulate(rows, list(columns), "github", disable_numparse=True))
