"""LLaMA-Factory's YAML and JSON.

Keys and defaults: LLaMA-Factory 0.9.5 `hparams/` (finetuning_args, model_args, data_args), what
they do: `model/adapter.py`, `model/model_utils/misc.py` (`find_all_linear_modules`) and
`visual.py` (`patch_target_modules`, the table of composite models).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.readers import trainer
from bench.readers.document import Document
from bench.readers.linear import ends_in_any, holding, last_segments
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
from bench.readers.values import DATACLASSES
from bench.training.options import EAGER, SDPA

if TYPE_CHECKING:
    from bench.models.architectures import Model


@dataclass(frozen=True)
class Composite:
    """Parts of a vision-language model, as pieces of module names."""

    projector: tuple[str, ...] = ("multi_modal_projector",)
    vision: tuple[str, ...] = ("vision_tower",)
    language: tuple[str, ...] = ("language_model", "lm_head")
    conflicts: tuple[str, ...] = ()


_QWEN = Composite(("visual.merger",), ("visual.patch_embed", "visual.blocks"),
                  conflicts=("patch_embed",))  # fmt: skip
_QWEN3 = Composite(
    ("visual.merger",),
    ("visual.pos_embed", "visual.patch_embed", "visual.blocks", "visual.deepstack_merger_list"),
    conflicts=("patch_embed",),
)
_QWEN3_5 = Composite(("model.visual.merger",),
                     ("visual.pos_embed", "visual.patch_embed", "visual.blocks"),
                     conflicts=("patch_embed",))  # fmt: skip
# Model types whose towers LLaMA-Factory knows; on every other its freeze_* keys do nothing.
COMPOSITES = {
    **dict.fromkeys(("gemma3", "internvl", "interns1", "kimi_vl", "llava", "llava_next",
                     "llava_next_video", "paligemma", "video_llava"), Composite()),
    "gemma3n": Composite(vision=("vision_tower", "audio_tower"),
                         conflicts=("timm_model", "subsample_conv_projection")),
    "gemma4": Composite(("model.embed_vision", "model.embed_audio"),
                        ("vision_tower", "audio_tower"),
                        conflicts=("per_layer_projection_norm",)),
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm_ocr", "qwen2_vl", "qwen2_5_vl"), _QWEN),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe"), _QWEN3),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), _QWEN3_5),
    **dict.fromkeys(("llama4", "mllama"), Composite(vision=("vision_model",))),
    "mistral3": Composite(("model.multi_modal_projector",)),
    "qwen2_audio": Composite(vision=("audio_tower",)),
    "qwen2_5_omni_thinker": Composite(
        ("visual.merger", "audio_tower.proj"),
        ("visual.patch_embed", "visual.blocks", "audio_tower"),
        ("model", "lm_head"), ("patch_embed",),
    ),
}  # fmt: skip


# `flash_attn` → what transformers calls it; "auto" is its own choice.
ATTENTION = {"disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2",
             "fa3": "flash_attention_3"}  # fmt: skip


def read(document: Document) -> Recipe:
    """The recipe of a LLaMA-Factory file. Raises BenchError for one that trains no LoRA adapter."""
    values = document.values
    method = values.get("finetuning_type", "lora")
    if method != "lora" and not document.misread("finetuning_type"):
        raise refuse_whole_model(document, READER, f"finetuning_type is {method!r}")
    fields, keys = renamed(document, READER.fields)
    fields["r"] = whole(document, "lora_rank", 8)
    fields["lora_alpha"] = values.get("lora_alpha") or 2 * fields["r"]
    fields["target_modules"] = listed(fields.get("target_modules", "all"))
    if "modules_to_save" in fields:
        fields["modules_to_save"] = listed(fields["modules_to_save"])
    fields["task_type"] = "CAUSAL_LM"
    if values.get("pissa_init"):
        steps = values.get("pissa_iter", 16)
        fields["init_lora_weights"] = "pissa" if steps == -1 else f"pissa_niter_{steps}"
    notes, step_notes = notes_on(READER, document)
    if values.get("stage") in ("rm", "ppo"):
        notes = (*notes, f"stage {values['stage']}: a value head is added, which is not counted")
    if values.get("stage") in ("rm", "ppo", "dpo", "kto"):
        said = "preference training runs more than one forward pass; one is predicted"
        if values["stage"] in ("rm", "dpo"):
            said = f"each row is a pair, twice what is predicted; {said}"
        step_notes = (*step_notes, f"stage {values['stage']}: {said}")
    precision = _precision(document)

    step = _step(document, precision, step_notes)

    def targets(model: Model) -> tuple[Fields, tuple[str, ...]]:
        return _targets(model, fields, values)

    def step_on(model: Model) -> RecipeStep:
        return _attention_on(model.table.model_type, document, step)

    return Recipe(
        tool=READER.tool,
        version=READER.version,
        document=document,
        model=values.get("model_name_or_path"),
        fields=fields,
        step=step,
        step_on=step_on,
        targets=targets,
        keys={**keys, "target_modules": ("lora_target",)},
        notes=notes,
    )


def _targets(model: Model, fields: Fields, values: Any) -> tuple[Fields, tuple[str, ...]]:
    """The target modules as LLaMA-Factory works them out, and what a resized vocabulary adds."""
    table = model.table
    composite = COMPOSITES.get(table.model_type)
    frozen = {
        "freeze_vision_tower": values.get("freeze_vision_tower", True),
        "freeze_multi_modal_projector": values.get("freeze_multi_modal_projector", True),
        "freeze_language_model": values.get("freeze_language_model", False),
    }
    found: Fields = {}
    if values.get("resize_vocab") and "modules_to_save" not in fields:
        embeddings = (table.input_embedding, table.output_embedding)
        found["modules_to_save"] = list(last_segments(filter(None, embeddings)))
    entries = fields["target_modules"]
    if entries == ["all"]:
        entries = list(_every_linear(model, composite, frozen["freeze_vision_tower"]))
    found["target_modules"] = entries
    if composite is None:
        idle = [key for key in frozen if key in values and len(table.stacks) > 1]
        if frozen["freeze_language_model"] and not idle:
            idle = ["freeze_language_model"]
        return found, tuple(
            f"{key} does nothing: LLaMA-Factory knows no parts of {table.model_type}"
            for key in idle
        )
    held_out = set(composite.conflicts)
    held_out |= set(composite.vision if frozen["freeze_vision_tower"] else ())
    held_out |= set(composite.projector if frozen["freeze_multi_modal_projector"] else ())
    held_out |= set(composite.language if frozen["freeze_language_model"] else ())
    return {**found, **_held_out(model, entries, sorted(held_out))}, ()


def _every_linear(model: Model, composite: Composite | None, frozen: bool) -> tuple[str, ...]:
    forbidden = {"lm_head"}
    forbidden |= {"chatglm": {"output_layer"}, "internlm2": {"output"}}.get(
        model.table.model_type, set()
    )
    if composite is not None:
        forbidden |= set(composite.projector) | set(composite.vision if frozen else ())
    return last_segments(
        m.name
        for m in model.table.modules
        if "Linear" in m.class_name
        and "Embedding" not in m.class_name
        and not any(part in m.name for part in forbidden)
    )


def _held_out(model: Model, entries: list[str], parts: list[str]) -> Fields:
    """The whole names that the tool lists for a composite model; as the user's entries and an
    exclude_modules where those reach the same, since that can be read."""
    names = [
        m.name
        for m in model.table.modules
        if any(entry in m.name for entry in entries) and not any(part in m.name for part in parts)
    ]
    entries_reach = [name for name in model.table.by_name if ends_in_any(name, entries)]
    if set(entries_reach) == set(names):
        return {"target_modules": entries}
    if set(names) == {n for n in entries_reach if not any(part in n for part in parts)}:
        return {"target_modules": entries, "exclude_modules": holding(parts)}
    idle = [entry for entry in entries if not any(entry in name for name in names)]
    return {"target_modules": [*idle, *names]}


def _precision(document: Document) -> str:
    values = document.values
    bits = values.get("quantization_bit")
    if bits is not None:
        method = values.get("quantization_method", "bnb")
        if method not in ("bnb", "bitsandbytes"):
            raise BenchError(
                f"{document.path}: line {document.line('quantization_method')}: "
                f"quantization_method {method}: only bnb is known here"
            )
        if bits == 8:
            return "int8"
        double = "-dq" if values.get("double_quantization", True) else ""
        return f"{values.get('quantization_type', 'nf4')}{double}"
    if trainer.halves(values, "fp16"):
        return "fp16"
    return "bf16"  # asked for, or else the dtype that the hardware is best at


def _step(document: Document, precision: str, notes: tuple[str, ...]) -> RecipeStep:
    values = document.values
    asked = values.get("optim") or trainer.OPTIMIZER
    optimizer, more = trainer.optimizer(asked, values, READER.optimizers)
    length = whole(document, "cutoff_len", 2048)
    packed = values.get("packing") or values.get("neat_packing")
    rows = "packed to" if packed else "of at most"
    kernel = ATTENTION.get(str(values.get("flash_attn")))
    attention, said = trainer.attention(f"flash_attn {values.get('flash_attn')}:", kernel)
    how = "gradient_checkpointing_kwargs"
    more += (*said, *trainer.ways_of_checkpointing(how, values.get(how)), *_idle(values, how))
    checkpointing, reentrant = _checkpointing(values)
    return RecipeStep(
        whole(document, "per_device_train_batch_size", trainer.BATCH_SIZE),
        length,
        optimizer,
        checkpointing,
        precision,
        None if values.get("pure_bf16") else trainer.autocast_of(values),
        reentrant,
        attention=attention,
        accumulation=whole(document, "gradient_accumulation_steps", 1) or 1,
        liger=trainer.liger(values),
        notes=(f"rows {rows} cutoff_len, {length} tokens: all are predicted full", *more, *notes),
    )


def _checkpointing(values: Mapping[str, Any]) -> tuple[bool, bool]:
    """(whether it is on, whether it is reentrant). LLaMA-Factory switches it on itself; Trainer's
    own key does so once more, by the method that LLaMA-Factory has put there if it did."""
    by_itself = not values.get("disable_gradient_checkpointing")
    if values.get("gradient_checkpointing"):
        return True, trainer.reentrant(values.get("gradient_checkpointing_kwargs"), by_itself)
    return by_itself, values.get("use_reentrant_gc") in (True, None)  # None leaves it to torch


def _idle(values: Mapping[str, Any], how: str) -> tuple[str, ...]:
    """What to say of Trainer's keys of checkpointing that change nothing of what is done."""
    if values.get("gradient_checkpointing"):
        return ()
    said: tuple[str, ...] = ()
    if "gradient_checkpointing" in values and not values.get("disable_gradient_checkpointing"):
        said = ("gradient_checkpointing: LLaMA-Factory checkpoints all the same; "
                "disable_gradient_checkpointing: true switches it off",)  # fmt: skip
    if trainer.table(values.get(how)):
        said += (f"{how}: nothing without gradient_checkpointing: true; use_reentrant_gc is read",)
    return said


def _attention_on(kind: str, document: Document, step: RecipeStep) -> RecipeStep:
    """The step with the attention that LLaMA-Factory takes on a model of this type."""
    asked = document.values.get("flash_attn") or "auto"
    others = tuple(note for note in step.notes if not note.startswith("flash_attn "))
    if kind == "gpt_oss":
        said = ("LLaMA-Factory takes FlashAttention-3 of the hub on this model, which is left out "
                f"of the prediction; {SDPA} is predicted in its place")  # fmt: skip
        return replace(step, attention=SDPA, notes=(said, *others))
    if asked == "fa3":
        line = document.line("flash_attn")
        raise BenchError(f"{document.path}: line {line}: flash_attn fa3: LLaMA-Factory refuses it "
                         "on any model but gpt_oss")  # fmt: skip
    if kind == "gemma2" and asked in ("auto", "fa2"):
        said = (f"flash_attn {asked}: LLaMA-Factory takes eager attention on this model where "
                "flash-attn is not installed, which is predicted")  # fmt: skip
        return replace(step, attention=EAGER, notes=(said, *others))
    if kind in ("youtu", "youtu_vl") and asked in ("auto", "sdpa"):
        return replace(step, attention=EAGER)
    return step


READER = load_reader("llama_factory", DATACLASSES, read)
