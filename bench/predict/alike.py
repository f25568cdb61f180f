"""Whether a model's layers are all alike, so that a few of them tell what each one does.

A configuration may say otherwise in many ways: a list with something for each layer, a pattern that
the class makes of one number, experts from some layer on. So the built model is asked, on meta:
every module of every layer, by its class, its parameters and its plain attributes.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.predict.shallow import names_layers
from bench.training.options import DDP

if TYPE_CHECKING:
    from bench.training.cases import Case

DEPTH_FIELDS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
"""What a configuration of one stack calls its depth."""
_NUMBERED = re.compile(r"^(.*?\.)?(\d+)(\..*|)$")
_PLAIN = (int, float, bool, str, type(None))
_OWN_NUMBER = "the layer's own number"


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
    depth = depth_of(case)
    config = {
        name: layers if name in DEPTH_FIELDS and value == depth
        else value[:layers] if isinstance(value, list) and len(value) == depth
        else value
        for name, value in case.config.items()
    }  # fmt: skip
    return replace(case, config=config)


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
