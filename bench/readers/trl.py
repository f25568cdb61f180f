"""TRL's YAML for `trl sft --config FILE` and its other commands.

Keys and defaults: TRL 1.16.0 `trainer/model_config.py` (`ModelConfig`), `trainer/base_config.py`
and `sft_config.py`; what they do: `trainer/utils.py` (`get_peft_config`,
`get_quantization_config`).
"""

from __future__ import annotations

from bench.readers import trainer
from bench.readers.document import Document
from bench.readers.recipe import (
    Reader,
    Recipe,
    RecipeStep,
    notes_on,
    refuse_whole_model,
    renamed,
    whole,
)
from bench.readers.values import (
    ARGUMENTS,
    INTEGER,
    NAMES,
    TABLE_OR_TEXT,
    TEXT,
    WHOLE,
    booleans,
    each,
    kinds_of,
    one_of,
)

FIELDS = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "lora_task_type": "task_type",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
DEFAULTS = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "task_type": "CAUSAL_LM"}
PRECISION_OF = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}

SAID = {
    "trust_remote_code": "the repository's own code may build another model than transformers has",
    "model_init_kwargs": "changes how the model is loaded, which is not looked into",
    "eos_token": "a new token lengthens the embeddings, which are counted as published",
    "chat_template_path": "its tokens may lengthen the embeddings, which are counted as published",
}
SAID_OF_STEP = {
    **trainer.SAID_OF_STEP,
    "use_liger_kernel": "Liger's norms, RoPE and MLPs, beside which TRL keeps its own head: a step "
    "takes less than is predicted, and bench memory --loop sft --liger predicts it",
    "bnb_4bit_quant_storage": "another dtype to store 4-bit weights in, of the same size",
    "activation_offloading": "moves activations away, which leaves less than is predicted",
    "use_vllm": "generation beside the training step, which is not predicted",
    "loss_type": "another loss than is predicted",
    "num_generations": "generation beside the training step, which is not predicted",
    "padding_free": "rows joined into one; the same tokens are predicted",
}
KINDS = {
    **trainer.KINDS,
    **kinds_of(FIELDS, lora_task_type=TEXT),
    **booleans(
        """use_peft load_in_4bit load_in_8bit use_bnb_nested_quant packing trust_remote_code
        activation_offloading use_vllm padding_free"""
    ),
    **each("bnb_4bit_quant_storage chat_template_path eos_token", TEXT),
    "loss_type": NAMES,
    "model_init_kwargs": TABLE_OR_TEXT,
    "num_generations": INTEGER,
    "bnb_4bit_quant_type": one_of("nf4", "fp4"),
    "dtype": one_of(*PRECISION_OF, "auto"),
    "torch_dtype": one_of(*PRECISION_OF, "auto"),
    "max_length": WHOLE,
    "max_seq_length": WHOLE,
}
INERT = (
    *trainer.INERT,
    r"dataset.*|datasets|model_revision|model_code_revision|attn_implementation|ignore_bias_buffers",
    r"(completion|assistant)_only_loss|packing_strategy|eval_packing|pad_.*|truncation_mode|config",
    r"shuffle_dataset|beta|reference_free|max_prompt_length|max_completion_length|temperature",
    r"use_flash_attention_2|desirable_weight|undesirable_weight|center_rewards_coefficient|env",
    r"reward_funcs|reward_weights|top_[pk]|min_p|num_iterations|epsilon.*|scale_rewards|trl_project",
)  # fmt: skip


def read(document: Document) -> Recipe:
    """The recipe of a TRL YAML. Raises BenchError for one without `use_peft: true`."""
    values = document.values
    if not values.get("use_peft"):
        raise refuse_whole_model(
            document, READER, "use_peft is not true: TRL trains the whole model"
        )
    fields, keys = renamed(document, FIELDS)
    fields = {**DEFAULTS, **fields, "r": whole(document, "lora_r", DEFAULTS["r"])}  # type: ignore[arg-type]
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
    )


def _step(document: Document, notes: tuple[str, ...]) -> RecipeStep:
    values = document.values
    optimizer, more = trainer.optimizer(values.get("optim") or trainer.OPTIMIZER)
    length_key = "max_length" if "max_length" in values else "max_seq_length"
    length = whole(document, length_key, 1024)
    rows = "packed to" if values.get("packing") else "of at most"
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
        bool(values.get("gradient_checkpointing", True)),
        precision,
        trainer.autocast_of(values, "bf16"),
        compute_dtype=PRECISION_OF.get(dtype) if values.get("load_in_4bit") else None,
        notes=(f"rows {rows} {length} tokens: all are predicted full", *more, *notes),
    )


READER = Reader(
    tool="TRL",
    version="1.16.0",
    source="https://huggingface.co/docs/trl/clis",
    model_key="model_name_or_path",
    marks=frozenset(
        """use_peft lora_r lora_target_modules lora_modules_to_save lora_task_type
        lora_target_parameters use_bnb_nested_quant load_in_4bit dataset_name max_length""".split()
    ),
    fields=FIELDS,
    kinds=KINDS,
    parser=ARGUMENTS,
    inert=INERT,
    said=SAID,
    said_of_step=SAID_OF_STEP,
    read=read,
    excluding=(
        ("load_in_4bit", "load_in_8bit", "TRL refuses it, and bitsandbytes loads in one of them"),
        trainer.HALVES,
    ),
)
