"""What values a LoRA configuration may hold: types, ranges, names, and what goes together.

An adapter_config.json comes from anywhere; a value of another type must be told here, by its name,
and never surface later as something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from bench.adapters.patterns import ALL_LINEAR, check_compiles
from bench.errors import BenchError, UnknownName
from bench.files import fits, in_words
from bench.tasks import BY_TYPE

BIASES = ("none", "all", "lora_only")
NO_TARGETS = "dummy-target-modules"
"""PEFT's own value for a configuration that adapts no module, and trains whole ones only."""
INITIALISATIONS = ("gaussian", "eva", "olora", "pissa", "pissa_niter_4", "corda", "loftq",
                   "orthogonal", "lora_ga", "mica")  # fmt: skip
NESTED = ("kasa_config", "monteclora_config", "use_bdlora", "velora_config", "eva_config")
"""Fields that hold the fields of a class of PEFT's."""
_CONVERTED = ("kasa_config", "use_bdlora", "velora_config", "eva_config", "arrow_config",
              "corda_config", "lora_ga_config")  # fmt: skip
"""Fields of which PEFT makes such a class, out of an object or null and nothing else."""
_NEVER_NULL = ("r", "lora_alpha", "lora_dropout", "bias", "rank_pattern", "alpha_pattern")
"""What PEFT reads without asking whether it is there."""


MOST_ENTRIES = 10_000
"""In one field: more than the layers of any model that PEFT adapts, each named by itself."""
LARGEST_RANK = 1 << 20
"""No layer of any model is as wide, and past its width a rank adds nothing."""


Name = Annotated[str, Meta(min_length=1)]
Names = Annotated[tuple[Name, ...], Meta(description="a list of names")]
Index = Annotated[int, Meta(ge=0)]
Indices = Annotated[tuple[Index, ...], Meta(description="a list of token indices")]
Rank = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
_NamesOrRegex = Annotated[
    str | tuple[Name, ...], Meta(description="a list of names, or a regular expression")
]
_Nested = Annotated[dict[str, Any], Meta(description="an object with fields of its own")]
_TYPES: dict[str, Any] = {
    "target_modules": _NamesOrRegex | None,
    "exclude_modules": _NamesOrRegex | None,
    "layers_pattern": Annotated[
        str | tuple[Name, ...], Meta(description="a name, or a list of them")
    ] | None,
    "target_parameters": Names,
    "modules_to_save": Names,
    "r": Rank,
    "rank_pattern": Annotated[
        dict[str, Rank], Meta(description="names with whole numbers of at least 1")
    ],
    "alpha_pattern": Annotated[dict[str, float], Meta(description="names with numbers")],
    "lora_alpha": float,
    "lora_dropout": Share,
    "layers_to_transform": Annotated[
        int | tuple[int, ...], Meta(description="a layer's index, or a list of them")
    ] | None,
    "trainable_token_indices": Annotated[
        tuple[Index, ...] | dict[str, tuple[Index, ...]],
        Meta(description="token indices, or names with token indices"),
    ] | None,
    "alora_invocation_tokens": Indices | None,
    "layer_replication": Annotated[
        tuple[tuple[Index, Index], ...],
        Meta(description="a list of [start, end) pairs with start < end"),
    ],
    "init_lora_weights": Annotated[bool | str, Meta(description="true, false or a name")],
    **dict.fromkeys(
        ("fan_in_fan_out", "use_rslora", "use_dora", "lora_bias", "ensure_weight_tying"), bool
    ),
    **dict.fromkeys(NESTED, _Nested | None),
}  # fmt: skip
_ALL: Any = TypedDict("_ALL", _TYPES)  # type: ignore[misc]  # asked first: nearly all are right


def check_fields(given: Mapping[str, Any]) -> None:
    """Raise BenchError, naming the fields, for values that cannot be. `given` holds every field."""
    if not fits(given, _ALL) or not _in_order(given["layer_replication"]):
        wrong = [
            f"{name} must be {in_words(kind)}, {_fault(given[name], kind)}"
            for name, kind in _TYPES.items()
            if not fits(given[name], kind)
            or (name == "layer_replication" and not _in_order(given[name]))
        ]
        raise BenchError("; ".join(wrong))
    for name in _TYPES:
        value = given[name]
        if isinstance(value, tuple | Mapping) and len(value) > MOST_ENTRIES:
            raise BenchError(f"{name} has {len(value):,} entries: {MOST_ENTRIES:,} is most")
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


def _fault(value: Any, kind: Any) -> str:
    """What is wrong with a value that does not fit: an empty name among others is hard to see."""
    named = tuple(each for each in value if each != "") if isinstance(value, tuple) else value
    fault = "and one is empty:" if named != value and fits(named, kind) else "not"
    return f"{fault} {_plain(value)!r}"


def check_given(given: Mapping[str, Any]) -> None:
    """Raise BenchError, naming the fields, for values that PEFT cannot read, of those that a file
    gives: a null is a field's default for some of them alone, and false is no null.

    Source: peft 0.21 `tuners/lora/config.py` (`_get_lora_subconfig`).
    """
    wrong = [f"{name} must not be null" for name in _NEVER_NULL if given.get(name, "") is None]
    wrong += [
        f"{name} must be {in_words(_Nested)} or null, not {_plain(given[name])!r}"
        for name in _CONVERTED
        if not isinstance(given.get(name), Mapping | None)
    ]
    if wrong:
        raise BenchError("; ".join(wrong))


def _in_order(pairs: Iterable[tuple[int, int]]) -> bool:
    return all(start < end for start, end in pairs)


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
        given["layers_to_transform"] is not None or given["layers_pattern"] is not None
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
    if not fits(value, Rank):
        raise BenchError(f"{where}: {key} must be a whole number of at least 1, not {value!r}")


def _short(pattern: str) -> str:
    return repr(pattern) if len(pattern) <= 200 else f"{pattern[:80]!r}..."


def _plain(value: object) -> object:
    """As the user wrote it: lists, not tuples."""
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
