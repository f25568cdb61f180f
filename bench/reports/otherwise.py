"""What two runs have configured otherwise, in words, for every report that shows verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from bench.baselines import StoredRun, Verdict
from bench.baselines.configuration import unseen_changes

FEW = 3
"""So many stand in one line; more have a line each, or are counted where there is no room."""


def unseen_lines(
    baseline: StoredRun, contender: StoredRun, verdicts: Sequence[Verdict], of: str = ""
) -> list[str]:
    """All that is configured otherwise and no verdict says: in one line, or in a line each.

    of: the contender's name, where a report has several.
    """
    found = unseen_changes(baseline, contender, verdicts)
    if len(found) <= FEW:
        return [f"{_head(of)}: {'; '.join(found)}."] if found else []
    return [f"{_head(of)}, {len(found)} in all:", *found]


def unseen_line(
    baseline: StoredRun, contender: StoredRun, verdicts: Sequence[Verdict], whole: str
) -> list[str]:
    """The same in one line, or none: what has no room is counted, and `whole` names it."""
    found = unseen_changes(baseline, contender, verdicts)
    short = unseen_changes(baseline, contender, verdicts, most=FEW)
    if not found:
        return []
    more = f"; and {len(found) - FEW:,} more" if len(found) > FEW else ""
    told = f": {whole} names all of it" if found != short or more else ""
    return [f"{_head()}: {'; '.join(short[:FEW])}{more}{told}."]


def _head(of: str = "") -> str:
    return f"Configured otherwise{f' in {of}' if of else ''}, which no figure shows"
