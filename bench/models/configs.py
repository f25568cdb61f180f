"""A model's config.json: read, and refused where no model can be what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.files import read_json


def read_config(path: Path) -> dict[str, Any]:
    """A config.json's values; BenchError when it is missing, not JSON or has no model_type."""
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise BenchError(f"{path}: not a model's config.json: it has no model_type")
    named = config.get("architectures")
    if named is not None and not (
        isinstance(named, list) and all(isinstance(n, str) for n in named)
    ):
        raise BenchError(f"{path}: architectures must be a list of names, not {named!r:.80}")
    if not isinstance(own := config.get("auto_map") or {}, dict):
        raise BenchError(f"{path}: auto_map must be a table of names, not {own!r:.80}")
    _check_numbers_of_modules(config, str(path))
    if none := [key for key in _SOME if config.get(key) == 0]:
        raise BenchError(f"{path}: {none[0]} is 0: such a model has nothing to adapt")
    for where, values in ((str(path), config), (f"{path}: text_config", config.get("text_config"))):
        if isinstance(values, dict) and (none := [key for key in _HEADS if values.get(key) == 0]):
            raise BenchError(f"{where}: {none[0]} is 0: it must be at least 1")
    return config


_SIZES = re.compile(
    r"(?:.*_)?(?:num|n)_(?:\w+_)?(?:layers?|heads?|blocks|experts|groups|stages)"
    r"|(?:\w+_)?(?:layers|heads|blocks)|depths?|\w*(?:hidden|intermediate|vocab|embedding)_size"
    r"|n_embd|n_inner|d_model|d_ff|d_kv|(?:\w+_)?(?:head|hidden|ffn)_dim"
)
"""Fields that count parts of a model, or say how wide one is."""
_SOME = (
    "num_hidden_layers",
    "num_layers",
    "n_layers",
    "n_layer",
    "hidden_size",
    "n_embd",
    "d_model",
)
"""Of those, the ones without which there is nothing to adapt."""
_HEADS = ("num_attention_heads", "num_key_value_heads", "num_heads", "n_heads", "n_head")
"""Those that widths are divided by."""
_MOST_LAYERS, _MOST_EXPERTS = 2_000, 20_000
MOST_LABELS = 1_000_000
"""transformers writes a name for each, before a model is built."""
_NUMBER_OF_MODULES = re.compile(r".*(layers?|blocks?|depths?|experts)|num_stages")
_WHICH_LAYERS = re.compile(r"(?!num_|n_).+_layers")
"""A list of this name says which layers, not how many."""


def _check_numbers_of_modules(config: Mapping[str, Any], where: str) -> None:
    """BenchError for less than none, and for more layers, blocks or experts than anybody has: each
    is built, and a config from somewhere must not keep this machine busy for hours."""
    for key, value in config.items():
        if isinstance(value, dict):
            _check_numbers_of_modules(value, f"{where}: {key}")
        elif type(value) is int and value < 0 and _SIZES.fullmatch(str(key)):
            raise BenchError(f"{where}: {key} is {value:,}: it cannot be less than 0")
        elif key == "num_labels" and type(value) is int and value > MOST_LABELS:
            raise BenchError(f"{where}: num_labels is {value:,}: {MOST_LABELS:,} is most")
        elif _NUMBER_OF_MODULES.fullmatch(str(key)):
            given = value if isinstance(value, list) else [value]
            numbers = [n for n in given if isinstance(n, int) and not isinstance(n, bool)]
            which = isinstance(value, list) and _WHICH_LAYERS.fullmatch(str(key))
            total = max(numbers, default=0) if which else sum(numbers)
            most = _MOST_EXPERTS if str(key).endswith("experts") else _MOST_LAYERS
            if total > most:
                raise BenchError(f"{where}: {key} is {total:,}: no model has more than {most:,}")
