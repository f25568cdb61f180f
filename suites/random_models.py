"""Small random models and random LoRA configurations on them, for the property tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import reject
from hypothesis import strategies as st
from random_adapters import random_adapter

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.models.architectures import Model
from bench.models.modules import ModuleTable, read_table

if TYPE_CHECKING:
    from torch import nn

WIDTHS = st.integers(1, 5).map(lambda n: 8 * n)
COMMON = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
KINDS = (
    "llama",
    "mixtral",
    "phi3",
    "phi",
    "opt",
    "gpt2",
    "bert",
    "distilbert",
    "t5",
    "vit",
    "plain",
)


@dataclass(frozen=True)
class Drawn:
    """A model on the meta device, and what a configuration can name on it."""

    label: str
    build: Callable[[], nn.Module]
    names: tuple[str, ...]
    shown: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A model and a configuration; a failure shrinks to, and prints, what was drawn of both.
    `network` is the model, built and read off into `table`, and not injected into yet."""

    model: Drawn
    adapter: AdapterConfig
    network: nn.Module = field(repr=False)
    table: ModuleTable = field(repr=False)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"{self.model.label} {self.model.shown} with {self.adapter.to_dict()}")


@st.composite
def models(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS) -> Drawn:
    """One small geometry of one architecture: widths, depth, biases, tied weights, heads."""
    kind = draw(st.sampled_from(kinds))
    return _BUILDERS.get(kind, _decoder)(draw, kind)


def _drawn(kind: str, config: dict[str, object], auto_class: str, names: tuple[str, ...]) -> Drawn:
    model = Model(kind, {"model_type": kind, **COMMON, **config}, auto_class)
    return Drawn(kind, model.build, names, config)


def _decoder(draw: st.DrawFn, kind: str) -> Drawn:
    heads, layers, vocabulary = draw(st.sampled_from([1, 2])), draw(st.integers(1, 3)), 24
    config: dict[str, object] = {
        "hidden_size": heads * draw(WIDTHS),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": draw(st.booleans()),
    }
    if kind != "opt":
        config["intermediate_size"] = draw(WIDTHS)
        config["num_key_value_heads"] = draw(st.sampled_from([1, heads]))
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    names = {
        "llama": (*attention, "gate_proj", "up_proj", "down_proj"),
        "mixtral": attention,
        "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        "phi": ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
        "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    }[kind]
    if kind == "llama":
        config |= {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
    elif kind == "mixtral":
        config["num_local_experts"] = draw(st.integers(2, 3))
    elif kind == "opt":
        config |= {
            "ffn_dim": draw(WIDTHS),
            "word_embed_proj_dim": draw(WIDTHS),
            "do_layer_norm_before": draw(st.booleans()),
            "enable_bias": draw(st.booleans()),
            "max_position_embeddings": 16,
        }
    return _drawn(kind, config, "AutoModelForCausalLM", names)


def _gpt2(draw: st.DrawFn, kind: str) -> Drawn:
    layers = draw(st.integers(1, 3))
    config: dict[str, object] = {
        "n_embd": draw(WIDTHS), "n_layer": layers, "n_head": 1, "n_inner": draw(WIDTHS),
        "vocab_size": 24, "n_positions": 16, "tie_word_embeddings": draw(st.booleans()),
    }  # fmt: skip
    return _drawn(kind, config, "AutoModelForCausalLM", ("c_attn", "c_proj", "mlp.c_proj", "c_fc"))


def _encoder(draw: st.DrawFn, kind: str) -> Drawn:
    layers = draw(st.integers(1, 3))
    auto_class, task = draw(
        st.sampled_from(
            [
                ("AutoModelForSequenceClassification", "SEQ_CLS"),
                ("AutoModelForTokenClassification", "TOKEN_CLS"),
                ("AutoModelForQuestionAnswering", "QUESTION_ANS"),
                ("AutoModelForMaskedLM", None),
            ]
        )
    )
    width, inner = draw(WIDTHS), draw(WIDTHS)
    labels = 2 if task == "QUESTION_ANS" else draw(st.integers(1, 5))
    if kind == "bert":
        config: dict[str, object] = {
            "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": 1, "vocab_size": 24, "max_position_embeddings": 16,
            "num_labels": labels, "tie_word_embeddings": draw(st.booleans()),
        }  # fmt: skip
        names = ("query", "key", "value", "attention.output.dense", "dense")
    else:
        config = {
            "dim": width, "hidden_dim": inner, "n_layers": layers, "n_heads": 1,
            "vocab_size": 24, "max_position_embeddings": 16, "num_labels": labels,
        }  # fmt: skip
        names = ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2", "pre_classifier")
    return _drawn(kind, config, auto_class, names)


def _t5(draw: st.DrawFn, kind: str) -> Drawn:
    layers = draw(st.integers(1, 2))
    config: dict[str, object] = {
        "d_model": draw(WIDTHS), "d_kv": 8, "num_heads": draw(st.integers(1, 3)),
        "d_ff": draw(WIDTHS), "num_layers": layers, "num_decoder_layers": draw(st.integers(1, 2)),
        "vocab_size": 24, "feed_forward_proj": draw(st.sampled_from(["relu", "gated-gelu"])),
    }  # fmt: skip
    return _drawn(kind, config, "AutoModelForSeq2SeqLM", ("q", "k", "v", "o", "wo"))


def _vit(draw: st.DrawFn, kind: str) -> Drawn:
    config: dict[str, object] = {
        "hidden_size": draw(WIDTHS), "intermediate_size": draw(WIDTHS), "num_attention_heads": 1,
        "num_hidden_layers": draw(st.integers(1, 2)), "image_size": 8, "patch_size": 4,
        "num_labels": draw(st.integers(1, 5)), "qkv_bias": draw(st.booleans()),
    }  # fmt: skip
    names = ("q_proj", "v_proj", "o_proj", "fc1", "projection")
    return _drawn(kind, config, "AutoModelForImageClassification", names)


def _plain(draw: st.DrawFn, kind: str) -> Drawn:
    """No transformer: the kinds of layer that language models do not have."""
    width, inner, kernel = draw(WIDTHS), draw(WIDTHS), draw(st.integers(1, 3))
    groups, bias = draw(st.sampled_from([1, 2, 4])), draw(st.booleans())

    def build() -> nn.Module:
        import torch
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        with torch.device("meta"):
            return nn.ModuleDict(
                {
                    "rows": nn.Embedding(inner, width),
                    "conv1": nn.Conv1d(width, inner, kernel, bias=bias),
                    "conv2": nn.Conv2d(width, 2 * width, (kernel, 1), groups=groups, bias=bias),
                    "conv3": nn.Conv3d(width, inner, (1, kernel, 2), bias=bias),
                    "turned": Conv1D(inner, width),
                    "dense": nn.Linear(width, inner, bias=bias),
                    "mixer": nn.MultiheadAttention(width, 1, bias=bias),
                }
            )

    shape = {"width": width, "inner": inner, "kernel": kernel, "groups": groups, "bias": bias}
    names = ("conv1", "conv2", "conv3", "turned", "dense", "mixer")
    return Drawn(kind, build, names, shape)


_BUILDERS = {
    "gpt2": _gpt2, "bert": _encoder, "distilbert": _encoder, "t5": _t5, "vit": _vit,
    "plain": _plain,
}  # fmt: skip


@st.composite
def examples(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS) -> Example:
    """A random model with a random configuration that `AdapterConfig` accepts."""
    model = draw(models(kinds))
    random = draw(st.randoms(use_true_random=False))
    network = model.build()
    table = read_table(network)
    try:
        return Example(model, random_adapter(random, table), network, table)
    except BenchError:  # two variants at once
        reject()
