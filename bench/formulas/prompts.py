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

PEFT freezes the model child by child here, and so leaves a parameter of the model itself trainable
(`query_tokens` of BLIP-2): the term `unfrozen`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.errors import BenchError
from bench.formulas.terms import Term
from bench.models.modules import EMBEDDING, Module, ModuleTable

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


PARTS = tuple(
    f"prompt_encoder.default{part}"
    for part in ("", ".embedding", ".lstm_head", ".transform", ".mlp_head",
                 *(f".transform.{n}" for n in range(3)), *(f".mlp_head.{n}" for n in range(5)))
)  # fmt: skip
"""The modules that hold virtual tokens, where a task's later search for modules to save meets them.
Not every method has each; the word embedding stands beside them once more."""
_WORDS = "embeddings.word_embeddings"


def unfrozen(table: ModuleTable) -> Term | None:
    """The base model's parameters that train beside the virtual tokens: those of no child that are
    not a child's as well. None where there are none.

    Source: peft 0.21 `peft_model.py` (`_setup_prompt_encoder`).
    """
    inside = {p.same_as or p.name for p in table.parameters if "." in p.name}
    found = [p for p in table.parameters if not ("." in p.name or p.same_as or p.name in inside)]
    if not found:
        return None
    return Term("unfrozen", sum(p.elements for p in found), 0, 0)


def word_embedding(name: str, table: ModuleTable, config: Any) -> Module | None:
    """The module that PEFT takes for the word embedding: the one called so, or the first of the
    first transformers model inside whose weight has as many rows as the vocabulary.

    Raises BenchError where PEFT raises on its way: the configuration has no vocabulary, or a
    parameter before it is a scalar, or as long as the vocabulary and no module's weight.

    Source: peft 0.21 `peft_model.py` (`_setup_prompt_encoder`).
    """
    names = {**table.by_name, **{n: table.by_name[first] for n, first in table.repeated}}
    if _WORDS in names:
        return names[_WORDS]
    within = f"{table.backbone}." if table.backbone else ""
    for parameter in table.parameters:
        if not parameter.name.startswith(within):
            continue
        rows = _vocabulary(name, config)
        if not parameter.shape:
            raise BenchError(
                f"{name}: PEFT looks for the word embedding by the rows of each parameter, and "
                f"{parameter.name} is a scalar, which has none"
            )
        if parameter.shape[0] != rows:
            continue
        owner = within + parameter.name.removeprefix(within).replace(".weight", "")
        if owner not in names:
            raise BenchError(
                f"{name}: PEFT takes {parameter.name} for the word embedding, the first of as many "
                "rows as the vocabulary, and it is no module's weight"
            )
        return names[owner]
    return None


def _vocabulary(name: str, config: Any) -> Any:
    """The vocabulary's size, read as PEFT reads it off the configuration's text part."""
    try:
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        return text.vocab_size
    except (AttributeError, ValueError) as error:
        raise BenchError(
            f"{name}: PEFT asks the configuration for vocab_size, and raises: {error}"
        ) from None


def check_sampled(name: str, settings: Mapping[str, Any], words: Module | None) -> None:
    """BenchError where SAMPLE_VOCAB has no embedding to copy rows of."""
    sampled = settings.get("prompt_tuning_init") == "SAMPLE_VOCAB"
    if sampled and (words is None or words.kind != EMBEDDING):
        found = f"takes {words.name}, a {words.class_name}, for it" if words else "finds none"
        raise BenchError(f"{name}: SAMPLE_VOCAB needs a word embedding, and PEFT {found}")


def elements(
    name: str, settings: Mapping[str, Any], config: Any, task_type: str | None, embedding: int = 0
) -> int:
    """Trained elements of a method on a model with this transformers configuration.

    `embedding` is the width of the word embedding, where PEFT finds one: SAMPLE_VOCAB copies rows
    of it, whatever the configuration says.

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
