"""The nouns of the match ledger: what each entry of a LoRA configuration reaches on a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.models.modules import CONV1D, LINEAR, Module, ModuleTable, Parameter
from bench.models.stacks import Stack

RoleOf = Callable[[str], str]


@dataclass(frozen=True)
class Entry:
    """One entry as the user wrote it, and the modules (or parameters) that it reaches.

    `cause` says why a dead entry is dead where the model does have what it names. One that is
    `left_out` reaches nothing and is not dead: it is one of the names that PEFT saves in the place
    of "all-linear", and other fields hold its modules out, as was asked.
    """

    entry: str
    reached: tuple[str, ...]
    roles: Mapping[str, int]
    layers: int
    suggestion: str = ""
    field: str = "target_modules"
    cause: str = ""
    left_out: bool = False

    @property
    def dead(self) -> bool:
        return not self.reached and not self.left_out

    @property
    def why_dead(self) -> str:
        """The cause and what to write instead, to follow on "dead"; "" where neither is known."""
        cause = f": {self.cause}" if self.cause else ""
        return cause + (f"; write instead: {self.suggestion}" if self.suggestion else "")

    @property
    def nothing(self) -> str:
        """That it reaches nothing, and why; "" where it reaches something."""
        if self.left_out:
            return f"left out of all-linear: {self.cause}"
        return f"reaches nothing{self.why_dead}" if self.dead else ""


@dataclass(frozen=True)
class Adapted:
    """One adapted module, or one adapted parameter of fused experts, with the rank it gets."""

    name: str
    role: str
    r: int
    module: Module | None = None
    parameter: Parameter | None = None

    @property
    def owner(self) -> str:
        """The module that PEFT wraps: the adapted one, or the one that holds the parameter."""
        return self.name if self.module is not None else self.name.rpartition(".")[0]

    @property
    def weight_elements(self) -> int:
        if self.module is not None:
            return self.module.weight_elements
        assert self.parameter is not None
        return self.parameter.elements

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of the matrix that B·A is added to; a convolution's window counts as
        columns, and of stacked experts each has a matrix of its own."""
        if (m := self.module) is not None:
            return m.out_features, m.in_features * m.kernel
        assert self.parameter is not None
        shape = self.parameter.shape  # PEFT refuses a vector, which has one side
        rows, columns = (shape[-1], *shape)[-2:]
        return rows, columns


@dataclass(frozen=True)
class DeadField:
    """An entry of another field (a pattern's key, a module to save, a layer) without any effect."""

    field: str
    entry: str
    reason: str
    suggestion: str = ""

    def __str__(self) -> str:
        offer = f"; write instead: {self.suggestion}" if self.suggestion else ""
        named = f"{self.field} {self.entry}".rstrip()
        return f"{named}: no effect, {self.reason}{offer}"


@dataclass(frozen=True)
class Hazard:
    """Something that PEFT does without a word and the user may not want; `docs/hazards.md` has a
    section for each code."""

    code: str
    reason: str


def adapter_of(name: str) -> str:
    """What `Copies` calls the adapter of an adapted layer or parameter."""
    return f"{name}.lora_"


@dataclass(frozen=True)
class Copies:
    """The tensors that saving modules whole adds, by the name of what they are copies of: a base
    parameter, or `adapter_of` an adapted layer for all of its adapter.

    Attributes:
        made: how many copies there are of each.
        trained: how many of them train; a copy inside which another was made does not.
        frozen: the originals, parameters and adapters, that train no more.
    """

    made: Mapping[str, int] = field(default_factory=dict)
    trained: Mapping[str, int] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Reach:
    """What is reached of one stack: modules and parameters, the layers that hold them, and the
    share of the stack's linear weights that they are (0 to 1)."""

    stack: Stack
    modules: int
    layers: int
    weights: float = 0.0

    @property
    def inside(self) -> str:
        """In how many of the stack's layers; "" outside of them."""
        every = len(self.stack.layers)
        return f"{self.layers} of {every} layers" if self.layers and every else ""


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
        copies: the tensors that the saved modules add.
        dead_fields: entries of the other fields that change nothing; PEFT ignores them.
        ways_out: what to write where PEFT refuses what entries reach, beginning with those at
            fault.
    """

    table: ModuleTable = field(repr=False)
    adapter: AdapterConfig
    entries: tuple[Entry, ...]
    adapted: tuple[Adapted, ...]
    saved: tuple[str, ...]
    refusals: tuple[str, ...] = ()
    hazards: tuple[Hazard, ...] = ()
    tied: tuple[str, ...] = ()
    copies: Copies = field(default_factory=Copies, repr=False)
    dead_fields: tuple[DeadField, ...] = ()
    ways_out: tuple[str, ...] = ()

    def check_adapts(self, nothing: str) -> Ledger:
        """The ledger itself. BenchError where PEFT refuses, and `nothing` where none is adapted."""
        if self.refusals:
            raise BenchError(f"PEFT refuses it: {'; '.join(self.refusals)}")
        if not self.adapted:
            raise BenchError(nothing)
        return self

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

    def reach(self, names: Iterable[str]) -> tuple[Reach, ...]:
        """The stacks that hold modules or parameters of these names, in the model's order."""
        held: dict[str, list[str]] = {}
        for name in names:
            held.setdefault(self.table.stack_of(name).prefix, []).append(name)
        return tuple(
            Reach(s, len(held[s.prefix]), len({s.layer_of(n) for n in held[s.prefix]} - {""}))
            for s in self.table.stacks
            if s.prefix in held
        )

    @cached_property
    def stacks(self) -> tuple[Reach, ...]:
        """Every stack of the model, with what of it is adapted."""
        reached = {r.stack.prefix: r for r in self.reach(item.name for item in self.adapted)}
        return tuple(
            replace(reached.get(s.prefix, Reach(s, 0, 0)), weights=self._share((s,)))
            for s in self.table.stacks
        )

    @cached_property
    def weight_coverage(self) -> float:
        """Share of the linear weights (experts counted; output embedding, and what is trained
        whole, not) that carry an adapter, 0 to 1; of the stacks that text feeds where others stand
        beside a language model."""
        return self._share(self.table.main_stacks)

    @cached_property
    def has_weights_to_cover(self) -> bool:
        """Whether those stacks have linear weights that are not trained whole: without any, a
        coverage of 0 misses nothing."""
        return any(self.table.stack_of(n) in self.table.main_stacks for n in self._weights[0])

    @cached_property
    def layer_coverage(self) -> float:
        """Share of the layers that hold at least one adapter, 0 to 1, in the same stacks."""
        main = self.table.main_stacks
        every = {layer for stack in main for layer in stack.layers}
        held = ((item.name, self.table.stack_of(item.name)) for item in self.adapted)
        reached = {stack.layer_of(name) for name, stack in held if stack in main}
        return len(reached & every) / len(every) if every else 0.0

    def _share(self, stacks: tuple[Stack, ...]) -> float:
        """Share of these stacks' linear weights that carry an adapter."""
        every, adapted = self._weights
        inside = {n: w for n, w in every.items() if self.table.stack_of(n) in stacks}
        total = sum(inside.values())
        return sum(w for name, w in inside.items() if name in adapted) / total if total else 0.0

    @cached_property
    def _weights(self) -> tuple[dict[str, int], set[str]]:
        """Every linear weight by name, and which of them carry an adapter."""
        skipped = {self.table.output_embedding, *self.saved}
        whole = tuple(f"{name}." for name in self.saved)
        every = {
            m.name: m.weight_elements
            for m in self.table.modules
            if m.kind in (LINEAR, CONV1D) and m.name not in skipped
        }
        every |= {p.name: p.elements for p in self.table.expert_parameters}
        every = {n: weight for n, weight in every.items() if not n.startswith(whole)}
        # target_parameters names a linear layer by its weight.
        named = ((a.name, a.name.removesuffix(".weight")) for a in self.adapted)
        return every, {n for pair in named for n in pair if n in every}
