"""Which hazards fail a configuration: as the project says, and as an option or argument says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from bench.errors import BenchError
from bench.files import parse, project_file, tool_table
from bench.targets.hazards import (
    HAZARDS,
    NEVER_WORKS,
    NOT_AS_WRITTEN,
    check_hazards,
    coverage_text,
)
from bench.targets.ledger import Hazard, Ledger

SECTION = "lora-target-bench"
_Section = TypedDict(
    "_Section",
    {"fail-on": list[str], "allow": list[str], "minimum-coverage": int | float},
    total=False,
)
_COVERAGE = "low-coverage"


@dataclass(frozen=True)
class HazardGate:
    """What fails beside dead entries and refusals.

    Attributes:
        fail_on: codes of hazards that fail.
        allow: codes that never do.
        minimum_coverage: the least share of the linear weights that must carry an adapter, 0 to 1;
            less is the hazard low-coverage, and fails.
        strict: whether the hazards fail that mean something else than what was written.
    """

    fail_on: frozenset[str] = frozenset()
    allow: frozenset[str] = frozenset()
    minimum_coverage: float | None = None
    strict: bool = False

    @classmethod
    def of_project(cls, folder: Path | None = None) -> HazardGate:
        """As `[tool.lora-target-bench]` says in the pyproject.toml of the project that `folder`
        (the current one) lies in, if there is one.

        Raises BenchError, naming file and key, for an unknown key, hazard or share.
        """
        path = project_file(folder)
        if path is None:
            return cls()
        table = tool_table(path, SECTION)
        where = f"{path}: tool.{SECTION}"
        # Its tables belong to other commands.
        own = {key: value for key, value in table.items() if not isinstance(value, dict)}
        said = parse(own, _Section, where)
        return cls().with_options(
            said.get("fail-on", ()), said.get("allow", ()), said.get("minimum-coverage"),
            where=f"{where}: ",
        )  # fmt: skip

    def with_options(
        self,
        fail_on: Iterable[str] = (),
        allow: Iterable[str] = (),
        minimum_coverage: float | None = None,
        strict: bool = False,
        where: str = "",
    ) -> HazardGate:
        """This gate with more; "all" stands for every hazard. What is allowed now is not failed on
        by the project, and the other way round."""
        failing = _codes(fail_on, f"{where}fail-on")
        allowed = _codes(allow, f"{where}allow")
        if (both := sorted(failing & allowed)) and not failing.issuperset(HAZARDS):
            raise BenchError(f"{where}{both[0]} is in fail-on and in allow: in one of them")
        share = self.minimum_coverage if minimum_coverage is None else minimum_coverage
        if share is not None and not (
            isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1
        ):
            raise BenchError(f"{where}minimum-coverage must be a share from 0 to 1, not {share!r}")
        return replace(
            self,
            fail_on=(self.fail_on - allowed) | failing,
            allow=(self.allow - failing) | allowed,
            minimum_coverage=share,
            strict=self.strict or strict,
        )

    def judge(self, ledger: Ledger) -> Ledger:
        """The ledger with low coverage among its hazards where it is below the least share."""
        known = any(hazard.code == _COVERAGE for hazard in ledger.hazards)
        if known or not self._too_little(ledger):
            return ledger
        hazard = Hazard(
            _COVERAGE, f"{coverage_text(ledger)}; at least {self.minimum_coverage:.1%} is asked for"
        )
        return replace(ledger, hazards=(*ledger.hazards, hazard))

    def failing(self, ledger: Ledger) -> tuple[str, ...]:
        """The codes of the ledger's hazards that fail."""
        codes = self.fail_on | NEVER_WORKS | (NOT_AS_WRITTEN if self.strict else set())
        if self._too_little(ledger):
            codes |= {_COVERAGE}
        return tuple(hazard.code for hazard in ledger.hazards if hazard.code in codes - self.allow)

    def _too_little(self, ledger: Ledger) -> bool:
        share = self.minimum_coverage
        little = share is not None and ledger.weight_coverage < share
        return little and ledger.has_weights_to_cover


def _codes(names: Iterable[str], where: str) -> frozenset[str]:
    names = (names,) if isinstance(names, str) else tuple(names)
    if "all" in names:
        return frozenset(HAZARDS)
    return frozenset(check_hazards(names, where))
