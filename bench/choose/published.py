"""What has been published on the choice of modules, and where it contradicts itself.

`fixtures/published/module-choice.toml`: each result with its setting, figures and source.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.files import FIXTURES, parse, read_toml

FILE = FIXTURES / "published" / "module-choice.toml"
_Pair = tuple[str, str]


@dataclass(frozen=True)
class PublishedResult:
    """One published result. `better` holds pairs of scenarios of which the first did better,
    `alike` pairs without a difference beyond the authors' margin; `matched` says whether they
    trained (nearly) the same number of parameters, `read` how the figures were seen."""

    key: str
    source: str
    setting: str
    claim: str
    figures: str
    matched: bool
    better: tuple[_Pair, ...] = ()
    alike: tuple[_Pair, ...] = ()
    read: str = ""

    def prefers(self, one: str, other: str) -> bool:
        return (one, other) in self.better

    def sees_no_difference(self, one: str, other: str) -> bool:
        return (one, other) in self.alike or (other, one) in self.alike

    def __str__(self) -> str:
        how = ", matched parameters" if self.matched else ", not at matched parameters"
        seen = f"; {self.read}" if self.read else ""
        return f"{self.claim} ({self.setting}{how}: {self.figures}{seen}) – {self.source}"


@dataclass(frozen=True)
class _File:
    result: tuple[PublishedResult, ...]


def load_results(path: Path = FILE) -> tuple[PublishedResult, ...]:
    """Every result. Raises BenchError, naming file and key, on anything unknown."""
    return parse(read_toml(path), _File, str(path)).result


def said_for(scenario: str, others: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """(what prefers `scenario` to `others`, what prefers one of those or sees no difference)."""
    results = load_results()
    for_it = [str(r) for r in results if any(r.prefers(scenario, o) for o in others)]
    against = [
        str(r)
        for r in results
        if any(r.prefers(o, scenario) or r.sees_no_difference(scenario, o) for o in others)
    ]
    return for_it, against
