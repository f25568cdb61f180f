"""Arguments of transformers' Trainer, which TRL, LLaMA-Factory and ms-swift take as their own.

Names and defaults: transformers 5.23 `training_args.py` (`TrainingArguments`).
"""

from __future__ import annotations

from collections.abc import Mapping

from bench.errors import BenchError
from bench.readers.values import (
    ANY,
    BOOLEAN,
    NAMES,
    TABLE_OR_TEXT,
    TEXT,
    WHOLE,
    booleans,
    each,
)
from bench.training.options import optimizer_name

VERSION = "5.23"
BATCH_SIZE = 8
"""`per_device_train_batch_size` where a file is silent."""
OPTIMIZER = "adamw_torch_fused"

SAID_KINDS = {
    **booleans("auto_find_batch_size torch_compile"),
    **each("torch_compile_backend torch_compile_mode", TEXT),
    **each("deepspeed fsdp_config parallelism_config liger_kernel_config", TABLE_OR_TEXT),
    **each("activation_checkpointing activation_checkpointing_kwargs", ANY),
    "fsdp": BOOLEAN.either(NAMES),
    "optim_target_modules": NAMES,
}
"""Of the keys in `SAID_OF_STEP`: what is told of one has to be what the tool would take."""
KINDS = {
    **SAID_KINDS,
    "per_device_train_batch_size": WHOLE,
    "optim": TEXT,
    **booleans("gradient_checkpointing bf16 fp16 use_liger_kernel"),
}  # fmt: skip
HALVES = ("bf16", "fp16", "transformers refuses both; name the one that the hardware has")

# Data, logging, saving, evaluation, schedules, processes: none of them changes which modules are
# adapted or what one step takes.
INERT = (
    r"output_dir|overwrite_output_dir|run_name|project|trackio_.*|report_to|seed|data_seed",
    r"learning_rate|lr_.*|warmup_.*|weight_decay|adam_.*|max_grad_norm|optim_args",
    r"num_train_epochs|max_steps|gradient_accumulation_steps|label_smoothing_factor",
    r"gradient_checkpointing_kwargs|average_tokens_across_devices|tf32|neftune_noise_alpha",
    r"logging_.*|log_.*|disable_tqdm|include_.*|skip_memory_metrics|debug|prediction_loss_only",
    r"(do|eval|evaluation|save|per_device_eval|predict|test|batch_eval)_.*|.*_full_eval",
    r"load_best_model_at_end|metric_for_best_model|greater_is_better|.*early_stopping.*",
    r"push_to_hub.*|hub_.*|resume_from_checkpoint|ignore_data_skip|restore_callback_.*",
    r"dataloader_.*|remove_unused_columns|label_names|group_by_length|train_sampling_strategy",
    r"length_column_name|ddp_.*|local_rank|full_determinism|use_cache|torch_empty_cache_steps",
    r"accelerator_config|no_cuda|use_cpu|jit_mode_eval|torchdynamo|enable_jit_checkpoint",
)
SAID_OF_STEP = {
    "deepspeed": "shards or offloads over processes, which the prediction of one GPU leaves out",
    "fsdp": "shards over processes, which the prediction of one GPU leaves out",
    "fsdp_config": "shards over processes, which the prediction of one GPU leaves out",
    "parallelism_config": "splits over processes, which the prediction of one GPU leaves out",
    "torch_compile": "compilation, which the prediction of eager mode leaves out",
    "torch_compile_backend": "compilation, which the prediction of eager mode leaves out",
    "torch_compile_mode": "compilation, which the prediction of eager mode leaves out",
    "liger_kernel_config": "some of Liger's kernels, with which a step takes less than is "
    "predicted; all of them together are predicted",
    "auto_find_batch_size": "halves the batch until it fits; the size written is predicted",
    "optim_target_modules": "an optimizer for named modules, which is not predicted",
    "activation_checkpointing": "a policy of its own; gradient_checkpointing is predicted",
    "activation_checkpointing_kwargs": "a policy of its own; gradient_checkpointing is predicted",
}


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
