"""What PEFT does without a word and a user may not want."""

from __future__ import annotations

import json

from bench.modules import LINEAR
from bench.roles import ROUTER
from bench.targets.ledger import Hazard, Ledger, RoleOf
from bench.targets.refusals import quantized_copies


def find_hazards(ledger: Ledger, role: RoleOf, doubled: bool) -> list[Hazard]:
    """The hazards of a ledger; `doubled` where the translation of expert names doubled a rank."""
    table, adapter = ledger.table, ledger.adapter
    trained = {item.name for item in ledger.adapted} | set(ledger.saved)
    found: dict[str, str] = {}
    heads = [
        m.name
        for m in table.modules
        if m.kind == LINEAR
        and m.name.partition(".")[0] in ("classifier", "score", "qa_outputs", "pre_classifier")
        and not any(m.name == t or m.name.startswith(f"{t}.") for t in trained)
    ]
    if heads:
        found["frozen-head"] = (
            f"{', '.join(heads)}: newly initialised, and stays frozen and random; give the task "
            "type, or name it in modules_to_save"
        )
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
    if experts := [p for p in table.expert_parameters if p.name not in trained]:
        share = sum(p.elements for p in experts) / table.total_parameters
        found["experts-not-reached"] = (
            f"{len(experts)} fused expert weights, {share:.0%} of the model, get no adapter: they "
            "are parameters, which only target_parameters reaches"
        )
    if doubled:
        found["rank-doubled"] = (
            f"PEFT translates the old expert names to gate_up_proj with rank {2 * adapter.r}, "
            "twice the rank asked for; an explicit target_parameters does not double"
        )
    for entry in ledger.entries:
        if 0 < entry.layers < len(table.layers) and adapter.layers_to_transform is None:
            found[f"part-of-the-layers: {entry.entry}"] = (
                f"{entry.entry} reaches {entry.layers} of {len(table.layers)} layers"
            )
    return [Hazard(code.partition(":")[0], reason) for code, reason in found.items()]
