"""Tiny models of every task, as cases: each trains in milliseconds and keeps real module names."""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warm import our_own

from bench.measure import Session
from bench.training.cases import Case, StepOptions

if TYPE_CHECKING:
    from bench.predict import Prediction

_CLASSIFIER = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "task_type": "SEQ_CLS"}
_CAUSAL = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "task_type": "CAUSAL_LM"}

_DISTILBERT = {
    "model_type": "distilbert", "dim": 64, "hidden_dim": 256, "n_layers": 2, "n_heads": 4,
    "vocab_size": 500, "num_labels": 3,
}  # fmt: skip
_OPT = {
    "model_type": "opt", "hidden_size": 64, "ffn_dim": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 500, "word_embed_proj_dim": 32,
    "do_layer_norm_before": False, "max_position_embeddings": 128,
}  # fmt: skip
_PHI3 = {
    "model_type": "phi3", "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 500,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_T5 = {
    "model_type": "t5", "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
    "vocab_size": 500, "decoder_start_token_id": 0,
}  # fmt: skip
_VIT = {
    "model_type": "vit", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "image_size": 32, "patch_size": 8, "num_labels": 5,
}  # fmt: skip

# Name → config, auto class, adapter, adapted layers.
MODELS: dict[str, tuple[dict[str, Any], str, dict[str, Any], int]] = {
    "distilbert": (
        _DISTILBERT,
        "AutoModelForSequenceClassification",
        {**_CLASSIFIER, "target_modules": ["q_lin", "v_lin"]},
        4,
    ),
    "opt": (
        _OPT,
        "AutoModelForCausalLM",
        {**_CAUSAL, "target_modules": ["q_proj", "v_proj"]},
        4,
    ),
    "phi3": (
        _PHI3,
        "AutoModelForCausalLM",
        {
            **_CAUSAL,
            "target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
            "modules_to_save": ["embed_tokens", "lm_head"],
        },
        8,
    ),
    "distilbert-tokens": (
        _DISTILBERT,
        "AutoModelForTokenClassification",
        {**_CLASSIFIER, "task_type": "TOKEN_CLS", "target_modules": ["q_lin", "v_lin"]},
        4,
    ),
    "distilbert-answers": (
        {**_DISTILBERT, "num_labels": 2},
        "AutoModelForQuestionAnswering",
        {**_CLASSIFIER, "task_type": "QUESTION_ANS", "target_modules": ["q_lin", "v_lin"]},
        4,
    ),
    "t5": (
        _T5,
        "AutoModelForSeq2SeqLM",
        {**_CAUSAL, "task_type": "SEQ_2_SEQ_LM", "target_modules": ["q", "v"]},
        12,
    ),
    "vit": (
        _VIT,
        "AutoModelForImageClassification",
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "v_proj"],
            "modules_to_save": ["classifier"],
        },
        4,
    ),
}


def tiny_case(
    name: str, precision: str = "fp32", *, scenario: str = "small", **options: Any
) -> Case:
    """The tiny model called `name`, in a precision; `options` are those of the step."""
    config, auto_class, adapter, _ = MODELS[name]
    step = StepOptions(**{"seq_len": 32, **options})
    return Case(name, config, auto_class, scenario, adapter, precision, step)


_SMALL = {
    "vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
# Type → what differs from _SMALL, target modules: state spaces, recurrences, linear attention.
RECURRENCES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "mamba": ({"state_size": 8}, ["x_proj", "in_proj"]),
    "falcon_mamba": ({"state_size": 8}, ["x_proj", "in_proj"]),
    "mamba2": (
        {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 16},
        ["in_proj"],
    ),
    "rwkv": ({"attention_hidden_size": 64}, ["key", "value"]),
    "xlstm": ({"num_heads": 4, "chunk_size": 16}, ["q", "v"]),
    "recurrent_gemma": (
        {"num_attention_heads": 4, "lru_width": 64, "num_hidden_layers": 3},
        ["q_proj", "linear_x"],
    ),
    "jamba": (
        {
            **_HEADS, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
            "expert_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False,
            "mamba_d_state": 8, "mamba_dt_rank": 8,
        },
        ["q_proj", "x_proj"],
    ),
    "bamba": (
        {
            **_HEADS, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16,
            "mamba_d_state": 8, "mamba_chunk_size": 16, "mamba_n_groups": 1,
        },
        ["q_proj", "in_proj"],
    ),
    "lfm2": ({**_HEADS, "layer_types": ["conv", "full_attention"]}, ["q_proj", "in_proj"]),
    "qwen3_next": (
        {
            **_HEADS, "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
            "linear_key_head_dim": 16, "linear_value_head_dim": 16, "num_experts": 4,
            "num_experts_per_tok": 2, "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "layer_types": ["linear_attention", "full_attention"],
        },
        ["q_proj", "in_proj_qkvz"],
    ),
}  # fmt: skip


def recurrence(name: str, precision: str = "fp32", **options: Any) -> Case:
    """A tiny model of a type in RECURRENCES, as a case."""
    changes, targets = RECURRENCES[name]
    config = {"model_type": name, **_SMALL, **changes}
    adapter = {**_CAUSAL, "lora_dropout": 0.0, "target_modules": targets}
    step = StepOptions(**{"seq_len": 32, **options})
    return Case(name, config, "AutoModelForCausalLM", "small", adapter, precision, step)


@functools.cache
def shared_session() -> Session:
    """One session for every test file, with the faults at hand; its server is forked."""
    paths = (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    try:
        session = Session(preload=["measure_faults"], time_limit_seconds=60, device="cpu")
        with our_own().in_place():
            session.__enter__()
    finally:
        os.environ.clear()
        os.environ.update(before)
    atexit.register(session.close)
    return session


def kept_out_of_collections(*modules: str) -> Iterator[None]:
    """Import what a reference needs, and keep it out of garbage collections from now on."""
    import torch

    for name in ("peft", "transformers", *modules):
        importlib.import_module(name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    torch.set_num_threads(threads)


def predicted(case: Case) -> Prediction:
    """What is predicted of the case on the CPU."""
    from bench.predict import kernels, predict

    return predict(case, device=kernels.cpu())
