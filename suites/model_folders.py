"""A model as its user has it: a folder with its configuration, and an adapter's beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "vocab_size": 20,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


def write_model(folder: Path, config: Mapping[str, Any] = LLAMA, **changes: Any) -> Path:
    """The folder, made where it is missing, with a tiny Llama's configuration or the one given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def write_adapter(folder: Path, targets: Sequence[str] | str, r: int = 4) -> None:
    values = {"peft_type": "LORA", "r": r, "target_modules": targets, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(values))
