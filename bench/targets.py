"""The match ledger: what each entry of a LoRA configuration reaches on a model, and what nothing.

The rules are those of PEFT's injection, read off a module table instead of a live model:

* an entry of a list matches a module whose full name it is, or ends in "." + entry;
* a string is a regular expression that must match the full name; "all-linear" is every linear
  layer but the output embedding (or, for SEQ_CLS, the classifier);
* a module that is excluded, or lies in a saved module, is never adapted;
* `layers_to_transform` filters what matched by its ending, not by its full name;
* PEFT translates the expert names of transformers 4 to the fused parameters of transformers 5.

Source: peft 0.21 `tuners/tuners_utils.py` and `utils/transformers_weight_conversion.py`; the
suites compare every answer with a real injection.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from bench.adapters import ALL_LINEAR, AdapterConfig
from bench.errors import BenchError
from bench.modules import CONV1D, LINEAR, OTHER, Module, ModuleTable, Parameter, layer_of
from bench.refusals import layer_refusals
from bench.roles import ROUTER, UNKNOWN, role_of, serves
from bench.tying import tie, token_layers

# Expert names of transformers 4 → the fused parameter of transformers 5, by family, and which
# parameters hold two old projections at once (the rank doubles there).
_EXPERT_NAMES: dict[str, dict[str, str]] = {
    "mixtral": {"gate": "gate.weight", "w1": "gate_up_proj", "w3": "gate_up_proj",
                "w2": "down_proj"},
    "qwen2_moe": {"gate": "gate.weight", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj",
                  "down_proj": "down_proj"},
}  # fmt: skip
_FUSED_EXPERTS = {"mixtral": ("w1", "w3"), "qwen2_moe": ("gate_proj", "up_proj")}
_SEQ_CLS_HEADS = ("score", "classifier")
_MAMBA = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})

RoleOf = Callable[[str], str]


@dataclass(frozen=True)
class Entry:
    """One entry as the user wrote it, and the modules (or parameters) that it reaches."""

    entry: str
    reached: tuple[str, ...]
    roles: Mapping[str, int]
    layers: int
    suggestion: str = ""
    field: str = "target_modules"

    @property
    def dead(self) -> bool:
        return not self.reached


@dataclass(frozen=True)
class Adapted:
    """One adapted module, or one adapted parameter of fused experts, with the rank it gets."""

    name: str
    role: str
    r: int
    module: Module | None = None
    parameter: Parameter | None = None

    @property
    def weight_elements(self) -> int:
        if self.module is not None:
            return self.module.weight_elements
        assert self.parameter is not None
        return self.parameter.elements


@dataclass(frozen=True)
class Hazard:
    """Something that PEFT does without a word and the user may not want."""

    code: str
    reason: str


@dataclass(frozen=True)
class Ledger:
    """What a LoRA configuration reaches on one model.

    Attributes:
        entries: one for each entry of target_modules and target_parameters, in the user's order.
        adapted: modules and parameters that get an adapter, in the model's order.
        saved: full names of the modules trained as whole copies (modules_to_save).
        tied: those of `saved` whose copy is the input embedding's (ensure_weight_tying).
        refusals: reasons for which PEFT raises on this configuration; empty when it injects.
        hazards: see Hazard.
    """

    table: ModuleTable = field(repr=False)
    adapter: AdapterConfig
    entries: tuple[Entry, ...]
    adapted: tuple[Adapted, ...]
    saved: tuple[str, ...]
    refusals: tuple[str, ...] = ()
    hazards: tuple[Hazard, ...] = ()
    tied: tuple[str, ...] = ()

    @property
    def adapted_layers(self) -> int:
        """Modules and parameters with an adapter of their own."""
        return len(self.adapted)

    @cached_property
    def by_role(self) -> dict[str, int]:
        return dict(Counter(item.role for item in self.adapted))

    @cached_property
    def dead_entries(self) -> tuple[str, ...]:
        return tuple(entry.entry for entry in self.entries if entry.dead)

    @cached_property
    def weight_coverage(self) -> float:
        """Share of the linear weights (experts counted, output embedding and saved modules not)
        that carry an adapter, 0 to 1."""
        everything = sum(m.weight_elements for m in self._linear_modules())
        everything += sum(p.elements for p in self.table.expert_parameters)
        linear = {m.name for m in self._linear_modules()}
        experts = {p.name for p in self.table.expert_parameters}
        reached = sum(a.weight_elements for a in self.adapted if a.name in linear | experts)
        return reached / everything if everything else 0.0

    @cached_property
    def layer_coverage(self) -> float:
        """Share of the repeated layers that hold at least one adapter, 0 to 1."""
        reached = {layer_of(item.name) for item in self.adapted} & set(self.table.layers)
        return len(reached) / len(self.table.layers) if self.table.layers else 0.0

    def _linear_modules(self) -> list[Module]:
        skipped = {self.table.output_embedding, *self.saved}
        return [
            m for m in self.table.modules if m.kind in (LINEAR, CONV1D) and m.name not in skipped
        ]


def match(table: ModuleTable, adapter: AdapterConfig, role: RoleOf = role_of) -> Ledger:
    """The ledger of `adapter` on the model that `table` describes. `role` names a module's role.

    With `layer_replication` the ledger's table is that of the grown model.
    """
    if adapter.layer_replication:
        table = table.replicate(adapter.layer_replication)
    refusals: list[str] = []
    if table.ties_unknown:
        refusals.append(f"PEFT cannot find the input embedding that {table.class_name} ties to")
    targets, aliases, wanted_parameters, ranks = _translate_experts(table, adapter, refusals)
    tying = tie(table, adapter, targets)
    asked, adapter = adapter, tying.adapter
    targets = _default_targets(table, adapter, tying.targets, refusals)
    inside = _Filter(table, adapter)
    lists: dict[str, list[str]] = {}
    reached: dict[str, None] = {}

    if isinstance(targets, str):
        names = _matching_pattern(table, adapter, targets)
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
    refusals += _unsupported(table, modules)

    parameters, by_parameter = _match_parameters(table, wanted_parameters)
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
    refusals += [
        f"{a.name} is adapted and named in modules_to_save: PEFT cannot save an adapted module"
        for a in adapted
        if a.name in saved
    ][:1]
    refusals += _token_refusals(table, asked, {a.name for a in adapted})
    tied = tuple(name for name in saved if tying.saved and name.endswith(tying.saved))
    ledger = Ledger(table, asked, (), tuple(adapted), saved, tuple(refusals), tied=tied)
    roles = {item.name: item.role for item in adapted}
    entries = []
    for entry, where in _user_entries(asked, targets):
        names = (name for e in aliases.get(entry, (entry,)) for name in lists.get(e, ()))
        found = tuple(dict.fromkeys(names))
        entries.append(
            Entry(
                entry,
                found,
                dict(Counter(roles.get(name, UNKNOWN) for name in found)),
                len({layer_of(name) for name in found} - {""}),
                "" if found else suggest(table, entry, role),
                where,
            )
        )
    ledger = replace(ledger, entries=tuple(entries))
    return replace(ledger, hazards=tuple(_hazards(ledger, role, bool(ranks))))


class _Filter:
    """Which of the names that an entry fits are kept: exclusion, saved modules, layer indices."""

    def __init__(self, table: ModuleTable, adapter: AdapterConfig) -> None:
        self.adapter = adapter
        self.guards = [re.compile(rf"(^|.*\.){m}($|\..*)") for m in adapter.guarded_modules]
        indices = adapter.layers_to_transform
        self.indices = None if indices is None or indices == () else (
            {indices} if isinstance(indices, int) else set(indices))  # fmt: skip
        patterns = adapter.layers_pattern or ()
        self.patterns = [
            re.compile(rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\.")
            for p in ((patterns,) if isinstance(patterns, str) else patterns)
        ] or [re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")]

    def keeps(self, name: str) -> bool:
        excluded = self.adapter.exclude_modules
        if isinstance(excluded, str):
            if excluded and re.fullmatch(excluded, name):
                return False
        elif excluded and any(name == e or name.endswith(f".{e}") for e in excluded):
            return False
        return not any(guard.match(name) for guard in self.guards)

    def matches(self, entry: str, name: str) -> bool:
        if name == entry:
            return self.keeps(name)
        if not name.endswith(f".{entry}") or not self.keeps(name):
            return False
        if self.indices is None or name in (self.adapter.target_modules or ()):
            return True
        found = next(filter(None, (p.match(name) for p in self.patterns)), None)
        return found is not None and int(found["idx"]) in self.indices


def _matching_pattern(table: ModuleTable, adapter: AdapterConfig, pattern: str) -> Iterable[str]:
    if pattern.lower() != ALL_LINEAR:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise BenchError(
                f"target_modules {pattern!r} is not a regular expression: {error}"
            ) from None
        return (m.name for m in table.modules if compiled.fullmatch(m.name))
    skipped = table.output_embedding
    if not skipped and adapter.task_type == "SEQ_CLS":
        skipped = next((name for name in _SEQ_CLS_HEADS if name in table.by_name), "")
    return (m.name for m in table.modules if m.kind in (LINEAR, CONV1D) and m.name != skipped)


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


def _translate_experts(
    table: ModuleTable, adapter: AdapterConfig, refusals: list[str]
) -> tuple[
    tuple[str, ...] | str | None, dict[str, tuple[str, ...]], tuple[str, ...], dict[str, int]
]:
    """PEFT's translation of transformers-4 expert names.

    Returns the remaining targets, what each user's entry became, the target parameters, and rank
    patterns that the translation adds.
    """
    targets, parameters = adapter.target_modules, adapter.target_parameters
    names = _EXPERT_NAMES.get(table.moe_conversion)
    if not names or not hasattr(targets, "__len__"):
        if names and targets is None:
            targets = ()  # PEFT turns None into an empty set here, so no default applies
        return targets, {}, parameters, {}
    aliases: dict[str, tuple[str, ...]] = {}
    whole = ""
    if isinstance(targets, str):
        whole, targets = targets, tuple(sorted(_leaf_names(table, adapter, targets, names)))
        if not targets:
            return whole, {}, parameters, {}
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
    return tuple(kept), aliases, tuple(dict.fromkeys((*parameters, *added))), ranks


def _leaf_names(
    table: ModuleTable, adapter: AdapterConfig, pattern: str, names: Mapping[str, str]
) -> set[str]:
    keep = _Filter(table, adapter).keeps
    if pattern.lower() == ALL_LINEAR:
        found = _matching_pattern(table, adapter, pattern)
        return {name.rpartition(".")[2] for name in found} | set(names)
    compiled = re.compile(pattern)
    keys = [m.name for m in table.modules] + [p.name for p in table.parameters if not p.same_as]
    matched = {k.rpartition(".")[2] for k in keys if keep(k) and compiled.fullmatch(k)}
    for old, new in names.items():
        owners = {k.rpartition(".")[0] for k in keys if k.rpartition(".")[2] == new}
        if any(keep(f"{o}.{old}") and compiled.fullmatch(f"{o}.{old}") for o in owners):
            matched.add(old)
    return matched


def _match_parameters(
    table: ModuleTable, wanted: tuple[str, ...]
) -> tuple[list[Parameter], dict[str, list[str]]]:
    found: dict[str, Parameter] = {}
    lists: dict[str, list[str]] = {entry: [] for entry in wanted}
    for parameter in table.parameters if wanted else ():
        for entry in wanted:
            if parameter.name == entry or parameter.name.endswith(f".{entry}"):
                lists[entry].append(parameter.name)
                found[parameter.name] = parameter
    return list(found.values()), lists


def _unsupported(table: ModuleTable, modules: list[Module]) -> list[str]:
    refusals = [
        f"{m.name} is a {m.class_name}, which LoRA cannot adapt" for m in modules if m.kind == OTHER
    ]
    if table.model_type in _MAMBA:
        refusals += [
            f"{m.name}: PEFT refuses out_proj and conv1d on {table.model_type}"
            for m in modules
            if m.leaf in ("out_proj", "conv1d")
        ]
    return refusals[:1]


def _token_refusals(table: ModuleTable, adapter: AdapterConfig, adapted: set[str]) -> list[str]:
    try:
        layers = token_layers(table, adapter)
    except BenchError as error:
        return [str(error)]
    both = [x.name for x in layers if x.name in adapted and not x.follows]
    return [f"{name} is adapted and has trainable tokens: PEFT takes one of them" for name in both]


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


def suggest(table: ModuleTable, entry: str, role: RoleOf = role_of) -> str:
    """What to write instead of a dead entry: the modules here that do its work; "" if none do."""
    wanted = role_of(entry)
    if wanted == UNKNOWN:
        return ""
    modules = [m for m in table.modules if m.kind != OTHER and serves(role(m.name), wanted)]
    if modules:
        offers = Counter((m.leaf, role(m.name)) for m in modules)
        return ", ".join(
            f"{leaf} ({does.replace('_', '-')}, {n} modules)" for (leaf, does), n in offers.items()
        )
    experts = Counter(
        ".".join(p.name.split(".")[-3:])
        for p in table.expert_parameters
        if serves(role(p.name), wanted)
    )
    return ", ".join(f'target_parameters=["{name}"] ({n} layers)' for name, n in experts.items())


def _hazards(ledger: Ledger, role: RoleOf, doubled: bool) -> list[Hazard]:
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
