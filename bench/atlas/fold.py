"""Fold a module table into what the atlas keeps of it: one projection for all modules of one name
(but for its numbers), kind and shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench.atlas import names
from bench.atlas.entries import Bare, Projection, TypeEntry
from bench.atlas.reviewed import role_in
from bench.models.modules import OTHER, ModuleTable
from bench.models.roles import ROUTER, role_of


def make_entry(table: ModuleTable, auto_class: str, causal_lm: bool) -> TypeEntry:
    """What the atlas keeps of a model that `auto_class` built. `causal_lm`: see TypeEntry."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for m in table.modules:
        if m.kind != OTHER:
            # A few models compute their widths with tensors.
            shape = (m.kind, int(m.in_features), int(m.out_features), m.bias, m.kernel, m.groups)
            groups.setdefault((names.template(m.name), *shape), []).append(m.name)
    bare: dict[tuple[Any, ...], list[str]] = {}
    owners = {m.name for m in table.modules if m.kind == OTHER}
    routers = (
        p
        for p in table.parameters
        if len(p.shape) == 2 and p.name.rpartition(".")[0] in owners and role_of(p.name) == ROUTER
    )
    for p in (*table.expert_parameters, *routers):
        bare.setdefault((names.template(p.name), p.shape), []).append(p.name)
    # A number tells nothing, unless an entry could be that number: linear layers are called so too.
    adaptable = {m.leaf for m in table.modules if m.kind != OTHER}
    other = {
        m.leaf
        for m in table.modules
        if m.kind == OTHER and (not m.leaf.isdigit() or m.leaf in adaptable)
    }
    entry = TypeEntry(
        auto_class=auto_class,
        class_name=table.class_name,
        causal_lm=causal_lm,
        layers=len(table.layers),
        parameters=table.total_parameters,
        input_embedding=table.input_embedding,
        output_embedding=table.output_embedding,
        tied=table.tied,
        moe_conversion=table.moe_conversion,
        ties_unknown=table.ties_unknown,
        other=tuple(sorted(other)),
    )

    def role(name: str, kind: str) -> str:
        return role_in(table.model_type, name, kind, entry)

    return replace(
        entry,
        projections=tuple(
            Projection(name, role(members[0], shape[0]), *shape)
            for (_, *shape), members in groups.items()
            for name in names.fold(members)
        ),
        bare=tuple(
            Bare(name, role(members[0], ""), shape)
            for (_, shape), members in bare.items()
            for name in names.fold(members)
        ),
    )
