"""What a ledger reaches, module by module: strips for a plot, a folded tree for a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.baselines import Record, StoredRun
from bench.errors import BenchError
from bench.models.modules import OTHER, layer_of
from bench.units import format_count, one_line

if TYPE_CHECKING:
    from bench.targets import Ledger

ADAPTED, SAVED, FROZEN = "adapted", "saved", "frozen"


@dataclass(frozen=True)
class Branch:
    """A part of a model: its children, or the state of a leaf."""

    name: str
    note: str = ""
    state: str = ""
    children: tuple[Branch, ...] = ()
    open: bool = False


@dataclass(frozen=True)
class ScenarioTree:
    """What one scenario adapts. warning: where this is not what the run recorded."""

    title: str
    tree: tuple[Branch, ...]
    dead: tuple[str, ...] = ()
    warning: str = ""


@dataclass(frozen=True)
class ModelTree:
    """The scenarios of one model; missing: why there are none to show."""

    title: str
    scenarios: tuple[ScenarioTree, ...] = ()
    missing: str = ""


@dataclass(frozen=True)
class Strip:
    """One stack of the model: `rows` maps a projection to the state of each of its `layers`, None
    where a layer has no such projection."""

    title: str
    layers: int
    rows: Mapping[str, Sequence[str | None]]


def module_states(ledger: Ledger) -> dict[str, str]:
    """Each module that holds a weight LoRA can adapt, and each fused expert weight: ADAPTED, SAVED
    (trained as a whole copy) or FROZEN; in the model's order."""
    adapted = {item.name.removesuffix(".weight") for item in ledger.adapted}
    names = [m.name for m in ledger.table.modules if m.kind != OTHER]
    names += [p.name for p in ledger.table.expert_parameters]
    found = {}
    for name in names:
        saved = any(name == whole or name.startswith(f"{whole}.") for whole in ledger.saved)
        found[name] = SAVED if saved else ADAPTED if name in adapted else FROZEN
    return found


def strips(ledger: Ledger) -> list[Strip]:
    """The model's repeated blocks, one strip for each list of blocks, and what stands outside."""
    states = module_states(ledger)
    lists: dict[str, list[str]] = {}
    for layer in ledger.table.layers:
        lists.setdefault(_parent(layer), []).append(layer)
    found = []
    for parent, layers in lists.items():
        rows: dict[str, list[str | None]] = {}
        for place, layer in enumerate(layers):
            for name, state in states.items():
                if layer_of(name) == layer:
                    row = rows.setdefault(name[len(layer) + 1 :], [None] * len(layers))
                    row[place] = state
        kind = ledger.table.stack_of(layers[0]).kind
        title = f"{kind}, {parent or 'the model'}: {len(layers)} layers"
        found.append(Strip(title, len(layers), rows))
    inside = set(ledger.table.layers)
    rest = {name: [state] for name, state in states.items() if layer_of(name) not in inside}
    return [*found, Strip("outside the layers", 1, rest)] if rest else found


def run_trees(run: StoredRun) -> list[ModelTree]:
    """What every measured scenario of the run adapts, or every counted one where none was measured:
    matched again on the registered models with the installed libraries.

    A tree whose digest is not the one that the run recorded carries a warning; a model that is not
    registered is named with the reason that it has no tree.
    """
    records = list(run.records.values())
    wanted = [r for r in records if r.precision] or records
    models: dict[str, dict[tuple[str, int], Record]] = {}
    for record in wanted:
        if record.rank is not None and "ledger_digest" in record.metrics:
            models.setdefault(record.model, {})[record.scenario, record.rank] = record
    return [_model_tree(label, found) for label, found in models.items()]


def _model_tree(label: str, records: Mapping[tuple[str, int], Record]) -> ModelTree:
    from bench.baselines.runlog import ledger_digest
    from bench.models.architectures import load_model
    from bench.models.declared import registered
    from bench.scenarios.scenario import load_scenarios
    from bench.targets import match

    name, _, reduced = label.partition("@")
    if name not in registered():
        return ModelTree(
            one_line(label), missing="not a registered model: its modules are not at hand"
        )
    try:
        model = load_model(name).reduce(reduced) if reduced else load_model(name)
    except BenchError as error:
        return ModelTree(one_line(label), missing=str(error))
    scenarios, found = load_scenarios(), []
    for (scenario, rank), record in records.items():
        if scenario not in scenarios:
            continue
        ledger = match(model.table, scenarios[scenario].adapter(model, rank), model.role_of)
        trained = record.metrics.get("trainable_parameters")
        counted = f", {format_count(trained)} trained" if isinstance(trained, int) else ""
        same = ledger_digest(ledger) == record.metrics["ledger_digest"]
        found.append(
            ScenarioTree(
                one_line(f"{scenario} r{rank}: {ledger.adapted_layers} modules{counted}"),
                folded_tree(module_states(ledger), ledger.table.layers),
                tuple(f"{entry} reaches nothing" for entry in ledger.dead_entries),
                "" if same else "With the installed libraries it adapts something else than the "
                "run recorded; this is what it adapts now.",
            )
        )  # fmt: skip
    missing = "" if found else "its scenarios are not registered: what they adapt is not at hand"
    return ModelTree(one_line(label), tuple(found), missing)


def folded_tree(states: Mapping[str, str], layers: Sequence[str]) -> tuple[Branch, ...]:
    """The modules as a tree; neighbouring layers whose modules have the same states are one branch.

    states: full name of a module -> its state, in the model's order. layers: names of the repeated
    blocks.
    """
    blocks: dict[str, dict[str, str]] = {layer: {} for layer in layers}
    outside: dict[str, str] = {}
    for name, state in states.items():
        layer = next((one for one in _prefixes(name) if one in blocks), None)
        if layer is None:
            outside[name] = state
        else:
            blocks[layer][name[len(layer) + 1 :]] = state
    groups: list[list[str]] = []
    for layer in filter(blocks.__getitem__, layers):
        last = groups[-1][-1] if groups else ""
        if last and blocks[last] == blocks[layer] and _parent(last) == _parent(layer):
            groups[-1].append(layer)
        else:
            groups.append([layer])
    folded = [_block(group, blocks[group[0]], first=not i) for i, group in enumerate(groups)]
    return (*folded, *_leaves(outside))


def _block(group: Sequence[str], states: Mapping[str, str], first: bool) -> Branch:
    many = len(group) > 1
    name = f"{group[0]} … {group[-1].rpartition('.')[2]}" if many else group[0]
    note = f"{len(group)} layers alike" if many else "1 layer"
    return Branch(name, note, children=_leaves(states), open=first)


def _leaves(states: Mapping[str, str]) -> tuple[Branch, ...]:
    return tuple(Branch(name, state=state) for name, state in states.items())


def _prefixes(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[:n]) for n in range(1, len(parts)))


def _parent(layer: str) -> str:
    return layer.rpartition(".")[0]
