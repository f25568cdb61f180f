"""The registered architectures, with what is declared of them by hand.

Each is a folder in `fixtures/architectures/`: the published `config.json` and an
`architecture.toml` of hand-written expectations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from bench.files import FIXTURES, parse, read_toml
from bench.models.expressions import evaluate
from bench.models.roles import check_role

_Kind = Literal["linear", "conv1d", "conv2d", "embedding", "expert"]
Size = int | str
"""A number, or an expression over the configuration's fields."""


@dataclass(frozen=True)
class Declared:
    """One declared kind of module: `count` modules of `in_features × out_features` each.

    `module` is what one writes in `target_modules` to reach exactly these (for experts: in
    `target_parameters`); with `regex` it is the end of a regular expression.
    """

    role: str
    module: str
    kind: _Kind
    in_features: Size
    out_features: Size
    bias: bool
    count: Size
    regex: bool = False
    tied: bool = False
    experts: Size = 1
    kernel: Size = 1


@dataclass(frozen=True)
class Projection(Declared):
    """The same with its expressions evaluated."""

    in_features: int
    out_features: int
    count: int
    experts: int = 1
    kernel: int = 1

    @property
    def weight_elements(self) -> int:
        return self.in_features * self.out_features * self.kernel * self.experts

    @property
    def parameters(self) -> int:
        """Elements of all `count` modules; a tied weight counts where it is declared untied."""
        weight = 0 if self.tied else self.weight_elements
        return self.count * (weight + self.bias * self.out_features)


@dataclass(frozen=True)
class Reduction:
    """A smaller geometry with the same module names and width ratios, for machines without GPU."""

    label: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Stated:
    """What somebody published of the whole model, and where."""

    total_parameters: int | None = None
    source: str = ""


@dataclass(frozen=True)
class Architecture:
    """A registered architecture: its folder and the declarations in architecture.toml."""

    name: str
    hub_id: str
    source: str
    auto_class: str
    folder: Path
    projection: tuple[Declared, ...] = field(repr=False)
    layers: str
    other_parameters: str
    published: Stated = Stated()
    reduced: tuple[Reduction, ...] = ()
    """The usual one first, and one for machines on which half precision is slow."""

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(p.role for p in self.projection))

    def projections(self, fields: Mapping[str, Any]) -> tuple[Projection, ...]:
        """Every declared projection, its expressions evaluated over the configuration `fields`."""
        evaluated = []
        for number, declared in enumerate(self.projection, 1):
            where = f"{self.name}: projection {number} ({declared.module})"
            values = asdict(declared)
            for key in ("in_features", "out_features", "count", "experts", "kernel"):
                values[key] = evaluate(values[key], fields, f"{where}: {key}")
            evaluated.append(Projection(**values))
        return tuple(evaluated)

    def total_parameters(self, fields: Mapping[str, Any]) -> int:
        """The base model's parameters in closed form, from the declarations alone."""
        rest = evaluate(self.other_parameters, fields, f"{self.name}: other_parameters")
        return rest + sum(p.parameters for p in self.projections(fields))


def registered(folder: Path | None = None) -> dict[str, Path]:
    """Name → folder of every registered architecture."""
    root = folder or FIXTURES / "architectures"
    return {path.parent.name: path.parent for path in sorted(root.glob("*/architecture.toml"))}


@cache
def load_architecture(folder: Path) -> Architecture:
    """Read one architecture.toml, once a process. Raises BenchError, naming file and key, on
    anything unknown."""
    path = folder / "architecture.toml"
    found = parse(read_toml(path), Architecture, str(path), folder=folder)
    for number, projection in enumerate(found.projection, 1):
        check_role(projection.role, f"{path}: projection {number}")
    return found


def smaller_labels() -> frozenset[str]:
    """What tells the reductions for machines on which half precision is slow, of every registered
    architecture."""
    found = (load_architecture(folder).reduced for folder in registered().values())
    return frozenset(each.label for reduced in found for each in reduced[1:])
