"""What values the settings of the other methods may hold: a declared type for every one.

A setting comes from a command line or a script. A value of another type is told here, by its name,
and never surfaces later as something else, such as a string that is counted by its characters.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from bench.adapters.checks import Index, Name, Rank, Share
from bench.adapters.config import ALL_LINEAR
from bench.errors import BenchError, check_most
from bench.files import fits, in_words


@dataclass(frozen=True)
class Type:
    """What a setting holds.

    `item` reads one part between commas where the setting is a list, None elsewhere; `pattern` says
    that a regular expression may stand in the list's place.
    """

    kind: Any
    item: Callable[[str], Any] | None = None
    pattern: bool = False

    def fits(self, value: Any) -> bool:
        """Whether the setting may hold it."""
        if self.pattern and isinstance(value, str):
            try:
                re.compile(value)
            except re.error:
                return False
        return fits(value, self.kind)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # a bare word


_MOST = sys.float_info.max
_NUMBER = Annotated[float, Meta(ge=-_MOST, le=_MOST, description="a number")]
_POSITIVE = Annotated[float, Meta(ge=0, le=_MOST, description="a number of at least 0")]
_NULL_OR_ZERO = Annotated[Literal["zero"] | None, Meta(description="null or zero")]
_NAME_LIST = Type(
    Annotated[tuple[Name, ...], Meta(description='a list of names: write A,B or ["A","B"]')], str
)
_PATTERN = Annotated[
    str | tuple[Name, ...],
    Meta(description='a list of names (write A,B or ["A","B"]) or a regular expression (re:REGEX)'),
]
_NAMES = Type(_PATTERN, str, pattern=True)
_INDICES = Type(
    Annotated[
        tuple[Index, ...], Meta(description="a list of whole numbers from 0: write 1,2 or [1,2]")
    ],
    _json,
)

_INDICES_OF_LAYERS = Type(tuple[int, ...], _json)

# By field; "method.field" where a method means something else by the name.
_TYPES: dict[str, Type] = {
    **dict.fromkeys(
        ("r", "init_r", "target_r", "total_step", "deltaT", "boft_n_butterfly_factor",
         "n_frequency", "num_cayley_neumann_terms", "num_virtual_tokens", "encoder_num_layers"),
        Type(Rank),
    ),
    **dict.fromkeys(
        ("encoder_hidden_size", "token_dim", "num_layers", "num_attention_heads",
         "num_transformer_submodules"),
        Type(Rank | None),
    ),
    # 0: the one size follows from the other
    **dict.fromkeys(("oft.r", "oft_block_size", "boft_block_size", "boft_block_num"), Type(Index)),
    **dict.fromkeys(("tinit", "tfinal"), Type(Index)),
    **dict.fromkeys(
        ("decompose_factor", "projection_prng_key", "random_loc_seed"), Type(int)
    ),
    **dict.fromkeys(("lora_alpha", "alpha", "d_initial", "scaling", "eps"), Type(_NUMBER)),
    **dict.fromkeys(
        ("beta1", "beta2"),
        Type(Annotated[float, Meta(gt=0, lt=1, description="a number between 0 and 1")]),
    ),
    "orth_reg_weight": Type(_POSITIVE),
    **dict.fromkeys(
        ("lora_dropout", "rank_dropout", "module_dropout", "vera_dropout", "boft_dropout",
         "encoder_dropout"),
        Type(Share),
    ),
    **dict.fromkeys(
        ("use_rslora", "use_effective_conv2d", "decompose_both", "rank_dropout_scale",
         "save_projection", "block_share", "coft", "use_cayley_neumann", "init_weights",
         "init_ia3_weights", "prefix_projection", "fan_in_fan_out"),
        Type(bool),
    ),
    "n_frequency_pattern": Type(
        Annotated[
            dict[Name, Rank], Meta(description="names with whole numbers of at least 1")
        ]
    ),
    "lokr.init_weights": Type(bool | Literal["lycoris"]),
    "prefix-tuning.init_weights": Type(_NULL_OR_ZERO),
    # PEFT's third, TEXT, reads a tokenizer and changes no count.
    "prompt_tuning_init": Type(Literal["RANDOM", "SAMPLE_VOCAB"]),
    "encoder_reparameterization_type": Type(Literal["MLP", "LSTM"]),
    "feedforward_modules": Type(_PATTERN | None, str, pattern=True),
    "token_indices": _INDICES,
    # Shared by the methods; `AdapterConfig` checks these, here is how they are written.
    "target_modules": _NAMES,
    "exclude_modules": _NAMES,
    "layers_pattern": _NAME_LIST,
    "modules_to_save": _NAME_LIST,
    "layers_to_transform": _INDICES_OF_LAYERS,
}  # fmt: skip


def type_of(method: str, field: str) -> Type | None:
    """The declared type of a method's field, None for one that is a plain word (`task_type`)."""
    return _TYPES.get(f"{method}.{field}") or _TYPES.get(field)


def parse_setting(method: str, field: str, text: str) -> Any:
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


def check_settings(method: str, settings: Mapping[str, Any]) -> None:
    """Raise BenchError, naming the field, for a value of a setting that PEFT cannot use."""
    for field, value in settings.items():
        found = type_of(method, field)
        assert found is not None, f"{method}.{field} has no declared type"
        if isinstance(value, int):
            check_most(f"{method}: {field}", value, _MOST_WHOLE)
        if not found.fits(value):
            said = json.dumps(list(value) if isinstance(value, tuple) else value, default=str)
            said = said if len(said) < _SHOWN else f"{said[:_SHOWN]}..."
            raise BenchError(f"{method}: {field} must be {in_words(found.kind)}, not {said}")


_SHOWN, _MOST_WHOLE = 80, 10**18
