"""What to write instead: of an entry that the model has nothing for what does its work, the nearest
name, or the path that it has moved to; of one that reaches what PEFT refuses the ways out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from bench.adapters.config import ALL_LINEAR
from bench.errors import all_nearest, nearest
from bench.models.modules import CONV1D, LINEAR, OTHER, ModuleTable
from bench.models.roles import FUSED, UNKNOWN, role_of, serves
from bench.models.stacks import Stack
from bench.targets.entries import Filter, ends_in, new_name
from bench.targets.ledger import Ledger, RoleOf
from bench.targets.slips import commonly, plainly

_DEFAULT_ROLES = ("query", "value", "query_key_value")


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
        leaves = {name.rpartition(".")[2] for name in table.adaptable}
        meant = plainly(entry, leaves)
        return suggest(table, meant, role, beside) if meant else _nearest_leaves(table, entry, role)
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


_COUNTED = re.compile(r"(\S+) \(([^()]*?)(\d+)( of the (\d+))? modules([^()]*)\)")


def recounted(suggestion: str, names: Sequence[str], inside: Filter, role: RoleOf) -> str:
    """The suggestion with the modules, of `names`, that its offers would reach beside the other
    fields of the configuration."""

    def beside(found: re.Match[str]) -> str:
        offer, work, n, among, _, rest = found.groups()
        does = work.removesuffix(" in ").replace("-", "_")
        there = [name for name in names if ends_in(name, offer)]
        left = [name for name in there if inside.keeps(name) and inside.in_layers(name)]
        if len(left) == len(there):
            return found[0]
        meant = [name for name in left if not among or role(name) == does]
        of = f"{len(meant)} of the {len(left)}" if among else f"{len(left)} of its {n}"
        return f"{offer} ({work}{of} modules{rest}, beside the other fields)"

    return _COUNTED.sub(beside, suggestion)


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


def _nearest_leaves(table: ModuleTable, entry: str, role: RoleOf) -> str:
    """The nearest modules by name, of several that are as near each; or the nearest experts' weight
    where that is nearer. Where it is a slip of a common name too, modules that do its work."""
    leaves = Counter(m.leaf for m in table.modules)
    usable = dict.fromkeys(name.rpartition(".")[2] for name in table.adaptable)
    bare = dict.fromkeys(p.name.rpartition(".")[2] for p in table.expert_parameters)
    near = all_nearest(entry.rpartition(".")[2], usable | bare)
    there = [leaf for leaf in near if leaf in usable]
    common = commonly(entry)
    does = {role(n) for n in table.adaptable if n.rpartition(".")[2] in there}
    if common and not any(serves(work, role_of(common)) for work in does):
        return suggest(table, common, role)
    if there:
        return ", ".join(f"{leaf} ({leaves[leaf]} modules)" for leaf in there)
    return _nearest_parameter(table, entry) if near else ""


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
    every = [*table.by_name]
    for wanted in roles:
        groups: dict[tuple[str, str], list[str]] = {}
        for name in table.adaptable:
            if serves(does := role(name), wanted):
                groups.setdefault((name.rpartition(".")[2], does), []).append(name)
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


def moved_names(names: Sequence[str], written: str) -> list[str]:
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
        endings = Counter(ending_of(name, size) for name in names)
        if all(sum(ends_in(name, e) for name in every) == n for e, n in endings.items()):
            return dict(endings)
    return {}


def ending_of(name: str, size: int) -> str:
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


def ways_out(ledger: Ledger) -> tuple[str, ...]:
    """What to write where PEFT refuses the kind of module that entries reach, beginning with the
    entries at fault."""
    table = ledger.table
    found: list[str] = []
    if any("refuses out_proj and conv1d" in reason for reason in ledger.refusals):
        found += _without_leaves(ledger, ("out_proj", "conv1d"))
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
    for rest in dict.fromkeys(inner[e] for e in wrapped):
        alike = [e for e in wrapped if inner[e] == rest]
        found += _around_wrappers(ledger, alike, faults, rest)
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
    asked = [name for name in table.adaptable if role_of(name) in _DEFAULT_ROLES]
    if not asked:
        return f"target_modules={json.dumps(ALL_LINEAR)}, every linear layer"
    return f"target_modules={json.dumps([*endings_of(asked, table.by_name)])}"


def _without_leaves(ledger: Ledger, leaves: tuple[str, ...]) -> Iterator[str]:
    reached = {item.name.rpartition(".")[2] for item in ledger.adapted if item.module}
    there = [leaf for leaf in leaves if leaf in reached]
    if there and isinstance(ledger.adapter.target_modules, str):
        held, either = ledger.adapter.exclude_modules, "|".join(there)
        whole = rf"({held})|.*[.]({either})" if isinstance(held, str) else [*(held or ()), *there]
        yield f"exclude_modules={json.dumps(whole)}"
    elif there:
        yield f"leave out {', '.join(there)}"
    for entry in ledger.entries:  # an exclusion holds no parameter out
        owners = {name.rpartition(".")[0].rpartition(".")[2] for name in entry.reached}
        if entry.field == "target_parameters" and owners & {*leaves}:
            yield f"leave {entry.entry} out of target_parameters"


def _narrowed(ledger: Ledger) -> str:
    """The pattern, held to the linear layers among what it reaches."""
    pattern = str(ledger.adapter.target_modules)
    adaptable = {*ledger.table.adaptable}
    good = [name for e in ledger.entries for name in e.reached if name in adaptable]
    if len(good) == len(adaptable):
        return f'{pattern} reaches whole modules too: write the string "{ALL_LINEAR}"'
    if not good:
        return f"{pattern} reaches modules without a weight of their own alone"
    # A projection and a module around others may share a name; their endings tell them apart.
    told = endings_of(good, [n for e in ledger.entries for n in e.reached])
    ends = "|".join(map(re.escape, told or good))
    return rf"{pattern} reaches whole modules too: write (?=(.*\.)?({ends})$){pattern}"


def _inner(table: ModuleTable, containers: list[str]) -> str:
    """The one projection that each of these modules wraps, by its name in them; "" if there is no
    such."""
    rests: set[str] = set()
    for name in containers:
        inside = [inner for inner in table.adaptable if inner.startswith(f"{name}.")]
        if len(inside) != 1:
            return ""
        rests.add(inside[0].removeprefix(f"{name}."))
    return rests.pop() if len(rests) == 1 else ""


def _around_wrappers(
    ledger: Ledger, entries: list[str], faults: dict[str, list[str]], rest: str
) -> Iterator[str]:
    """Entries that name a module which wraps the projection: leave its tower out, or reach in."""
    table = ledger.table
    wrappers = [name for e in entries for name in faults[e]]
    kind = table.by_name[wrappers[0]].class_name
    stacks = list(dict.fromkeys(table.stack_of(name) for name in wrappers))
    names = "|".join(dict.fromkeys(e.rpartition(".")[2] for e in entries))
    some = "1 is" if len(wrappers) == 1 else f"{len(wrappers)} are"
    at_fault = f"{', '.join(entries)}: {some} a {kind}, which holds its projection in "
    at_fault += f"{wrappers[0].rpartition('.')[2]}.{rest}"
    named = {n for others in faults.values() for n in others}
    outside = [n for e in ledger.entries for n in e.reached if n not in named]
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
    written: Iterable[str] = endings_of(_inside(table, others), table.by_name)
    if good:  # in full where numbers alone tell them apart
        written = endings_of(good, table.by_name, least=3 if entry.isdigit() else 1) or good
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
