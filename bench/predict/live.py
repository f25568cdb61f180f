"""A live model's step, predicted: the case is read off the model, its adapters and how it is held.

The prediction builds the same model on meta from its config; the live one is only looked at.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.models.architectures import find_model
from bench.models.classes import class_of, task_class_of
from bench.training.cases import Case, StepOptions
from bench.training.options import PREDICTED_LENGTH

if TYPE_CHECKING:
    from bench.predict.kernels import Device
    from bench.predict.result import Prediction

_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def predict_memory(
    model: Any,
    lora_config: Any = None,
    *,
    gpu: str | None = None,
    precision: str | None = None,
    auto_class: str | None = None,
    device: Device | None = None,
    **options: Any,
) -> Prediction:
    """What a training step of `model` with these adapters takes on a GPU; nothing is measured.

    Args:
        model: a live model, before `get_peft_model` or after, its transformers configuration, or
            what names one: a registered name, a folder or file with a config.json, a hub id.
        lora_config: a `peft.LoraConfig`, the path of an adapter_config.json, a mapping of its
            fields or a list of target modules; of a PeftModel the adapter that is active, unless
            another is given.
        gpu: a GPU by name, such as "RTX 4090": whether the step fits it.
        precision: "fp32", "bf16", "nf4", ...; as the live model is held, else bf16.
        auto_class: the transformers class to build a model that is not live with.
        device: what to predict for in place of a GPU, such as `bench.predict.kernels.cpu()`.
        options: fields of `StepOptions`: batch_size (default 1), seq_len (512), loop ("plain"),
            optimizer, gradient_checkpointing (as the live model has it), autocast, ...

    Raises:
        BenchError: when the step cannot be traced, or the input is wrong.
    """
    from bench.predict.gpus import find_gpu
    from bench.predict.result import predict

    case = live_case(model, lora_config, precision, auto_class, **options)
    with kept_random_state():
        return predict(case, gpu=find_gpu(gpu) if gpu else None, device=device)


def live_case(
    model: Any,
    lora_config: Any = None,
    precision: str | None = None,
    auto_class: str | None = None,
    **options: Any,
) -> Case:
    """The case of `predict_memory`'s arguments. Raises BenchError."""
    label, config, built, held = _described(model, auto_class)
    if lora_config is None:
        lora_config = _active_adapter(model)
    adapter = AdapterConfig.of(lora_config)
    known = {name: value for name, value in held.items() if name != "precision"}
    settings = {"batch_size": 1, "seq_len": PREDICTED_LENGTH, **known, **options}
    try:
        step = StepOptions(**settings)
    except TypeError:
        unknown = sorted(set(settings) - set(StepOptions.__dataclass_fields__))
        known_names = ", ".join(StepOptions.__dataclass_fields__)
        raise BenchError(f"unknown option {unknown[0]}: known: {known_names}") from None
    return Case(
        model=label,
        config={k: v for k, v in config.items() if k != "quantization_config"},
        auto_class=built,
        scenario="own",
        adapter=adapter.to_dict(),
        precision=precision or held.get("precision", "bf16"),
        step=step,
    )


def _described(
    model: Any, auto_class: str | None
) -> tuple[str, dict[str, Any], str, dict[str, Any]]:
    """Label, values of the config, task's auto class, and how a live model is held."""
    if isinstance(model, str | Path):
        found = find_model(str(model), auto_class)
        return found.label, dict(found.config), found.task_class, {}
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = getattr(base, "config", base)
    if not (hasattr(config, "model_type") and hasattr(config, "to_dict")):
        raise BenchError(
            f"model: expected a transformers model, its configuration, or a name, "
            f"found {type(model).__name__}"
        )
    values = config.to_dict()
    live = callable(getattr(base, "named_modules", None))
    named = auto_class or (type(base).__name__ if live else class_of(values))
    values.pop("_name_or_path", None)
    label = Path(getattr(config, "name_or_path", "") or config.model_type).name
    return label, values, task_class_of(named, values), _held(base, config) if live else {}


def _held(model: Any, config: Any) -> dict[str, Any]:
    """Options of the step that a live model shows: its precision, preparation, checkpointing."""
    quantization: Any = getattr(config, "quantization_config", None)
    settings = quantization.to_dict() if hasattr(quantization, "to_dict") else quantization or {}
    floating = [p.dtype for p in model.parameters() if p.is_floating_point()]
    kept = [  # neither an adapter nor quantized
        str(p.dtype).removeprefix("torch.")
        for name, p in model.named_parameters()
        if p.is_floating_point() and "lora_" not in name and not hasattr(p, "quant_state")
    ]
    held: dict[str, Any] = {}
    if getattr(model, "is_gradient_checkpointing", False):
        held["gradient_checkpointing"] = True
    if getattr(config, "_attn_implementation", None) == "eager":
        held["attention"] = "eager"
    if settings.get("load_in_4bit"):
        double = "-dq" if settings.get("bnb_4bit_use_double_quant") else ""
        held["precision"] = f"{settings.get('bnb_4bit_quant_type', 'fp4')}{double}"
        compute = str(settings.get("bnb_4bit_compute_dtype", "float32")).removeprefix("torch.")
        if compute != "bfloat16":
            held["compute_dtype"] = _SHORT.get(compute)
    elif settings.get("load_in_8bit"):
        held["precision"] = "int8"
    elif floating and kept:
        held["precision"] = _SHORT.get(kept[0], "bf16")
    if "load_in_4bit" in settings or "load_in_8bit" in settings:
        held["kbit_preparation"] = bool(kept) and set(kept) == {"float32"}
    return held


def _active_adapter(model: Any) -> Any:
    adapters = getattr(model, "peft_config", None)
    if not adapters:
        raise BenchError("the model carries no adapter: give a LoraConfig")
    name = getattr(model, "active_adapter", None)
    return adapters.get(name) or next(iter(adapters.values()))


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """While active, whatever draws and seeds is undone afterwards: a live training goes on."""
    import numpy
    import torch

    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    on_gpus = torch.cuda.get_rng_state_all() if cuda else []
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        numpy.random.set_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(on_gpus)
