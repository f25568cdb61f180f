r"""Prefix, prompt and p-tuning in closed form: methods that train virtual tokens.

With T virtual tokens (twice as many for an encoder and a decoder), width d, L layers, and h the
width of the method's own encoder:

| method | elements | paper |
|---|---|---|
| prompt-tuning | T d | https://arxiv.org/abs/2104.08691 |
| prefix-tuning | T · 2 L d | https://arxiv.org/abs/2101.00190 |
| the same with prefix_projection | T d + (d h + h) + (h · 2 L d + 2 L d) | |
| p-tuning, MLP | T d + (d h + h) + (h h + h) + (h d + d) | https://arxiv.org/abs/2103.10385 |
| p-tuning, LSTM of N layers | T d + LSTM + (2h · 2h + 2h) + (2h · d + d) | |

A layer of the two-way LSTM has 2 · (4h · (in + h) + 8h) elements, with in = d in the first layer
and 2h in the others. Prefix tuning replaces keys and values, so on a model with grouped-query
attention d is head_dim · num_key_value_heads. T is not doubled in prefix tuning.

The sizes come from the model's configuration, as in PEFT: on a model whose embeddings are narrower
than its layers (opt-350m) PEFT takes the layers' width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.errors import BenchError

METHODS: dict[str, dict[str, Any]] = {
    "prefix-tuning": {
        "num_virtual_tokens": 20, "prefix_projection": False, "encoder_hidden_size": None,
        "init_weights": None,
    },
    "prompt-tuning": {"num_virtual_tokens": 20, "prompt_tuning_init": "RANDOM"},
    "p-tuning": {
        "num_virtual_tokens": 20, "encoder_reparameterization_type": "MLP",
        "encoder_hidden_size": None, "encoder_num_layers": 2, "encoder_dropout": 0.0,
    },
}  # fmt: skip
"""Settings and defaults; PEFT has no default for the number of virtual tokens."""


def elements(
    name: str, settings: Mapping[str, Any], fields: Mapping[str, Any] | None, task_type: str | None
) -> int:
    """Trained elements of a method on a model with these configuration values.

    Raises BenchError without a task type, which PEFT needs here, or where the configuration does
    not tell a size.
    """
    if task_type is None:
        raise BenchError(f"{name}: PEFT needs a task type for it")
    if fields is None:
        raise BenchError(f"{name}: needs the model's configuration values")
    width = _first(fields, name, "hidden_size", "n_embd", "d_model")
    tokens = settings["num_virtual_tokens"]
    if name == "prefix-tuning":
        layers = _first(fields, name, "num_hidden_layers", "num_layers", "n_layer")
        width = _key_value_width(fields, name, width)
        if not settings["prefix_projection"]:
            return int(tokens * 2 * layers * width)
        hidden = settings["encoder_hidden_size"] or width
        return int(tokens * width + _dense(width, hidden) + _dense(hidden, 2 * layers * width))
    rows = tokens * (2 if task_type == "SEQ_2_SEQ_LM" else 1) * width
    if name == "prompt-tuning":
        return int(rows)
    hidden = settings["encoder_hidden_size"] or width
    if settings["encoder_reparameterization_type"] == "LSTM":
        first = _lstm(width, hidden)
        rest = (settings["encoder_num_layers"] - 1) * _lstm(2 * hidden, hidden)
        return int(rows + first + rest + _dense(2 * hidden, 2 * hidden) + _dense(2 * hidden, width))
    return int(rows + _dense(width, hidden) + _dense(hidden, hidden) + _dense(hidden, width))


def _dense(inside: int, out: int) -> int:
    return inside * out + out


def _lstm(inside: int, hidden: int) -> int:
    return 2 * (4 * hidden * (inside + hidden) + 8 * hidden)


def _key_value_width(fields: Mapping[str, Any], name: str, width: int) -> int:
    groups = fields.get("num_key_value_heads")
    if groups is None:
        return width
    heads = _first(fields, name, "num_attention_heads", "n_head", "num_heads")
    if fields.get("per_layer_config") or fields.get("global_head_dim"):
        raise BenchError(f"no closed form for {name}: the layers differ in their heads")
    return int((fields.get("head_dim") or width // heads) * groups)


def _first(fields: Mapping[str, Any], name: str, *keys: str) -> int:
    for key in keys:
        if isinstance(fields.get(key), int):
            return int(fields[key])
    raise BenchError(f"{name}: the configuration has none of {', '.join(keys)}")
