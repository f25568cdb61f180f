"""`match`: the ledger of a configuration on a model, read off a module table.

In the phases of PEFT's own injection, each from what the one before left:

1. normalise: expert names are translated, entries that name tied weights rewritten, defaults
   filled in, long lists condensed (`entries`);
2. match: modules by entries, exclusion and layer numbers, then parameters (`entries`);
3. inject: an adapter of its rank for each, or why a layer refuses one (`refusals`);
4. save: the modules that are trained whole, found on the injected model (`saving`);
5. describe: what each of the user's own entries reached, and what it did not (`dead`).

Source: peft 0.21 `tuners/tuners_utils.py` (`inject_adapter`), `tuners/lora/layer.py` and
`tuners/lora/variants.py`; the suites compare every answer with a real injection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from bench.adapters.config import NO_TARGETS, AdapterConfig
from bench.adapters.patterns import check_patterns, compiled
from bench.models.modules import LINEAR, Module, ModuleTable, Parameter, layer_of
from bench.models.roles import UNKNOWN, role_of
from bench.targets.dead import find_cause
from bench.targets.dead_fields import find_dead_fields
from bench.targets.entries import (
    Filter,
    Targets,
    Translated,
    Tying,
    condense,
    endings,
    is_all_linear,
    match_parameters,
    matching_pattern,
    replicate,
    tie,
    translate_experts,
)
from bench.targets.hazards import find_hazards
from bench.targets.ledger import Adapted, Entry, Ledger, RoleOf
from bench.targets.refusals import layer_refusals, unsupported
from bench.targets.saving import LORA_PARTS, save, token_refusals
from bench.targets.suggestions import recounted, suggest, unlisted, ways_out

# The task types for which PEFT wraps the model's own generation.
_GENERATING = ("CAUSAL_LM", "SEQ_2_SEQ_LM")


def match(
    table: ModuleTable,
    adapter: AdapterConfig,
    role: RoleOf = role_of,
    *,
    described: bool = True,
    parts: tuple[str, ...] = LORA_PARTS,
) -> Ledger:
    """The ledger of `adapter` on the model that `table` describes. `role` names a module's role.

    With `layer_replication` the ledger's table is that of the grown model. Without `described` it
    says what is adapted, saved and refused, and nothing of the user's own words: it has no entries,
    hazards, dead fields and ways out, which take as long again.

    `parts` are the modules within a layer that the method adapts. Where they are not LoRA's, what
    LoRA's layers alone refuse is left out; without any nothing is injected (virtual tokens).
    """
    check_patterns(adapter.expressions(), [*table.by_name, *(p.name for p in table.parameters)])
    if adapter.layer_replication:
        table = replicate(table, adapter.layer_replication)
    lora = parts == LORA_PARTS
    refusals = class_refusals(table, adapter.task_type, injected=bool(parts))
    translated = translate_experts(table, adapter, refusals)
    tying = tie(table, adapter, translated.targets)
    targets = _default_targets(table, tying.adapter, tying.targets, refusals)
    reached = _reach(table, tying, targets, refusals)
    parameters, by_parameter = match_parameters(table, translated.parameters)
    if not reached and not parameters and targets != NO_TARGETS:
        refusals.append("nothing matches: PEFT raises when no entry reaches anything")
    adapted = _inject(table, tying, translated.ranks, reached, parameters, role)
    if lora:
        refusals += unsupported(table, reached, (a.owner for a in adapted))
        refusals += layer_refusals(tying.adapter, adapted, later=tying.adapted)[:1]
    saving = save(table, tying.adapter, adapted, tying.saved, parts)
    refusals += saving.refusals
    refusals += token_refusals(table, adapter, {a.owner for a in adapted})
    ledger = Ledger(
        table,
        adapter,
        (),
        adapted,
        saving.saved,
        tuple(dict.fromkeys(refusals)),
        tied=saving.tied,
        copies=saving.copies,
    )
    if not described:
        return ledger
    lists = _lists(translated, tying, targets, reached) | by_parameter
    return _describe(ledger, translated, targets, lists, role, parts)


def class_refusals(
    table: ModuleTable, task_type: str | None, *, injected: bool = True
) -> list[str]:
    """What PEFT asks of the model's class, whatever the targets are."""
    found = []
    if table.ties_unknown and injected:
        found.append(f"PEFT cannot find the input embedding that {table.class_name} ties to")
    if task_type in _GENERATING and not table.generates:
        found.append(
            f"{table.class_name} does not generate: PEFT serves it with no task type or another "
            f"one, not with {task_type}"
        )
    return found


def _reach(table: ModuleTable, tying: Tying, targets: Targets, refusals: list[str]) -> list[Module]:
    """The modules that get an adapter, in the model's order."""
    if isinstance(targets, str):
        inside = Filter(tying.adapter)
        names = {n for n in matching_pattern(table, tying.adapter, targets) if inside.keeps(n)}
    else:
        inside = Filter(tying.adapter, condense(table, targets or ()))
        names = {m.name for m in table.modules if inside.reaches(m.name)}
    if tying.adapted:
        names |= {name for name in tying.adapted if name in table.by_name}
        if table.input_embedding not in names:
            refusals.append(f"{table.input_embedding} is excluded: nothing to tie an adapter to")
    return [m for m in table.modules if m.name in names]


def _inject(  # noqa: PLR0917
    table: ModuleTable,
    tying: Tying,
    ranks: Mapping[str, int],
    modules: list[Module],
    parameters: list[Parameter],
    role: RoleOf,
) -> tuple[Adapted, ...]:
    """An adapter for each, with the rank it gets."""
    # A tied linear layer takes over the matrices of the embedding, whatever its own rank would be;
    # PEFT finds it if it has no module around it, and keeps no matrices that are cut from a weight.
    adapter = tying.adapter
    cut = str(adapter.init_lora_weights).startswith(("pissa", "olora", "orthogonal"))
    lender = {
        m.name: table.input_embedding
        for m in modules
        if m.name in tying.adapted and m.kind == LINEAR and "." not in m.name and not cut
    }
    of_modules = (
        Adapted(m.name, role(m.name), _rank(adapter, ranks, lender.get(m.name, m.name)), module=m)
        for m in modules
    )
    of_parameters = (
        Adapted(p.name, role(p.name), _rank(adapter, ranks, p.name), parameter=p)
        for p in parameters
    )
    return (*of_modules, *of_parameters)


def _lists(
    translated: Translated, tying: Tying, targets: Targets, reached: list[Module]
) -> dict[str, list[str]]:
    """The modules that each entry reaches, by the entry as PEFT has it after rewriting."""
    names = [m.name for m in reached]
    if isinstance(targets, str):
        lists = {targets: names}
    else:
        lists = {entry: [] for entry in targets or ()}
        for name in names:
            for ending in endings(name):
                if ending in lists:
                    lists[ending].append(name)
    lists |= {entry: list(modules) for entry, modules in tying.replaced}
    if tying.adapted and isinstance(translated.targets, str):
        lists[translated.targets] = names
    return lists


def _describe(  # noqa: PLR0917
    ledger: Ledger,
    translated: Translated,
    targets: Targets,
    lists: Mapping[str, list[str]],
    role: RoleOf,
    parts: tuple[str, ...],
) -> Ledger:
    """The ledger with an entry for each of the user's, hazards and dead fields."""
    table, asked = ledger.table, ledger.adapter
    roles = {item.name: item.role for item in ledger.adapted}
    entries: list[Entry] = []
    listed = [entry for entry, _ in _user_entries(asked, targets)]
    for entry, where in _user_entries(asked, targets):
        written = translated.aliases.get(entry, (entry,))
        found = tuple(dict.fromkeys(name for e in written for name in lists.get(e, ())))
        cause = suggestion = ""
        if not found:
            cause, suggestion = find_cause(table, asked, entry, where)
        if not (found or cause):
            suggestion = suggest(table, entry, role, listed)
        if suggestion:
            counted = recounted(suggestion, table.adaptable, Filter(asked), role)
            there, suggestion = unlisted(counted, listed)
            cause = "; ".join(filter(None, (cause, there)))
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
    held = [e for e in entries if e.dead and e.field == "target_modules"]
    if held and is_all_linear(table, asked):
        entries = [replace(e, suggestion="", left_out=True) if e in held else e for e in entries]
        ledger = replace(ledger, entries=tuple(entries))
    ranks = translated.ranks
    doubled = [a for a in ledger.adapted if ranks and a.r != _rank(asked, {}, a.name)]
    return replace(
        ledger,
        hazards=tuple(find_hazards(ledger, role, doubled)),
        dead_fields=find_dead_fields(ledger, partial(match, described=False, parts=parts)),
        ways_out=ways_out(ledger) if ledger.refusals else (),
    )


def _default_targets(
    table: ModuleTable, adapter: AdapterConfig, targets: Targets, refusals: list[str]
) -> Targets:
    if targets is not None:
        return targets
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    default = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(table.model_type)
    if default is None and not adapter.target_parameters:
        named = table.model_type or table.class_name
        refusals.append(f"no target_modules given, and PEFT has no default for {named}")
    return default if isinstance(default, str) or default is None else tuple(default)


def _rank(adapter: AdapterConfig, added: Mapping[str, int], name: str) -> int:
    for pattern, rank in (*adapter.rank_pattern.items(), *added.items()):
        if compiled(rf"(.*\.)?({pattern})$").match(name):
            return rank
    return adapter.r


def _user_entries(adapter: AdapterConfig, targets: Targets) -> list[tuple[str, str]]:
    given = adapter.target_modules
    if given is None:
        given = targets or ()
    if given == NO_TARGETS:
        given = ()
    modules = [given] if isinstance(given, str) else list(dict.fromkeys(given))
    return [(e, "target_modules") for e in modules] + [
        (e, "target_parameters") for e in adapter.target_parameters
    ]
