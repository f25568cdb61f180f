"""PEFT's translation of the expert names of transformers 4 to the fused parameters of 5.

Source: peft 0.21 `utils/transformers_weight_conversion.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.adapters.config import ALL_LINEAR, AdapterConfig
from bench.models.modules import ModuleTable
from bench.targets.filters import Filter, matching_pattern

# Expert names of transformers 4 → the fused parameter of transformers 5, by family, and which
# parameters hold two old projections at once (the rank doubles there).
_EXPERT_NAMES: dict[str, dict[str, str]] = {
    "mixtral": {"gate": "gate.weight", "w1": "gate_up_proj", "w3": "gate_up_proj",
                "w2": "down_proj"},
    "qwen2_moe": {"gate": "gate.weight", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj",
                  "down_proj": "down_proj"},
}  # fmt: skip
_FUSED_EXPERTS = {"mixtral": ("w1", "w3"), "qwen2_moe": ("gate_proj", "up_proj")}


@dataclass(frozen=True)
class Translated:
    """What a configuration became.

    Attributes:
        targets: the remaining target modules.
        parameters: the target parameters.
        aliases: what each of the user's entries became, where it became something else.
        ranks: rank patterns that the translation adds.
    """

    targets: tuple[str, ...] | str | None
    parameters: tuple[str, ...]
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)


def translate_experts(
    table: ModuleTable, adapter: AdapterConfig, refusals: list[str]
) -> Translated:
    """PEFT's translation of transformers-4 expert names."""
    targets, parameters = adapter.target_modules, adapter.target_parameters
    names = _EXPERT_NAMES.get(table.moe_conversion)
    if not names or not hasattr(targets, "__len__"):
        if names and targets is None:
            targets = ()  # PEFT turns None into an empty set here, so no default applies
        return Translated(targets, parameters)
    aliases: dict[str, tuple[str, ...]] = {}
    whole = ""
    if isinstance(targets, str):
        whole, targets = targets, tuple(sorted(_leaf_names(table, adapter, targets, names)))
        if not targets:
            return Translated(whole, parameters)
    assert targets is not None
    kept: list[str] = []
    added: list[str] = []
    fused_found: set[str] = set()
    for target in targets:
        old = next((o for o in names if target == o or target.endswith(f".{o}")), None)
        if old is None:
            kept.append(target)
            continue
        aliases[target] = (names[old],)
        added.append(names[old])
        if names[old] == "gate_up_proj":
            fused_found.add(old)
    both = set(_FUSED_EXPERTS[table.moe_conversion])
    ranks: dict[str, int] = {}
    if fused_found == both:
        ranks[r".*\.gate_up_proj"] = adapter.r * 2
    elif fused_found:
        missing = ", ".join(sorted(both - fused_found))
        refusals.append(
            f"{', '.join(sorted(fused_found))} is fused with {missing} in gate_up_proj: "
            "PEFT asks for both or neither"
        )
    if whole:
        aliases = {whole: tuple(kept) + tuple(added)}
    return Translated(tuple(kept), tuple(dict.fromkeys((*parameters, *added))), aliases, ranks)


def new_name(table: ModuleTable, old: str) -> str:
    """The parameter that PEFT takes for an expert's old name on this model; "" if it takes none."""
    return _EXPERT_NAMES.get(table.moe_conversion, {}).get(old.rpartition(".")[2], "")


def _leaf_names(
    table: ModuleTable, adapter: AdapterConfig, pattern: str, names: Mapping[str, str]
) -> set[str]:
    keep = Filter(adapter).keeps
    if pattern.lower() == ALL_LINEAR:
        found = matching_pattern(table, adapter, pattern)
        return {name.rpartition(".")[2] for name in found} | set(names)
    compiled = re.compile(pattern)
    keys = [m.name for m in table.modules] + [p.name for p in table.parameters if not p.same_as]
    matched = {k.rpartition(".")[2] for k in keys if keep(k) and compiled.fullmatch(k)}
    for old, new in names.items():
        owners = {k.rpartition(".")[0] for k in keys if k.rpartition(".")[2] == new}
        if any(keep(f"{o}.{old}") and compiled.fullmatch(f"{o}.{old}") for o in owners):
            matched.add(old)
    return matched
