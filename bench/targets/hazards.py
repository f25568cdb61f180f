"""Hazards: configurations that work, and probably are not what was meant.

`docs/hazards.md` has a section for each of HAZARDS.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from bench.errors import check_known
from bench.models.modules import CONV1D, CONVOLUTIONS, LINEAR, ModuleTable, Parameter
from bench.models.roles import DOWN, FUSED, GATE, HEAD, KEY, OUTPUT, QUERY, ROUTER, UP, VALUE
from bench.models.stacks import Stack
from bench.targets.alternatives import dead_alternatives
from bench.targets.entries import around
from bench.targets.ledger import Adapted, Hazard, Ledger, RoleOf
from bench.targets.saving import quantized_copies
from bench.targets.suggestions import ending_of, suggest, without
from bench.tasks import TASKS, Task

HAZARDS = {
    "alpha-zero": "lora_alpha is 0: the adapters neither change the model nor learn",
    "dead-alternative": "an alternative of an expression reaches nothing",
    "experts-not-reached": "the experts of a mixture are parameters, and get no adapter",
    "forward-fails": "the forward pass raises with the adapter, and not without it",
    "frozen-head": "a task head beyond the base model stays frozen",
    "kernel-takes-weight": "a fused kernel takes a module's weight, and its adapter trains nothing",
    "low-coverage": "only a small share of the linear weights carries an adapter",
    "mixed-kinds": "an entry meant for linear layers also reaches a convolution",
    "no-gradient": "adapters match, and a step gives them no gradient",
    "parameters-not-reached": "projections that are parameters get no adapter",
    "part-of-the-layers": "an entry reaches some layers; other projections of the rest are frozen",
    "quantized-head": "a head to be trained whole is loaded as integers",
    "rank-above-width": "the rank is above the width of a layer, where more of it adds nothing",
    "rank-doubled": "old expert names get twice the rank that was written",
    "router-adapted": "the router of a mixture of experts gets an adapter",
    "tower-adapted": "a tower that no batch of text feeds gets adapters",
    "unknown-key": "a key of a tool's file that the tool is not known to have",
    "untied-copy": "one of two modules that share a weight is trained apart from it",
}
"""Every hazard, with what it says in a few words."""

NOT_AS_WRITTEN = frozenset({"quantized-head", "rank-doubled"})
"""Those that mean something else than what was written; `--strict` fails on them."""

NEVER_WORKS = frozenset({"forward-fails"})
"""Those with which nothing can be trained; they fail without being asked to."""

LOW_COVERAGE = 0.05
"""Below this share of the linear weights coverage is a hazard: query and value of a model with
grouped queries are 6 to 10 % of it, so that less means layers or experts that no entry reaches."""

_SHOWN = 60
"""Characters of an alternative that are told."""

# Heads that the pretraining trained: they come with the checkpoint.
_PRETRAINED = re.compile(r"ForCausalLM|ForMaskedLM|LMHead|ForConditionalGeneration|ForPreTraining"
                         r"|ForNextSentencePrediction|ForMaskedImageModeling")  # fmt: skip
_HEADS = {"pre_classifier", *(head for task in TASKS for head in task.label_heads)}
_WORK = (QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN, *FUSED)


def check_hazards(codes: Iterable[str], where: str) -> tuple[str, ...]:
    """`codes` themselves. UnknownName, naming `where`, for one that is none."""
    codes = tuple(codes)
    for code in codes:
        check_known(f"hazard in {where}:", code, HAZARDS)
    return codes


def find_hazards(ledger: Ledger, role: RoleOf, doubled: list[Adapted]) -> list[Hazard]:
    """The hazards of a ledger; `doubled` got another rank by the translation of expert names."""
    table, adapter = ledger.table, ledger.adapter
    trained = {item.owner for item in ledger.adapted} | set(ledger.saved)
    found: dict[str, str] = {}
    said = []
    if heads := frozen_heads(ledger):
        said.append(frozen_head_text(table.class_name, heads, adapter.task_type))
    if heads := [name for name in _heads(table) if name in trained and not _saved(ledger, name)]:
        said.append(
            f"{_named(heads)}: beyond the base model, newly initialised unless the checkpoint "
            "holds it, and gets an adapter alone: its own weights stay as they were drawn, and the "
            "adapter's file does not hold them; leave it out of the targets, and name it in "
            "modules_to_save"
        )
    if said:
        found["frozen-head"] = "; ".join(said)
    if whole := quantized_copies(table, ledger.saved):
        found["quantized-head"] = (
            f"{', '.join(whole)}: to be trained whole, and loaded as integers, which cannot train "
            f"(PEFT raises); load with llm_int8_skip_modules={json.dumps(whole)}"
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
    found |= _not_reached(ledger, role)
    if doubled:
        found["rank-doubled"] = (
            f"PEFT translates the old expert names to gate_up_proj with rank {doubled[0].r}, "
            "twice the rank asked for; an explicit target_parameters does not double"
        )
    zero = [f"alpha_pattern {name}" for name, alpha in adapter.alpha_pattern.items() if not alpha]
    zero = [*(() if adapter.lora_alpha else ("lora_alpha",)), *zero]
    if zero and ledger.adapted:
        found["alpha-zero"] = (
            f"{', '.join(zero)} is 0, with which B·A is scaled: these adapters change nothing, get "
            "no gradient, and stay as they were"
        )
    if text := _above_width(ledger):
        found["rank-above-width"] = text
    if text := _towers(ledger):
        found["tower-adapted"] = text
    if text := _dead_alternatives(ledger, role):
        found["dead-alternative"] = text
    if text := _part_of_the_layers(ledger):
        found["part-of-the-layers"] = text
    if text := _mixed_kinds(ledger):
        found["mixed-kinds"] = text
    deliberate = adapter.layers_to_transform is not None or not ledger.adapted
    little = ledger.has_weights_to_cover and ledger.weight_coverage < LOW_COVERAGE
    if little and not deliberate:
        found["low-coverage"] = coverage_text(ledger)
    return [Hazard(code, reason) for code, reason in found.items()]


def coverage_text(ledger: Ledger) -> str:
    """How much is covered, and what the largest part of the rest is."""
    reached = {name for item in ledger.adapted for name in (item.name, item.owner)}
    rest: Counter[str] = Counter()
    for m in ledger.table.modules:
        if m.kind in (LINEAR, CONV1D) and m.name not in {*reached, ledger.table.output_embedding}:
            rest[m.leaf] += m.weight_elements
    for p in ledger.table.expert_parameters:
        if p.name not in reached:
            rest[ending_of(p.name, 3)] += p.elements
    largest = ", ".join(leaf for leaf, _ in rest.most_common(3))
    return (
        f"{ledger.weight_coverage:.1%} of the linear weights and {ledger.layer_coverage:.0%} of "
        f"the layers carry an adapter; most of the rest is in {largest}"
    )


def _not_reached(ledger: Ledger, role: RoleOf) -> dict[str, str]:
    """Weights of three dimensions that only target_parameters could reach."""
    table = ledger.table
    adapted = {item.name for item in ledger.adapted}
    whole_in = tuple(f"{name}." for name in ledger.saved)
    missed = [p for p in table.expert_parameters if p.name not in adapted]
    missed = [p for p in missed if not p.name.startswith(whole_in)]
    found = {}
    if experts := [p for p in missed if _of_experts(table, p)]:
        share = sum(p.elements for p in experts if not p.same_as) / table.total_parameters
        names = json.dumps(list(dict.fromkeys(ending_of(p.name, 3) for p in experts)))
        found["experts-not-reached"] = (
            f"{len(experts)} fused expert weights, {share:.0%} of the model, get no adapter: they "
            f"are parameters, which only target_parameters reaches: {names}"
        )
    if others := [p for p in missed if not _of_experts(table, p) and role(p.name) in _WORK]:
        share = sum(p.elements for p in others if not p.same_as) / table.total_parameters
        found["parameters-not-reached"] = (
            f"{len(others)} weights of three dimensions, {share:.0%} of the model, get no adapter: "
            f"they are parameters, which only target_parameters reaches ({others[0].name})"
        )
    return found


def _above_width(ledger: Ledger) -> str:
    """The adapted layers whose smaller side is less than their rank: B·A cannot have a rank above
    it. Heads and routers are as wide as there are labels or experts, whatever the rank."""
    narrow = [
        (min(item.sides), item)
        for item in ledger.adapted
        if item.r > min(item.sides) > 0 and item.role not in (HEAD, ROUTER)
    ]
    if not narrow:
        return ""
    width, item = min(narrow, key=lambda pair: (pair[0], pair[1].name))
    return (
        f"{len(narrow)} of {len(ledger.adapted)} adapted layers are narrower than their rank "
        f"({item.name}: r {item.r:,}, and its smaller side is {width:,}); B·A cannot have a rank "
        "above that, and what is trained beyond it adds nothing"
    )


def _towers(ledger: Ledger) -> str:
    """The stacks beside a language model that get adapters, and how to leave them out."""
    main = ledger.table.main_stacks
    beside = [r for r in ledger.stacks if r.stack not in main and r.modules]
    if not beside:
        return ""
    parts = [
        f"{r.stack.label} gets {r.modules} of the {len(ledger.adapted)} adapters" for r in beside
    ]
    text = (
        f"{', '.join(parts)}; no batch of text feeds it: there its adapters get no gradient, and "
        "DDP calls them unused"
    )
    if not any(r.modules for r in ledger.stacks if r.stack in main):
        return text
    instead = json.dumps(without(ledger, [r.stack for r in beside]))
    return f"{text}. To leave it out: exclude_modules={instead}"


def _dead_alternatives(ledger: Ledger, role: RoleOf) -> str:
    """Those of target_modules, where it is an expression, and what to write instead of names."""
    pattern = ledger.adapter.target_modules
    if not isinstance(pattern, str) or not ledger.adapted:
        return ""
    said = []
    for text in dead_alternatives(pattern, ledger.table.by_name):
        name = text.rpartition(r"\.")[2].lstrip(".*")
        offer = suggest(ledger.table, name, role) if re.fullmatch(r"\w+", name) else ""
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        said.append(f"{shown} (write instead: {offer})" if offer else shown)
    most = 6
    more = f"; and {len(said) - most} more" if len(said) > most else ""
    told = f"alternatives of the expression that reach nothing: {'; '.join(said[:most])}{more}"
    return told if said else ""


def _part_of_the_layers(ledger: Ledger) -> str:
    """Entries that reach some layers of a stack, while others hold nothing of that name and stay
    without an adapter for other projections."""
    if ledger.adapter.layers_to_transform is not None:
        return ""
    parts: dict[tuple[str, str, int], list[str]] = {}
    for entry in ledger.entries:
        if _names_a_layer(entry.entry):
            continue
        for prefix, layers, frozen in _elsewhere(ledger, entry.reached):
            parts.setdefault((prefix, frozen, layers), []).append(entry.entry)
    by_prefix = {s.prefix: s for s in ledger.table.stacks}
    said = []
    for (prefix, frozen, layers), entries in parts.items():
        stack = by_prefix[prefix]
        verb = "reaches" if len(entries) == 1 else "reach"
        said.append(
            f"{', '.join(entries)} {verb} {layers} of the {len(stack.layers)} layers of "
            f"{stack.label}; the others hold {frozen}, frozen"
        )
    return "; ".join(said)


def _names_a_layer(entry: str) -> bool:
    return any(part.isdigit() for part in re.split(r"\W+", entry))


def _elsewhere(ledger: Ledger, names: Iterable[str]) -> Iterator[tuple[str, int, str]]:
    """(stack, layers reached, linear layers in its other layers that stay frozen)."""
    for reach in ledger.reach(names):
        stack = reach.stack
        if not 0 < reach.layers < len(stack.layers):
            continue
        if frozen := _frozen_mixers(ledger, stack, {stack.layer_of(n) for n in names}):
            yield stack.prefix, reach.layers, frozen


def _frozen_mixers(ledger: Ledger, stack: Stack, reached: set[str]) -> str:
    """The projections in the other layers that nothing adapts: all of them in a layer without any
    adapter, in the rest those that the reached layers do not have beside the adapted ones. A layer
    that `exclude_modules` holds out by its number is none of them."""
    adapted = {item.name for item in ledger.adapted}
    leaves = {name.rpartition(".")[2] for name in adapted}
    held = (name for name in adapted if ledger.table.stack_of(name) is stack)
    with_adapters = {stack.layer_of(name) for name in held}
    beside: set[str] = set()
    found: list[tuple[str, str]] = []
    given = ledger.adapter.exclude_modules or ()
    by_number = any(map(_names_a_layer, (given,) if isinstance(given, str) else given))
    held_out: set[str] = set()
    for m in ledger.table.modules:
        if m.leaf in leaves and m.name not in adapted and by_number:
            held_out.add(stack.layer_of(m.name))
        if m.kind not in (LINEAR, CONV1D) or m.leaf in leaves:
            continue
        if ledger.table.stack_of(m.name) is stack and (layer := stack.layer_of(m.name)):
            if layer in reached:
                beside.add(m.leaf)
            else:
                found.append((m.leaf, layer))
    frozen = Counter(
        leaf
        for leaf, layer in found
        if layer not in held_out and (layer not in with_adapters or leaf not in beside)
    )
    return ", ".join(f"{leaf} ({n})" for leaf, n in frozen.most_common(4))


def _mixed_kinds(ledger: Ledger) -> str:
    """Entries that reach convolutions among linear layers."""
    by_name = ledger.table.by_name
    said = []
    for entry in ledger.entries:
        kinds = {n: by_name[n].kind for n in entry.reached if n in by_name}
        strays = [n for n, kind in kinds.items() if kind in CONVOLUTIONS]
        if strays and LINEAR in kinds.values():
            more = f" and {len(strays) - 1} more" if len(strays) > 1 else ""
            said.append(
                f"{entry.entry} also reaches {strays[0]}{more}, a {by_name[strays[0]].class_name}"
            )
    return "; ".join(said)


def _of_experts(table: ModuleTable, parameter: Parameter) -> bool:
    """Whether a weight of three dimensions holds a matrix for every expert; XLNet's holds one for
    every head."""
    owner = table.by_name.get(parameter.name.rpartition(".")[0])
    return "expert" in f"{parameter.name} {owner.class_name if owner else ''}".lower()


def frozen_heads(ledger: Ledger) -> list[str]:
    """Names of the modules with weights beyond the base model that get neither an adapter nor a
    trained copy; where the base model is not known, of those called as heads are."""
    adapted = {item.owner for item in ledger.adapted}
    return [
        name
        for name in _heads(ledger.table)
        if not _saved(ledger, name)
        and not any(around == name or name.startswith(f"{around}.") for around in adapted)
    ]


def _heads(table: ModuleTable) -> list[str]:
    fresh = bool(table.base_model) and not _PRETRAINED.search(table.class_name)
    known = {table.output_embedding, *table.tied}  # a language model's, whatever its class's name
    holders = {p.name.rpartition(".")[0] for p in table.parameters}
    return [
        m.name
        for m in table.modules
        if m.name in holders
        and (
            m.name.partition(".")[0] in _HEADS
            or (
                fresh
                and m.name not in known
                and not f"{m.name}.".startswith(f"{table.base_model}.")
            )
        )
    ]


def _saved(ledger: Ledger, name: str) -> bool:
    return any(outer in ledger.saved for outer in (name, *around(name)))


def frozen_head_text(class_name: str, heads: list[str], task_type: str | None) -> str:
    """What stays frozen, and what trains it: the task type only where PEFT's would."""
    tasks = (t for t in TASKS if t.heads and class_name.endswith(t.class_ending))
    task = next(tasks, None)
    offer = "name it in modules_to_save"
    if task and task.task_type != task_type and all(_trains(task, name) for name in heads):
        offer = f"give the task type {task.task_type}, or {offer}"
    return (
        f"{_named(heads)}: beyond the base model, newly initialised unless the checkpoint holds "
        f"it, and stays frozen; {offer}"
    )


def _named(heads: list[str]) -> str:
    parts = list(dict.fromkeys(name.partition(".")[0] for name in heads))
    return ", ".join(heads if len(heads) <= 3 else parts)


def _trains(task: Task, name: str) -> bool:
    """Whether PEFT's task type trains the module: it, or one around it, ends in a head's name."""
    return any(outer.endswith(task.heads) for outer in (name, *around(name)))
