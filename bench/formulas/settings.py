"""What values the settings of the other methods may hold: a declared type for every one.

A setting comes from a command line or a script. A value of another type is told here, by its name,
and never surfaces later as something else, such as a string that is counted by its characters.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.adapters.config import ALL_LINEAR
from bench.errors import BenchError


@dataclass(frozen=True)
class Type:
    """What a setting holds: `wanted` in words, `fits` for a value.

    `item` reads one part between commas where the setting is a list, None elsewhere; `pattern` says
    that a regular expression may stand in the list's place.
    """

    wanted: str
    fits: Callable[[Any], bool]
    item: Callable[[str], Any] | None = None
    pattern: bool = False


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # a bare word


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(least: int) -> Type:
    return Type(f"a whole number of at least {least}", lambda v: bool(_is_whole(v) and v >= least))


def _number(least: float = -math.inf, most: float = math.inf) -> Type:
    wanted = "a number"
    if least > -math.inf:
        wanted += f" from {least} to {most}" if most < math.inf else f" of at least {least}"
    return Type(
        wanted,
        lambda v: (
            isinstance(v, int | float)
            and not isinstance(v, bool)
            and math.isfinite(v)
            and least <= v <= most
        ),
    )


def _one_of(*values: object) -> Type:
    said = [json.dumps(v) if isinstance(v, bool) or v is None else str(v) for v in values]
    return Type(
        " or ".join(said), lambda v: any(type(v) is type(one) and v == one for one in values)
    )


def _or_none(one: Type) -> Type:
    return Type(one.wanted, lambda v: v is None or one.fits(v), one.item, one.pattern)


def _names(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(v, str) and v for v in value)


def _regular_expression(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except re.error:
        return False


def _indices(value: object) -> bool:
    return isinstance(value, tuple) and all(_is_whole(v) and v >= 0 for v in value)


_TRUTH = _one_of(True, False)
_SHARE = _number(0, 1)
_ANY_WHOLE = Type("a whole number", _is_whole)
_NAME_LIST = Type('a list of names: write A,B or ["A","B"]', _names, str)
_NAMES = Type(
    'a list of names (write A,B or ["A","B"]) or a regular expression (re:REGEX)',
    lambda v: _regular_expression(v) or _names(v),
    str,
    pattern=True,
)
_INDICES = Type("a list of whole numbers from 0: write 1,2 or [1,2]", _indices, _json)

# By field; "method.field" where a method means something else by the name.
_TYPES: dict[str, Type] = {
    **dict.fromkeys(
        ("r", "init_r", "target_r", "total_step", "deltaT", "boft_n_butterfly_factor",
         "n_frequency", "num_cayley_neumann_terms", "num_virtual_tokens", "encoder_num_layers"),
        _whole(1),
    ),
    **dict.fromkeys(
        ("encoder_hidden_size", "token_dim", "num_layers", "num_attention_heads",
         "num_transformer_submodules"),
        _or_none(_whole(1)),
    ),
    # 0: the one size follows from the other
    **dict.fromkeys(("oft.r", "oft_block_size", "boft_block_size", "boft_block_num"), _whole(0)),
    **dict.fromkeys(("tinit", "tfinal"), _whole(0)),
    **dict.fromkeys(
        ("decompose_factor", "projection_prng_key", "random_loc_seed"), _ANY_WHOLE
    ),
    **dict.fromkeys(("lora_alpha", "alpha", "d_initial", "scaling", "eps"), _number()),
    **dict.fromkeys(
        ("beta1", "beta2"),
        Type("a number between 0 and 1", lambda v: _SHARE.fits(v) and 0 < v < 1),
    ),
    "orth_reg_weight": _number(0),
    **dict.fromkeys(
        ("lora_dropout", "rank_dropout", "module_dropout", "vera_dropout", "boft_dropout",
         "encoder_dropout"),
        _SHARE,
    ),
    **dict.fromkeys(
        ("use_rslora", "use_effective_conv2d", "decompose_both", "rank_dropout_scale",
         "save_projection", "block_share", "coft", "use_cayley_neumann", "init_weights",
         "init_ia3_weights", "prefix_projection"),
        _TRUTH,
    ),
    "lokr.init_weights": _one_of(True, False, "lycoris"),
    "prefix-tuning.init_weights": _one_of(None, "zero"),
    # PEFT's third, TEXT, reads a tokenizer and changes no count.
    "prompt_tuning_init": _one_of("RANDOM", "SAMPLE_VOCAB"),
    "encoder_reparameterization_type": _one_of("MLP", "LSTM"),
    "feedforward_modules": _or_none(_NAMES),
    "token_indices": _INDICES,
    # Shared by the methods; `AdapterConfig` checks these, here is how they are written.
    "target_modules": _NAMES,
    "exclude_modules": _NAMES,
    "layers_pattern": _NAME_LIST,
    "modules_to_save": _NAME_LIST,
    "layers_to_transform": _INDICES,
}  # fmt: skip


def type_of(method: str, field: str) -> Type | None:
    """The declared type of a method's field, None for one that is a plain word (`task_type`)."""
    return _TYPES.get(f"{method}.{field}") or _TYPES.get(field)


def parse(method: str, field: str, text: str) -> Any:
    """The value of `field` as written on a command line.

    JSON or a bare word. A field that holds a list takes also its items between commas, or a single
    one; `re:REGEX` is a regular expression where PEFT takes one.
    """
    value = _json(text)
    found = type_of(method, field)
    if found is None or found.item is None or value is None or isinstance(value, list | dict):
        return value
    word = value if isinstance(value, str) else text
    if found.pattern and word.startswith("re:"):
        return word.removeprefix("re:")
    if field == "target_modules" and word.lower() == ALL_LINEAR:
        return word
    return [found.item(part.strip()) for part in word.split(",") if part.strip()]


def check(method: str, settings: Mapping[str, Any]) -> None:
    """Raise BenchError, naming the field, for a value of a setting that PEFT cannot use."""
    for field, value in settings.items():
        found = type_of(method, field)
        assert found is not None, f"{method}.{field} has no declared type"
        if not found.fits(value):
            said = list(value) if isinstance(value, tuple) else value
            raise BenchError(
                f"{method}: {field} must be {found.wanted}, not {json.dumps(said, default=str)}"
            )
