"""axolotl's YAML.

Keys and defaults: axolotl 0.19.0 `utils/schemas/` (peft, config, model, training), what they do:
`loaders/adapter.py` (`_build_peft_lora_config`, `find_all_linear_names`), `loaders/model.py`,
`utils/config` (`resolve_dtype`).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.readers import trainer
from bench.readers.document import Document
from bench.readers.linear import last_segments, linear_modules
from bench.readers.recipe import (
    Fields,
    Recipe,
    RecipeStep,
    load_reader,
    notes_on,
    refuse_whole_model,
    renamed,
    whole,
)
from bench.readers.refusals import given
from bench.readers.values import PYDANTIC

if TYPE_CHECKING:
    from bench.models.architectures import Model

# The last segment of the output embedding's name, which lora_target_linear leaves out.
OUTPUT_EMBEDDING = {"gpt_neox": "embed_out"}

# Older flags of axolotl, in the order in which the first counts → what transformers calls them.
ATTENTION = {
    "xformers_attention": "xformers",
    "sage_attention": "sage",
    "flex_attention": "flex_attention",
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
}

LIGER = (
    "liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_fused_linear_cross_entropy",
)  # fmt: skip
"""The kernels that Trainer's use_liger_kernel puts into a model, one key each."""
LIGER_PLUGIN = "axolotl.integrations.liger.LigerPlugin"


def read(document: Document) -> Recipe:
    """The recipe of an axolotl YAML. Raises BenchError for one that trains no LoRA adapter."""
    values = document.values
    adapter = values.get("adapter")
    if adapter not in ("lora", "qlora"):
        why = "it names no adapter and trains the whole model" if not adapter else (
            f"adapter is {adapter!r}, which is none of lora and qlora")  # fmt: skip
        raise refuse_whole_model(document, READER, why)
    fields, keys = renamed(document, READER.fields)
    for key, field in (("lora_r", "r"), ("lora_alpha", "lora_alpha")):
        if field not in fields and not document.misread(key):
            document.wrong.append(f"no {key}: axolotl has no default for it, and PEFT takes none")
    fields["r"] = whole(document, "lora_r", None)
    if isinstance(fields.get("target_parameters"), str):
        fields["target_parameters"] = [fields["target_parameters"]]
    for field in ("modules_to_save", "init_lora_weights", "exclude_modules"):
        if not given(fields.get(field)):
            fields.pop(field, None)
    asked = fields.get("target_modules")
    for entry in asked if isinstance(asked, list) else ():
        try:
            re.compile(entry)
        except re.error as error:
            line = document.line("lora_target_modules", item=entry)
            document.wrong.append(f"line {line}: lora_target_modules: axolotl refuses {entry}, "
                                  f"which is no regular expression: {error}")  # fmt: skip
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
    step = _step(document, precision, step_notes)

    def step_on(model: Model) -> RecipeStep:
        held = model.table.model_type.startswith("gemma4")  # it takes none that is reentrant
        return replace(step, reentrant=False) if held else step

    return Recipe(
        tool=READER.tool,
        version=READER.version,
        document=document,
        model=values.get("base_model"),
        fields=fields,
        step=step,
        step_on=step_on,
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
    if values["adapter"] == "qlora":
        more = values.get("bnb_config_kwargs") or {}
        double = "-dq" if more.get("bnb_4bit_use_double_quant", True) else ""
        return f"{more.get('bnb_4bit_quant_type', 'nf4')}{double}", ()
    if values.get("load_in_8bit"):
        return "int8", ()
    notes: tuple[str, ...] = ()
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
    asked = values.get("optimizer") or trainer.OPTIMIZER
    optimizer, more = trainer.optimizer(asked, values, READER.optimizers)
    checkpointing = values.get("gradient_checkpointing")
    if isinstance(checkpointing, str):
        more += (f"gradient_checkpointing: {checkpointing}: moves what is kept off the GPU, which "
                 "leaves less than is predicted",)  # fmt: skip
    attention, said = _attention(document)
    how = "gradient_checkpointing_kwargs"
    more += (*said, *trainer.ways_of_checkpointing(how, values.get(how)))
    if values.get("batch_size") and "gradient_accumulation_steps" not in values:
        more += ("batch_size: axolotl takes one batch a step where gradient_accumulation_steps is "
                 "not in the file",)  # fmt: skip
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
        "bf16" if values.get("bf16") is True else trainer.autocast_of({"bf16": "auto", **values}),
        _reentrant(document),
        attention=attention,
        accumulation=_accumulation(document),
        liger=loaded and liger == [*LIGER],
        notes=(f"rows {rows} sequence_len, {length} tokens: all are predicted full", *more, *notes),
    )


def _attention(document: Document) -> tuple[str, tuple[str, ...]]:
    """As `trainer.attention`; of the older flags the first of axolotl's table counts."""
    values = document.values
    if asked := values.get("attn_implementation"):
        return trainer.attention("attn_implementation", asked)
    flag = next((flag for flag in ATTENTION if values.get(flag)), "")
    return trainer.attention(f"{flag}:", ATTENTION.get(flag))


def _reentrant(document: Document) -> bool:
    """axolotl makes checkpointing reentrant unless the file says how, prefers, or unfreezes."""
    values = document.values
    others = ("unfrozen_parameters", "rl", "gradient_checkpointing_kwargs")
    silent = not any(values.get(key) is not None for key in others)
    silent = silent and values.get("activation_offloading") != "hidden_states"
    return trainer.reentrant(values.get("gradient_checkpointing_kwargs"), silent)


def _accumulation(document: Document) -> int:
    """`batch_size` counts where gradient_accumulation_steps is null, and not where it is silent."""
    values, key = document.values, "gradient_accumulation_steps"
    asked, rows = values.get("batch_size"), whole(document, "micro_batch_size", 1) or 1
    if key not in values or values[key] is not None:
        return whole(document, key, 1) or 1
    if not asked:
        line = document.line(key)
        document.wrong.append(f"line {line}: {key} must be a whole number of at least 1, not null, "
                              "without batch_size")  # fmt: skip
    return max(1, int(asked or rows) // rows)


def _some_of_liger(keys: list[str], loaded: bool) -> str:
    """What to say of Liger's keys that do not put all its kernels into the model."""
    if not loaded:
        return f"{', '.join(keys)}: nothing without {LIGER_PLUGIN} among plugins"
    return (f"{', '.join(keys)}: some of Liger's kernels, with which a step takes less than is "
            f"predicted; {', '.join(LIGER)} together are predicted")  # fmt: skip


READER = load_reader("axolotl", PYDANTIC, read)
