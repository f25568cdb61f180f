"""What PEFT does without a word and a user may not want."""

from __future__ import annotations

import json

from bench.models.modules import ModuleTable, Parameter
from bench.models.roles import DOWN, FUSED, GATE, KEY, OUTPUT, QUERY, ROUTER, UP, VALUE
from bench.targets.heads import frozen_head_text, frozen_heads
from bench.targets.ledger import Adapted, Hazard, Ledger, RoleOf
from bench.targets.refusals import owner_of, quantized_copies

_WORK = (QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN, *FUSED)


def find_hazards(ledger: Ledger, role: RoleOf, doubled: list[Adapted]) -> list[Hazard]:
    """The hazards of a ledger; `doubled` got another rank by the translation of expert names."""
    table, adapter = ledger.table, ledger.adapter
    adapted = {item.name for item in ledger.adapted}
    trained = {owner_of(item) for item in ledger.adapted} | set(ledger.saved)
    found: dict[str, str] = {}
    if heads := frozen_heads(ledger):
        found["frozen-head"] = frozen_head_text(table.class_name, heads, adapter.task_type)
    if whole := quantized_copies(table, ledger.saved):
        found["quantized-head"] = (
            f"{', '.join(whole)}: to be trained whole, and loaded as integers, which cannot train "
            f"(PEFT raises); load with llm_int8_skip_modules={json.dumps(whole)}"
        )
    tied = sorted({table.input_embedding, *table.tied} & trained)
    if table.tied and tied and not adapter.ensure_weight_tying:
        found["untied-copy"] = (
            f"{', '.join(tied)}: the input and output embeddings share one weight; what is trained "
            "drifts apart from it unless ensure_weight_tying=True"
        )
    if routers := [item.name for item in ledger.adapted if item.role == ROUTER]:
        found["router-adapted"] = (
            f"{len(routers)} routers get an adapter, which changes how tokens are routed"
        )
    whole_in = tuple(f"{name}." for name in ledger.saved)
    missed = [p for p in table.expert_parameters if p.name not in adapted]
    missed = [p for p in missed if not p.name.startswith(whole_in)]
    if experts := [p for p in missed if _of_experts(table, p)]:
        share = sum(p.elements for p in experts) / table.total_parameters
        found["experts-not-reached"] = (
            f"{len(experts)} fused expert weights, {share:.0%} of the model, get no adapter: they "
            "are parameters, which only target_parameters reaches"
        )
    if others := [p for p in missed if not _of_experts(table, p) and role(p.name) in _WORK]:
        share = sum(p.elements for p in others) / table.total_parameters
        found["parameters-not-reached"] = (
            f"{len(others)} weights of three dimensions, {share:.0%} of the model, get no adapter: "
            f"they are parameters, which only target_parameters reaches ({others[0].name})"
        )
    if doubled:
        found["rank-doubled"] = (
            f"PEFT translates the old expert names to gate_up_proj with rank {doubled[0].r}, "
            "twice the rank asked for; an explicit target_parameters does not double"
        )
    for entry in ledger.entries:
        if 0 < entry.layers < len(table.layers) and adapter.layers_to_transform is None:
            found[f"part-of-the-layers: {entry.entry}"] = (
                f"{entry.entry} reaches {entry.layers} of {len(table.layers)} layers"
            )
    return [Hazard(code.partition(":")[0], reason) for code, reason in found.items()]


def _of_experts(table: ModuleTable, parameter: Parameter) -> bool:
    """Whether a weight of three dimensions holds a matrix for every expert; XLNet's holds one for
    every head."""
    owner = table.by_name.get(parameter.name.rpartition(".")[0])
    return "expert" in f"{parameter.name} {owner.class_name if owner else ''}".lower()
