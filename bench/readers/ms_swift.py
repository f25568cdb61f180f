"""ms-swift's saved args.json, and its YAML with the same keys.

Keys and defaults: ms-swift 4.6.0 `arguments/` (tuner_args, base_args/), what they do:
`pipelines/train/tuner.py` (`get_target_modules`), `utils/transformers_utils.py`
(`find_all_linears`, `get_multimodal_target_regex`). ms-swift keeps a table of the parts of every
multimodal model; here they are the stacks that the model's own module tree tells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.models.modules import EMBEDDING
from bench.models.stacks import AUDIO, CONNECTOR, VISION
from bench.readers import trainer
from bench.readers.document import Document
from bench.readers.linear import ends_in_any, last_segments
from bench.readers.recipe import (
    Fields,
    Recipe,
    RecipeStep,
    listed,
    load_reader,
    notes_on,
    refuse_whole_model,
    renamed,
    whole,
)
from bench.readers.refusals import given
from bench.readers.values import ARGUMENTS
from bench.training.options import DTYPES, EAGER

if TYPE_CHECKING:
    from bench.models.architectures import Model
    from bench.models.modules import Module

DEFAULTS = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.05}
TASK_TYPES = {"causal_lm": "CAUSAL_LM", "seq_cls": "SEQ_CLS"}
# Modules that ms-swift takes off the list on these model types, since PEFT refuses them.
MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
MAMBA_REFUSED = ("out_proj", "conv1d")
# Model types that its loaders load with eager attention where the file names none.
EAGER_TYPES = ("gemma3", "gemma3_text", "hunyuan_vl")
# torch's names of dtypes → what weights in them are called here.
SHORT = {name: short for short, name in DTYPES.items()}
# What its `optimizer` calls the one of `optim` with rates by part of the model.
SAME_OPTIMIZER = ("lorap", "multimodal")
HEADS = ("lm_head", "score", "v_head", "classifier")


def read(document: Document) -> Recipe:
    """The recipe of an args.json. Raises BenchError for one that trains no LoRA adapter."""
    values = document.values
    method = values.get("tuner_type", values.get("train_type", "lora"))
    if method != "lora":
        raise refuse_whole_model(document, READER, f"tuner_type is {method!r}")
    fields, keys = renamed(document, READER.fields)
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

    step = _step(document, step_notes)

    def step_on(model: Model) -> RecipeStep:
        eager = model.table.model_type in EAGER_TYPES and not values.get("attn_impl")
        found = replace(step, attention=EAGER) if eager else step
        return found if values.get("torch_dtype") else _in_dtype(found, document, model)

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
        step=step,
        step_on=step_on,
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
    asked = values.get("optim") or trainer.OPTIMIZER
    own = {**values, "optimizer": None} if values.get("optimizer") in SAME_OPTIMIZER else values
    optimizer, more = trainer.optimizer(asked, own, READER.optimizers)
    attention, said = trainer.attention("attn_impl", values.get("attn_impl"))
    more += said
    kwargs = values.get("gradient_checkpointing_kwargs")
    more += trainer.ways_of_checkpointing("gradient_checkpointing_kwargs", kwargs)
    rows = whole(document, "per_device_train_batch_size", 1) or 1
    batches = 1 if values.get("rlhf_type") == "grpo" else max(1, ceil(16 / rows))
    length = whole(document, "packing_length", whole(document, "max_length", None))
    if length is None:
        more += ("max_length is null: ms-swift takes the model's own limit; give --seq-len",)
    else:
        filled = "packed to" if values.get("packing") else "of at most"
        more += (f"rows {filled} {length} tokens: all are predicted full",)
    dtype = _dtype(values.get("torch_dtype")) or "bf16"
    return RecipeStep(
        rows,
        length,
        optimizer,
        bool(values.get("gradient_checkpointing", True)),
        _precision(document, dtype),
        trainer.autocast_of(_halves(values, dtype)),
        trainer.reentrant(kwargs, True),
        liger=trainer.liger(values),
        attention=attention,
        accumulation=whole(document, "gradient_accumulation_steps", None) or batches,
        notes=(*more, *notes),
    )


def _precision(document: Document, dtype: str) -> str:
    values = document.values
    bits, method = values.get("quant_bits"), values.get("quant_method")
    if method is None:
        return dtype
    if method != "bnb":
        raise BenchError(
            f"{document.path}: line {document.line('quant_method')}: quant_method {method}: "
            "only bnb is known here"
        )
    if bits == 8:
        return "int8"
    double = "-dq" if values.get("bnb_4bit_use_double_quant", True) else ""
    return f"{values.get('bnb_4bit_quant_type', 'nf4')}{double}"


def _dtype(named: object) -> str | None:
    """The dtype of the weights by the name here; None where there is none such."""
    return SHORT.get(str(named).removeprefix("torch."))


def _halves(values: Mapping[str, Any], dtype: str) -> dict[str, object]:
    """`bf16` and `fp16`, each by the dtype of the weights where it is null or not in the file:
    fp16 for float32 too (`_init_mixed_precision`)."""
    by_dtype = {"bf16": dtype == "bf16", "fp16": dtype != "bf16"}
    given = {key: values[key] for key in by_dtype if values.get(key) is not None}
    return {**by_dtype, **given}


def _in_dtype(step: RecipeStep, document: Document, model: Model) -> RecipeStep:
    """The step in the dtype that the model's config.json names, as where no torch_dtype is given.
    Raises BenchError where a half that the file switches on and that dtype's are two."""
    values, config = document.values, model.config
    parts = (config, *map(config.get, ("language_config", "llm_config", "text_config")))
    named = [part.get(key) for part in parts if isinstance(part, Mapping)
             for key in ("dtype", "torch_dtype")]  # fmt: skip
    dtype = next(filter(None, map(_dtype, named)), None)
    held = _halves(values, dtype or "bf16")
    if all(held.values()):
        key = next((key for key in held if values.get(key)), "fp16")
        other = next(name for name in held if name != key)
        if dtype is not None:
            raise BenchError(
                f"{document.path}: line {document.line(key)}: {key}: ms-swift refuses it on this "
                f"model: {other} is on for its weights, which are {dtype}, unless the file says "
                f"{other}: false"
            )
        note = (f"{key}: ms-swift switches {other} on beside it, and refuses both, where the "
                f"weights are bf16 and the file does not say {other}: false")  # fmt: skip
        return replace(step, notes=(*step.notes, note))
    if dtype is None:
        return step
    return replace(step, precision=_precision(document, dtype), autocast=trainer.autocast_of(held))


READER = load_reader("ms_swift", ARGUMENTS, read)
