"""axolotl's YAML.

Keys and defaults: axolotl 0.19.0 `utils/schemas/` (peft, config, model, training), what they do:
`loaders/adapter.py` (`_build_peft_lora_config`, `find_all_linear_names`), `loaders/model.py`,
`utils/config` (`resolve_dtype`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.readers import trainer
from bench.readers.document import Document
from bench.readers.linear import last_segments, linear_modules
from bench.readers.recipe import (
    Fields,
    Reader,
    Recipe,
    RecipeStep,
    given,
    notes_on,
    refuse_whole_model,
    renamed,
    whole,
)
from bench.readers.values import (
    ANY,
    BOOLEAN,
    INTEGER,
    NAMES,
    PYDANTIC,
    TABLE,
    TEXT,
    WHOLE,
    booleans,
    each,
    kinds_of,
    one_of,
)

if TYPE_CHECKING:
    from bench.models.architectures import Model

FIELDS = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_fan_in_fan_out": "fan_in_fan_out",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "lora_exclude_modules": "exclude_modules",
    "lora_rank_pattern": "rank_pattern",
    "lora_alpha_pattern": "alpha_pattern",
    "peft_layers_to_transform": "layers_to_transform",
    "peft_layers_pattern": "layers_pattern",
    "peft_layer_replication": "layer_replication",
    "peft_use_dora": "use_dora",
    "peft_use_rslora": "use_rslora",
    "peft_init_lora_weights": "init_lora_weights",
    "peft_trainable_token_indices": "trainable_token_indices",
    "peft_ensure_weight_tying": "ensure_weight_tying",
}
# The last segment of the output embedding's name, which lora_target_linear leaves out.
OUTPUT_EMBEDDING = {"gpt_neox": "embed_out"}

SAID = {
    "lora_model_dir": "goes on with that adapter, whose own adapter_config.json then decides",
    "plugins": "a plugin may change the adapter, which is not looked into",
    "unfrozen_parameters": "trains further parameters, which are not counted",
    "freeze_mm_modules": "freezes the vision modules; adapters of theirs are counted all the same",
    "relora": "merges and starts adapters anew while it trains; one adapter is counted",
    "quantize_moe_experts": "quantizes expert weights, which no precision here does",
    "llama4_linearized_experts": "splits the experts into linear layers; the model here has them "
    "fused",
    "trust_remote_code": "the repository's own code may build another model than transformers has",
    "base_model_config": "the configuration of another model; the base model's own is read",
    "overrides_of_model_config": "changes the model's configuration; the published one is read",
    "overrides_of_model_kwargs": "changes how the model is loaded, which is not looked into",
    "model_quantization_config": "another quantization than bitsandbytes', which is not computed",
    "gptq": "GPTQ weights, which are counted as the configuration tells",
    "tokens": "new tokens lengthen the embeddings, which are counted at their published length",
    "added_tokens_overrides": "replaces tokens; the embeddings keep their length",
    "resize_token_embeddings_to_32x": "lengthens the embeddings, which are counted as published",
}
SAID_OF_STEP = {
    **trainer.SAID_OF_STEP,
    "use_liger_kernel": "fused kernels, with which a step takes less than is predicted",
    "rl": "preference training runs more than one forward pass; one is predicted",
    "deepcompile": "compilation, which the prediction of eager mode leaves out",
    "fsdp_version": "shards over processes, which the prediction of one GPU leaves out",
    "activation_offloading": "moves activations away, which leaves less than is predicted",
    "layer_offloading": "moves layers away, which leaves less than is predicted",
    "selective_checkpointing": "keeps part of the activations; full checkpointing is predicted",
    "tiled_mlp": "computes the MLP in parts, with which a step takes less than is predicted",
    "chunked_cross_entropy": "computes the loss in parts, which leaves less than is predicted",
    "context_parallel_size": "splits sequences over GPUs; one GPU with the whole is predicted",
    "sequence_parallel_degree": "splits sequences over GPUs; one GPU with the whole is predicted",
    "tensor_parallel_size": "splits layers over GPUs; one GPU with the whole is predicted",
    "dp_shard_size": "shards over processes, which the prediction of one GPU leaves out",
    "lora_mlp_kernel": "axolotl's own kernels, which keep less than is predicted",
    "lora_qkv_kernel": "axolotl's own kernels, which keep less than is predicted",
    "lora_o_kernel": "axolotl's own kernels, which keep less than is predicted",
    "lora_embedding_kernel": "axolotl's own kernels, which keep less than is predicted",
    "unsloth_lora_mlp": "unsloth's kernels, which keep less than is predicted",
    "unsloth_lora_qkv": "unsloth's kernels, which keep less than is predicted",
    "unsloth_lora_o": "unsloth's kernels, which keep less than is predicted",
    "fp8": "FP8 products, which are not predicted",
    "qat": "quantization while training, which is not predicted",
    "liger_layer_norm": "fused LayerNorms, which keep less than is predicted",
    "liger_cross_entropy": "fuses the loss: its memory is predicted too high",
    "cut_cross_entropy": "fuses head and loss: their memory is predicted too high",
}
LIGER = (
    "liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_fused_linear_cross_entropy",
)  # fmt: skip
"""The kernels that Trainer's use_liger_kernel puts into a model, one key each."""
LIGER_PLUGIN = "axolotl.integrations.liger.LigerPlugin"
KINDS = {
    **kinds_of(FIELDS, lora_alpha=INTEGER),
    **booleans(
        """load_in_4bit load_in_8bit lora_target_linear fp16 bfloat16 float16 float32
        sample_packing reward_model process_reward_model trust_remote_code relora gptq
        quantize_moe_experts llama4_linearized_experts freeze_mm_modules
        resize_token_embeddings_to_32x deepcompile lora_mlp_kernel lora_qkv_kernel lora_o_kernel
        lora_embedding_kernel unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o layer_offloading
        selective_checkpointing tiled_mlp chunked_cross_entropy liger_layer_norm
        liger_cross_entropy cut_cross_entropy"""
    ),
    **dict.fromkeys(LIGER, BOOLEAN),
    **trainer.SAID_KINDS,
    **each("auto_find_batch_size use_liger_kernel fp8", BOOLEAN),
    **each(
        "base_model_config lora_model_dir model_quantization_config model_type rl type_of_model",
        TEXT,
    ),
    **each("added_tokens_overrides overrides_of_model_config overrides_of_model_kwargs qat", TABLE),
    **each(
        "context_parallel_size sequence_parallel_degree tensor_parallel_size dp_shard_size "
        "fsdp_version",
        INTEGER,
    ),
    **each("tokens plugins unfrozen_parameters", NAMES),
    "activation_offloading": BOOLEAN.either(TEXT),
    "torch_compile": BOOLEAN.beside("auto"),
    "bf16": BOOLEAN.beside("auto"),
    "gradient_checkpointing": BOOLEAN.beside("offload", "offload_disk"),
    "micro_batch_size": WHOLE,
    "sequence_len": WHOLE,
    "num_labels": WHOLE,
    "optimizer": TEXT,
    "adapter": TEXT,
    "peft": TABLE,
    "peft.loftq_config": TABLE,
    "bnb_config_kwargs": TABLE,
    "bnb_config_kwargs.bnb_4bit_use_double_quant": BOOLEAN,
    "bnb_config_kwargs.bnb_4bit_quant_storage": ANY,
    "bnb_config_kwargs.bnb_4bit_compute_dtype": ANY,
    "peft.backend": one_of("bnb", "torchao"),
    "peft.weight_dtype": TEXT,
    "bnb_config_kwargs.bnb_4bit_quant_type": one_of("nf4", "fp4"),
}
INERT = (
    *trainer.INERT,
    r"datasets?|datasets?_.*|test_datasets|dataset_prepared_path|pretraining_dataset|streaming.*",
    r"shuffle_.*|chat_template.*|special_tokens|default_system_message|eot_tokens|train_on_.*",
    r"tokenizer_.*|processor_.*|is_(falcon|llama|mistral|qwen)_derived_model|save_.*|saves_.*",
    r"evals?_.*|val_set_size|num_epochs|epochs|loraplus_.*|embedding_lr.*|cosine_.*|torchdistx_.*",
    r"wandb_.*|mlflow_.*|comet_.*|use_(wandb|mlflow|comet|tensorboard)|profiler_.*|strict|seed",
    r"(sample_packing|multipack|batch_flattening|pad_to|excess_length|min_sample|pretrain)_?.*",
    r"(flash|sdp|xformers|eager|flex|sage|s2)_attention|attn_implementation|flash_attn_.*|flash_.*",
    r"lora_on_cpu|merge_lora|merge_method|hf_use_auth_token|push_dataset_to_hub|world_size|ddp",
    r"fsdp_final_state_dict_type|low_cpu_mem_usage|dataset_.*|loss_watchdog_.*|max_memory|debug",
    r"gc_steps|gc_collect_steps|auto_resume_from_checkpoints|device|device_map|gpu_memory_limit",
    r"base_model_ignore_patterns|revision_of_model|shrink_embeddings|embeddings_skip_upcast",
    r"mean_resizing_embeddings|fix_untrained_tokens|dpo_.*|kto_.*|orpo_.*|simpo_.*|rl_beta|trl",
    r"(bench|do|generat|num_generation|remove|eval|curriculum)_.*|generate_samples|vllm|.*warmup.*",
    r"peft_autocast_adapter_dtype|qlora_sharded_model_loading|batch_size|logging_.*|image_.*",
    r"overwrite_cache|axolotl_config_path|local_rank|skip_prepare_dataset|adam_epsilon2|adam_beta3",
    r"max_prompt_len|total_num_tokens|total_supervised_tokens|use_pose|pose_.*|lr_quadratic.*",
)


def read(document: Document) -> Recipe:
    """The recipe of an axolotl YAML. Raises BenchError for one that trains no LoRA adapter."""
    values = document.values
    adapter = values.get("adapter")
    if adapter not in ("lora", "qlora"):
        why = "it names no adapter and trains the whole model" if not adapter else (
            f"adapter is {adapter!r}, which is none of lora and qlora")  # fmt: skip
        raise refuse_whole_model(document, READER, why)
    fields, keys = renamed(document, FIELDS)
    for key, field in (("lora_r", "r"), ("lora_alpha", "lora_alpha")):
        if field not in fields and not document.misread(key):
            document.wrong.append(f"no {key}: axolotl has no default for it, and PEFT takes none")
    fields["r"] = whole(document, "lora_r", None)
    if isinstance(fields.get("target_parameters"), str):
        fields["target_parameters"] = [fields["target_parameters"]]
    for field in ("modules_to_save", "init_lora_weights", "exclude_modules"):
        if not given(fields.get(field)):
            fields.pop(field, None)
    if not document.misread("lora_target_modules"):
        fields.setdefault("target_modules", [])
    keys["target_modules"] = ("lora_target_modules", "lora_target_linear")
    notes, step_notes = notes_on(READER, document)
    if ((values.get("peft") or {}).get("loftq_config") or {}).get("loftq_bits"):
        fields["init_lora_weights"] = "loftq"
    # axolotl's own rule; the type of the model's class decides the task.
    classifies = bool(values.get("reward_model") or values.get("num_labels"))
    fields["task_type"] = "SEQ_CLS" if classifies else "CAUSAL_LM"
    if values.get("process_reward_model"):
        fields["task_type"] = "TOKEN_CLS"

    def targets(model: Model) -> tuple[Fields, tuple[str, ...]]:
        return {"target_modules": _with_every_linear(model, _beside(fields))}, ()

    precision, more = _precision(document)
    return Recipe(
        tool=READER.tool,
        version=READER.version,
        document=document,
        model=values.get("base_model"),
        fields=fields,
        step=_step(document, precision, step_notes),
        targets=targets if values.get("lora_target_linear") else None,
        keys=keys,
        notes=(*notes, *more),
        num_labels=whole(document, "num_labels", None),
    )


def _beside(fields: Fields) -> list[str]:
    """The entries beside lora_target_linear: a string is one entry then, no regular expression."""
    entries = fields.get("target_modules", ())
    return [entries] if isinstance(entries, str) else list(entries)


def _with_every_linear(model: Model, entries: list[str]) -> list[str]:
    table = model.table
    names = last_segments(m.name for m in linear_modules(table))
    output = OUTPUT_EMBEDDING.get(table.model_type, "lm_head")
    return list(dict.fromkeys((*entries, *(name for name in names if name != output))))


def _precision(document: Document) -> tuple[str, tuple[str, ...]]:
    values = document.values
    peft = values.get("peft") or {}
    bnb = peft.get("weight_dtype") if peft.get("backend") == "bnb" else None
    adapter = "qlora" if bnb == "nf4" else values["adapter"]
    if adapter == "qlora":
        if values.get("load_in_8bit"):
            raise BenchError(
                f"{document.path}: line {document.line('load_in_8bit')}: adapter qlora with "
                "load_in_8bit: axolotl refuses it; qlora is 4 bit, and adapter lora takes 8"
            )
        if not (values.get("load_in_4bit") or bnb):
            raise BenchError(f"{document.path}: adapter qlora needs load_in_4bit: true; axolotl "
                             "refuses it without")  # fmt: skip
        more = values.get("bnb_config_kwargs") or {}
        double = "-dq" if more.get("bnb_4bit_use_double_quant", True) else ""
        return f"{more.get('bnb_4bit_quant_type', 'nf4')}{double}", ()
    if values.get("load_in_8bit") or bnb == "int8":
        return "int8", ()
    notes: tuple[str, ...] = ()
    if peft.get("backend") == "torchao":
        notes = ("peft: torchao's quantization, another than bitsandbytes', which is not computed",)
    if values.get("load_in_4bit"):
        notes = ("load_in_4bit: axolotl quantizes to 4 bit for adapter qlora alone; the weights "
                 "stay in full with adapter lora",)  # fmt: skip
    fp16 = trainer.halves(values, "fp16")
    bf16 = values.get("bf16", "auto")
    if trainer.halves(values, "bfloat16") or (bf16 == "auto" and not fp16) or bf16 is True:
        return "bf16", notes
    return ("fp16" if fp16 or values.get("float16") else "fp32"), notes


def _step(document: Document, precision: str, notes: tuple[str, ...]) -> RecipeStep:
    values = document.values
    optimizer, more = trainer.optimizer(values.get("optimizer") or trainer.OPTIMIZER)
    checkpointing = values.get("gradient_checkpointing")
    if isinstance(checkpointing, str):
        more += (f"gradient_checkpointing: {checkpointing}: moves what is kept off the GPU, which "
                 "leaves less than is predicted",)  # fmt: skip
    liger = [key for key in LIGER if values.get(key)]
    plugins = values.get("plugins") or []
    loaded = LIGER_PLUGIN in (plugins if isinstance(plugins, list) else [plugins])
    if liger and not (loaded and liger == [*LIGER]):
        more += (_some_of_liger(liger, loaded),)
    length = whole(document, "sequence_len", 512)
    rows = "packed to" if values.get("sample_packing") else "of at most"
    return RecipeStep(
        whole(document, "micro_batch_size", 1),
        length,
        optimizer,
        bool(checkpointing),
        precision,
        "bf16" if values.get("bf16") is True else trainer.autocast_of(values, "bf16"),
        liger=loaded and liger == [*LIGER],
        notes=(f"rows {rows} sequence_len, {length} tokens: all are predicted full", *more, *notes),
    )


def _some_of_liger(keys: list[str], loaded: bool) -> str:
    """What to say of Liger's keys that do not put all its kernels into the model."""
    if not loaded:
        return f"{', '.join(keys)}: nothing without {LIGER_PLUGIN} among plugins"
    return (f"{', '.join(keys)}: some of Liger's kernels, with which a step takes less than is "
            f"predicted; {', '.join(LIGER)} together are predicted")  # fmt: skip


READER = Reader(
    tool="axolotl",
    version="0.19.0",
    source="https://docs.axolotl.ai/docs/config-reference.html",
    model_key="base_model",
    marks=frozenset(
        """adapter lora_r lora_target_linear lora_target_modules sequence_len micro_batch_size
        sample_packing datasets load_in_4bit load_in_8bit num_epochs optimizer""".split()
    ),
    fields=FIELDS,
    kinds=KINDS,
    parser=PYDANTIC,
    inert=INERT,
    said=SAID,
    said_of_step=SAID_OF_STEP,
    read=read,
    excluding=(
        (
            "load_in_4bit",
            "load_in_8bit",
            "bitsandbytes loads in one of them; axolotl refuses both with adapter qlora, and with "
            "adapter lora leaves load_in_4bit out without a word",
        ),
    ),
)
