"""Why an entry reaches nothing, or why PEFT refuses what it reaches; and the way out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from bench.adapters.config import ALL_LINEAR, AdapterConfig
from bench.models.modules import CONV1D, LINEAR, OTHER, Module, ModuleTable
from bench.models.roles import role_of
from bench.targets.filters import Filter, ends_in
from bench.targets.ledger import Ledger
from bench.targets.suggestions import (
    common_ending,
    endings_of,
    moved,
    moved_pattern,
    suggest_parameters,
    trace,
    trace_pattern,
)

Found = tuple[str, str]
"""(why an entry is dead, what to write instead); empty where nothing is known."""

_WHOLE = "a string is a regular expression that must match the whole name"
_ALL = {"all", "alllinear", "linear", "linears", "alllinears", "alllayers", "alllinearlayers",
        "allmodules"}  # fmt: skip
_SYNTAX = re.compile(r"[\\^$()\[\]{}|*+?]")
# What follows a module's name where the name of one of its tensors was written.
_TENSORS = ("weight", "bias", "base_layer", "lora_A", "lora_B", "default")
_DEFAULT = ("query", "value", "query_key_value")
_SHOWN = 3


def find_cause(table: ModuleTable, adapter: AdapterConfig, entry: str, field: str) -> Found:
    """Why `entry` of a field is dead, and what to write instead."""
    if field == "target_parameters":
        return _of_a_parameter(table, entry)
    listed = not isinstance(adapter.target_modules, str)
    if listed:
        named = [m.name for m in table.modules if ends_in(m.name, entry)]
    else:
        named = [m.name for m in table.modules if re.fullmatch(entry, m.name)]
    if named:
        return _held_back(table, adapter, named)
    looks: tuple[Callable[[ModuleTable, str], Found], ...] = (
        (_everything, _brackets, _pattern, _tensor, _moved)
        if listed
        else (_everything, _written_as_list, _unanchored, _moved_regex, trace_pattern)
    )
    found = (look(table, entry) for look in looks)
    return next((f for f in found if f[0] or f[1]), ("", ""))


def _everything(table: ModuleTable, entry: str) -> Found:
    """The words that tools have for every linear layer."""
    if entry.lower() == ALL_LINEAR:
        return "in a list it is a module's name", f'the string "{ALL_LINEAR}"'
    if entry in ("*", ".*", "**") or re.sub("[^a-z]", "", entry.lower()) in _ALL:
        return "no module is called so", f'the string "{ALL_LINEAR}", every linear layer but a head'
    return "", ""


def _brackets(table: ModuleTable, entry: str) -> Found:
    """A name in the brackets or quotes of the list that it was copied from."""
    bare = entry.strip("[]()'\" ")
    reached = sum(m.kind != OTHER and ends_in(m.name, bare) for m in table.modules)
    if bare == entry or not reached:
        return "", ""
    return "its brackets and quotes belong to the name", f"{bare} ({reached} modules)"


def _pattern(table: ModuleTable, entry: str) -> Found:
    """A regular expression, or one with stars as in file names, in a list of names."""
    if not _SYNTAX.search(entry):
        return "", ""
    why = "a list holds names, not regular expressions"
    bare = re.split(r"\.?\*\.?", entry.removesuffix("$"))[-1].removeprefix("\\.").lstrip(".")
    if re.fullmatch(r"[\w.]+", bare) and not re.sub(r"[.*^\\]", "", entry[: -len(bare)]):
        reached = sum(m.kind != OTHER and ends_in(m.name, bare) for m in table.modules)
        if reached:
            return why, f"{bare} ({reached} modules)"
    as_file_name = re.escape(entry).replace(r"\*", ".*")
    for pattern in (entry, rf"(?:.*\.)?(?:{entry.strip('^$')})", as_file_name):
        hits = _fitting(table, pattern)
        if hits and all(m.kind != OTHER for m in hits):
            return why, f"the string {json.dumps(pattern)} (on the command line re:{pattern})"
    other, instead = _moved_regex(table, entry)
    return (f"{why}; {other}", instead) if other else ("", "")


def _tensor(table: ModuleTable, entry: str) -> Found:
    """The name of a tensor of the module."""
    owner = entry
    while (cut := owner.rpartition("."))[2] in _TENSORS:
        owner = cut[0]
    reached = sum(m.kind != OTHER and ends_in(m.name, owner) for m in table.modules)
    if owner == entry or not owner:
        return "", ""
    if reached:
        return "it names a tensor, not a module", f"{owner} ({reached} modules)"
    return _moved(table, owner)


def _moved(table: ModuleTable, entry: str) -> Found:
    """A path whose beginning is another one here, or was in an earlier transformers."""
    names = [m.name for m in table.modules if m.kind != OTHER]
    if hits := moved(names, entry):
        return _told(names, hits)
    return trace(table, entry)


def _told(names: list[str], hits: list[str], field: str = "") -> Found:
    instead = ", ".join(f"{e} ({n} modules)" for e, n in endings_of(hits, names).items())
    if len(hits) == 1:
        return f"it is now {hits[0]}", common_ending(hits[0], names)
    return f"such names now begin otherwise, as {hits[0]}", instead


def _of_a_parameter(table: ModuleTable, entry: str) -> Found:
    """An entry of target_parameters: a module, another path, or another name."""
    inside = [p.name.rpartition(".") for p in table.parameters if len(p.shape) in (2, 3)]
    leaves = dict.fromkeys(leaf for owner, _, leaf in inside if ends_in(owner, entry))
    if leaves:
        instead = ", ".join(f"{entry}.{leaf}" for leaf in leaves)
        return "it names a module, not a parameter", instead
    names = [p.name for p in table.parameters if len(p.shape) in (2, 3)]
    if hits := moved(names, entry):
        ends = endings_of(hits, names)
        return f"it is now {hits[0]}", ", ".join(ends)
    instead = suggest_parameters(table, entry)
    return ("no parameter is called so", instead) if instead else ("", "")


def _written_as_list(table: ModuleTable, entry: str) -> Found:
    """A list of names written as one string."""
    parts = [part.strip("[]()'\" ") for part in re.split(r"[,;\s]+", entry)]
    parts = [part for part in parts if part]
    known = [p for p in parts if any(m.kind != OTHER and ends_in(m.name, p) for m in table.modules)]
    if not parts or known != parts or parts == [entry]:
        return "", ""
    return "a string is one regular expression", f"the list {json.dumps(parts)}"


def _unanchored(table: ModuleTable, pattern: str) -> Found:
    """A pattern of bare names, which would fit the ends of names."""
    body = pattern.removeprefix(r"\.").removeprefix("^")
    wrapped = f"({body})" if "|" in body and not body.startswith("(") else body
    if not any(m.kind != OTHER for m in _fitting(table, rf"(?:.*\.)?(?:{body})")):
        return "", ""
    as_list = f"the list {json.dumps([pattern])}, or " if re.fullmatch(r"[\w.]+", pattern) else ""
    return _WHOLE, rf"{as_list}.*\.{wrapped}"


def _moved_regex(table: ModuleTable, pattern: str) -> Found:
    """A pattern that begins with a path which is another one here."""
    for old, new, changed in moved_pattern(table, pattern):
        if any(m.kind != OTHER for m in _fitting(table, changed)):
            return f"{old} is now {new}", changed
    return "", ""


def _fitting(table: ModuleTable, pattern: str) -> list[Module]:
    try:
        fits = re.compile(pattern).fullmatch
    except re.error:
        return []
    return [m for m in table.modules if fits(m.name)]


def _held_back(table: ModuleTable, adapter: AdapterConfig, named: list[str]) -> Found:
    """What keeps an adapter from each of the modules that the entry names."""
    inside = Filter(adapter)
    reasons: Counter[str] = Counter()
    instead = ""
    for name in named:
        if inside.excluded(name):
            reasons["held out by exclude_modules"] += 1
        elif inside.guarded(name):
            whole = next(m for m, g in zip(adapter.guarded_modules, inside.guards, strict=True)
                         if g.match(name))  # fmt: skip
            where = "named by modules_to_save" if whole in adapter.modules_to_save else "its head"
            reasons[f"trained whole: in {whole}, {where}"] += 1
        elif not inside.in_layers(name):
            if inside.layer_index(name) is None:
                reasons["whose layer number cannot be read, for layers_to_transform"] += 1
                instead = instead or _layers_pattern(table, name)
            else:
                reasons["in a layer that layers_to_transform does not name"] += 1
    why = ", ".join(f"{n} modules {reason}" for reason, n in reasons.items())
    return why, instead


def _layers_pattern(table: ModuleTable, name: str) -> str:
    """The layers_pattern by which PEFT reads the number of the layer that holds a module."""
    layer = table.stack_of(name).layer_of(name)
    listed = layer.rpartition(".")[0].rpartition(".")[2]
    return f"layers_pattern={json.dumps(listed)} beside layers_to_transform" if listed else ""


def ways_out(ledger: Ledger) -> tuple[str, ...]:
    """What to write where PEFT refuses the kind of module that entries reach, beginning with the
    entries at fault."""
    table = ledger.table
    found: list[str] = []
    if any("refuses out_proj and conv1d" in reason for reason in ledger.refusals):
        found.append(_without_leaves(ledger, ("out_proj", "conv1d")))
    if not ledger.entries:
        found.append(_without_a_default(table))
    faults: dict[str, list[str]] = {}
    for entry in ledger.entries:
        if entry.field == "target_modules":
            others = [n for n in entry.reached if n in table.by_name
                      and table.by_name[n].kind == OTHER]  # fmt: skip
            if others:
                faults[entry.entry] = others
    if not faults:
        return tuple(found)
    if isinstance(ledger.adapter.target_modules, str):
        return (*found, _narrowed(ledger))
    inner = {e: _inner(table, others) for e, others in faults.items()}
    wrapped = [e for e in faults if inner[e]]
    if wrapped:
        found += _around_wrappers(ledger, wrapped, faults, inner[wrapped[0]])
    whole = [e for e in faults if e not in wrapped]
    inside = [name for e in whole for name in _inside(table, faults[e])]
    if len(whole) == len(ledger.entries) and inside:
        apart = [endings_of(_inside(table, faults[e]), table.by_name) for e in whole]
        if not all(apart):
            return (*found, _as_pattern(table, whole, inside))
    found += [_whole_modules(ledger, e, faults[e]) for e in whole]
    return tuple(found)


def _without_a_default(table: ModuleTable) -> str:
    """What PEFT's defaults are on other models, in this one's names."""
    every = [m.name for m in table.modules]
    asked = [m.name for m in table.modules if m.kind != OTHER and role_of(m.name) in _DEFAULT]
    names = json.dumps([*endings_of(asked, every)] if asked else ALL_LINEAR)
    return f"target_modules={names}" if asked else f"target_modules={names}, every linear layer"


def _without_leaves(ledger: Ledger, leaves: Iterable[str]) -> str:
    reached = {name.rpartition(".")[2] for e in ledger.entries for name in e.reached}
    there = [leaf for leaf in leaves if leaf in reached]
    given = ledger.adapter.target_modules
    if isinstance(given, str):
        held = ledger.adapter.exclude_modules
        if isinstance(held, str):
            leaves = "|".join(there)
            return f"exclude_modules={json.dumps(rf'({held})|.*[.]({leaves})')}"
        return f"exclude_modules={json.dumps([*(held or ()), *there])}"
    return f"leave out {', '.join(there)}"


def _narrowed(ledger: Ledger) -> str:
    """The pattern, held to the linear layers among what it reaches."""
    pattern = str(ledger.adapter.target_modules)
    by_name = ledger.table.by_name
    good = [n for e in ledger.entries for n in e.reached
            if n in by_name and by_name[n].kind != OTHER]  # fmt: skip
    if len(good) == sum(m.kind != OTHER for m in ledger.table.modules):
        return f'{pattern} reaches whole modules too: write the string "{ALL_LINEAR}"'
    leaves = "|".join(dict.fromkeys(n.rpartition(".")[2] for n in good))
    if not leaves:
        return f"{pattern} reaches modules without a weight of their own alone"
    return rf"{pattern} reaches whole modules too: write (?=.*\.({leaves})$){pattern}"


def _inner(table: ModuleTable, containers: list[str]) -> str:
    """The one projection that each of these modules wraps, by its name in them; "" if there is no
    such."""
    rests: set[str] = set()
    for name in containers:
        inside = [m.name for m in table.modules
                  if m.name.startswith(f"{name}.") and m.kind != OTHER]  # fmt: skip
        if len(inside) != 1:
            return ""
        rests.add(inside[0].removeprefix(f"{name}."))
    return rests.pop() if len(rests) == 1 else ""


def _around_wrappers(
    ledger: Ledger, entries: list[str], faults: dict[str, list[str]], rest: str
) -> Iterator[str]:
    """Entries that name a module which wraps the projection: leave its tower out, or reach in."""
    from bench.targets.hazards import without

    table = ledger.table
    wrappers = [name for e in entries for name in faults[e]]
    kind = table.by_name[wrappers[0]].class_name
    stacks = list(dict.fromkeys(table.stack_of(name) for name in wrappers))
    names = "|".join(dict.fromkeys(e.rpartition(".")[2] for e in entries))
    at_fault = f"{', '.join(entries)}: {len(wrappers)} are a {kind}, which holds its projection in "
    at_fault += f"{wrappers[0].rpartition('.')[2]}.{rest}"
    outside = [n for e in ledger.entries for n in e.reached if n not in wrappers]
    if outside and not any(table.stack_of(n) in table.main_stacks for n in wrappers):
        held_out = json.dumps(without(ledger, stacks))
        yield f"{at_fault}; to leave {' and '.join(s.label for s in stacks)} out: " \
              f"exclude_modules={held_out}"  # fmt: skip
        towers = "|".join(re.escape(s.prefix) for s in stacks)
        plain = "|".join(dict.fromkeys(n.rpartition(".")[2] for n in outside))
        mains = "|".join(re.escape(s.prefix) for s in table.main_stacks if s.layers)
        both = rf"({mains})\..*\.({plain})|({towers})\..*\.({names})\.{re.escape(rest)}"
        yield f"to adapt both: target_modules={json.dumps(both)}"
    else:
        yield f"{at_fault}; write {', '.join(f'{e}.{rest}' for e in entries)}"


def _whole_modules(ledger: Ledger, entry: str, others: list[str]) -> str:
    """An entry that names modules which hold no weight of their own, beside projections or not."""
    table = ledger.table
    classes = ", ".join(dict.fromkeys(table.by_name[n].class_name for n in others))
    reached = next(e for e in ledger.entries if e.entry == entry).reached
    good = [n for n in reached if n not in others]
    at_fault = f"{entry}: it also names {others[0]}" if good else f"{entry}: it names {others[0]}"
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    every = [m.name for m in table.modules]
    if good:
        written = endings_of(good, every, least=3 if entry.isdigit() else 1)
    else:
        written = endings_of(_inside(table, others), every)
    way = f"write {', '.join(written)}" if written else "leave it out"
    if experts := _experts_in(table, others):
        way = f"{way}; {experts}"
    return f"{at_fault}{more} ({classes}); {way}"


def _inside(table: ModuleTable, containers: Iterable[str]) -> list[str]:
    """The projections within modules."""
    held = tuple(f"{name}." for name in containers)
    return [m.name for m in table.modules if m.kind in (LINEAR, CONV1D) and m.name.startswith(held)]


def _as_pattern(table: ModuleTable, entries: list[str], inside: list[str]) -> str:
    """For entries that name whole layers, or a whole tower, and are all that is written."""
    within = re.compile(rf"(.*\.)?({'|'.join(map(re.escape, entries))})\..*")
    beside = {m.leaf for m in table.modules if within.fullmatch(m.name) and m.name not in inside}
    # A patch embedding's `proj` is no projection: what shares its name is told by two words.
    ends = [name.rsplit(".", 1 + (name.rpartition(".")[2] in beside)) for name in inside]
    leaves = "|".join(dict.fromkeys(re.escape(".".join(end[1:])) for end in ends))
    pattern = rf"{within.pattern.removesuffix('.*')}(.*\.)?({leaves})"
    return f"{', '.join(entries)}: whole modules; write the string {json.dumps(pattern)}"


def _experts_in(table: ModuleTable, containers: list[str]) -> str:
    held = tuple(f"{name}." for name in containers)
    names = [p.name for p in table.expert_parameters if p.name.startswith(held)]
    written = endings_of(names, [p.name for p in table.parameters], 3) if names else {}
    return f"for its experts target_parameters={json.dumps([*written])}" if written else ""
