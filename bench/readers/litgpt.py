"""LitGPT's YAML, as in its config_hub/finetune.

Keys and defaults: LitGPT 0.5.13 `finetune/lora.py` (`setup`) and `args.py` (`TrainArgs`), what they
do: `lora.py`. LitGPT adapts its own classes, so its switches are mapped to roles, and the roles to
this model's names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.models.roles import DOWN, FUSED, GATE, HEAD, KEY, OUTPUT, QUERY, ROUTER, UP, VALUE
from bench.readers.document import Document
from bench.readers.recipe import (
    Fields,
    Recipe,
    RecipeStep,
    load_reader,
    notes_on,
    refuse_whole_model,
    renamed,
)
from bench.readers.values import JSONARGPARSE

if TYPE_CHECKING:
    from bench.models.architectures import Model

DEFAULTS = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05}
# Switch → (what it is without one, the roles that it adapts). A mixture of experts gets its router
# adapted with the experts.
SWITCHES: dict[str, tuple[bool, tuple[str, ...]]] = {
    "lora_query": (True, (QUERY,)),
    "lora_key": (False, (KEY,)),
    "lora_value": (True, (VALUE,)),
    "lora_projection": (False, (OUTPUT,)),
    "lora_mlp": (False, (GATE, UP, DOWN, ROUTER)),
    "lora_head": (False, (HEAD,)),
}
_PRECISION_OF = {"bf16-true": "bf16", "16-true": "fp16", "32-true": "fp32",
              "bf16-mixed": "fp32", "16-mixed": "fp32", "bf16": "fp32", "16": "fp32",
              "32": "fp32"}  # fmt: skip
# The paged one's state is predicted on the GPU.
ADAMW = ("AdamW", "torch.optim.AdamW", "torch.optim.adamw.AdamW", "bitsandbytes.optim.AdamW",
         "bitsandbytes.optim.PagedAdamW")  # fmt: skip
QUANTIZED = {"bnb.nf4": "nf4", "bnb.nf4-dq": "nf4-dq", "bnb.fp4": "fp4", "bnb.fp4-dq": "fp4-dq",
             "bnb.int8-training": "int8"}  # fmt: skip


def read(document: Document) -> Recipe:
    """The recipe of a LitGPT YAML. Raises BenchError for one that switches every adapter off."""
    values = document.values
    if not any(key in values for key in ("lora_r", *SWITCHES)):
        raise refuse_whole_model(document, READER, "it has none of LoRA's keys")
    fields, keys = renamed(document, READER.fields)
    roles = [
        role
        for switch, (default, adapted) in SWITCHES.items()
        if values.get(switch, default)
        for role in adapted
    ]
    if not roles:
        raise BenchError(f"{document.path}: every lora_* switch is off: nothing is adapted")

    train: Any = values.get("train") or {}
    rows, of = train.get("micro_batch_size") or 1, train.get("global_batch_size") or 16
    if rows > of:
        line = document.line("train", "micro_batch_size")
        document.wrong.append(f"line {line}: train.micro_batch_size {rows}: LitGPT refuses more "
                              f"than train.global_batch_size, {of}")  # fmt: skip

    def targets(model: Model) -> tuple[Fields, tuple[str, ...]]:
        return _names(model, roles, str(document.path))

    notes, _ = notes_on(READER, document)
    return Recipe(
        tool=READER.tool,
        version=READER.version,
        document=document,
        model=_hub_id(values.get("checkpoint_dir")),
        fields={**DEFAULTS, **fields, "task_type": "CAUSAL_LM"},
        step=_step(document),
        targets=targets,
        keys={**keys, "target_modules": tuple(SWITCHES)},
        notes=notes,
    )


def _hub_id(folder: object) -> str | None:
    """LitGPT downloads owner/name into checkpoints/owner/name."""
    if not isinstance(folder, str):
        return None
    path = Path(folder)
    return folder if (path / "config.json").exists() else "/".join(path.parts[-2:])


def _names(model: Model, roles: list[str], where: str) -> tuple[Fields, tuple[str, ...]]:
    """The entries that reach the roles on this model.

    LitGPT fuses query, key and value and adapts each part by itself; where the model fuses them
    and not every part is asked for, PEFT cannot do the same.
    """
    from bench.scenarios.scenario import Scenario

    table = model.table
    names = [m.name for m in table.modules if m.weight_elements]
    names += [p.name for p in table.expert_parameters]
    present = {model.role_of(name) for name in names}
    wanted = [r for r in roles if r in present or any(r in FUSED.get(p, ()) for p in present)]
    partly = [p for p in present if p in FUSED and set(FUSED[p]) & set(roles)
              and not set(FUSED[p]) <= set(roles)]  # fmt: skip
    if partly:
        raise BenchError(
            f"{where}: {model.label} holds {', '.join(FUSED[partly[0]])} in one projection; LitGPT "
            "adapts parts of it, which PEFT cannot: switch all of them on, or none"
        )
    chosen = Scenario(name="litgpt", roles=tuple(dict.fromkeys(wanted))).adapter(model)
    notes = tuple(
        f"{role}: LitGPT adapts {', '.join(FUSED[role])} each with matrices of its own, PEFT the "
        "fused projection with one pair, which has fewer parameters"
        for role in sorted(present & FUSED.keys())
        if set(FUSED[role]) <= set(roles)
    )
    return {
        "target_modules": chosen.target_modules,
        **({"target_parameters": chosen.target_parameters} if chosen.target_parameters else {}),
    }, notes


def _step(document: Document) -> RecipeStep:
    values = document.values
    train: Any = values.get("train") or {}
    notes = []
    quantize = values.get("quantize")
    asked = values.get("precision") or "bf16-mixed"
    precision = QUANTIZED.get(str(quantize)) or _PRECISION_OF.get(str(asked), "bf16")
    if str(asked) not in _PRECISION_OF and not quantize:
        notes.append(f"precision {asked} is not predicted: bf16 is")
    mixed = str(asked).removesuffix("-mixed") if not quantize else ""
    autocast = {"bf16": "bf16", "16": "fp16"}.get(mixed)
    optimizer = values.get("optimizer") or "AdamW"
    name = optimizer.get("class_path") if isinstance(optimizer, dict) else optimizer
    kind = "adamw" if quantize or str(name) in ADAMW else ""
    if not kind:
        notes.append(f"optimizer {name} is not predicted")
    elif quantize:
        notes.append("LitGPT takes the paged AdamW, whose state is predicted on the GPU")
    if values.get("devices", 1) not in (1, "1"):
        notes.append("devices: shards and checkpoints over processes; one GPU is predicted")
    if train.get("max_seq_length") is None:
        notes.append("train.max_seq_length is null: LitGPT takes the longest row of the data; "
                     "give --seq-len")  # fmt: skip
    notes.append("LitGPT's own model, whose kernels are not transformers'")
    rows, of = train.get("micro_batch_size") or 1, train.get("global_batch_size") or 16
    return RecipeStep(
        rows, train.get("max_seq_length"), kind, False, precision, autocast,
        accumulation=max(1, of // rows), notes=tuple(notes),
    )  # fmt: skip


READER = load_reader("litgpt", JSONARGPARSE, read)
