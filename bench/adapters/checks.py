"""What values a LoRA configuration may hold: types, ranges, names, and what goes together.

An adapter_config.json comes from anywhere; a value of another type must be told here, by its name,
and never surface later as something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bench.adapters.patterns import ALL_LINEAR, check_compiles
from bench.errors import BenchError, UnknownName
from bench.tasks import BY_TYPE

BIASES = ("none", "all", "lora_only")
NO_TARGETS = "dummy-target-modules"
"""PEFT's own value for a configuration that adapts no module, and trains whole ones only."""
INITIALISATIONS = ("gaussian", "eva", "olora", "pissa", "pissa_niter_4", "corda", "loftq",
                   "orthogonal", "lora_ga", "mica")  # fmt: skip
NESTED = ("kasa_config", "monteclora_config", "use_bdlora", "velora_config", "eva_config")
"""Fields that hold the fields of a class of PEFT's."""


LARGEST_RANK = 1 << 20
"""No layer of any model is as wide, and past its width a rank adds nothing."""


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _names(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(v, str) and v for v in value)


def _indices(value: object) -> bool:
    return isinstance(value, tuple) and all(_whole(v, 0) for v in value)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _patterns(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(k, str) and fits(v) for k, v in value.items()
    )


def _layers(value: object) -> bool:
    return _whole(value, 0) or _indices(value)


def _tokens(value: object) -> bool:
    return _indices(value) or _patterns(value, _indices)


def _pairs(value: object) -> bool:
    return isinstance(value, tuple) and all(
        _indices(pair) and len(pair) == 2 and pair[0] < pair[1] for pair in value
    )


_NAMES_OR_REGEX = "a list of names, or a regular expression"
# Field → whether a value fits, and what would; None fits where the default is None.
_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "target_modules": (lambda v: isinstance(v, str) or _names(v), _NAMES_OR_REGEX),
    "exclude_modules": (lambda v: isinstance(v, str) or _names(v), _NAMES_OR_REGEX),
    "layers_pattern": (lambda v: isinstance(v, str) or _names(v), "a name, or a list of them"),
    "target_parameters": (_names, "a list of names"),
    "modules_to_save": (_names, "a list of names"),
    "r": (lambda v: _whole(v, 1), "a whole number of at least 1"),
    "rank_pattern": (
        lambda v: _patterns(v, lambda r: _whole(r, 1)),
        "names with whole numbers of at least 1",
    ),
    "alpha_pattern": (lambda v: _patterns(v, _number), "names with numbers"),
    "lora_alpha": (_number, "a number"),
    "lora_dropout": (lambda v: _number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "layers_to_transform": (_layers, "a layer's index, or a list of them"),
    "trainable_token_indices": (_tokens, "token indices, or names with token indices"),
    "alora_invocation_tokens": (_indices, "a list of token indices"),
    "layer_replication": (_pairs, "a list of [start, end) pairs with start < end"),
    "init_lora_weights": (lambda v: isinstance(v, bool | str), "true, false or a name"),
    **{
        name: (lambda v: isinstance(v, bool), "true or false")
        for name in ("fan_in_fan_out", "use_rslora", "use_dora", "lora_bias", "ensure_weight_tying")
    },
    **{
        name: (lambda v: isinstance(v, Mapping), "an object with fields of its own")
        for name in NESTED
    },
}
_OPTIONAL = {"target_modules", "exclude_modules", "layers_pattern", "layers_to_transform",
             "trainable_token_indices", "alora_invocation_tokens", *NESTED}  # fmt: skip


def check_fields(given: Mapping[str, Any]) -> None:
    """Raise BenchError, naming the fields, for values that cannot be. `given` holds every field."""
    wrong = [
        f"{name} must be {wanted}, not {_plain(value)!r}"
        for name, (fits, wanted) in _TYPES.items()
        if not fits(value := given[name]) and not (value is None and name in _OPTIONAL)
    ]
    if wrong:
        raise BenchError("; ".join(wrong))
    if given["bias"] not in BIASES:
        raise UnknownName("bias", str(given["bias"]), BIASES)
    if given["task_type"] is not None and given["task_type"] not in BY_TYPE:
        raise UnknownName("task type", str(given["task_type"]), BY_TYPE, "(PEFT has no other)")
    init = given["init_lora_weights"]
    known = init in INITIALISATIONS or re.fullmatch(r"pissa_niter_\d+", str(init))
    if isinstance(init, str) and not known:
        raise UnknownName("init_lora_weights", init, INITIALISATIONS)
    if given["target_modules"] in ((), "") and not given["target_parameters"]:
        raise BenchError("target_modules is empty: name at least one module")
    for name, pattern, wrapped in _regular_expressions(given):
        try:
            check_compiles(wrapped)
        except BenchError as error:
            stars = name == "target_modules" and not pattern.strip("*")
            instead = f'; every linear layer is the string "{ALL_LINEAR}"' if stars else ""
            raise BenchError(
                f"{name} {_short(pattern)} is not a regular expression: {error}{instead}"
            ) from None
    _check_together(given)
    _check_counts(given["monteclora_config"], "monteclora_config", "num_samples")
    _check_counts(given["use_bdlora"], "use_bdlora", "nblocks")


def _regular_expressions(given: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """(field, pattern, what PEFT compiles of it) of everything that PEFT matches as a regular
    expression, lists of target modules left out: those are compared as names."""
    for name in ("target_modules", "exclude_modules"):
        value = given[name]
        if isinstance(value, str) and value != ALL_LINEAR:
            yield name, value, value
    # PEFT puts the others into larger expressions, where a global flag such as (?i) cannot stand.
    layers = given["layers_pattern"] or ()
    for name, patterns in (
        ("layers_pattern", (layers,) if isinstance(layers, str) else layers),
        ("modules_to_save", given["modules_to_save"]),
        ("rank_pattern", given["rank_pattern"]),
        ("alpha_pattern", given["alpha_pattern"]),
    ):
        yield from ((name, pattern, rf"(.*\.)?({pattern})$") for pattern in patterns)


def _check_together(given: Mapping[str, Any]) -> None:
    if isinstance(given["target_modules"], str) and (
        given["layers_to_transform"] is not None or given["layers_pattern"]
    ):
        raise BenchError(
            "layers_to_transform and layers_pattern need a list of target_modules, not a regex"
        )
    if given["layers_pattern"] and given["layers_to_transform"] is None:
        raise BenchError("layers_pattern needs layers_to_transform beside it")
    if given["r"] > LARGEST_RANK:
        raise BenchError(
            f"r is {given['r']:,}: no layer is that wide, and {LARGEST_RANK:,} is most"
        )
    if given["lora_bias"] and given["use_dora"]:
        raise BenchError("lora_bias does not go with use_dora")


def _check_counts(nested: Mapping[str, Any] | None, where: str, key: str) -> None:
    value = (nested or {}).get(key, 1)
    if not _whole(value, 1):
        raise BenchError(f"{where}: {key} must be a whole number of at least 1, not {value!r}")


def _short(pattern: str) -> str:
    return repr(pattern) if len(pattern) <= 200 else f"{pattern[:80]!r}..."


def _plain(value: object) -> object:
    """As the user wrote it: lists, not tuples."""
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
