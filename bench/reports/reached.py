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
    from bench.models.architectures import Model
    from bench.scenarios.subjects import Subject
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


def run_trees(run: StoredRun, subjects: Iterable[Subject] = ()) -> list[ModelTree]:
    """What every measured scenario of the run adapts, or every counted one where none was measured:
    matched again with the installed libraries, on the registered models and `subjects`.

    A tree whose digest is not the one that the run recorded carries a warning; of a model or a
    configuration that is not at hand there are the dead entries that the run recorded, and the
    reason that it has no tree.
    """
    given = {(s.model.label, s.name, s.adapter.r): s for s in subjects}
    records = list(run.records.values())
    wanted = [r for r in records if r.precision] or records
    models: dict[str, dict[tuple[str, int], Record]] = {}
    for record in wanted:
        if record.rank is not None and "ledger_digest" in record.metrics:
            models.setdefault(record.model, {})[record.scenario, record.rank] = record
    return [_model_tree(label, found, given) for label, found in models.items()]


def _model_tree(
    label: str,
    records: Mapping[tuple[str, int], Record],
    given: Mapping[tuple[str, str, int], Subject],
) -> ModelTree:
    from bench.scenarios.scenario import load_scenarios
    from bench.targets import match

    model, missing = _registered(label)
    scenarios, found = load_scenarios(), []
    for (scenario, rank), record in records.items():
        if subject := given.get((label, scenario, rank)):
            table, adapter, role_of = subject.model.table, subject.adapter, subject.model.role_of
        elif model is not None and scenario in scenarios:
            table, role_of = model.table, model.role_of
            adapter = scenarios[scenario].adapter(model, rank)
        else:
            missing = missing or "its scenarios are not registered: what they adapt is not at hand"
            if dead := record.detail.get("dead_entries"):
                found.append(ScenarioTree(_titled(record), (), _told(dead)))
            continue
        found.append(_scenario_tree(record, match(table, adapter, role_of)))
    trees = any(scenario.tree for scenario in found)
    return ModelTree(one_line(label), tuple(found), "" if trees else missing)


def _registered(label: str) -> tuple[Model | None, str]:
    """The registered model that a run calls so; or None, and why there is none."""
    from bench.models.architectures import load_model
    from bench.models.declared import registered

    name, _, reduced = label.partition("@")
    if name not in registered():
        return None, "not a registered model: its modules are at hand where it runs (--report)"
    try:
        model = load_model(name)
        return model.reduce(reduced) if reduced else model, ""
    except BenchError as error:
        return None, str(error)


def _scenario_tree(record: Record, ledger: Ledger) -> ScenarioTree:
    from bench.baselines.runlog import ledger_digest

    same = ledger_digest(ledger) == record.metrics["ledger_digest"]
    return ScenarioTree(
        _titled(record),
        folded_tree(module_states(ledger), ledger.table.layers),
        _told(ledger.dead_entries),
        "" if same else "With the installed libraries it adapts something else than the "
        "run recorded; this is what it adapts now.",
    )  # fmt: skip


def _titled(record: Record) -> str:
    trained = record.metrics.get("trainable_parameters")
    counted = f", {format_count(trained)} trained" if isinstance(trained, int) else ""
    layers = record.metrics.get("adapted_layers")
    return one_line(f"{record.scenario} r{record.rank}: {layers} modules{counted}")


def _told(dead: Iterable[object]) -> tuple[str, ...]:
    return tuple(one_line(f"{entry} reaches nothing") for entry in dead)


def dead_entries(run: StoredRun) -> list[str]:
    """`XXXX reaches nothing on model (own r8)`: those of configurations and models of one's own. A
    registered scenario's are part of it."""
    found = [
        one_line(f"{entry} reaches nothing on {r.model} ({r.scenario} r{r.rank})")
        for r in run.records.values()
        if "adapter" in r.detail or run.places.get(r.model)
        for entry in r.detail.get("dead_entries", ())
    ]
    return list(dict.fromkeys(found))


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
