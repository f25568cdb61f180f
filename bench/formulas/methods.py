"""One configuration of any method of PEFT, and what it trains and adds to a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from dataclasses import fields as fields_of
from functools import partial
from typing import Any

from bench.adapters.config import (
    ALL_LINEAR,
    BIASES,
    INERT,
    NO_TARGETS,
    NOT_UNDERSTOOD,
    AdapterConfig,
)
from bench.errors import BenchError, UnknownName, lookup
from bench.formulas import prompts, settings
from bench.formulas.kinds import (
    METHODS,
    PARTS,
    UNCOUNTED,
    Kind,
    Settings,
    check_frequency_key,
    in_pattern,
)
from bench.formulas.lora import (
    adapted_matrices,
    bias_term,
    free_layers,
    lora_parameters,
    saved_term,
)
from bench.formulas.terms import Parameters, Term
from bench.models.modules import CONV1D, EMBEDDING, LINEAR, Module, ModuleTable, layer_of
from bench.targets import Ledger, match
from bench.targets.entries import Filter, matching_pattern
from bench.targets.ledger import DeadField, Entry, RoleOf, adapter_of
from bench.targets.matching import class_refusals
from bench.targets.refusals import unsupported
from bench.tasks import heads_of

_WITHOUT_DEFAULT = ("total_step", "num_virtual_tokens")
"""Settings that PEFT wants to be given; their values here are bench's."""


@dataclass(frozen=True)
class Method:
    """One configuration of one method. `common` holds the fields that methods share."""

    kind: Kind
    settings: Settings = field(default_factory=dict)
    common: Settings = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.kind.name

    @property
    def task_type(self) -> str | None:
        return self.common.get("task_type")

    def resized(self, size: int) -> Method:
        """The same method with another value of its `size` setting."""
        value = tuple(range(size)) if self.kind.size == "token_indices" else size
        return replace(self, settings={**self.settings, self.kind.size: value})

    def to_dict(self) -> dict[str, Any]:
        """Keyword arguments for PEFT's configuration class: lists for sequences."""
        needed = {k: v for k, v in self.kind.settings.items() if k in _WITHOUT_DEFAULT}
        given = {**needed, **self.settings, **self.common}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}


def method(name: str, **fields: Any) -> Method:
    """The method called `name` with PEFT's own field names; what is left out takes PEFT's default.

    Raises UnknownName for another method or field, and BenchError for a value that the field cannot
    hold: none is ignored.
    """
    name = name.replace("_", "-")  # PEFT writes PREFIX_TUNING
    if name in UNCOUNTED:
        raise BenchError(f"{name}: PEFT has this method, and no closed form is known here")
    kind = lookup("method", name, METHODS)
    common = (*kind.common, "bias") if kind.bias else kind.common
    allowed = (*kind.settings, *common)
    for key in fields:
        if key not in allowed:
            if name == "lora" and key in AdapterConfig.__dataclass_fields__:
                raise BenchError(
                    f"lora: {key} goes into an adapter_config.json: --adapter, without --method"
                )
            _check_uncounted(kind, key)
            raise UnknownName(f"field of {name}:", key, allowed)
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    if given.get("bias", "none") not in (*BIASES[:2], kind.bias):
        raise UnknownName(f"bias of {name}:", str(given["bias"]), (*BIASES[:2], kind.bias))
    asked = Method(
        kind,
        {k: v for k, v in given.items() if k in kind.settings},
        {k: v for k, v in given.items() if k in common and v is not None},
    )
    settings.check_settings(name, asked.settings)
    shared = {k: v for k, v in asked.common.items() if k != "bias"}
    if _layers_of_a_string(kind, shared.get("target_modules"), shared):
        AdapterConfig(shared.pop("target_modules"))
    AdapterConfig(**shared)
    _check_together(asked)
    return asked


def uncounted_fields(kind: Kind) -> frozenset[str]:
    """Fields of PEFT's class that are none here: what they change has no closed form, or nothing
    depends on them."""
    if kind.name in ("lora", "lora-fa", "adalora"):  # its class is a LoraConfig
        loras = {f.name for f in fields_of(AdapterConfig)} | set(NOT_UNDERSTOOD)
        return frozenset({*INERT, *loras} - {*kind.settings, *kind.common, "bias"})
    return INERT.union(kind.uncounted)


def _check_uncounted(kind: Kind, key: str) -> None:
    if key in uncounted_fields(kind):
        why = "no closed form is known here of what it changes"
        if key in INERT:
            why = "no count depends on it"
        raise BenchError(f"{kind.name}: PEFT has {key}, and {why}: leave it out")


_LAYERS = ("layers_to_transform", "layers_pattern")


def _layers_of_a_string(kind: Kind, targets: Any, common: Settings) -> bool:
    """Whether layers are named beside one string of target_modules, which LoRA refuses, and which
    PEFT takes for this method."""
    named = any(common.get(name) is not None for name in _LAYERS)
    return isinstance(targets, str) and named and not kind.listed


def _check_together(asked: Method) -> None:
    """What PEFT refuses of several fields at once, before it has seen a model."""
    values = {**asked.kind.settings, **asked.settings}
    if asked.name == "adalora" and values["tinit"] >= values["total_step"] - values["tfinal"]:
        raise BenchError("adalora: tinit and tfinal leave no step of total_step to allocate ranks")
    inner, outer = values.get("feedforward_modules"), asked.common.get("target_modules")
    # PEFT compares the two as they are written, and only where both are lists.
    if isinstance(inner, tuple) and isinstance(outer, tuple) and not {*inner} <= {*outer}:
        raise BenchError(
            f"ia3: feedforward_modules must be among target_modules, and "
            f"{', '.join(sorted({*inner} - {*outer}))} is not"
        )


def method_ledger(table: ModuleTable, method: Method, role: RoleOf = lambda name: "") -> Ledger:
    """What the method's entries reach on the model; for a method without any, what it saves whole.

    Without `role`, which takes time and changes no count, no dead entry gets a suggestion.
    """
    kind = method.kind
    if kind.name in ("lora", "lora-fa"):
        values = {**kind.settings, **method.settings}
        adapter = replace(_adapter(method), r=values["r"], use_rslora=values["use_rslora"])
        return match(table, adapter, role)
    # PEFT translates the expert names of transformers 4 for LoRA alone.
    table = replace(table, moe_conversion="") if table.moe_conversion else table
    if kind.name == "full" or kind.name in prompts.PROMPT_METHODS:
        return match(table, _adapter(method, NO_TARGETS), role, parts=())
    targets = method.common.get("target_modules")
    if targets is None and kind.name == "trainable-tokens":
        targets = (table.input_embedding or "embed_tokens",)
    elif targets is None:
        targets = _default(table, kind, "target_modules")
    ledger = _matched(table, method, targets, role)
    # LoRA alone reaches parameters: no advice for the others.
    entries = tuple(
        replace(e, suggestion="") if e.suggestion.startswith("target_parameters") else e
        for e in ledger.entries
    )
    refusals = ledger.refusals
    if "modules_to_save" not in kind.common:  # its task type was left out: see `_adapter`
        refusals = (*class_refusals(table, method.task_type), *refusals)
        if heads_of(method.task_type) and method.task_type != "SEQ_CLS":
            refusals += (f"PEFT looks for modules to save with {method.task_type}, and there are "
                         "none here: it raises",)  # fmt: skip
    return replace(ledger, entries=entries, refusals=tuple(dict.fromkeys(refusals)))


def _matched(table: ModuleTable, method: Method, targets: Any, role: RoleOf) -> Ledger:
    """What the targets reach. PEFT has made a list of "all-linear" by the time that it looks for
    layers, and compares no layer with what an expression fits."""
    dead: list[DeadField] = []
    layered = {name: method.common[name] for name in _LAYERS if method.common.get(name)}
    matched = partial(match, role=role, parts=PARTS[method.name][1:])
    bare = replace(method, common={k: v for k, v in method.common.items() if k not in _LAYERS})
    if not _layers_of_a_string(method.kind, targets, method.common):
        ledger = matched(table, _adapter(method, targets))
    elif targets.lower() == ALL_LINEAR:
        names = tuple(matching_pattern(table, _adapter(bare, ALL_LINEAR), ALL_LINEAR))
        ledger = _as_one(matched(table, _adapter(method, names)), ALL_LINEAR)
        inside = Filter(ledger.adapter)
        if any(inside.layer_index(a.name) not in (inside.indices or ()) for a in ledger.adapted):
            dead += [DeadField(name, "", _IN_FULL) for name in layered]
    else:
        ledger = matched(table, _adapter(bare, targets))
        dead += [DeadField(name, "", _BESIDE) for name in layered]
    keys = {**method.kind.settings, **method.settings}.get("n_frequency_pattern", ())
    for key in keys:
        check_frequency_key(key, table)
        if not any(in_pattern(key, item.name) for item in ledger.adapted):
            dead.append(DeadField("n_frequency_pattern", key, "no adapted module is called so"))
    return replace(ledger, dead_fields=(*ledger.dead_fields, *dead))


_IN_FULL = (
    "PEFT makes the full names of all-linear on a model of fewer than 20 linear layers, and looks "
    "at no layer of a module that is named in full"
)
_BESIDE = "PEFT looks at no layers where target_modules is a regular expression"


def _as_one(ledger: Ledger, written: str) -> Ledger:
    """The ledger with one entry, as the user wrote it."""
    reached = tuple(item.name for item in ledger.adapted)
    layers = len({layer_of(name) for name in reached} - {""})
    entry = Entry(written, reached, dict(Counter(item.role for item in ledger.adapted)), layers)
    return replace(ledger, entries=(entry,))


def method_parameters(table: ModuleTable, method: Method, config: Any = None) -> Parameters:
    """Trainable and total parameters of a method on the model that `table` describes.

    `config` is the model's transformers configuration, which prefix, prompt and p-tuning need
    (their sizes follow it, not the modules). Terms: the method's own, `modules_to_save` and `bias`
    as for LoRA.

    Raises BenchError where PEFT refuses the method on this model, and where no closed form is
    known.
    """
    kind = method.kind
    values: Settings = {**kind.settings, **method.settings}
    if kind.name == "full":
        total = table.total_parameters
        return Parameters((Term("full", total, 0, len(table.modules)),), total)
    ledger = method_ledger(table, method)
    if ledger.refusals:
        named = "" if kind.name in ("lora", "lora-fa") else f"{kind.name}: "
        raise BenchError(f"{named}{ledger.refusals[0]}")
    if kind.name in prompts.PROMPT_METHODS:
        return _virtual(ledger, method, values, config)
    if kind.name in ("lora", "lora-fa"):
        return _lora(ledger, frozen_a=kind.name == "lora-fa")
    if kind.name == "trainable-tokens":
        return _tokens(ledger, method, values)
    if values.get("feedforward_modules", ()) is None:
        values = {**values, "feedforward_modules": _default(table, kind, "feedforward_modules")}
    assert kind.elements is not None
    trained = added = 0
    ranks = {item.name: item.r for item in ledger.adapted}
    patterned = "rank_pattern" in method.common
    for module in _supported(ledger, kind):
        own = {**values, "r": ranks[module.name]} if patterned else values
        one = kind.elements(ledger.table, module, own)
        trained, added = trained + one[0], added + one[1]
    return _with_common(ledger, Term(kind.name, trained, added, len(ledger.adapted)))


def _adapter(method: Method, targets: Any = None) -> AdapterConfig:
    common = {k: v for k, v in method.common.items() if k != "bias"}
    if "modules_to_save" not in method.kind.common:
        common.pop("task_type", None)  # PEFT has nowhere to put the task's heads
    if targets is not None:
        common["target_modules"] = targets
    if common.keys() & {"rank_pattern", "alpha_pattern"}:
        values = {**method.kind.settings, **method.settings}
        common |= {"r": values["r"], "lora_alpha": values["alpha"]}
    bias = method.common.get("bias", "none")
    return AdapterConfig(bias="lora_only" if bias == method.kind.bias else bias, **common)


def _virtual(ledger: Ledger, method: Method, values: Settings, config: Any) -> Parameters:
    name, table, adapter = method.name, ledger.table, ledger.adapter
    elements = prompts.elements(name, values, config, method.task_type)
    words = prompts.word_embedding(name, table, config)
    prompts.check_sampled(name, values, words)
    found = ("word_embeddings",) if words is not None else ()
    for part in (*prompts.PARTS, *found) if adapter.later_heads else ():
        if part.endswith(adapter.saved_modules):
            raise BenchError(f"no closed form for {name} with its own {part} in modules_to_save")
    if words is not None:
        width = words.out_features
        elements = prompts.elements(name, values, config, method.task_type, width)
    left = prompts.unfrozen(table)
    return _with_common(ledger, Term(name, elements, elements, 0), *filter(None, [left]))


def _with_common(ledger: Ledger, *own: Term) -> Parameters:
    terms = [*own]
    if ledger.saved:
        terms.append(saved_term(ledger))
    if ledger.adapter.bias != "none":
        terms.append(bias_term(ledger))
    return Parameters(tuple(terms), ledger.table.total_parameters)


def _supported(ledger: Ledger, kind: Kind) -> list[Module]:
    for item in ledger.adapted:
        if item.module is None or item.module.kind not in kind.kinds:
            raise BenchError(f"{item.name}: no closed form for {kind.name} on this kind of layer")
        for part in PARTS.get(kind.name, ()):
            if f"{item.name}.{part}".endswith(ledger.adapter.saved_modules):
                raise BenchError(
                    f"modules_to_save fits {item.name}.{part}, a part of an adapter: PEFT refuses "
                    "it, or trains what no closed form is known for"
                )
        if any(item.name.startswith(f"{saved}.") for saved in ledger.saved):
            raise BenchError(f"no closed form for {kind.name} inside a saved module: {item.name}")
    modules = [item.module for item in ledger.adapted if item.module is not None]
    if kind.lora_like and (refused := unsupported(ledger.table, modules)):
        raise BenchError(f"{kind.name}: {refused[0]}")
    return modules


def _default(table: ModuleTable, kind: Kind, key: str) -> tuple[str, ...] | str:
    """PEFT's default targets (or IA3's feed-forward ones) for this type of model."""
    from peft.utils import constants

    part = "IA3_FEEDFORWARD" if key == "feedforward_modules" else kind.mapping
    mapping = getattr(constants, f"TRANSFORMERS_MODELS_TO_{part}_TARGET_MODULES_MAPPING", None)
    if mapping is None:
        mapping = getattr(constants, f"TRANSFORMERS_MODELS_TO_{part}_MODULES_MAPPING")
    if table.model_type not in mapping:
        named = table.model_type or table.class_name
        raise BenchError(f"{kind.name}: give {key}: PEFT has no default for {named}")
    found = mapping[table.model_type]
    return found if isinstance(found, str) else tuple(found)


def _lora(ledger: Ledger, *, frozen_a: bool) -> Parameters:
    counted = lora_parameters(ledger)
    if not frozen_a:
        return counted
    for item in ledger.adapted:
        if item.module is None or item.module.kind not in (LINEAR, CONV1D):
            raise BenchError(f"{item.name}: no closed form for lora-fa on this kind of layer")
    # Every A is frozen: where it is, and in the copies of saved modules.
    a = {item.name: adapted_matrices(ledger.adapter, item).a for item in ledger.adapted}
    copies = ledger.copies.trained
    frozen = {
        "lora": sum(a[item.name] for item in free_layers(ledger)),
        "modules_to_save": sum(n * copies.get(adapter_of(name), 0) for name, n in a.items()),
    }
    terms = (replace(t, trained=t.trained - frozen.get(t.name, 0)) for t in counted.terms)
    own, *others = terms
    return Parameters((replace(own, name="lora-fa"), *others), counted.base)


def _tokens(ledger: Ledger, method: Method, values: Settings) -> Parameters:
    kind, table, indices = method.kind, ledger.table, values["token_indices"]
    # On a tied model the output embedding follows the input embedding's tokens.
    follow = table.tied if any(a.name == table.input_embedding for a in ledger.adapted) else ()
    own = tuple(a for a in ledger.adapted if a.name not in {*follow} - {table.input_embedding})
    ledger = replace(ledger, adapted=own)
    elements = 0
    for module in _supported(ledger, kind):
        shape = module.in_features, module.out_features
        rows, width = shape if module.kind == EMBEDDING else shape[::-1]
        if max(indices, default=0) >= rows:
            raise BenchError(
                f"trainable-tokens: {module.name} has {rows} rows, and {max(indices)} is not one "
                "of them"
            )
        elements += len(indices) * width
    return _with_common(ledger, Term(kind.name, elements, elements, len(own)))
