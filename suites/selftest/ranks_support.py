"""Small models whose steps are spread over two ranks, and processes that run them for real."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warm import Warm

from bench.training.cases import Case, StepOptions

if TYPE_CHECKING:
    from bench.predict.result import Prediction

RANKS = 2
LLAMA = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 501,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
"""Few tokens and wide layers, so that the weights and what is gathered of them are what counts. The
vocabulary is odd: the last rank's rows are padded."""


SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "vocab_size": 501}
LABELS = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
ROBERTA = {
    "model_type": "roberta", **SIZES, "num_attention_heads": 4, "max_position_embeddings": 66,
    "pad_token_id": 1, **LABELS,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 64,
        "vocab_size": 501}  # fmt: skip
GEMMA2 = {**LLAMA, "model_type": "gemma2", "head_dim": 32, "tie_word_embeddings": True}
T5 = {"model_type": "t5", "d_model": 128, "d_ff": 256, "num_layers": 3, "num_heads": 4, "d_kv": 32,
      "vocab_size": 501, "decoder_start_token_id": 0}  # fmt: skip
DISTILBERT = {"model_type": "distilbert", "dim": 128, "hidden_dim": 256, "n_layers": 3,
              "n_heads": 4, "vocab_size": 501, "max_position_embeddings": 64, **LABELS}  # fmt: skip
VIT = {"model_type": "vit", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
       "num_attention_heads": 4, "image_size": 32, "patch_size": 16}  # fmt: skip
CLASSES = "AutoModelForSequenceClassification"


def spread_case(
    parallel: str, precision: str, /, name: str = "", config: Any = LLAMA, **changes: Any
) -> Case:
    """A small model's step over RANKS; of `changes` those of config and adapter by their names."""
    config = {k: changes.pop(k, v) for k, v in config.items()}
    auto_class = changes.pop("auto_class", "AutoModelForCausalLM")
    adapter: dict[str, Any] = {
        "r": 8, "task_type": changes.pop("task_type", "CAUSAL_LM"),
        "target_modules": changes.pop("target_modules", ["q_proj", "v_proj"]),
        **changes.pop("adapter", {}),
    }  # fmt: skip
    options = {"batch_size": 1, "seq_len": 8, "parallel": parallel, "gpus": RANKS, **changes}
    step = StepOptions(**options)
    label = f"{config['model_type']}{name}"
    return Case(label, config, auto_class, "small", adapter, precision, step)


def classifier(parallel: str, precision: str, config: Any, targets: str, **changes: Any) -> Case:
    """The same of an encoder that puts texts into classes."""
    how = {"auto_class": CLASSES, "task_type": "SEQ_CLS", "target_modules": targets.split()}
    return spread_case(parallel, precision, config=config, **how, **changes)


def processes(
    warm: Warm, cases: list[Case], ranks: Iterable[int], file: str
) -> list[list[dict[str, int]]]:
    """For each rank its peaks in each case: a process a rank, for all of the cases."""
    script = Path(__file__).with_name("ranks_reference.py")
    given = "".join(f"{json.dumps(case.to_dict())}\n" for case in cases)
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [warm.python, str(script), str(rank), str(RANKS), file],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=settings,
        )
        for rank in ranks
    ]  # fmt: skip
    try:
        for process in started:
            assert process.stdin is not None
            process.stdin.write(given)
            process.stdin.close()
            process.stdin = None
        ends = [process.communicate(timeout=400) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, said) in zip(started, ends, strict=True):
        assert process.returncode == 0, said[-3000:]
    return [[json.loads(line) for line in out.splitlines()] for out, _ in ends]


def peaks(p: Prediction) -> dict[str, int]:
    return {
        "loaded": p.loaded_bytes,
        "first": p.first_step_peak_allocated_bytes,
        "steady": p.peak_allocated_bytes,
    }


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """This process as a rank of a group whose other ranks are not there."""
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    try:
        yield
    finally:
        distributed.destroy_process_group()
