"""What an entry of a configuration names, by PEFT's rules.

First PEFT rewrites the model and the entries:

* `layer_replication` stacks the layers anew;
* the expert names of transformers 4 become the fused parameters of transformers 5;
* `ensure_weight_tying` on a tied model: where an entry ends in `embed_tokens` or `lm_head`, PEFT
  works on the input embedding, whatever that is called, and makes every module that shares its
  weight follow;
* a long list is condensed.

Then it compares them with the model's names:

* an entry of a list matches a module whose full name it is, or ends in "." + entry;
* a string is a regular expression that must match the full name; "all-linear" is every linear
  layer but the output embedding (or, for SEQ_CLS, the classifier);
* a module that is excluded, or lies in a saved module, is never adapted;
* `layers_to_transform` filters what matched by its ending, not by its full name.

Source: peft 0.21 `utils/transformers_weight_conversion.py`, `tuners/lora/model.py` and
`tuners/tuners_utils.py` (`_check_tied_modules`, `check_target_module_exists`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from bench.adapters.config import ALL_LINEAR, AdapterConfig
from bench.errors import BenchError
from bench.models.modules import CONV1D, LINEAR, ModuleTable, Parameter
from bench.tasks import heads_of

_CONDENSED_FROM = 20
_TYING = ("embed_tokens", "lm_head")

# Expert names of transformers 4 → the fused parameter of transformers 5, by family, and which
# parameters hold two old projections at once (the rank doubles there).
_EXPERT_NAMES: dict[str, dict[str, str]] = {
    "mixtral": {"gate": "gate.weight", "w1": "gate_up_proj", "w3": "gate_up_proj",
                "w2": "down_proj"},
    "qwen2_moe": {"gate": "gate.weight", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj",
                  "down_proj": "down_proj"},
}  # fmt: skip
_FUSED_EXPERTS = {"mixtral": ("w1", "w3"), "qwen2_moe": ("gate_proj", "up_proj")}

Targets = tuple[str, ...] | str | None


@dataclass(frozen=True)
class Translated:
    """What a configuration became.

    Attributes:
        targets: the remaining target modules.
        parameters: the target parameters.
        aliases: what each of the user's entries became, where it became something else.
        ranks: rank patterns that the translation adds.
    """

    targets: Targets
    parameters: tuple[str, ...]
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)


def replicate(table: ModuleTable, pairs: tuple[tuple[int, int], ...]) -> ModuleTable:
    """The table after `layer_replication`: layers stacked by [start, end) ranges.

    Repeated layers share their weights; a layer that no range names is gone. Raises BenchError
    where PEFT finds no list of layers, or a range leaves the list.
    """
    path = _layer_list(table)
    inside = re.compile(rf"{re.escape(path)}\.(\d+)(\..*)?")
    depth = len({m[1] for m in map(inside.fullmatch, table.by_name) if m})
    order = [index for start, end in pairs for index in range(start, end)]
    if not all(0 <= index < depth for index in order):
        raise BenchError(f"layer_replication {list(pairs)}: the model has layers 0 to {depth - 1}")

    def stacked(names: list[str]) -> list[tuple[str, str]]:
        """(new name, old name), the layers in their new order where the first one stood."""
        found: dict[int, list[str]] = {}
        before: list[str] = []
        after: list[str] = []
        for name in names:
            if layer := inside.fullmatch(name):
                found.setdefault(int(layer[1]), []).append(name)
            else:
                (after if found else before).append(name)
        layers = [
            (f"{path}.{new}{name[len(f'{path}.{old}') :]}", name)
            for new, old in enumerate(order)
            for name in found.get(old, ())
        ]
        return [*zip(before, before, strict=True), *layers, *zip(after, after, strict=True)]

    parameters: list[Parameter] = []
    firsts: dict[str, str] = {}
    by_parameter = {p.name: p for p in table.parameters}
    for new, old in stacked([p.name for p in table.parameters]):
        first = firsts.setdefault(by_parameter[old].same_as or old, new)
        parameters.append(Parameter(new, by_parameter[old].shape, "" if first == new else first))
    modules = [replace(table.by_name[old], name=new) for new, old in stacked(list(table.by_name))]
    return replace(table, modules=tuple(modules), parameters=tuple(parameters))


def _layer_list(table: ModuleTable) -> str:
    """The list of layers that PEFT replicates: Llama's, BERT's or Falcon's names only."""
    prefix = ""
    while f"{prefix}model" in table.by_name:
        prefix += "model."
    if f"{prefix}bert" in table.by_name:
        prefix += "bert."
    for name in ("layers", "encoder.layer", "h"):
        found = table.by_name.get(f"{prefix}{name}")
        if found is not None and found.class_name == "ModuleList":
            return found.name
    raise BenchError(
        "layer_replication: PEFT replicates model.layers, encoder.layer or h, and "
        f"{table.class_name} has none of them"
    )


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


@dataclass(frozen=True)
class Tying:
    """What the configuration became.

    Attributes:
        adapter, targets: with the input embedding in place of the entries that name tied modules.
        adapted: tied modules that get an adapter beside the input embedding's.
        saved: tied modules whose trained copy is the input embedding's own.
        replaced: the user's entries that were taken out, each with the tied modules it names.
    """

    adapter: AdapterConfig
    targets: Targets
    adapted: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    replaced: tuple[tuple[str, tuple[str, ...]], ...] = ()


def tie(table: ModuleTable, adapter: AdapterConfig, targets: Targets) -> Tying:
    """`adapter` and `targets` as PEFT rewrites them; unchanged where nothing is to be tied."""
    unchanged = Tying(adapter, targets)
    if not (adapter.ensure_weight_tying and table.tied):
        return unchanged
    if any(name.rpartition(".")[2] in _TYING for name in adapter.saved_modules):
        wanted = tuple(dict.fromkeys((*adapter.saved_modules, table.input_embedding)))
        kept, _ = _take_out(wanted, table)
        # The heads of the task type come back by themselves.
        return replace(unchanged, adapter=replace(adapter, modules_to_save=kept), saved=table.tied)
    if isinstance(targets, str):
        if not any(re.fullmatch(targets, name) for name in _TYING):
            return unchanged
        whole = rf"(?:{targets}|^{re.escape(table.input_embedding)}$)"
        try:
            re.compile(whole)
        except re.error as error:
            raise BenchError(
                f"target_modules {targets!r}: PEFT puts it into a larger expression for "
                f"ensure_weight_tying, where it is none: {error}"
            ) from None
        return replace(unchanged, targets=whole, adapted=table.tied)
    if any(name.rpartition(".")[2] in _TYING for name in targets or ()):
        # Where the input embedding is itself listed as tied (Marian), it is taken out again.
        wanted = tuple(dict.fromkeys((*(targets or ()), table.input_embedding)))
        kept, gone = _take_out(wanted, table)
        replaced = tuple(entry for entry in gone if entry[0] in (targets or ()))
        return replace(unchanged, targets=kept, adapted=table.tied, replaced=replaced)
    return unchanged


def _take_out(
    entries: tuple[str, ...], table: ModuleTable
) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[str, ...]], ...]]:
    kept = list(dict.fromkeys(entries))
    for name in table.tied:
        fits = [e for e in kept if re.match(rf"(^|.*\.){e}($|\..*)", name)]
        if fits:
            kept.remove(fits[0])
    gone = [e for e in entries if e not in kept]
    return tuple(kept), tuple(
        (e, tuple(n for n in table.tied if re.match(rf"(^|.*\.){e}($|\..*)", n))) for e in gone
    )


class Filter:
    """Which of the names that an entry fits are kept: exclusion, saved modules, layer indices.

    `targets` are the entries as PEFT has them at that point, the configuration's own if not given.
    """

    def __init__(
        self, adapter: AdapterConfig, targets: tuple[str, ...] | str | None = None
    ) -> None:
        self.adapter = adapter
        entries = adapter.target_modules if targets is None else targets
        self.entries = frozenset(() if isinstance(entries, str) else entries or ())
        self.guards = [re.compile(rf"(^|.*\.){m}($|\..*)") for m in adapter.guarded_modules]
        indices = adapter.layers_to_transform
        self.indices = None if indices is None or indices == () else (
            {indices} if isinstance(indices, int) else set(indices))  # fmt: skip
        patterns = adapter.layers_pattern or ()
        self.patterns = [
            re.compile(rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\.")
            for p in ((patterns,) if isinstance(patterns, str) else patterns)
        ] or [re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")]

    def excluded(self, name: str) -> bool:
        """Whether exclude_modules holds the module out."""
        excluded = self.adapter.exclude_modules or ()
        if isinstance(excluded, str):
            return re.fullmatch(excluded, name) is not None
        return any(ends_in(name, entry) for entry in excluded)

    def guarded(self, name: str) -> bool:
        """Whether the module is, or lies in, one that is trained whole."""
        return any(guard.match(name) for guard in self.guards)

    def keeps(self, name: str) -> bool:
        return not (self.excluded(name) or self.guarded(name))

    def layer_index(self, name: str) -> int | None:
        """The number that layers_to_transform is compared with."""
        found = next(filter(None, (p.match(name) for p in self.patterns)), None)
        return int(found["idx"]) if found else None

    def in_layers(self, name: str) -> bool:
        """Whether layers_to_transform keeps a module that an entry fits by its ending."""
        if self.indices is None or name in self.entries:
            return True
        return self.layer_index(name) in self.indices

    def reaches(self, name: str) -> bool:
        """Whether one of the entries of a list adapts the module called `name`."""
        fits = not self.entries.isdisjoint(endings(name))
        return fits and self.keeps(name) and self.in_layers(name)


@lru_cache(maxsize=1 << 16)  # a model's names are asked again for each configuration
def endings(name: str) -> tuple[str, ...]:
    """The name's last segment, its last two, … and the whole name."""
    found, at = [], len(name)
    while at >= 0:
        at = name.rfind(".", 0, at)
        found.append(name[at + 1 :])
    return tuple(found)


def around(name: str) -> Iterator[str]:
    """The modules that hold the module called `name`, the nearest first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def ends_in(name: str, entry: str) -> bool:
    """Whether `entry` is the name or its last segments: how PEFT reads the names of a list."""
    return name == entry or name.endswith(f".{entry}")


def matching_pattern(table: ModuleTable, adapter: AdapterConfig, pattern: str) -> Iterable[str]:
    """The modules that a string of target_modules fits, before exclusion.

    Raises BenchError where it is no regular expression.
    """
    if pattern.lower() != ALL_LINEAR:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise BenchError(
                f"target_modules {pattern!r} is not a regular expression: {error}"
            ) from None
        return (m.name for m in table.modules if compiled.fullmatch(m.name))
    skipped = table.output_embedding if table.pretrained else ""
    if not skipped and table.pretrained and adapter.task_type == "SEQ_CLS":
        heads = reversed(heads_of("SEQ_CLS"))  # PEFT asks for `score` first
        skipped = next((name for name in heads if name in table.by_name), "")
    return (m.name for m in table.modules if m.kind in (LINEAR, CONV1D) and m.name != skipped)


def condense(table: ModuleTable, targets: tuple[str, ...]) -> tuple[str, ...]:
    """A list of twenty entries or more as PEFT shortens it: to the endings that tell what it
    reaches from the model's other modules. What was a full name is one no longer.

    Source: peft 0.21 `tuners/tuners_utils.py` (`_find_minimal_target_modules`).
    """
    given = set(targets)
    if len(given) < _CONDENSED_FROM:
        return targets
    others = [m.name for m in table.modules if given.isdisjoint(endings(m.name))]
    taken = {ending for name in others for ending in endings(name)}
    kept: set[str] = set()
    for name in sorted(given, key=endings):
        covered = kept & set(endings(name)[:-1])
        free = (e for e in endings(name) if e not in kept and e not in taken)
        if not covered and (shortest := next(free, None)):
            kept.add(shortest)
    return tuple(sorted(kept)) if kept and len(kept) < len(given) else targets


def is_all_linear(table: ModuleTable, adapter: AdapterConfig) -> bool:
    """Whether the list of targets is what PEFT has made, and saved, of "all-linear": the names of
    every linear layer, those too that other fields then hold out, in full or condensed.

    Source: peft 0.21 `tuners/tuners_utils.py` (`_maybe_include_all_linear_layers`).
    """
    layers = adapter.layers_to_transform is not None or adapter.layers_pattern  # PEFT refuses both
    if layers or not adapter.saved or not isinstance(adapter.target_modules, tuple):
        return False
    written = replace(adapter, target_modules=ALL_LINEAR, target_parameters=())
    made = translate_experts(table, written, []).targets
    if isinstance(made, str):
        made = tuple(matching_pattern(table, written, ALL_LINEAR))
    given = set(adapter.target_modules)
    return given in (set(made or ()), set(condense(table, made or ())))


def match_parameters(
    table: ModuleTable, wanted: tuple[str, ...]
) -> tuple[list[Parameter], dict[str, list[str]]]:
    """The parameters that `target_parameters` reaches, and their names by entry."""
    found: dict[str, Parameter] = {}
    lists: dict[str, list[str]] = {entry: [] for entry in wanted}
    for parameter in table.parameters if wanted else ():
        for entry in wanted:
            if ends_in(parameter.name, entry):
                lists[entry].append(parameter.name)
                found[parameter.name] = parameter
    return list(found.values()), lists
