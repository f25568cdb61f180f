"""What the tests of `pytest suites/` share: a project with a tiny model, and its stored runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SUITES = Path(__file__).resolve().parent.parent
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "vocab_size": 20,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
STEPS = ("--precision", "fp32", "--rounds", "5", "--seq-len", "8")


def adapt(folder: Path, targets: list[str] | str, r: int = 4) -> None:
    """Write the adapter configuration of the model in `folder`."""
    values = {"peft_type": "LORA", "r": r, "target_modules": targets, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(values))


def results_of(pytester: pytest.Pytester) -> Path:
    """The folder of this machine's runs."""
    (folder,) = (pytester.path / "results").iterdir()
    return folder
