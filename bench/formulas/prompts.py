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

_SIZES: dict[str, Any] = {
    "num_virtual_tokens": 20, "token_dim": None, "num_layers": None, "num_attention_heads": None,
    "num_transformer_submodules": None,
}  # fmt: skip
PROMPT_METHODS: dict[str, dict[str, Any]] = {
    "prefix-tuning": {
        **_SIZES, "prefix_projection": False, "encoder_hidden_size": None, "init_weights": None,
    },
    "prompt-tuning": {**_SIZES, "prompt_tuning_init": "RANDOM"},
    "p-tuning": {
        **_SIZES, "encoder_reparameterization_type": "MLP", "encoder_hidden_size": None,
        "encoder_num_layers": 2, "encoder_dropout": 0.0,
    },
}  # fmt: skip
"""Settings and defaults; PEFT has no default for the number of virtual tokens. A size that is None
is the model's."""


def elements(
    name: str, settings: Mapping[str, Any], config: Any, task_type: str | None, embedding: int = 0
) -> int:
    """Trained elements of a method on a model with this transformers configuration.

    `embedding` is the width of the model's token embedding, where it has one: SAMPLE_VOCAB copies
    rows of it, whatever the configuration says.

    Raises BenchError without a task type, which PEFT needs here, or where the configuration does
    not tell a size.

    Source: peft 0.21 `utils/other.py` (`_prepare_prompt_learning_config`): keys of the
    configuration as it is saved, those of its text part where it has one.
    """
    if task_type is None:
        raise BenchError(f"{name}: PEFT needs a task type for it")
    if config is None:
        raise BenchError(f"{name}: needs the model's configuration")
    values = config.to_dict()
    values = values.get("text_config", values)
    layers, width, heads = _sizes(name, settings, config, values)
    tokens = settings["num_virtual_tokens"]
    if name == "prefix-tuning":
        width = _key_value_width(values, name, width, heads)
        if not settings["prefix_projection"]:
            return int(tokens * 2 * layers * width)
        hidden = settings["encoder_hidden_size"] or width
        return int(tokens * width + _dense(width, hidden) + _dense(hidden, 2 * layers * width))
    stacks = settings["num_transformer_submodules"] or (2 if task_type == "SEQ_2_SEQ_LM" else 1)
    if settings.get("prompt_tuning_init") == "SAMPLE_VOCAB":
        width = embedding or width
    rows = tokens * stacks * width
    if name == "prompt-tuning":
        return int(rows)
    hidden = settings["encoder_hidden_size"] or width
    if settings["encoder_reparameterization_type"] == "LSTM":
        first = _lstm(width, hidden)
        rest = (settings["encoder_num_layers"] - 1) * _lstm(2 * hidden, hidden)
        return int(rows + first + rest + _dense(2 * hidden, 2 * hidden) + _dense(2 * hidden, width))
    return int(rows + _dense(width, hidden) + _dense(hidden, hidden) + _dense(hidden, width))


def _sizes(
    name: str, settings: Mapping[str, Any], config: Any, values: Mapping[str, Any]
) -> tuple[int, int, Any]:
    """Layers, width and heads: PEFT asks for all three, whichever of them the method uses."""

    def given(field: str, *keys: str) -> Any:
        if settings[field] is not None:
            return settings[field]
        for key in keys:
            if key in values:
                return values[key]
        raise BenchError(
            f"{name}: the configuration has none of {', '.join(keys)}; PEFT asks for {field}"
        )

    def size(field: str, *keys: str) -> int:
        found = given(field, *keys)
        if not isinstance(found, int):
            raise BenchError(f"{name}: the configuration's {field} is no number: {found!r}")
        return found

    # The number of layers alone may stand under another name of the whole configuration's.
    layers = getattr(config, "num_hidden_layers", None) if settings["num_layers"] is None else None
    if not isinstance(layers, int):
        layers = size("num_layers", "num_hidden_layers", "num_layers", "n_layer")
    width = size("token_dim", "hidden_size", "n_embd", "d_model")
    heads = given("num_attention_heads", "num_attention_heads", "n_head", "num_heads",
                 "encoder_attention_heads")  # fmt: skip
    return layers, width, heads


def _dense(inside: int, out: int) -> int:
    return inside * out + out


def _lstm(inside: int, hidden: int) -> int:
    return 2 * (4 * hidden * (inside + hidden) + 8 * hidden)


def _key_value_width(values: Mapping[str, Any], name: str, width: int, heads: Any) -> int:
    """Width of a layer's keys: of the widest heads where the layers differ in them (Gemma 4)."""
    if "num_key_value_heads" not in values:
        return width
    groups, head_dim = values["num_key_value_heads"], values.get("head_dim")
    if head_dim is None:
        head_dim = width // heads if isinstance(heads, int) else None
    if (widest := values.get("global_head_dim")) is not None:
        head_dim, groups = widest, values.get("num_global_key_value_heads") or groups
    elif layers := values.get("per_layer_config"):
        own = (groups, head_dim)
        for layer in layers.values():
            wide = layer.get("head_dim", own[1])
            if wide > head_dim:
                head_dim, groups = wide, layer.get("num_key_value_heads", own[0])
    if not isinstance(groups, int) or not isinstance(head_dim, int):
        raise BenchError(f"{name}: the configuration does not tell the width of keys and values")
    return head_dim * groups
