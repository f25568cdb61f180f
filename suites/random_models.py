"""Small random models and random LoRA configurations on them, for the property tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import reject
from hypothesis import strategies as st

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.measure.counting import Count, count, inject
from bench.models.architectures import Model

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
    embeddings: tuple[str, ...] = ()
    savable: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    layers: int = 1
    vocabulary: int = 0
    tasks: tuple[str | None, ...] = (None,)
    shown: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A model and a configuration; a failure shrinks to, and prints, what was drawn of both."""

    model: Drawn
    adapter: AdapterConfig

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"{self.model.label} {self.model.shown} with {self.adapter.to_dict()}")


@st.composite
def models(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS) -> Drawn:
    """One small geometry of one architecture: widths, depth, biases, tied weights, heads."""
    kind = draw(st.sampled_from(kinds))
    return _BUILDERS.get(kind, _decoder)(draw, kind)


def _drawn(kind: str, config: dict[str, object], auto_class: str, **more: object) -> Drawn:
    model = Model(kind, {"model_type": kind, **COMMON, **config}, auto_class)
    return Drawn(kind, model.build, shown=config, **more)  # type: ignore[arg-type]


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
    parameters: tuple[str, ...] = ()
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
        parameters = ("experts.gate_up_proj", "experts.down_proj")
    elif kind == "opt":
        config |= {
            "ffn_dim": draw(WIDTHS),
            "word_embed_proj_dim": draw(WIDTHS),
            "do_layer_norm_before": draw(st.booleans()),
            "enable_bias": draw(st.booleans()),
            "max_position_embeddings": 16,
        }
    return _drawn(
        kind, config, "AutoModelForCausalLM", names=names, layers=layers, vocabulary=vocabulary,
        embeddings=("embed_tokens", "lm_head"),
        savable=("embed_tokens", "lm_head", names[0], "attn"),
        parameters=parameters, tasks=(None, "CAUSAL_LM"),
    )  # fmt: skip


def _gpt2(draw: st.DrawFn, kind: str) -> Drawn:
    layers = draw(st.integers(1, 3))
    config: dict[str, object] = {
        "n_embd": draw(WIDTHS), "n_layer": layers, "n_head": 1, "n_inner": draw(WIDTHS),
        "vocab_size": 24, "n_positions": 16, "tie_word_embeddings": draw(st.booleans()),
    }  # fmt: skip
    return _drawn(
        kind, config, "AutoModelForCausalLM", names=("c_attn", "c_proj", "mlp.c_proj", "c_fc"),
        layers=layers, vocabulary=24, embeddings=("wte", "lm_head", "wpe"),
        savable=("lm_head", "wte"),
    )  # fmt: skip


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
    head = {"QUESTION_ANS": "qa_outputs", None: "embeddings"}.get(task, "classifier")
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
    return _drawn(
        kind, config, auto_class, names=names, layers=layers, vocabulary=24,
        embeddings=("word_embeddings",), savable=(head, "word_embeddings"), tasks=(None, task),
    )  # fmt: skip


def _t5(draw: st.DrawFn, kind: str) -> Drawn:
    layers = draw(st.integers(1, 2))
    config: dict[str, object] = {
        "d_model": draw(WIDTHS), "d_kv": 8, "num_heads": draw(st.integers(1, 3)),
        "d_ff": draw(WIDTHS), "num_layers": layers, "num_decoder_layers": draw(st.integers(1, 2)),
        "vocab_size": 24, "feed_forward_proj": draw(st.sampled_from(["relu", "gated-gelu"])),
    }  # fmt: skip
    return _drawn(
        kind, config, "AutoModelForSeq2SeqLM", names=("q", "k", "v", "o", "wo"), layers=layers,
        vocabulary=24, savable=("lm_head",), tasks=(None, "SEQ_2_SEQ_LM"),
    )  # fmt: skip


def _vit(draw: st.DrawFn, kind: str) -> Drawn:
    config: dict[str, object] = {
        "hidden_size": draw(WIDTHS), "intermediate_size": draw(WIDTHS), "num_attention_heads": 1,
        "num_hidden_layers": draw(st.integers(1, 2)), "image_size": 8, "patch_size": 4,
        "num_labels": draw(st.integers(1, 5)), "qkv_bias": draw(st.booleans()),
    }  # fmt: skip
    return _drawn(
        kind, config, "AutoModelForImageClassification", savable=("classifier",),
        names=("q_proj", "v_proj", "o_proj", "fc1", "projection"),
    )  # fmt: skip


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
    return Drawn(kind, build, names, ("rows",), ("dense", "conv1"), shown=shape)


_BUILDERS = {
    "gpt2": _gpt2, "bert": _encoder, "distilbert": _encoder, "t5": _t5, "vit": _vit,
    "plain": _plain,
}  # fmt: skip


def _sometimes(
    draw: st.DrawFn, strategy: st.SearchStrategy, other: object, odds: int = 4
) -> object:
    """`other` most of the time, so that a configuration sets few fields at once."""
    return draw(strategy) if draw(st.integers(1, odds)) == odds else other


@st.composite
def adapters(draw: st.DrawFn, model: Drawn) -> AdapterConfig:
    """A LoRA configuration over the fields that reach, and those that must change nothing."""
    entries = st.lists(st.sampled_from(model.names), min_size=1, max_size=4, unique=True)
    targets: tuple[str, ...] | str = tuple(draw(entries))
    if model.embeddings and draw(st.integers(1, 4)) == 4:
        targets = (*targets, draw(st.sampled_from(model.embeddings)))
    if draw(st.integers(1, 6)) == 6:
        targets = draw(
            st.sampled_from(
                ["all-linear", rf".*\.({'|'.join(targets)})", rf"(.*\.)?({'|'.join(targets)})"]
            )
        )
    r = draw(st.integers(1, 12))
    # Position tables have 16 rows; on the meta device PEFT does not see an index beyond the last.
    last = max(min(model.vocabulary, 16) - 1, 0)
    tokens = st.lists(st.integers(0, last), max_size=3, unique=True)
    few = st.sampled_from(model.names)
    fields: dict[str, object] = {
        "bias": draw(st.sampled_from(["none", "none", "all", "lora_only"])),
        "use_rslora": draw(st.booleans()),
        "lora_alpha": draw(st.sampled_from([8, 32])),
        "rank_pattern": _sometimes(draw, st.dictionaries(few, st.integers(1, 9), max_size=2), {}),
        "alpha_pattern": _sometimes(draw, st.dictionaries(few, st.just(4), max_size=1), {}),
        "init_lora_weights": _sometimes(
            draw, st.sampled_from([False, "gaussian", "orthogonal", "pissa", "olora", "mica"]), True
        ),
        "modules_to_save": _sometimes(
            draw, st.lists(st.sampled_from(model.savable), unique=True).map(tuple), (), 3
        ) if model.savable else (),
        "ensure_weight_tying": draw(st.booleans()),
        "exclude_modules": _sometimes(
            draw, st.sampled_from([(model.names[0],), r".*\.0\..*"]), None
        ),
        "task_type": draw(st.sampled_from(model.tasks)),
    }  # fmt: skip
    variant = _sometimes(draw, st.sampled_from(sorted(_VARIANTS)), None, 2)
    if variant:
        fields |= _VARIANTS[str(variant)]
    if not isinstance(targets, str):
        fields["layers_to_transform"] = _sometimes(
            draw, st.lists(st.integers(0, model.layers - 1), unique=True).map(tuple), None
        )
    if model.parameters and draw(st.booleans()):
        fields["target_parameters"] = tuple(
            draw(st.lists(st.sampled_from(model.parameters), unique=True))
        )
    if model.vocabulary:
        fields["trainable_token_indices"] = _sometimes(
            draw,
            tokens.map(tuple)
            | st.dictionaries(st.sampled_from(model.embeddings or ("lm_head",)), tokens.map(tuple),
                              min_size=1),
            None,
        )  # fmt: skip
    if draw(st.integers(1, 6)) == 6:
        spans = st.integers(0, model.layers - 1).flatmap(
            lambda start: st.integers(start + 1, model.layers).map(lambda end: (start, end))
        )
        fields["layer_replication"] = tuple(draw(st.lists(spans, min_size=1, max_size=2)))
    return AdapterConfig(targets, r=r, **fields)  # type: ignore[arg-type]


@st.composite
def examples(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS) -> Example:
    """A random model with a random configuration that `AdapterConfig` accepts."""
    model = draw(models(kinds))
    try:
        return Example(model, draw(adapters(model)))
    except BenchError:  # two variants at once
        reject()


_VARIANTS: dict[str, dict[str, object]] = {
    "dora": {"use_dora": True},
    "bias in B": {"lora_bias": True},
    "kasa": {"kasa_config": {}},
    "velora": {"velora_config": {}},
    "alora": {"alora_invocation_tokens": (1, 2)},
    "block-diagonal": {"use_bdlora": {"target_modules_bd_a": ["q_proj", "dense", "fc1"],
                                      "target_modules_bd_b": ["v_proj", "o_proj", "fc2"],
                                      "nblocks": 2, "match_strict": False}},
}  # fmt: skip


def counted_or_refused(network: nn.Module, adapter: AdapterConfig) -> tuple[Count | None, str]:
    """What PEFT makes of a configuration: its counts, or its refusal."""
    try:
        return count(inject(network, adapter)), ""
    except BenchError as error:
        return None, str(error)
