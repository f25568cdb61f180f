"""What to write instead of an entry that the model has nothing for: what does its work, the nearest
name, the path that it has moved to, or what an earlier transformers called so."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import cache

from bench.adapters.patterns import fitting
from bench.files import FIXTURES, read_json
from bench.models.modules import OTHER, ModuleTable
from bench.models.roles import FUSED, UNKNOWN, role_of, serves
from bench.models.stacks import Stack
from bench.targets.entries import ends_in, new_name
from bench.targets.ledger import Ledger, RoleOf

_NEAR = 0.8


_LLAMA, _T5 = re.compile(r"w[qkv123]"), re.compile(r"wi(_\d)?")
"""What stands beside `wo`: the output of attention where Meta publishes Llama, down in T5."""


def suggest(
    table: ModuleTable, entry: str, role: RoleOf = role_of, beside: Iterable[str] = ()
) -> str:
    """What to write instead of a dead entry: the modules here that do its work, whole or in parts;
    for a name that tells no work the nearest one. "" if there is none. The other entries decide
    what a name means that has two meanings; where they do not, both are offered."""
    wanted = role_of(entry)
    if wanted == UNKNOWN:
        return _nearest_leaf(table, entry)
    first: tuple[str, ...] = (wanted,)
    if entry == "wo":
        beside = [*beside]
        llama, t5 = (any(map(names.fullmatch, beside)) for names in (_LLAMA, _T5))
        first = ("output", "down") if llama == t5 else ("output",) if llama else ("down",)
    for roles in (first, FUSED.get(wanted, ())):
        if offers := [*_modules(table, roles, role)] or [*_parameters(table, roles, role)]:
            return ", ".join(dict.fromkeys(offers))
    return ""


_OFFERS = re.compile(r"(\S+) \([^()]*\)")


def unlisted(suggestion: str, entries: Iterable[str]) -> tuple[str, str]:
    """(why there is nothing to write, what to write instead) of a suggestion beside the user's
    other entries: of module names the ones that are not among them."""
    offers = [match[0] for match in _OFFERS.finditer(suggestion)]
    if not offers or ", ".join(offers) != suggestion:  # a pattern, a path, a sentence
        return "", suggestion
    there = set(entries)
    names = [offer.partition(" ")[0] for offer in offers]
    if left := [o for o, name in zip(offers, names, strict=True) if name not in there]:
        return "", ", ".join(left)
    return f"what would do its work is listed already ({', '.join(names)})", ""


def suggest_parameters(table: ModuleTable, entry: str) -> str:
    """What to write instead of a dead entry of target_parameters: parameters that do its work, the
    nearest, or the modules that target_modules reaches; "" if there is none."""
    wanted = role_of(entry)
    if wanted != UNKNOWN:
        offers = [*_parameters(table, (wanted, *FUSED.get(wanted, ())), role_of)]
        if not offers and (modules := [*_modules(table, (wanted,), role_of)]):
            return f"in target_modules: {', '.join(dict.fromkeys(modules))}"
        if offers:
            return ", ".join(dict.fromkeys(offers))
    return _nearest_parameter(table, entry)


def nearest(written: str, names: Iterable[str]) -> str:
    """The one of `names` that `written` is most likely a slip of; "" if none is near."""
    by_lower = {name.lower(): name for name in names}
    found = get_close_matches(written.lower(), by_lower, n=1, cutoff=_NEAR)
    return by_lower[found[0]] if found else ""


def _nearest_leaf(table: ModuleTable, entry: str) -> str:
    """The nearest module by name, or the nearest experts' weight where that is nearer."""
    leaves = Counter(m.leaf for m in table.modules)
    usable = {m.leaf for m in table.modules if m.kind != OTHER}
    bare = {p.name.rpartition(".")[2] for p in table.expert_parameters}
    leaf = nearest(entry.rpartition(".")[2], usable | bare)
    if leaf in usable:
        return f"{leaf} ({leaves[leaf]} modules)"
    return _nearest_parameter(table, entry) if leaf else ""


def _nearest_parameter(table: ModuleTable, entry: str) -> str:
    every = [p.name for p in table.parameters]
    names: dict[str, list[str]] = {}
    for p in table.expert_parameters:
        names.setdefault(p.name.rpartition(".")[2], []).append(p.name)
    leaf = nearest(entry.rpartition(".")[2], names)
    found = endings_of(names[leaf], every, 3) if leaf else {}
    return ", ".join(_as_parameter(ending, n) for ending, n in found.items())


def _as_parameter(ending: str, layers: int) -> str:
    return f'target_parameters=["{ending}"] ({layers} layers)'


def _modules(table: ModuleTable, roles: Iterable[str], role: RoleOf) -> Iterator[str]:
    every = [m.name for m in table.modules]
    for wanted in roles:
        groups: dict[tuple[str, str], list[str]] = {}
        for m in table.modules:
            if m.kind != OTHER and serves(role(m.name), wanted):
                groups.setdefault((m.leaf, role(m.name)), []).append(m.name)
        for (leaf, does), names in groups.items():
            work = does.replace("_", "-")
            if new_name(table, leaf):
                continue  # PEFT would take it for the experts' old name
            exact = endings_of(names, every)
            for ending, n in exact.items():
                yield f"{ending} ({work}, {n} modules)"
            if not exact:
                reached = sum(ends_in(name, leaf) for name in every)
                yield f"{leaf} ({work} in {len(names)} of the {reached} modules that it reaches)"


def _parameters(table: ModuleTable, roles: Iterable[str], role: RoleOf) -> Iterator[str]:
    every = [p.name for p in table.parameters]
    for wanted in roles:
        names = [p.name for p in table.expert_parameters if serves(role(p.name), wanted)]
        for ending, n in endings_of(names, every, 3).items():
            yield _as_parameter(ending, n)


_MOST_SEGMENTS = 12


def moved(names: Sequence[str], written: str) -> list[str]:
    """The modules that a path means whose beginning fits none: those with the longest ending in
    common, of two segments or more, that share most of the other words too."""
    segments = written.split(".")
    for size in range(len(segments) - 1, 1, -1):
        ending = ".".join(segments[-size:])
        hits = [name for name in names if ends_in(name, ending)]
        if not hits or all(part.isdigit() for part in segments[-size:-1]):
            continue
        words = {part for part in segments[:-size] if not part.isdigit()}
        # `language_model` tells `model.language_model` from `model.vision_model`.
        shared = {name: len(words & set(name.split("."))) for name in hits}
        most = max(shared.values())
        return [name for name in hits if shared[name] == most]
    return []


def common_ending(name: str, names: Sequence[str]) -> str:
    """The end of one name that reaches it alone, from the word before the layer's number on."""
    segments = name.split(".")
    numbers = [at for at, segment in enumerate(segments[:-1]) if segment.isdigit()]
    least = len(segments) - numbers[0] + 2 if numbers else 1
    for size in range(max(1, least), len(segments) + 1):
        ending = ".".join(segments[-size:])
        if sum(ends_in(other, ending) for other in names) == 1:
            return ending
    return name


def endings_of(names: Sequence[str], every: Iterable[str], least: int = 1) -> dict[str, int]:
    """The shortest endings, of `least` segments or more, that reach all of `names` and no other of
    `every`, each with how many it reaches; empty where only layer numbers tell them apart."""
    every = list(every)
    for size in range(least, _MOST_SEGMENTS):
        endings = Counter(_ending(name, size) for name in names)
        if all(sum(ends_in(name, e) for name in every) == n for e, n in endings.items()):
            return dict(endings)
    return {}


def _ending(name: str, size: int) -> str:
    """The last `size` segments of a name, without a layer's number and what stands before it."""
    segments = name.split(".")[-size:]
    numbers = [at for at, segment in enumerate(segments[:-1]) if segment.isdigit()]
    return ".".join(segments[numbers[-1] + 1 if numbers else 0 :])


# Words at the beginning of a pattern, each before a dot that is one, or before `.*` and the like.
_REPEATED = r"(?=\\?\.[*+?{])"
_LITERAL = re.compile(
    rf"\^?(?:\.\*(?:\\?\.(?![*+?{{]))?)?((?:[A-Za-z_]\w*\\?\.(?![*+?{{]))*(?:[A-Za-z_]\w*{_REPEATED})?)"
)


def moved_pattern(table: ModuleTable, pattern: str) -> Iterator[tuple[str, str, str]]:
    """(old path, new path, changed pattern) for a regular expression that begins with a path which
    the model holds elsewhere; those that share most of its words first, then the stacks that text
    feeds."""
    found = _LITERAL.match(pattern)
    if found is None or not found[1]:
        return
    segments = [part for part in re.split(r"\\?\.", found[1]) if part]
    dot = r"\." if found[1].endswith(".") else ""
    main = {stack.prefix for stack in table.main_stacks}

    def far(name: str) -> tuple[int, bool]:
        shared = len({*segments} & {*name.split(".")})
        return -shared, table.stack_of(name).prefix not in main

    there = (name for name in table.by_name if name.rpartition(".")[2] in segments)
    for name in sorted(there, key=far):
        yield ".".join(segments), name, f"{re.escape(name)}{dot}{pattern[found.end() :]}"


def trace(table: ModuleTable, entry: str) -> tuple[str, str]:
    """(what an entry was, what to write now) for a name that a stored atlas of an earlier
    transformers has for this model type; empty where none has it."""
    written = ".".join("*" if part.isdigit() else part for part in entry.split("."))
    for version, old, new in _renames(table.model_type):
        if not ends_in(old, written):
            continue
        here = [_numbered(name, old, entry) for name in new]
        modules = [n for n in here if any(ends_in(m, n) for m in table.by_name)]
        bare = [n for n in here if any(ends_in(p.name, n) for p in table.parameters)]
        if modules and not re.search(r"\d", entry):
            return f"transformers {version} called it so", suggest(table, entry) or modules[0]
        if modules:
            return f"transformers {version} called it so", ", ".join(modules)
        if bare:
            names = ", ".join(f'"{name}"' for name in bare)
            return f"transformers {version} called it so", f"target_parameters=[{names}]"
    return "", ""


def trace_pattern(table: ModuleTable, pattern: str) -> tuple[str, str]:
    """The same for a regular expression that fits names of an earlier transformers."""
    there = {module.leaf for module in table.modules if module.kind != OTHER}
    found: dict[str, list[str]] = {}
    renames = _renames(table.model_type)
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


@cache
def _renames(model_type: str) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """(version, old pattern, new patterns) of a type, the latest version first."""
    stored = read_json(FIXTURES / "atlas" / "renames.json").get(model_type, {})
    return tuple(
        (version, old, tuple(new)) for version, names in stored.items() for old, new in names
    )


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


def without(ledger: Ledger, stacks: Iterable[Stack]) -> str:
    """The regular expression for exclude_modules that holds the stacks out, beside what is held out
    already."""
    prefixes = [s.prefix for s in stacks]
    outer = [p for p in prefixes if not any(p.startswith(f"{q}.") for q in prefixes)]
    parts = [rf"{re.escape(p)}(\..*)?" for p in outer]
    given = ledger.adapter.exclude_modules or ()
    if isinstance(given, str):
        parts.insert(0, f"({given})")
    else:
        parts[:0] = [rf"(.*\.)?{re.escape(entry)}" for entry in given]
    return "|".join(parts)
