"""The nouns of the match ledger: what each entry of a LoRA configuration reaches on a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from bench.adapters.config import AdapterConfig
from bench.models.modules import CONV1D, LINEAR, Module, ModuleTable, Parameter, layer_of

RoleOf = Callable[[str], str]


@dataclass(frozen=True)
class Entry:
    """One entry as the user wrote it, and the modules (or parameters) that it reaches.

    `cause` says why a dead entry is dead where the model does have what it names.
    """

    entry: str
    reached: tuple[str, ...]
    roles: Mapping[str, int]
    layers: int
    suggestion: str = ""
    field: str = "target_modules"
    cause: str = ""

    @property
    def dead(self) -> bool:
        return not self.reached

    @property
    def why_dead(self) -> str:
        """The cause and what to write instead, to follow on "dead"; "" where neither is known."""
        cause = f": {self.cause}" if self.cause else ""
        return cause + (f"; write instead: {self.suggestion}" if self.suggestion else "")


@dataclass(frozen=True)
class Adapted:
    """One adapted module, or one adapted parameter of fused experts, with the rank it gets."""

    name: str
    role: str
    r: int
    module: Module | None = None
    parameter: Parameter | None = None

    @property
    def weight_elements(self) -> int:
        if self.module is not None:
            return self.module.weight_elements
        assert self.parameter is not None
        return self.parameter.elements


@dataclass(frozen=True)
class DeadField:
    """An entry of another field (a pattern's key, a module to save, a layer) without any effect."""

    field: str
    entry: str
    reason: str
    suggestion: str = ""

    def __str__(self) -> str:
        offer = f"; write instead: {self.suggestion}" if self.suggestion else ""
        return f"{self.field} {self.entry}: no effect, {self.reason}{offer}"


@dataclass(frozen=True)
class Hazard:
    """Something that PEFT does without a word and the user may not want."""

    code: str
    reason: str


@dataclass(frozen=True)
class Ledger:
    """What a LoRA configuration reaches on one model.

    Attributes:
        entries: one for each entry of target_modules and target_parameters, in the user's order.
        adapted: modules and parameters that get an adapter, in the model's order.
        saved: full names of the modules trained as whole copies (modules_to_save).
        tied: those of `saved` whose copy is the input embedding's (ensure_weight_tying).
        refusals: reasons for which PEFT raises on this configuration; empty when it injects.
        hazards: see Hazard.
        dead_fields: entries of the other fields that change nothing; PEFT ignores them.
    """

    table: ModuleTable = field(repr=False)
    adapter: AdapterConfig
    entries: tuple[Entry, ...]
    adapted: tuple[Adapted, ...]
    saved: tuple[str, ...]
    refusals: tuple[str, ...] = ()
    hazards: tuple[Hazard, ...] = ()
    tied: tuple[str, ...] = ()
    dead_fields: tuple[DeadField, ...] = ()

    @property
    def adapted_layers(self) -> int:
        """Modules and parameters with an adapter of their own."""
        return len(self.adapted)

    @cached_property
    def by_role(self) -> dict[str, int]:
        return dict(Counter(item.role for item in self.adapted))

    @cached_property
    def dead_entries(self) -> tuple[str, ...]:
        return tuple(entry.entry for entry in self.entries if entry.dead)

    @cached_property
    def weight_coverage(self) -> float:
        """Share of the linear weights (experts counted, output embedding and saved modules not)
        that carry an adapter, 0 to 1."""
        everything = sum(m.weight_elements for m in self._linear_modules())
        everything += sum(p.elements for p in self.table.expert_parameters)
        counted = {m.name for m in self._linear_modules()}
        counted |= {p.name for p in self.table.expert_parameters}
        # target_parameters names a linear layer by its weight.
        names = ((a, a.name.removesuffix(".weight")) for a in self.adapted)
        reached = sum(a.weight_elements for a, name in names if {name, a.name} & counted)
        return reached / everything if everything else 0.0

    @cached_property
    def layer_coverage(self) -> float:
        """Share of the repeated layers that hold at least one adapter, 0 to 1."""
        reached = {layer_of(item.name) for item in self.adapted} & set(self.table.layers)
        return len(reached) / len(self.table.layers) if self.table.layers else 0.0

    def _linear_modules(self) -> list[Module]:
        skipped = {self.table.output_embedding, *self.saved}
        return [
            m for m in self.table.modules if m.kind in (LINEAR, CONV1D) and m.name not in skipped
        ]
