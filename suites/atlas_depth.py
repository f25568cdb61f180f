"""A model twice as deep: what has to double, and what has to stay.

A metamorphic relation, which needs no expected figure: double every depth that a configuration
names, and a stack of layers holds twice as many, each of a kind that the shallower stack holds too
(its projections by name and shape). Where all layers are of one kind, that is every projection
twice; where kinds alternate, or the first layers are dense and the rest sparse, it still says that
no layer is of a new kind. A stack whose depth has no such name stays as it is, and so does
everything outside of the stacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.atlas.build import build_model, default_config
from bench.models.modules import OTHER, ModuleTable, layer_of, read_table

# What configurations call their depth. Numbers of other layers (of a convolutional stem, shared,
# predicting) have other names, and stay. A list of depths, one a stage, goes by `depths`; the
# number beside it counts the stages.
DEPTH_FIELDS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers",
                "decoder_layers", "num_encoder_layers", "num_decoder_layers", "depth")  # fmt: skip
_STAGES = ("depths", "stage_depths", "layer_depths", "num_block_repeats")

Kind = frozenset[tuple[object, ...]]
"""The projections of one layer: the rest of their names, and their shapes."""


@dataclass(frozen=True)
class Stacks:
    """Of one model: how many layers of which kind each stack holds, and what lies outside."""

    kinds: Mapping[str, Counter[Kind]]
    outside: Kind

    @classmethod
    def of(cls, table: ModuleTable) -> Stacks:
        rows: list[tuple[str, tuple[object, ...]]] = [
            (m.name, (m.kind, m.in_features, m.out_features, m.bias, m.kernel))
            for m in table.modules
            if m.kind != OTHER
        ]
        rows += [(p.name, p.shape) for p in table.expert_parameters]
        layers: dict[tuple[str, str], set[tuple[object, ...]]] = {}
        outside = set()
        for name, shape in rows:
            layer = layer_of(name)
            stack, _, number = layer.rpartition(".")
            if stack:
                layers.setdefault((stack, number), set()).add((name.removeprefix(layer), *shape))
            else:
                outside.add((name, *shape))
        kinds: dict[str, Counter[Kind]] = {}
        for (stack, _), found in layers.items():
            kinds.setdefault(stack, Counter())[frozenset(found)] += 1
        return cls(kinds, frozenset(outside))


@dataclass(frozen=True)
class Depths:
    """A type at its own depth and at twice that.

    `fields` are the doubled fields, with the path to a part's configuration before them.
    """

    fields: tuple[str, ...]
    once: Stacks
    twice: Stacks

    def problems(self) -> list[str]:
        """What does not hold, in words; empty when the relation holds."""
        once, twice = self.once.kinds, self.twice.kinds
        found = [f"{stack}: there at one depth only" for stack in once.keys() ^ twice.keys()]
        if self.once.outside != self.twice.outside:
            names = sorted({str(row[0]) for row in self.once.outside ^ self.twice.outside})
            found.append(f"outside the layers {', '.join(names)} changed")
        doubled = 0
        for stack in once.keys() & twice.keys():
            if once[stack] == twice[stack]:
                continue
            doubled += 1
            layers = once[stack].total(), twice[stack].total()
            if layers[1] != 2 * layers[0]:
                found.append(f"{stack}: {layers[0]} layers became {layers[1]}")
            elif once[stack].keys() != twice[stack].keys():
                found.append(f"{stack}: other kinds of layer at twice the depth")
        if not doubled:
            found.append(f"nothing grew with {', '.join(self.fields)}")
        return sorted(found)


def depths(model_type: str) -> Depths | None:
    """Build a type at its own depth and at twice that; None where it names no depth.

    Raises Unbuildable with the reason.
    """
    own = _depth_values(default_config(model_type))
    if not own:
        return None
    # The shallower model is given its depth too, so that both parts come from the same values.
    once, twice = (
        Stacks.of(read_table(build_model(model_type, _scaled(own, factor))[0])) for factor in (1, 2)
    )
    return Depths(tuple(_paths(own)), once, twice)


def _depth_values(config: Any) -> dict[str, Any]:
    """The depths that a configuration and its parts name, nested as they are."""
    from transformers import PretrainedConfig

    found: dict[str, Any] = {}
    attributes = {getattr(config, "attribute_map", {}).get(n, n) for n in DEPTH_FIELDS}
    staged = any(isinstance(getattr(config, name, None), list | tuple) for name in _STAGES)
    for name, value in vars(config).items():
        if name in attributes and type(value) is int and value > 0 and not staged:
            found[name] = value
        elif isinstance(value, PretrainedConfig) and (inside := _depth_values(value)):
            found[name] = {"model_type": value.model_type, **inside}
    return found


def _scaled(values: Mapping[str, Any], factor: int) -> dict[str, Any]:
    return {
        name: _scaled(value, factor) if isinstance(value, dict)
        else value * factor if isinstance(value, int) else value
        for name, value in values.items()
    }  # fmt: skip


def _paths(values: Mapping[str, Any], before: str = "") -> list[str]:
    return [
        path
        for name, value in values.items()
        if name != "model_type"
        for path in (
            _paths(value, f"{before}{name}.") if isinstance(value, dict) else [before + name]
        )
    ]
