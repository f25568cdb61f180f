"""`match`: the ledger of a configuration on a model, read off a module table.

In the order of PEFT's own injection: expert names are translated, tied weights rewritten, defaults
filled in, entries matched, refusals found.

Source: peft 0.21 `tuners/tuners_utils.py`; the suites compare every answer with a real injection.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from bench.adapters.config import AdapterConfig
from bench.models.modules import LINEAR, ModuleTable, layer_of
from bench.models.roles import UNKNOWN, role_of
from bench.targets.causes import find_cause
from bench.targets.experts import translate_experts
from bench.targets.fields import find_dead_fields
from bench.targets.filters import Filter, match_parameters, matching_pattern
from bench.targets.hazards import find_hazards
from bench.targets.ledger import Adapted, Entry, Ledger, RoleOf
from bench.targets.refusals import (
    layer_refusals,
    saved_refusals,
    token_refusals,
    unsupported,
)
from bench.targets.suggestions import suggest
from bench.targets.tying import tie


def match(table: ModuleTable, adapter: AdapterConfig, role: RoleOf = role_of) -> Ledger:
    """The ledger of `adapter` on the model that `table` describes. `role` names a module's role.

    With `layer_replication` the ledger's table is that of the grown model.
    """
    if adapter.layer_replication:
        table = table.replicate(adapter.layer_replication)
    refusals: list[str] = []
    if table.ties_unknown:
        refusals.append(f"PEFT cannot find the input embedding that {table.class_name} ties to")
    targets, aliases, wanted_parameters, ranks = translate_experts(table, adapter, refusals)
    tying = tie(table, adapter, targets)
    asked, adapter = adapter, tying.adapter
    targets = _default_targets(table, adapter, tying.targets, refusals)
    inside = Filter(adapter)
    lists: dict[str, list[str]] = {}
    reached: dict[str, None] = {}

    if isinstance(targets, str):
        names = matching_pattern(table, adapter, targets)
        reached.update(dict.fromkeys(name for name in names if inside.keeps(name)))
        lists[targets] = list(reached)
    elif targets:
        for entry in targets:
            hits = [m.name for m in table.modules if inside.matches(entry, m.name)]
            lists[entry] = hits
            reached.update(dict.fromkeys(hits))
    if tying.adapted:
        reached = {n: None for n in (*reached, *tying.adapted) if n in table.by_name}
        lists |= {entry: list(names) for entry, names in tying.replaced}
        if isinstance(asked.target_modules, str):
            lists[asked.target_modules] = list(reached)
        if table.input_embedding not in reached:
            refusals.append(f"{table.input_embedding} is excluded: nothing to tie an adapter to")
    modules = [m for m in table.modules if m.name in reached]
    refusals += unsupported(table, modules)

    parameters, by_parameter = match_parameters(table, wanted_parameters)
    lists |= by_parameter
    if not modules and not parameters:
        refusals.append("nothing matches: PEFT raises when no entry reaches anything")
    # A tied linear layer takes over the matrices of the embedding, whatever its own rank would be.
    lender = {
        m.name: table.input_embedding
        for m in modules
        if m.name in tying.adapted and m.kind == LINEAR
    }
    adapted = [
        Adapted(m.name, role(m.name), _rank(adapter, ranks, lender.get(m.name, m.name)), module=m)
        for m in modules
    ] + [
        Adapted(p.name, role(p.name), _rank(adapter, ranks, p.name), parameter=p)
        for p in parameters
    ]
    refusals += layer_refusals(adapter, tuple(adapted))[:1]
    saved = _saved(table, adapter, tying.saved)
    refusals += saved_refusals(table, tuple(adapted), saved)
    refusals += token_refusals(table, asked, {a.name for a in adapted})
    tied = tuple(name for name in saved if tying.saved and name.endswith(tying.saved))
    ledger = Ledger(table, asked, (), tuple(adapted), saved, tuple(refusals), tied=tied)
    roles = {item.name: item.role for item in adapted}
    entries = []
    for entry, where in _user_entries(asked, targets):
        names = (name for e in aliases.get(entry, (entry,)) for name in lists.get(e, ()))
        found = tuple(dict.fromkeys(names))
        cause = suggestion = ""
        if not found:
            cause, suggestion = find_cause(table, asked, entry, where)
        if not (found or cause):
            suggestion = suggest(table, entry, role)
        entries.append(
            Entry(
                entry,
                found,
                dict(Counter(roles.get(name, UNKNOWN) for name in found)),
                len({layer_of(name) for name in found} - {""}),
                suggestion,
                where,
                cause,
            )
        )
    ledger = replace(ledger, entries=tuple(entries))
    doubled = [a for a in adapted if ranks and a.r != _rank(adapter, {}, a.name)]
    return replace(
        ledger,
        hazards=tuple(find_hazards(ledger, role, doubled)),
        dead_fields=find_dead_fields(ledger),
    )


def _default_targets(
    table: ModuleTable,
    adapter: AdapterConfig,
    targets: tuple[str, ...] | str | None,
    refusals: list[str],
) -> tuple[str, ...] | str | None:
    if targets is not None:
        return targets
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    default = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(table.model_type)
    if default is None and not adapter.target_parameters:
        refusals.append(f"no target_modules given, and PEFT has no default for {table.model_type}")
    return default if isinstance(default, str) or default is None else tuple(default)


def _rank(adapter: AdapterConfig, added: Mapping[str, int], name: str) -> int:
    for pattern, rank in (*adapter.rank_pattern.items(), *added.items()):
        if re.match(rf"(.*\.)?({pattern})$", name):
            return rank
    return adapter.r


def _saved(table: ModuleTable, adapter: AdapterConfig, tied: tuple[str, ...]) -> tuple[str, ...]:
    # PEFT compares plain endings here, without a dot: "classifier" saves "pre_classifier" too.
    wanted = (*adapter.saved_modules, *tied)
    names = [m.name for m in table.modules] + [name for name, _ in table.repeated]
    return tuple(name for name in names if wanted and name.endswith(wanted))


def _user_entries(
    adapter: AdapterConfig, targets: tuple[str, ...] | str | None
) -> list[tuple[str, str]]:
    given = adapter.target_modules
    if given is None:
        given = targets or ()
    modules = [given] if isinstance(given, str) else list(given)
    return [(e, "target_modules") for e in modules] + [
        (e, "target_parameters") for e in adapter.target_parameters
    ]
