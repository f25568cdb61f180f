"""Arguments of transformers' Trainer, which TRL, LLaMA-Factory and ms-swift take as their own.

Names and defaults: transformers 5.23 `training_args.py` (`TrainingArguments`).
"""

from __future__ import annotations

from collections.abc import Mapping

from bench.errors import BenchError
from bench.training.options import optimizer_name

BATCH_SIZE = 8
"""`per_device_train_batch_size` where a file is silent."""
OPTIMIZER = "adamw_torch_fused"


def optimizer(name: object) -> tuple[str, tuple[str, ...]]:
    """(our name of a Trainer optimizer, "" for one that is not predicted; what to say of it)."""
    asked = str(getattr(name, "value", name))
    try:
        return optimizer_name(asked), ()
    except BenchError as error:
        return "", (str(error),)


def liger(values: Mapping[str, object]) -> bool:
    """Whether Trainer puts all of Liger's kernels into the model; some of them are not predicted,
    and `SAID_OF_STEP` tells them."""
    return bool(values.get("use_liger_kernel")) and not values.get("liger_kernel_config")


def autocast_of(values: object, default: str | None = None) -> str | None:
    """The dtype that Trainer's `bf16` or `fp16` runs forward and loss under; `default` where the
    file names neither."""
    table = values if isinstance(values, dict) else {}
    if halves(table, "fp16"):
        return "fp16"
    if halves(table, "bf16") or ("bf16" not in table and default == "bf16"):
        return "bf16"
    return None


def halves(values: object, key: str) -> bool:
    """Whether `bf16` or `fp16` is on."""
    found = values.get(key) if isinstance(values, dict) else None
    return found is True or str(found).lower() in ("true", "auto")
