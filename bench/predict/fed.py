"""What a traced step is fed: the task's own batch, or whatever the model's class asks for."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from bench.compat import private
from bench.tasks import AUDIO, IMAGES, TRAINED
from bench.training.batches import Batch
from bench.training.options import StepOptions
from bench.training.step import make_batch

if TYPE_CHECKING:
    from bench.models.architectures import Model

_LENGTH = 16
_SAMPLES = 16_000  # a second of sound
_MEL_BINS = 80
TASK = "task"
"""Among kinds: the task's own batch."""


def batches(model: Model) -> list[tuple[str, ...]]:
    """What to feed, in the order of trying: the task's own batch, which is text alone wherever the
    model takes text; else whatever its class asks for."""
    task = TRAINED.get(model.task_class)
    own = [(TASK, {AUDIO: "audio", IMAGES: "image"}.get(task.inputs, "text"))] if task else []
    parameters = inspect.signature(_class_of(model).forward).parameters
    image = [("image",)] if "pixel_values" in parameters else []
    audio = [("audio",)] if {"input_features", "input_values"} & parameters.keys() else []
    if "input_ids" in parameters:
        return [*own, ("text",), *(("text", *kinds) for kinds in (*image, *audio))]
    both = [(*kinds, "text") for kinds in (*image, *audio)]
    return [*own, *image, *audio, *both] or [("text",)]


def _class_of(model: Model) -> Any:
    from bench.models.classes import model_class

    if model.own_code is not None:
        return type(model.build())
    loader = model_class(model.auto_class)
    if hasattr(loader, "forward"):
        return loader
    private("models of a class")
    return loader._model_mapping[type(model.transformers_config)]


def batch_of(model: Model, base: Any, kinds: tuple[str, ...], dtype: torch.dtype) -> dict[str, Any]:
    """One batch on meta, its floats of `dtype`: the task's own where it is known, else every input
    of these kinds."""
    config = base.config
    if kinds[0] == TASK:
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = 0
        options = StepOptions(batch_size=2, seq_len=_LENGTH)
        given: Batch = make_batch(config, model.task_class, options, "meta")
        return {**_floats(given, dtype), **_no_cache(base)}
    taken = inspect.signature(type(base).forward).parameters
    batch = {}
    ids = (torch.arange(2 * _LENGTH, device="meta") % 7 + 10).view(2, _LENGTH)
    if "text" in kinds and "input_ids" in taken:
        batch["input_ids"] = ids
        batch["attention_mask"] = torch.ones_like(ids)
    if "text" in kinds and "decoder_input_ids" in taken:
        batch["decoder_input_ids"] = ids
    if "image" in kinds and "pixel_values" in taken:
        batch["pixel_values"] = torch.empty(2, *_image_shape(config), device="meta")
    if "audio" in kinds and "input_features" in taken:
        bins = getattr(config, "num_mel_bins", _MEL_BINS)
        frames = 2 * getattr(config, "max_source_positions", 1500)
        batch["input_features"] = torch.empty(2, bins, frames, device="meta")
    if "audio" in kinds and "input_values" in taken:
        batch["input_values"] = torch.empty(2, _SAMPLES, device="meta")
    return {**_floats(batch, dtype), **_no_cache(base)}


def _floats(batch: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {k: t.to(dtype) if t.is_floating_point() else t for k, t in batch.items()}


def _no_cache(base: Any) -> dict[str, Any]:
    taken = inspect.signature(type(base).forward).parameters
    return {"use_cache": False} if "use_cache" in taken else {}


def _image_shape(config: Any) -> tuple[int, int, int]:
    part = next((c for c in (getattr(config, "vision_config", None), config)
                 if getattr(c, "image_size", None)), config)  # fmt: skip
    size = getattr(part, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    return getattr(part, "num_channels", 3) or 3, height, width
