"""TRL's YAML for `trl sft --config FILE` and its other commands.

Keys and defaults: TRL 1.16.0 `trainer/model_config.py` (`ModelConfig`), `trainer/base_config.py`
and `sft_config.py`; what they do: `trainer/utils.py` (`get_peft_config`,
`get_quantization_config`).
"""

from __future__ import annotations

from bench.readers import trainer
from bench.readers.document import Document
from bench.readers.recipe import (
    Recipe,
    RecipeStep,
    load_reader,
    notes_on,
    refuse_whole_model,
    renamed,
    whole,
)
from bench.readers.values import ARGUMENTS

DEFAULTS = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "task_type": "CAUSAL_LM"}
PRECISION_OF = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def read(document: Document) -> Recipe:
    """The recipe of a TRL YAML. Raises BenchError for one without `use_peft: true`."""
    values = document.values
    if not values.get("use_peft") and not document.misread("use_peft"):
        raise refuse_whole_model(
            document, READER, "use_peft is not true: TRL trains the whole model"
        )
    fields, keys = renamed(document, READER.fields)
    fields = {**DEFAULTS, **fields, "r": whole(document, "lora_r", DEFAULTS["r"])}  # type: ignore[arg-type]
    if "lora_task_type" in values:
        fields["task_type"] = values["lora_task_type"]
    notes, step_notes = notes_on(READER, document)
    targets = fields.get("target_modules")
    if isinstance(targets, list) and len(targets) == 1:
        # TRL's own rule: so that [all-linear] becomes PEFT's keyword.
        fields["target_modules"] = targets[0]
        if str(targets[0]).lower() != "all-linear":
            notes = (*notes, f"lora_target_modules: TRL takes the one name {targets[0]} out of its "
                     "list, and PEFT reads it as a regular expression for whole names")  # fmt: skip
    if isinstance(fields.get("target_parameters"), str):
        fields["target_parameters"] = [fields["target_parameters"]]
    return Recipe(
        tool=READER.tool,
        version=READER.version,
        document=document,
        model=values.get("model_name_or_path"),
        fields=fields,
        step=_step(document, step_notes),
        keys=keys,
        notes=notes,
        list_of_one=False,
    )


def _checkpointing(document: Document) -> tuple[bool, dict[str, object], tuple[str, ...]]:
    """(whether it is on, how, what to say of that). transformers' new names for it go before the
    old ones, and TRL sets use_reentrant to false in a table that is silent."""
    values = document.values
    on, how = values.get("gradient_checkpointing", True), "gradient_checkpointing_kwargs"
    if values.get("activation_checkpointing") is not None:
        on = values["activation_checkpointing"]
    if values.get("activation_checkpointing_kwargs") is not None:
        how = "activation_checkpointing_kwargs"
    kwargs = {"use_reentrant": False, **trainer.table(values.get(how))}
    return bool(on), kwargs, trainer.ways_of_checkpointing(how, kwargs)


def _step(document: Document, notes: tuple[str, ...]) -> RecipeStep:
    values = document.values
    asked = values.get("optim") or trainer.OPTIMIZER
    optimizer, more = trainer.optimizer(asked, values, READER.optimizers)
    length_key = "max_length" if "max_length" in values else "max_seq_length"
    length = whole(document, length_key, None if length_key in values else 1024)
    if length is None:
        rows = f"{length_key} is null: rows are as long as they come; give --seq-len"
    else:
        joined = "packed to" if values.get("packing") else "of at most"
        rows = f"rows {joined} {length} tokens: all are predicted full"
    attention, said = trainer.attention("attn_implementation", values.get("attn_implementation"))
    more += said
    on, kwargs, said = _checkpointing(document)
    more += said
    dtype = str(values.get("dtype", values.get("torch_dtype", "float32")))
    if values.get("load_in_4bit"):
        double = "-dq" if values.get("use_bnb_nested_quant") else ""
        precision = f"{values.get('bnb_4bit_quant_type', 'nf4')}{double}"
    elif values.get("load_in_8bit"):
        precision = "int8"
    else:
        precision = PRECISION_OF.get(dtype, "bf16")
        if dtype not in PRECISION_OF:
            more += (f"dtype {dtype}: the checkpoint's own, for which bf16 is predicted",)
    return RecipeStep(
        whole(document, "per_device_train_batch_size", trainer.BATCH_SIZE),
        length,
        optimizer,
        on,
        precision,
        trainer.autocast_of(values, "bf16"),
        trainer.reentrant(kwargs),
        compute_dtype=PRECISION_OF.get(dtype) if values.get("load_in_4bit") else None,
        attention=attention,
        accumulation=whole(document, "gradient_accumulation_steps", 1) or 1,
        notes=(rows, *more, *notes),
    )


READER = load_reader("trl", ARGUMENTS, read)
