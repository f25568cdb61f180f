"""Why an entry of the targets reaches nothing, and what to write instead.

Source: peft 0.21 `tuners/tuners_utils.py` (`inject_adapter`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from string import whitespace

from bench.adapters.config import ALL_LINEAR, AdapterConfig
from bench.adapters.patterns import fitting
from bench.models.modules import ModuleTable
from bench.targets.entries import Filter, ends_in
from bench.targets.suggestions import (
    common_ending,
    endings_of,
    moved_names,
    moved_pattern,
    suggest,
    suggest_parameters,
)

Cause = tuple[str, str]
"""(why an entry is dead, what to write instead); empty where nothing is known."""

_ALL = {"all", "alllinear", "linear", "linears", "alllinears", "alllayers", "alllinearlayers",
        "allmodules"}  # fmt: skip

_SYNTAX = re.compile(r"[\\^$()\[\]{}|*+?]")

# What follows a module's name where the name of one of its tensors was written.
_TENSORS = ("weight", "bias", "base_layer", "lora_A", "lora_B", "default")


def find_cause(table: ModuleTable, adapter: AdapterConfig, entry: str, field: str) -> Cause:
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
    found = (look(table, entry) for look in (_IN_A_LIST if listed else _AS_A_PATTERN))
    return next((f for f in found if f[0] or f[1]), ("", ""))


def _everything(table: ModuleTable, entry: str) -> Cause:
    """The words that tools have for every linear layer."""
    if entry.lower() == ALL_LINEAR:
        return "in a list it is a module's name", f'the string "{ALL_LINEAR}"'
    if entry in ("*", ".*", "**") or re.sub("[^a-z]", "", entry.lower()) in _ALL:
        return "no module is called so", f'the string "{ALL_LINEAR}", every linear layer but a head'
    return "", ""


def _brackets(table: ModuleTable, entry: str) -> Cause:
    """A name in the brackets or quotes of the list that it was copied from, or with a blank."""
    bare = entry.strip("[]()'\"" + whitespace)
    if bare == entry or not (there := _there(table, bare)):
        return "", ""
    if bare == entry.strip():
        return "a blank before or after it belongs to the name", there
    return "its brackets and quotes belong to the name", there


def _pattern(table: ModuleTable, entry: str) -> Cause:
    """A regular expression, or one with stars as in file names, in a list of names."""
    if not _SYNTAX.search(entry):
        return "", ""
    why = "a list holds names, not regular expressions"
    whole = entry.removesuffix("$")
    bare = re.split(r"\.?\*\.?", whole)[-1].removeprefix("\\.").lstrip(".")
    alone = re.fullmatch(r"[\w.]+", bare) and not re.sub(r"[.*^\\]", "", whole[: -len(bare)])
    if alone and (there := _there(table, bare)):
        return why, there
    as_file_name = re.escape(entry).replace(r"\*", ".*")
    for pattern in (entry, rf"(?:.*\.)?(?:{entry.strip('^$')})", as_file_name):
        hits = fitting(pattern, table.by_name)
        if hits and set(hits) <= set(table.adaptable):
            return why, f"the string {json.dumps(pattern)} (on the command line re:{pattern})"
    other, instead = _moved_regex(table, entry)
    return (f"{why}; {other}", instead) if other else ("", "")


def _tensor(table: ModuleTable, entry: str) -> Cause:
    """The name of a tensor of the module."""
    owner = entry
    while (cut := owner.rpartition("."))[2] in _TENSORS:
        owner = cut[0]
    if owner == entry or not owner:
        return "", ""
    if there := _there(table, owner):
        return "it names a tensor, not a module", there
    return _moved(table, owner)


def _there(table: ModuleTable, entry: str) -> str:
    """The entry, where it reaches something that LoRA can adapt, with how much."""
    reached = sum(ends_in(name, entry) for name in table.adaptable)
    return f"{entry} ({reached} modules)" if reached else ""


def _moved(table: ModuleTable, entry: str) -> Cause:
    """A path whose beginning is another one here, or was in an earlier transformers."""
    names = table.adaptable
    if elsewhere := _elsewhere(names, entry):
        return elsewhere, ""
    hits = moved_names(names, entry)
    if len(hits) == 1:
        return f"it is now {hits[0]}", common_ending(hits[0], names)
    if hits:
        instead = ", ".join(f"{e} ({n} modules)" for e, n in endings_of(hits, names).items())
        return f"such names now begin otherwise, as {hits[0]}", instead
    return _trace(table, entry)


def _elsewhere(names: Iterable[str], entry: str) -> str:
    """Where modules are that differ from the entry in one number: it names a layer behind the last
    one, or a layer or an expert that has no such module."""
    written = entry.split(".")
    split = [name.split(".") for name in names]
    for at, number in enumerate(written):
        there: dict[str, set[int]] = {}
        for parts in split:
            own = parts[-len(written) :]
            both = number.isdecimal() and own[at : at + 1] and own[at].isdecimal()
            if both and own[:at] + own[at + 1 :] == written[:at] + written[at + 1 :]:
                list_ = ".".join("*" if p.isdigit() else p for p in parts[: at - len(written)])
                there.setdefault(list_, set()).add(int(own[at]))
        if there:
            places = " and ".join(f"{list_}.{_told(numbers)}" for list_, numbers in there.items())
            return f"such modules are in {places}, not in {number}"
    return ""


def _told(numbers: set[int]) -> str:
    """Numbers as a range where they are one, else the first of them."""
    first, last = min(numbers), max(numbers)
    if last - first + 1 == len(numbers):
        return str(first) if first == last else f"{first} to {last}"
    shown = sorted(numbers)[:8]
    return ", ".join(map(str, shown)) + (", ..." if len(numbers) > len(shown) else "")


def _of_a_parameter(table: ModuleTable, entry: str) -> Cause:
    """An entry of target_parameters: a module, another path, or another name."""
    inside = [p.name.rpartition(".") for p in table.parameters if len(p.shape) in (2, 3)]
    leaves = dict.fromkeys(leaf for owner, _, leaf in inside if ends_in(owner, entry))
    if leaves:
        instead = ", ".join(f"{entry}.{leaf}" for leaf in leaves)
        return "it names a module, not a parameter", instead
    names = [p.name for p in table.parameters if len(p.shape) in (2, 3)]
    if elsewhere := _elsewhere(names, entry):
        return elsewhere.replace("modules", "parameters"), ""
    if hits := moved_names(names, entry):
        ends = endings_of(hits, names)
        return f"it is now {hits[0]}", ", ".join(ends)
    instead = suggest_parameters(table, entry)
    return ("no parameter is called so", instead) if instead else ("", "")


def _written_as_list(table: ModuleTable, entry: str) -> Cause:
    """A list of names written as one string."""
    parts = [part.strip("[]()'\" ") for part in re.split(r"[,;\s]+", entry)]
    parts = [part for part in parts if part]
    known = [part for part in parts if _there(table, part)]
    if not parts or known != parts or parts == [entry]:
        return "", ""
    return "a string is one regular expression", f"the list {json.dumps(parts)}"


def _names_among(table: ModuleTable, entry: str) -> Cause:
    """Names between commas, of which one holds a character of regular expressions."""
    parts = [part.strip() for part in entry.split(",")]
    plain = [part for part in parts if part and not _SYNTAX.search(part)]
    known = [part for part in plain if _there(table, part)]
    if len(parts) < 2 or not known or re.search(r"[\[\](){}]", entry):
        return "", ""
    marks = " ".join(dict.fromkeys(_SYNTAX.findall(entry)))
    said = f"with {marks} in it, it is" if marks else "a string is"
    return (
        f"{said} one regular expression, and no list",
        f"the list {json.dumps(known)} (on the command line {','.join(known)})",
    )


def _unanchored(table: ModuleTable, pattern: str) -> Cause:
    """A pattern of bare names, which would fit the ends of names."""
    body = pattern.removeprefix(r"\.").removeprefix("^")
    wrapped = f"({body})" if "|" in body and not body.startswith("(") else body
    if not _fits(table, rf"(?:.*\.)?(?:{body})"):
        return "", ""
    as_list = f"the list {json.dumps([pattern])}, or " if re.fullmatch(r"[\w.]+", pattern) else ""
    why = "a string is a regular expression that must match the whole name"
    return why, rf"{as_list}.*\.{wrapped}"


def _moved_regex(table: ModuleTable, pattern: str) -> Cause:
    """A pattern that begins with a path which is another one here."""
    for old, new, changed in moved_pattern(table, pattern):
        if _fits(table, changed):
            return f"{old} is now {new}", changed
    return "", ""


def _trace(table: ModuleTable, entry: str) -> Cause:
    """A name that a stored atlas of an earlier transformers has for this model type."""
    from bench.atlas.renames import renames_of

    written = ".".join("*" if part.isdigit() else part for part in entry.split("."))
    for version, old, new in renames_of(table.model_type):
        if not ends_in(old, written):
            continue
        here = [_numbered(name, old, entry) for name in new]
        modules = [n for n in here if any(ends_in(m, n) for m in table.by_name)]
        bare = [n for n in here if any(ends_in(p.name, n) for p in table.parameters)]
        instead = ", ".join(modules) if modules else f"target_parameters={json.dumps(bare)}"
        if modules and not re.search(r"\d", entry):
            instead = suggest(table, entry) or modules[0]
        if modules or bare:
            return f"transformers {version} called it so", instead
    return "", ""


def _trace_pattern(table: ModuleTable, pattern: str) -> Cause:
    """A regular expression that fits names of an earlier transformers."""
    from bench.atlas.renames import renames_of

    there = {name.rpartition(".")[2] for name in table.adaptable}
    found: dict[str, list[str]] = {}
    renames = renames_of(table.model_type)
    fit = frozenset(fitting(pattern, (old.replace("*", "0") for _, old, _ in renames)))
    for version, old, new in renames:
        if old.replace("*", "0") in fit:
            found.setdefault(version, []).extend(n for n in new if n.rpartition(".")[2] in there)
    for version, names in found.items():
        if names:
            leaves = "|".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
            within = {name.partition(".*.")[0] for name in names if ".*." in name} or {""}
            bare = rf".*\.({leaves})"
            held = rf"{re.escape(min(within))}\..*\.({leaves})"
            one = len(within) == 1 and any(re.fullmatch(held, name) for name in table.by_name)
            return f"transformers {version} had such names", held if one else bare
    return "", ""


def _numbered(new: str, old: str, entry: str) -> str:
    """A new pattern as an entry: with the entry's own numbers where it has them all, else the part
    behind the last number."""
    numbers = [part for part in entry.split(".") if part.isdigit()]
    if numbers and old.count("*") == new.count("*") == len(numbers):
        for number in numbers:
            new = new.replace("*", number, 1)
        return new
    if numbers and "*" in new:  # the layer's number comes first; an expert's is gone
        head, _, tail = new.partition("*")
        return f"{head}{numbers[0]}{tail.replace('.*', '')}"
    return new.rpartition("*.")[2]


def _fits(table: ModuleTable, pattern: str) -> bool:
    """Whether the pattern reaches something that LoRA can adapt."""
    return not set(table.adaptable).isdisjoint(fitting(pattern, table.by_name))


_Look = Callable[[ModuleTable, str], Cause]
_IN_A_LIST: tuple[_Look, ...] = (_everything, _brackets, _pattern, _tensor, _moved)
_AS_A_PATTERN: tuple[_Look, ...] = (
    _everything, _written_as_list, _names_among, _unanchored, _moved_regex, _trace_pattern,
)  # fmt: skip


def _held_back(table: ModuleTable, adapter: AdapterConfig, named: list[str]) -> Cause:
    """What keeps an adapter from each of the modules that the entry names."""
    inside = Filter(adapter)
    reasons: Counter[str] = Counter()
    unread: list[str] = []
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
                unread.append(name)
            else:
                reasons["in a layer that layers_to_transform does not name"] += 1
    why = ", ".join(f"{n} modules {reason}" for reason, n in reasons.items())
    also, instead = _layers_pattern(table, adapter, unread)
    return why + also, instead


def _layers_pattern(table: ModuleTable, adapter: AdapterConfig, unread: list[str]) -> Cause:
    """The layers_pattern by which PEFT reads the numbers of the layers that hold these modules,
    where they are then reached; else what else keeps the adapter from them, to follow the cause."""
    layers = dict.fromkeys(table.stack_of(name).layer_of(name) for name in unread)
    numbers: set[int] = set()
    for listed in dict.fromkeys(each.rpartition(".")[0].rpartition(".")[2] for each in layers):
        if not listed:
            continue
        inside = Filter(replace(adapter, layers_pattern=listed))
        if any(map(inside.in_layers, unread)):
            return "", f"layers_pattern={json.dumps(listed)} beside layers_to_transform"
        numbers |= {n for n in map(inside.layer_index, table.by_name) if n is not None}
    if not numbers:
        return "", ""
    if numbers.isdisjoint(Filter(adapter).indices or ()):
        return f"; the model's layers are {min(numbers)} to {max(numbers)}", ""
    return "; the layers that layers_to_transform names hold none of them", ""
