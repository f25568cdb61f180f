"""Entries of the fields beside the targets (patterns, saved and excluded modules, layers) that name
what is not there. PEFT ignores them, at most with a warning.

Source: peft 0.21 `tuners/tuners_utils.py` (`inject_adapter`), `utils/other.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from bench.adapters.config import AdapterConfig
from bench.adapters.patterns import compiled, fitting
from bench.errors import nearest
from bench.models.modules import ModuleTable
from bench.targets.entries import Filter, ends_in, new_name
from bench.targets.ledger import DeadField, Ledger
from bench.tasks import heads_of


def find_dead_fields(
    ledger: Ledger, match: Callable[[ModuleTable, AdapterConfig], Ledger]
) -> tuple[DeadField, ...]:
    """The entries of the other fields that have no effect, in the order of the fields below."""
    return (
        *(DeadField(name, "", reason) for name, reason in ledger.adapter.ignored),
        *_variants(ledger),
        *_patterns(ledger),
        *_saved(ledger),
        *_excluded(ledger, match),
        *_layers(ledger),
        *_layer_patterns(ledger),
    )


def _variants(ledger: Ledger) -> Iterator[DeadField]:
    """Variants that layers leave out since they are quantized."""
    adapter = ledger.adapter
    plain = [a for a in ledger.adapted if a.module is not None and a.module.quantized]
    left_out = set(adapter.variants) - set(adapter.on(bool(plain)).variants)
    for name in sorted(left_out):
        share = "all" if len(plain) == len(ledger.adapted) else f"{len(plain)} of"
        reason = (
            f"PEFT has it for layers in floats, and {share} {len(ledger.adapted)} adapted ones are "
            "quantized: those get plain LoRA"
        )
        yield DeadField(name, "", reason)


def _patterns(ledger: Ledger) -> Iterator[DeadField]:
    """Keys that fit no adapted module; without any adapted module there is nothing to say."""
    adapter, names = ledger.adapter, [item.name for item in ledger.adapted]
    fields = {"rank_pattern": adapter.rank_pattern, "alpha_pattern": adapter.alpha_pattern}
    for field, patterns in fields.items() if names else ():
        for key in patterns:
            fits = compiled(rf"(.*\.)?({key})$")
            if any(fits.match(name) for name in names):
                continue
            fused = new_name(ledger.table, key)
            if any(ends_in(name, fused) for name in names):
                reason = f"PEFT compares it with the new name {fused}, after translating"
                yield DeadField(field, key, reason, fused)
            else:
                leaves = {name.rpartition(".")[2] for name in names}
                yield DeadField(field, key, "fits no adapted module", nearest(key, leaves))


def _saved(ledger: Ledger) -> Iterator[DeadField]:
    # PEFT writes both of its heads for a task into the configuration that it saves.
    heads = heads_of(ledger.adapter.task_type)
    # "base_layer" ends the name of no module, and of an adapted layer's own weight.
    names = (*ledger.table.by_name, *(name for name, _ in ledger.table.repeated), *ledger.saved)
    for entry in ledger.adapter.modules_to_save:
        if entry not in heads and not any(name.endswith(entry) for name in names):
            reason = "no module's name ends so"
            yield DeadField("modules_to_save", entry, reason, _leaf(ledger, entry))


def _excluded(
    ledger: Ledger, match: Callable[[ModuleTable, AdapterConfig], Ledger]
) -> Iterator[DeadField]:
    """Exclusions that hold out no module which would be adapted without them."""
    field, excluded = "exclude_modules", ledger.adapter.exclude_modules or ()
    if not excluded:
        return
    # The ledger's table is that of the grown model already.
    every = replace(ledger.adapter, exclude_modules=None, layer_replication=())
    unexcluded = match(ledger.table, every)
    without = [item.name for item in unexcluded.adapted if item.module is not None]
    if isinstance(excluded, str):
        if not any(re.fullmatch(excluded, name) for name in without):
            reason = "fits no whole name of a module that would be adapted"
            yield DeadField(field, excluded, reason, _found_within(excluded, without))
        return
    parameters = [item.name for item in ledger.adapted if item.parameter is not None]
    for entry in excluded:
        if any(ends_in(name, entry) for name in without):
            continue
        named = [name for name in ledger.table.by_name if ends_in(name, entry)]
        below = tuple(f"{name}." for name in named)
        through = [p for p in parameters if ends_in(p, entry) or p.startswith(below)]
        inside = [name for name in without if name.startswith(below)]
        if through:
            reason = f"excludes modules only: {through[0]}, a parameter, is adapted all the same"
            yield DeadField(field, entry, reason)
        elif inside:
            reason = (
                f"a list holds endings of names, and {len(inside)} modules inside {named[0]} are "
                "adapted all the same"
            )
            yield DeadField(field, entry, reason, _as_regex(excluded, entry))
        elif named:
            yield DeadField(field, entry, "no module that would be adapted is called so")
        else:
            leaf = _leaf(ledger, entry)
            instead = leaf or _found_within(entry, without)
            yield DeadField(field, entry, "no module is called so", instead)


def _as_regex(excluded: tuple[str, ...], container: str) -> str:
    """The exclusions as one regular expression, with everything inside the container."""
    ends = "|".join(re.escape(entry) for entry in excluded if entry != container)
    inside = rf".*\b{re.escape(container)}\..*"
    return f"the string {json.dumps(rf'(.*[.])?({ends})|{inside}' if ends else inside)}"


def _found_within(written: str, names: list[str]) -> str:
    """The expression that fits what holds `written` somewhere in its name; "" where none does."""
    body = written.removeprefix("^").removesuffix("$")
    found = fitting(f".*(?:{body}).*", names)
    return f"the string {json.dumps(f'.*{body}.*')}" if found else ""


def _layers(ledger: Ledger) -> Iterator[DeadField]:
    inside = Filter(ledger.adapter)
    modules = [item.name for item in ledger.adapted if item.module is not None]
    if inside.indices is None or not modules:
        return
    held = {inside.layer_index(name) for name in modules}
    indices = map(inside.layer_index, ledger.table.by_name)
    every = {index for index in indices if index is not None}
    for index in sorted(inside.indices - held):
        reason = "no adapted module is in it"
        if every and index not in every:
            reason = f"the model's layers are {min(every)} to {max(every)}"
        yield DeadField("layers_to_transform", str(index), reason)


def _layer_patterns(ledger: Ledger) -> Iterator[DeadField]:
    patterns = ledger.adapter.layers_pattern or ()
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        fits = re.compile(rf"(?:^|.*?\.){pattern}\.\d+\.")
        if not any(map(fits.match, ledger.table.by_name)):
            yield DeadField("layers_pattern", pattern, "no numbered layers are called so")


def _leaf(ledger: Ledger, entry: str) -> str:
    return nearest(entry.rpartition(".")[2], {m.leaf for m in ledger.table.modules})
