"""Tiny models of every task, as cases: each trains in milliseconds and keeps real module names."""

from __future__ import annotations

import atexit
import functools
import os
from pathlib import Path
from typing import Any

from bench.measure import Session
from bench.training.cases import Case, StepOptions

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


@functools.cache
def shared_session() -> Session:
    """One session for every test file (its imports take seconds), with the faults at hand."""
    paths = (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    try:
        session = Session(preload=["measure_faults"], time_limit_seconds=60, device="cpu")
        session.__enter__()
    finally:
        os.environ.clear()
        os.environ.update(before)
    atexit.register(session.close)
    return session
