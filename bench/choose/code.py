"""A row as people write it: `LoraConfig(...)`, axolotl's and LLaMA-Factory's lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bench.adapters.config import ALL_LINEAR
from bench.models.precision import precision
from bench.training.options import trainer_name

if TYPE_CHECKING:
    from bench.adapters.config import AdapterConfig
    from bench.choose.table import ChoiceRow


_PLAIN = (
    "# The row's memory is that of a plain step. The tools' own loops take more:\n"
    "# bench check FILE --gpu-memory SIZE says what."
)
_LANGUAGE = ("AutoModelForCausalLM", "AutoModelForImageTextToText")


def lora_config(adapter: AdapterConfig) -> str:
    """Python that makes the configuration; what is at PEFT's default is left out."""
    fields = {"r": adapter.r, **adapter.to_dict()}
    lines = [f"    {name}={value!r}," for name, value in fields.items()]
    return "\n".join(["from peft import LoraConfig", "", "LoraConfig(", *lines, ")"])


def axolotl(row: ChoiceRow) -> str:
    """The lines of axolotl's YAML that say this row."""
    adapter, bits = row.plan.adapter, precision(row.precision).bits
    values: dict[str, object] = {
        "adapter": "qlora" if bits == 4 else "lora",
        "lora_r": adapter.r,
        "lora_alpha": adapter.lora_alpha,
        "lora_dropout": adapter.lora_dropout,
        "lora_target_modules": _listed(adapter.target_modules),
        "lora_target_parameters": list(adapter.target_parameters),
        "lora_exclude_modules": _listed(adapter.exclude_modules),
        "lora_modules_to_save": list(adapter.modules_to_save),
        "load_in_4bit": bits == 4,
        "load_in_8bit": bits == 8,
        "sequence_len": row.case.step.seq_len,
        "micro_batch_size": row.case.step.batch_size,
        "gradient_checkpointing": row.checkpointing,
        "optimizer": trainer_name(row.case.step.optimizer),
        **_halves(row),
    }
    if bits == 4:
        # axolotl quantizes the scales a second time unless it is told not to.
        double = row.precision.endswith("-dq")
        values["bnb_config_kwargs"] = {
            "bnb_4bit_quant_type": row.precision.removesuffix("-dq"),
            "bnb_4bit_use_double_quant": double,
        }
    always = ("load_in_4bit", "load_in_8bit", "gradient_checkpointing", "lora_dropout")
    return _yaml({key: v for key, v in values.items() if v or key in always})


def llama_factory(row: ChoiceRow) -> str:
    """The lines of LLaMA-Factory's YAML that say this row, or a line why none do."""
    adapter, bits = row.plan.adapter, precision(row.precision).bits
    targets = adapter.target_modules
    if isinstance(targets, str) and targets != ALL_LINEAR:
        return "# LLaMA-Factory takes names of modules, and this model needs an expression"
    if adapter.target_parameters:
        return "# LLaMA-Factory has no target_parameters, which this model's experts need"
    values: dict[str, object] = {
        "finetuning_type": "lora",
        "lora_rank": adapter.r,
        "lora_alpha": int(adapter.lora_alpha),
        "lora_dropout": adapter.lora_dropout,
        "lora_target": ",".join(targets) if isinstance(targets, tuple) else targets,
        "additional_target": ",".join(adapter.modules_to_save),
        "cutoff_len": row.case.step.seq_len,
        "per_device_train_batch_size": row.case.step.batch_size,
        "disable_gradient_checkpointing": not row.checkpointing,
        "optim": trainer_name(row.case.step.optimizer),
        **_halves(row),
    }
    if adapter.exclude_modules:
        values |= {"freeze_vision_tower": True, "freeze_multi_modal_projector": True}
    if bits < 16:
        values |= {"quantization_bit": bits, "quantization_method": "bnb"}
    if bits == 4:
        values |= {
            "quantization_type": row.precision.removesuffix("-dq"),
            "double_quantization": row.precision.endswith("-dq"),
        }
    always = ("lora_dropout", "disable_gradient_checkpointing", "double_quantization")
    return _yaml({key: v for key, v in values.items() if v or key in always})


def as_code(row: ChoiceRow) -> str:
    """PEFT's for every model, with the hazards of the configuration; both tools' for what they
    train, each under its name, and where to ask for the memory of their own step."""
    hazards = [f"# hazard {each.code}: {each.reason}" for each in row.plan.ledger.hazards]
    parts = {"PEFT": "\n".join([*hazards, lora_config(row.plan.adapter)])}
    task, optimizer = row.case.auto_class, row.case.step.optimizer
    for tool, lines in (("axolotl", axolotl), ("LLaMA-Factory", llama_factory)):
        no = f"# {tool} trains language models, and this is {task}"
        parts[tool] = lines(row) if task in _LANGUAGE else no
    text = "\n\n".join(f"# {name}\n{text}" for name, text in parts.items()) + "\n"
    if task not in _LANGUAGE:
        return text
    if trainer_name(optimizer) is None:
        text += f"\n# Neither tool has {optimizer}: theirs is used.\n"
    return f"{text}\n{_PLAIN}\n"


def _halves(row: ChoiceRow) -> dict[str, object]:
    kind = precision(row.precision)
    if kind.quantized or kind.compute == "bfloat16":
        return {"bf16": True}
    return {"fp16": True} if kind.compute == "float16" else {}


def _listed(value: tuple[str, ...] | str | None) -> object:
    return list(value) if isinstance(value, tuple) else value


def _yaml(values: dict[str, object]) -> str:
    """A flat mapping; JSON's scalars and lists are YAML's."""
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in values.items())
