"""What the atlas knows of one model type, and of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from bench.atlas import names
from bench.models.modules import CONV1D, LINEAR, OTHER, Module, ModuleTable, Parameter
from bench.models.roles import UNKNOWN


@dataclass(frozen=True)
class _Named:
    """What every layer holds under one name but for its numbers, and what that does."""

    name: str
    role: str

    @property
    def pattern(self) -> str:
        """The name with a star for every number."""
        return names.template(self.name)

    @cached_property
    def count(self) -> int:
        return names.count_names(self.name)

    @cached_property
    def layers(self) -> int:
        """In how many repeated layers such a one lies; 0 outside of them."""
        return names.repeats(self.name)


@dataclass(frozen=True)
class Folded(_Named):
    """Modules of one name, kind and shape that LoRA can adapt."""

    kind: str
    in_features: int
    out_features: int
    bias: bool = False
    kernel: int = 1
    groups: int = 1

    @property
    def shape(self) -> tuple[object, ...]:
        return (self.kind, self.in_features, self.out_features, self.bias, self.kernel, self.groups)


@dataclass(frozen=True)
class Bare(_Named):
    """Weights that are bare parameters, in no nn.Linear: fused experts, of `experts × rows ×
    columns`, and routers, of `experts × columns`. Only `target_parameters` reaches them."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class TypeEntry:
    """One model type as its class builds it.

    Attributes:
        auto_class: the auto class that builds it; "" for a class that no auto class gives.
        class_name: the model's class.
        causal_lm: whether AutoModelForCausalLM takes this type, whatever class is shown here.
        layers: repeated blocks that hold a linear weight.
        parameters: all of the model's, logical elements, shared tensors once.
        tied: modules whose weight is the input embedding's.
        moe_conversion: the family by which PEFT rewrites transformers-4 expert names, or "".
        ties_unknown: whether PEFT refuses the model whatever its targets; see ModuleTable.
        other: last segments of the names of all further modules, which LoRA cannot adapt.
    """

    auto_class: str
    class_name: str
    causal_lm: bool
    layers: int
    parameters: int
    input_embedding: str = ""
    output_embedding: str = ""
    tied: tuple[str, ...] = ()
    moe_conversion: str = ""
    ties_unknown: bool = False
    projections: tuple[Folded, ...] = field(default=(), repr=False)
    bare: tuple[Bare, ...] = field(default=(), repr=False)
    other: tuple[str, ...] = field(default=(), repr=False)

    def table(self, model_type: str) -> ModuleTable:
        """The module table again, without building a model.

        It holds every module that LoRA can adapt and every bare weight. Of all other modules it
        knows the last segment of the name, enough to say that PEFT would refuse an entry like it.
        """
        modules = [
            Module(name, p.kind, p.in_features, p.out_features, p.bias, p.kernel, p.groups)
            for p in self.projections
            for name in names.expand(p.name)
        ]
        parameters = [Parameter(n, e.shape) for e in self.bare for n in names.expand(e.name)]
        owners = dict.fromkeys(p.name.rpartition(".")[0] for p in parameters)
        if self.moe_conversion:  # PEFT's translation asks for routers by "gate.weight"
            parameters += [
                Parameter(f"{m.name}.weight", (m.out_features, m.in_features))
                for m in modules
                if m.leaf == "gate"
            ]
        modules += [Module(name, OTHER) for name in (*owners, *self.other)]
        return ModuleTable(
            model_type=model_type,
            class_name=self.class_name,
            modules=tuple(modules),
            parameters=tuple(parameters),
            input_embedding=self.input_embedding,
            output_embedding=self.output_embedding,
            tied=self.tied,
            moe_conversion=self.moe_conversion,
            ties_unknown=self.ties_unknown,
        )


@dataclass(frozen=True)
class Atlas:
    """Every model type of one transformers version.

    `unbuilt` gives, for each type that is not in `types`, the reason.
    """

    transformers: str
    types: Mapping[str, TypeEntry] = field(repr=False)
    unbuilt: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def known(self) -> int:
        """How many model types transformers knows."""
        return len(self.types) + len(self.unbuilt)

    @cached_property
    def causal_lms(self) -> dict[str, TypeEntry]:
        """The types that AutoModelForCausalLM takes."""
        return {name: entry for name, entry in self.types.items() if entry.causal_lm}

    def role_coverage(self) -> tuple[int, int]:
        """Of the causal LMs' linear modules (and bare weights): with a role, and all."""
        counted = [
            (row.role, row.count)
            for entry in self.causal_lms.values()
            for row in linear_rows(entry)
        ]
        known = sum(n for role, n in counted if role != UNKNOWN)
        return known, sum(n for _, n in counted)


def linear_rows(entry: TypeEntry) -> Iterator[Folded | Bare]:
    """The linear projections and the bare weights of one type."""
    yield from (p for p in entry.projections if p.kind in (LINEAR, CONV1D))
    yield from entry.bare
