"""One configuration of any method of PEFT, and what it trains and adds to a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench.adapters import BIASES, AdapterConfig
from bench.errors import BenchError, UnknownName
from bench.formulas import prompts
from bench.formulas.kinds import METHODS, Kind, Settings
from bench.formulas.lora import adapted_matrices, bias_term, lora_parameters, saved_term
from bench.formulas.terms import Parameters, Term
from bench.modules import CONV1D, EMBEDDING, LINEAR, Module, ModuleTable
from bench.targets import Ledger, match

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

    Raises UnknownName for another method or field: none is ignored.
    """
    name = name.replace("_", "-")  # PEFT writes PREFIX_TUNING
    if name not in METHODS:
        raise UnknownName("method", name, METHODS)
    kind = METHODS[name]
    common = (*kind.common, "bias") if kind.bias else kind.common
    allowed = (*kind.settings, *common)
    for key in fields:
        if key not in allowed:
            raise UnknownName(f"field of {name}:", key, allowed)
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    if given.get("bias", "none") not in (*BIASES[:2], kind.bias):
        raise UnknownName(f"bias of {name}:", str(given["bias"]), (*BIASES[:2], kind.bias))
    least = 0 if kind.name in ("oft", "boft") else 1  # 0: the size follows from the other setting
    for key in (kind.size, "r", "init_r"):
        value = given.get(key, 1)
        if isinstance(value, int) and value < least:
            raise BenchError(f"{name}: {key} must be at least {least}, not {value}")
    return Method(
        kind,
        {k: v for k, v in given.items() if k in kind.settings},
        {k: v for k, v in given.items() if k in common},
    )


def method_parameters(
    table: ModuleTable, method: Method, fields: Mapping[str, Any] | None = None
) -> Parameters:
    """Trainable and total parameters of a method on the model that `table` describes.

    `fields` are the model's configuration values, which prefix, prompt and p-tuning need (their
    sizes follow the configuration, not the modules). Terms: the method's own, `modules_to_save` and
    `bias` as for LoRA.

    Raises BenchError where PEFT refuses the method on this model, and where no closed form is
    known.
    """
    kind = method.kind
    settings: Settings = {**kind.settings, **method.settings}
    if kind.name == "full":
        total = table.total_parameters
        return Parameters((Term("full", total, 0, len(table.modules)),), total)
    if kind.name in prompts.METHODS:
        ledger = Ledger(table, _adapter(method, ()), (), (), _saved_heads(table, method))
        elements = prompts.elements(kind.name, settings, fields, method.task_type)
        return _with_common(ledger, method, Term(kind.name, elements, elements, 0))
    if kind.name in ("lora", "lora-fa"):
        adapter = replace(_adapter(method), r=settings["r"], use_rslora=settings["use_rslora"])
        return _lora(_match(table, adapter), frozen_a=kind.name == "lora-fa")
    if kind.name == "trainable-tokens":
        return _tokens(table, method, settings)
    targets = method.common.get("target_modules")
    settings, targets = _defaults(table, kind, settings, targets)
    ledger = _match(table, _adapter(method, targets))
    assert kind.elements is not None
    trained = added = 0
    for module in _supported(ledger, kind):
        one = kind.elements(ledger.table, module, settings)
        trained, added = trained + one[0], added + one[1]
    return _with_common(ledger, method, Term(kind.name, trained, added, len(ledger.adapted)))


def _adapter(method: Method, targets: Any = None) -> AdapterConfig:
    common = {k: v for k, v in method.common.items() if k != "bias"}
    if "modules_to_save" not in method.kind.common:
        common.pop("task_type", None)  # PEFT has nowhere to put the task's heads
    if targets is not None:
        common["target_modules"] = targets or ("-",)
    bias = method.common.get("bias", "none")
    return AdapterConfig(bias="lora_only" if bias == method.kind.bias else bias, **common)


def _match(table: ModuleTable, adapter: AdapterConfig) -> Ledger:
    return match(table, adapter, lambda name: "")  # roles cost time and change no count


def _with_common(ledger: Ledger, method: Method, own: Term) -> Parameters:
    terms = [own]
    if ledger.saved:
        terms.append(saved_term(ledger, 0))
    if ledger.adapter.bias != "none":
        terms.append(bias_term(ledger))
    return Parameters(tuple(terms), ledger.table.total_parameters)


def _saved_heads(table: ModuleTable, method: Method) -> tuple[str, ...]:
    return _match(table, _adapter(method, ())).saved


def _supported(ledger: Ledger, kind: Kind) -> list[Module]:
    if not ledger.adapted:
        raise BenchError(f"{kind.name}: nothing matches, and PEFT raises")
    for item in ledger.adapted:
        if item.module is None or item.module.kind not in kind.kinds:
            raise BenchError(f"{item.name}: no closed form for {kind.name} on this kind of layer")
        if item.name in ledger.saved:
            raise BenchError(f"{item.name} is adapted and named in modules_to_save")
        if any(item.name.startswith(f"{saved}.") for saved in ledger.saved):
            raise BenchError(f"no closed form for {kind.name} inside a saved module: {item.name}")
    return [item.module for item in ledger.adapted if item.module is not None]


def _defaults(
    table: ModuleTable, kind: Kind, settings: Settings, targets: Any
) -> tuple[Settings, Any]:
    """PEFT's default targets (and IA3's feed-forward ones) where none are given."""
    found = dict(settings)
    wanted = {"target_modules": targets is None,
              "feedforward_modules": "feedforward_modules" in found
              and found["feedforward_modules"] is None}  # fmt: skip
    for key, missing in wanted.items():
        if not missing:
            continue
        from peft.utils import constants

        part = "IA3_FEEDFORWARD" if key == "feedforward_modules" else kind.mapping
        mapping = getattr(constants, f"TRANSFORMERS_MODELS_TO_{part}_TARGET_MODULES_MAPPING", None)
        if mapping is None:
            mapping = getattr(constants, f"TRANSFORMERS_MODELS_TO_{part}_MODULES_MAPPING")
        if table.model_type not in mapping:
            raise BenchError(f"{kind.name}: give {key}: PEFT has no default for {table.model_type}")
        default = mapping[table.model_type]
        value = default if isinstance(default, str) else tuple(default)
        if key == "target_modules":
            targets = value
        else:
            found[key] = value
    return found, targets


def _lora(ledger: Ledger, *, frozen_a: bool) -> Parameters:
    if ledger.refusals:
        raise BenchError(ledger.refusals[0])
    counted = lora_parameters(ledger)
    if not frozen_a:
        return counted
    for item in ledger.adapted:
        if item.module is None or item.module.kind not in (LINEAR, CONV1D):
            raise BenchError(f"{item.name}: no closed form for lora-fa on this kind of layer")
    a = sum(adapted_matrices(ledger.adapter, item).a for item in ledger.adapted)
    own, *others = counted.terms
    return Parameters(
        (Term("lora-fa", own.trained - a, own.added, own.modules), *others), counted.base
    )


def _tokens(table: ModuleTable, method: Method, settings: Settings) -> Parameters:
    targets = method.common.get("target_modules") or (table.input_embedding or "embed_tokens",)
    ledger = _match(table, _adapter(method, targets))
    kind = method.kind
    # On a tied model the output embedding follows the input embedding's tokens.
    follow = table.tied if any(a.name == table.input_embedding for a in ledger.adapted) else ()
    own = tuple(a for a in ledger.adapted if a.name not in follow)
    ledger = replace(ledger, adapted=own)
    elements = sum(
        len(settings["token_indices"])
        * (module.out_features if module.kind == EMBEDDING else module.in_features)
        for module in _supported(ledger, kind)
    )
    return _with_common(ledger, method, Term(kind.name, elements, elements, len(own)))
