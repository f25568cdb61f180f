"""ms-swift's saved args.json, and its YAML with the same keys.

Keys and defaults: ms-swift 4.6.0 `arguments/` (tuner_args, base_args/), what they do:
`pipelines/train/tuner.py` (`get_target_modules`), `utils/transformers_utils.py`
(`find_all_linears`, `get_multimodal_target_regex`). ms-swift keeps a table of the parts of every
multimodal model; here they are the stacks that the model's own module tree tells.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.models.modules import EMBEDDING
from bench.models.stacks import AUDIO, CONNECTOR, VISION
from bench.readers import trainer
from bench.readers.document import Document
from bench.readers.linear import ends_in_any, last_segments
from bench.readers.recipe import (
    Fields,
    Reader,
    Recipe,
    RecipeStep,
    given,
    listed,
    notes_on,
    refuse_whole_model,
    renamed,
    whole,
)
from bench.readers.values import (
    ARGUMENTS,
    BOOLEAN,
    INTEGER,
    NAMES,
    TEXT,
    WHOLE,
    booleans,
    each,
    kinds_of,
    one_of,
)

if TYPE_CHECKING:
    from bench.models.architectures import Model
    from bench.models.modules import Module

FIELDS = {
    "lora_rank": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_bias": "bias",
    "target_modules": "target_modules",
    "target_parameters": "target_parameters",
    "modules_to_save": "modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
DEFAULTS = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.05}
DTYPE_NAMES = ("float32", "float16", "bfloat16")
TASK_TYPES = {"causal_lm": "CAUSAL_LM", "seq_cls": "SEQ_CLS"}
# Modules that ms-swift takes off the list on these model types, since PEFT refuses them.
MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
MAMBA_REFUSED = ("out_proj", "conv1d")
HEADS = ("lm_head", "score", "v_head", "classifier")

SAID = {
    "adapters": "goes on with that adapter, whose own adapter_config.json then decides",
    "resume_from_checkpoint": "goes on with that adapter, whose own configuration then decides",
    "trainable_parameters": "trains further parameters, which are not counted",
    "trainable_parameters_regex": "trains further parameters, which are not counted",
    "freeze_parameters": "is for full training; adapters are counted all the same",
    "freeze_parameters_regex": "is for full training; adapters are counted all the same",
    "external_plugins": "a plugin may change the adapter, which is not looked into",
    "custom_register_path": "a model registered there is not looked into",
    "new_special_tokens": "new tokens lengthen the embeddings, which are counted as published",
}
SAID_OF_STEP = {
    **trainer.SAID_OF_STEP,
    "sequence_parallel_size": "splits sequences over GPUs; one GPU with the whole is predicted",
    "vit_gradient_checkpointing": "checkpointing of the vision tower alone is not predicted",
    "use_galore": "another optimizer than is predicted",
    "lisa_activated_layers": "trains some layers at a time; all are predicted",
    "optimizer": "an optimizer of ms-swift's own, which is not predicted",
    "rlhf_type": "preference training runs more than one forward pass; one is predicted",
    "use_logits_to_keep": "computes fewer logits than are predicted",
    "padding_free": "rows joined into one; the same tokens are predicted",
    "lora_dtype": "adapters in another dtype than fp32, which is predicted",
}
KINDS = {
    **trainer.KINDS,
    **kinds_of(FIELDS),
    **booleans(
        """freeze_llm freeze_vit freeze_aligner bnb_4bit_use_double_quant packing lazy_tokenize
        vit_gradient_checkpointing use_galore use_logits_to_keep padding_free"""
    ),
    **each(
        """tuner_type train_type tuner_backend target_regex freeze_parameters_regex lora_bias
        lora_dtype model_type optimizer rlhf_type trainable_parameters_regex""",
        TEXT,
    ),
    **each(
        """adapters custom_register_path external_plugins freeze_parameters new_special_tokens
        trainable_parameters""",
        NAMES,
    ),
    **each("lisa_activated_layers sequence_parallel_size", INTEGER),
    **each("init_weights resume_from_checkpoint", TEXT.either(BOOLEAN)),
    "quant_method": TEXT,
    "task_type": one_of(*TASK_TYPES, "embedding", "reranker", "generative_reranker"),
    "torch_dtype": one_of(*(f"{p}{n}" for p in ("", "torch.") for n in DTYPE_NAMES), "auto"),
    "quant_bits": WHOLE,
    "bnb_4bit_quant_type": one_of("nf4", "fp4"),
    "max_length": WHOLE,
    "packing_length": WHOLE,
    "num_labels": WHOLE,
}
# args.json holds every argument and much that ms-swift worked out; these change neither what is
# adapted nor what a step takes.
INERT = (
    *trainer.INERT,
    r".*dataset.*|columns|strict|streaming|interleave_prob|stopping_strategy|shuffle_buffer_size",
    r"download_mode|disable_auto_column_mapping|template.*|system|truncation_strategy|max_pixels",
    r"agent_template|norm_bbox|use_chat_template|padding_side|loss_scale|is_binary_loss_scale",
    r"response_prefix|.*thinking.*|disable_ignore_empty_think|model_(name|author|revision|suffix)",
    r"model_kwargs|model_info|model_meta|model_dir|hub|use_hf|.*token|swanlab_.*|decision_.*",
    r"load_args|load_data_args|load_from_cache_file|packing_(num_proc|strategy)|external.*",
    r"attn_impl|experts_impl|problem_type|rope_scaling|device_map|max_memory|max_model_len",
    r"local_repo_path|init_strategy|hqq_axis|bnb_4bit_(compute_dtype|quant_storage)",
    r"freeze_parameters_ratio|lorap_lr_ratio|(lora_ga|fourier|boft|vera|adapter|galore|adalora)_.*",
    r"(llamapro|lisa|reft)_.*|add_version|create_checkpoint_symlink|zero_hpz.*|deepspeed_.*",
    r"max_new_tokens|temperature|top_[pkn].*|repetition_penalty|num_beams|stream|stop_words",
    r"logprobs|logging_dir|check_model|acc_.*|metric.*|ignore_args_error|use_swift_lora|rank|local.*",
    r"global_world_size|world_size|node_rank|ckpt_dir|ddp.*|enable_npu_model_patch|predict_.*",
    r"(aligner|vit)_lr|sequential|cached_.*|val_.*|save_.*|.*_args|loss_type|channels|profiler_.*",
    r"remove_unused_columns|preprocess_.*|train_dataloader_shuffle|callbacks|early_stop.*|origin_.*",
)


def read(document: Document) -> Recipe:
    """The recipe of an args.json. Raises BenchError for one that trains no LoRA adapter."""
    values = document.values
    method = values.get("tuner_type", values.get("train_type", "lora"))
    if method != "lora":
        raise refuse_whole_model(document, READER, f"tuner_type is {method!r}")
    fields, keys = renamed(document, FIELDS)
    fields = {**DEFAULTS, **fields, "r": whole(document, "lora_rank", 8)}
    fields["target_modules"] = _asked(document)
    fields["modules_to_save"] = listed(fields.get("modules_to_save"))
    if not given(fields.get("target_parameters")):
        fields.pop("target_parameters", None)
    fields["task_type"] = TASK_TYPES.get(str(values.get("task_type") or "causal_lm"))
    init = str(values.get("init_weights", "true")).lower()
    fields["init_lora_weights"] = {"true": True, "false": False}.get(init, init.replace("-", "_"))
    notes, step_notes = notes_on(READER, document)
    if (task := values.get("task_type") or "causal_lm") not in TASK_TYPES:
        notes = (*notes, f"task_type {task}: what it puts upon the model is not looked into")
    if values.get("quant_bits") and not values.get("quant_method"):
        notes = (*notes, "quant_bits: without quant_method beside it nothing is quantized here")
    if values.get("tuner_backend", "peft") != "peft":
        notes = (*notes, f"tuner_backend {values['tuner_backend']}: it builds the model, and may "
                 "name other target modules")  # fmt: skip

    def targets(model: Model) -> tuple[Fields, tuple[str, ...]]:
        found, said = _targets(model, document, fields)
        if values.get("freeze_llm") and len(model.table.stacks) == 1:
            said += ("freeze_llm does nothing on a language model alone",)
        return found, said

    return Recipe(
        tool=READER.tool,
        version=READER.version,
        document=document,
        model=values.get("model"),
        fields=fields,
        step=_step(document, step_notes),
        targets=targets,
        keys={**keys, "target_modules": ("target_modules", "target_regex")},
        notes=notes,
        num_labels=whole(document, "num_labels", None),
    )


def _asked(document: Document) -> list[str] | str:
    """A regular expression from target_regex, or from target_modules where that is text."""
    values = document.values
    if values.get("target_regex"):
        return str(values["target_regex"])
    asked = values.get("target_modules", ["all-linear"])
    return asked if isinstance(asked, str) and not asked.isidentifier() else listed(asked)


def _targets(model: Model, document: Document, fields: Fields) -> tuple[Fields, tuple[str, ...]]:
    asked = fields["target_modules"]
    if isinstance(asked, str):
        return {}, ()
    table = model.table
    entries = [entry for entry in asked if entry not in ("all-linear", "all-embedding")]
    notes: tuple[str, ...] = ()
    if "all-linear" in asked:
        if len(table.stacks) > 1:
            return _by_stack(model, document, "all-embedding" in asked)
        entries += _shortest(model, [m for m in table.modules if _is_linear(m)])
    if "all-embedding" in asked:
        entries += last_segments(m.name for m in table.modules if m.kind == EMBEDDING)
    if table.model_type in MAMBA and (left := [e for e in entries if e in MAMBA_REFUSED]):
        entries = [entry for entry in entries if entry not in left]
        notes = (f"ms-swift leaves {', '.join(left)} out, which PEFT refuses on this model",)
    return {"target_modules": list(dict.fromkeys(entries))}, notes


def _is_linear(module: Module) -> bool:
    return "linear" in module.class_name.lower() and not any(h in module.name for h in HEADS)


def _shortest(model: Model, linear: list[Module]) -> list[str]:
    """Each linear layer by the shortest end of its name that no other kind of module has."""
    chosen = {m.name for m in linear}
    others = {re.sub(r"\d+\.", "", m.name) for m in model.table.modules if m.name not in chosen}
    names = []
    for module in linear:
        parts = module.name.split(".")
        name = parts.pop()
        while parts and any(o.endswith(re.sub(r"\d+\.", "", name)) for o in others):
            name = f"{parts.pop()}.{name}"
        names.append(name)
    return list(dict.fromkeys(names))


def _by_stack(model: Model, document: Document, embeddings: bool) -> tuple[Fields, tuple[str, ...]]:
    """Every linear layer of the stacks that are not frozen, as a list of whole names."""
    values, table = document.values, model.table
    frozen = {
        key: bool(values.get(key, default))
        for key, default in (("freeze_llm", False), ("freeze_vit", True), ("freeze_aligner", True))
    }
    if all(frozen.values()):
        raise BenchError(
            f"{document.path}: freeze_llm, freeze_vit and freeze_aligner: nothing left"
        )

    def part(name: str) -> str:
        kind = table.stack_of(name).kind
        if kind == CONNECTOR:
            return "freeze_aligner"
        return "freeze_vit" if kind in (VISION, AUDIO) else "freeze_llm"

    held_out = sorted({s.prefix for s in table.stacks if s.prefix and frozen[part(s.prefix)]})
    linear = [m for m in table.modules if _is_linear(m) or (embeddings and m.kind == EMBEDDING)]
    names = [m.name for m in linear if not frozen[part(m.name)]]
    leaves = last_segments(names)
    pattern = rf"(?:{'|'.join(re.escape(p) for p in held_out)})(?:\..*)?"
    notes = (
        "parts by the stacks of this model: " + "; ".join(
            f"{key}: {frozen[key]}" for key in frozen) + "; ms-swift has its own table of them",
    )  # fmt: skip
    reached = {m.name for m in table.modules if ends_in_any(m.name, leaves)}
    if reached == set(names):
        return {"target_modules": list(leaves)}, notes
    if {n for n in reached if not re.fullmatch(pattern, n)} == set(names):
        return {"target_modules": list(leaves), "exclude_modules": pattern}, notes
    return {"target_modules": names}, notes


def _step(document: Document, notes: tuple[str, ...]) -> RecipeStep:
    values = document.values
    optimizer, more = trainer.optimizer(values.get("optim") or trainer.OPTIMIZER)
    length = whole(document, "packing_length", whole(document, "max_length", None))
    if length is None:
        more += ("max_length is null: ms-swift takes the model's own limit; give --seq-len",)
    else:
        rows = "packed to" if values.get("packing") else "of at most"
        more += (f"rows {rows} {length} tokens: all are predicted full",)
    return RecipeStep(
        whole(document, "per_device_train_batch_size", 1),
        length,
        optimizer,
        bool(values.get("gradient_checkpointing", True)),
        _precision(document),
        trainer.autocast_of(values, "bf16"),
        liger=trainer.liger(values),
        notes=(*more, *notes),
    )


def _precision(document: Document) -> str:
    values = document.values
    bits, method = values.get("quant_bits"), values.get("quant_method")
    if method is not None:
        if method != "bnb" or bits not in (4, 8):
            raise BenchError(
                f"{document.path}: line {document.line('quant_method')}: quant_method {method} in "
                f"{bits} bit: only bnb in 4 and 8 bit is known here"
            )
        if bits == 8:
            return "int8"
        double = "-dq" if values.get("bnb_4bit_use_double_quant", True) else ""
        return f"{values.get('bnb_4bit_quant_type', 'nf4')}{double}"
    dtype = str(values.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return {"float32": "fp32", "float16": "fp16"}.get(dtype, "bf16")


READER = Reader(
    tool="ms-swift",
    version="4.6.0",
    source="https://swift.readthedocs.io/en/latest/Instruction/Command-line-parameters.html",
    model_key="model",
    marks=frozenset(
        """tuner_type train_type lora_rank target_modules target_regex freeze_vit freeze_aligner
        tuner_backend quant_bits""".split()
    ),
    fields=FIELDS,
    kinds=KINDS,
    parser=ARGUMENTS,
    inert=INERT,
    said=SAID,
    said_of_step=SAID_OF_STEP,
    read=read,
    excluding=(trainer.HALVES,),
)
