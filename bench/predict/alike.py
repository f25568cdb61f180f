"""Whether a model's layers are all alike, so that a few of them tell what each one does: what a
step does to one of the middle it does to each.

A configuration may say otherwise in many ways: a list with something for each layer, a pattern that
the class makes of one number, experts from some layer on. So the built model is asked, on meta:
every module of every layer, by its class, its parameters and its plain attributes.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.training.options import DDP

if TYPE_CHECKING:
    from bench.models.architectures import Model
    from bench.models.modules import ModuleTable
    from bench.training.cases import Case

DEPTH_FIELDS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
"""What a configuration of one stack calls its depth."""
_NUMBERED = re.compile(r"^(.*?\.)?(\d+)(\..*|)$")
_PLAIN = (int, float, bool, str, type(None))
_OWN_NUMBER = "the layer's own number"

LAYERS = 4
"""Of a `shallower` model: the first, two of the middle that have to agree, and the last."""
_LEAST = 8

LayerKind = frozenset[tuple[Any, ...]]


def depth_of(case: Case) -> int | None:
    """How many layers the model has, where they are all alike as far as its config says; else
    None: another name for the depth, several stacks, a list with something else for each layer."""
    config = case.config
    named = [config[f] for f in DEPTH_FIELDS if isinstance(config.get(f), int)]
    stacks = [v for v in config.values() if isinstance(v, dict) and set(v) & {*DEPTH_FIELDS}]
    if len(named) != 1 or stacks or case.code:
        return None
    lists = [v for v in config.values() if isinstance(v, list) and len(v) == named[0]]
    alike = all(item == values[0] for values in lists for item in values)
    return named[0] if alike else None


def shallow(case: Case, layers: int) -> Case:
    """The case with so many of its layers, whose widths stay as they are."""
    return replace(case, config=_with_layers(case.config, depth_of(case), layers))


def _with_layers(config: Mapping[str, Any], depth: int | None, layers: int) -> dict[str, Any]:
    return {
        name: layers if name in DEPTH_FIELDS and value == depth
        else value[:layers] if isinstance(value, list) and len(value) == depth
        else value
        for name, value in config.items()
    }  # fmt: skip


def layers_alike(case: Case, few: int) -> int | None:
    """The depth, where the built model's layers are alike, those of the same model with `few`
    layers too, and the adapter names none of them; else None. DDP's buckets end where they are
    full, and so tell layers apart."""
    depth = depth_of(case)
    if depth is None or depth <= few or _told_apart(case) or case.step.parallel == DDP:
        return None
    # of 4-bit weights, which these are not
    step = replace(case.step, compute_dtype=None, parallel=None, gpus=1)
    whole = replace(
        case, adapter={}, scenario="", precision=_unquantized(case), weights=None, step=step
    )
    one, other = _described(_Built(whole)), _described(_Built(shallow(whole, few)))
    if one is None or other is None or len(one) != len(other):
        return None
    same = all(a == b or (a[:-1], a[-1], b[-1]) == (b[:-1], depth, few)
               for a, b in zip(one, other, strict=True))  # fmt: skip
    return depth if same else None


def _told_apart(case: Case) -> bool:
    try:
        return names_layers(AdapterConfig.from_dict(case.adapter, case.id))
    except BenchError:
        return True  # a field that is not understood may do anything


def _unquantized(case: Case) -> str:
    return {"float16": "fp16", "bfloat16": "bf16"}.get(case.compute, "fp32")


class _Built:
    """A case as a key: what decides the modules of its base model."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._key = repr((case.config, case.auto_class, case.compute, case.step.attention))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Built) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@functools.lru_cache(maxsize=32)
def _described(built: _Built) -> tuple[Any, ...] | None:
    """What one layer of each stack holds, and what lies around them; None where layers differ."""
    from bench.training import loading

    loading.quiet_libraries()
    try:
        model = loading.meta_model(built.case, loading.make_config(built.case))
    except (BenchError, ValueError, TypeError, AttributeError, KeyError):
        return None  # the trace says what is wrong
    layers: dict[tuple[str, str, str], dict[int, Any]] = defaultdict(dict)
    around = []
    numbers: dict[str, set[int]] = defaultdict(set)
    for name, module in model.named_modules():
        numbered = _NUMBERED.match(name)
        for attribute, value in _attributes(module):
            if numbered:
                stack, number = numbered[1] or "", int(numbered[2])
                numbers[stack].add(number)
                layers[stack, numbered[3], attribute][number] = value
            else:
                around.append((name, attribute, value))
    held = []
    for (stack, rest, attribute), values in sorted(layers.items()):
        if len(values) != len(numbers[stack]):
            return None
        kinds = set(values.values())
        if len(kinds) > 1:
            offsets = {v - n if type(v) is int else None for n, v in values.items()}
            if len(offsets) > 1 or None in offsets:
                return None
            kinds = {(_OWN_NUMBER, *offsets)}
        held.append((stack, rest, attribute, kinds.pop()))
    return (*held, *around)


def _attributes(module: Any) -> list[tuple[str, Any]]:
    """A module's class, its own tensors' shapes, and whatever else it holds that is plain."""
    found: list[tuple[str, Any]] = [("class", type(module))]
    found += [
        (name, (tuple(t.shape), t.dtype))
        for name, t in (
            *module.named_parameters(recurse=False), *module.named_buffers(recurse=False)
        )
    ]  # fmt: skip
    for name, value in vars(module).items():
        if not name.startswith("_") and (
            isinstance(value, _PLAIN)
            or (isinstance(value, tuple) and all(isinstance(v, _PLAIN) for v in value))
        ):
            found.append((name, value))
    return found


def shallower(model: Model, adapter: AdapterConfig) -> Model | None:
    """The model with LAYERS layers, where it has one stack of many that are all alike, and the
    configuration names no layer; else None."""
    depths = [d for key in DEPTH_FIELDS if isinstance(d := model.config.get(key), int)]
    table = model.table
    if len(depths) != 1 or len(table.stacks) != 1 or names_layers(adapter):
        return None
    depth = depths[0]
    kinds, outside = _layers(table)
    if depth < _LEAST or len(kinds) != depth or len(set(kinds.values())) != 1:
        return None
    few = replace(model, config=_with_layers(model.config, depth, LAYERS))
    try:
        fewer, around = _layers(few.table)
    except BenchError:
        return None
    alike = len(fewer) == LAYERS and {*fewer.values()} == {*kinds.values()} and around == outside
    return few if alike else None


def deeper_names(names: tuple[str, ...], model: Model) -> list[str] | None:
    """Module names of the shallow model as those of the deep one: the first and last layer by
    themselves, the middle ones as the two that were there. None where these two differ."""
    by_layer: dict[int, list[tuple[str, str]]] = defaultdict(list)
    found = []
    for name in names:
        numbered = _NUMBERED.match(name)
        if numbered and numbered[3]:
            by_layer[int(numbered[2])].append((numbered[1], numbered[3]))
        else:
            found.append(name)
    if sorted(by_layer[1]) != sorted(by_layer[2]):
        return None
    depth = len(model.table.layers)
    for layer in range(depth):
        like = 0 if layer == 0 else LAYERS - 1 if layer == depth - 1 else 1
        found += [f"{before}{layer}{after}" for before, after in by_layer[like]]
    return found


def _layers(table: ModuleTable) -> tuple[dict[str, LayerKind], LayerKind]:
    """(number of a layer -> the modules in it by the rest of their names and their shapes, the
    modules outside)."""
    kinds: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    outside = set()
    for module in table.modules:
        what = (module.kind, module.in_features, module.out_features, module.class_name)
        numbered = _NUMBERED.match(module.name)
        if numbered and numbered[3]:
            kinds[numbered[2]].add((numbered[1], numbered[3], *what))
        elif not module.name.rpartition(".")[2].isdigit():
            outside.add((module.name, *what))
    return {layer: frozenset(held) for layer, held in kinds.items()}, frozenset(outside)


def names_layers(adapter: AdapterConfig) -> bool:
    """Whether the configuration tells layers apart, by their numbers or by a pattern."""
    if adapter.layers_to_transform is not None or adapter.layer_replication:
        return True
    named = (adapter.target_modules, adapter.exclude_modules, adapter.target_parameters,
             adapter.modules_to_save, tuple(adapter.rank_pattern))  # fmt: skip
    for value in named:
        if isinstance(value, str) and re.search(r"[0-9]|\\d", value.replace(r"\.\d+\.", "")):
            return True  # a regular expression: but for `\.\d+\.` any digit may be a layer's
        if any(part.isdigit() for entry in value or () for part in entry.split(".")):
            return True
    return False
