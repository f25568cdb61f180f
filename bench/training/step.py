"""The training step, defined once: the worker measures this function, a predictor may trace it.

Nothing here depends on the device: on `meta` the same code runs without memory or arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.utils import parametrize

from bench.errors import BenchError
from bench.tasks import AUDIO, IMAGES, TRAINED
from bench.training.batches import (
    Batch,
    audio_batch,
    contrastive_loss,
    ended,
    masked,
    with_images,
)
from bench.training.cases import Case, StepOptions
from bench.training.options import DTYPES, KEEP_OUTPUT

Mark = Callable[[str], None]
"""Called with "forward", "backward", "optimizer" as each phase starts, and with "end"."""

IGNORED_LABEL = -100
"""The label that transformers' losses leave out (cross entropy's `ignore_index`)."""
FIRST_LOSS_SCALE = 1024.0
"""Where small gradients would vanish in float16 without one."""


@dataclass(frozen=True)
class Training:
    """What one case's training step needs; `loops.run_step` runs it."""

    model: torch.nn.Module
    batch: Batch
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    options: StepOptions
    adapted_layers: int
    quantized_layers: int
    trainer: Any = None
    """transformers' or TRL's, where the loop is one of theirs."""
    patches: tuple[tuple[Any, str, Any], ...] = ()
    """(owner, name, value): what stands in a library's place while the step runs."""

    @property
    def trainable_parameters(self) -> int:
        """Trainable elements, shared tensors once."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def tokens(self) -> int:
        """Tokens in the batch, padding left out; images for an image model, clips for one of
        audio; a transcript's tokens for one that writes."""
        return int(counted_tokens(self.batch).sum())


def counted_tokens(batch: Batch) -> torch.Tensor:
    """A mask of what counts as a token in a batch, of any shape."""
    if "attention_mask" in batch and "input_ids" in batch:
        return torch.cat([m for name, m in batch.items() if name.endswith("attention_mask")])
    labels = batch["labels"]
    return labels != IGNORED_LABEL if labels.dim() > 1 else torch.ones_like(labels)


def unmarked(phase: str) -> None:
    """Marks nothing."""


def training_step(
    model: torch.nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
    mark: Mark = unmarked,
    *,
    options: StepOptions = StepOptions(),  # noqa: B008  # frozen
) -> torch.Tensor:
    """Forward, loss, backward, optimizer, zero_grad; returns the loss, a detached scalar.

    Of `options` the loop, accumulation (the same batch again) and clipping count. Where the loop
    keeps the model's output, logits included, it lives until this returns.
    """
    keep = options.loop == KEEP_OUTPUT
    for _ in range(options.accumulation):
        mark("forward")
        with autocast(options, next(iter(batch.values())).device):
            output = output_of(model, batch)
        loss: torch.Tensor = output.loss
        if not keep:
            del output
        if options.accumulation > 1:
            loss = loss / options.accumulation
        mark("backward")
        (loss if scaler is None else scaler.scale(loss)).backward()
    mark("optimizer")
    if options.max_grad_norm is not None:
        if scaler is not None:
            scaler.unscale_(optimizer)
        trained = [p for p in model.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(trained, options.max_grad_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    mark("end")
    return loss.detach()


def autocast(options: StepOptions, device: torch.device) -> Any:
    """The context of forward and loss that `options.autocast` asks for."""
    if options.autocast is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, DTYPES[options.autocast]))


def output_of(model: torch.nn.Module, batch: Batch) -> Any:
    """What the model gives for a batch, its `loss` among it: the contrastive loss alone for pairs
    of sentences, for which models have none."""
    if "positive_input_ids" in batch:
        return SimpleNamespace(loss=contrastive_loss(model, batch))
    return model(**batch)


def make_batch(config: Any, auto_class: str, options: StepOptions, device: str = "cpu") -> Batch:
    """The fixed batch that a case trains on, drawn from `options.seed` (the same on every device).

    `config` is a transformers config. Shapes, with b and s the batch size and sequence length:
    `input_ids` and `attention_mask` (b, s); `labels` (b, s) for language models and token
    classification, (b,) for classification; `pixel_values` (b, channels, height, width). Packed,
    `input_ids`, `position_ids` and `labels` are (1, b s) and there is no mask. Between texts to
    choose from, `input_ids` and `attention_mask` are (b, texts, s). For audio, images within a text
    and pairs of sentences see `bench.training.batches`. Raises BenchError where the model takes no
    such batch.
    """
    task = TRAINED[auto_class]
    generator = torch.Generator().manual_seed(options.seed)
    b, s = options.batch_size, options.seq_len

    def draw(high: int, *shape: int, low: int = 0) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    if task.inputs == IMAGES:
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        pixels = torch.randn(b, config.num_channels, height, width, generator=generator)
        return _to({"pixel_values": pixels, "labels": draw(config.num_labels, b)}, device)

    if options.packed and task.labels != "the same tokens":
        raise BenchError(f"--packed is for language models, and this one is for {task.name}")
    if task.inputs == AUDIO:
        return _to(audio_batch(config, auto_class, (b, s), options.padded, generator), device)

    vocabulary = config.get_text_config().vocab_size
    # Low ids are special tokens: a pad id within a sentence would shorten it for some models.
    first_word = min(10, vocabulary // 2)
    rows = b * task.texts
    lengths = torch.full((rows,), s)
    if options.padded:
        lengths[1:] = draw(s + 1, rows - 1, low=max(1, s // 2))
    mask = (torch.arange(s) < lengths[:, None]).long()
    pad = config.pad_token_id if getattr(config, "pad_token_id", None) is not None else 0
    ids = torch.where(mask.bool(), draw(vocabulary, rows, s, low=first_word), pad)
    batch = {"input_ids": ids, "attention_mask": mask}

    if options.packed:
        positions = torch.arange(s).repeat(b)
        labels = ids.masked_fill(positions.view(b, s) == 0, IGNORED_LABEL)
        batch = {"input_ids": ids, "position_ids": positions, "labels": labels}
        batch = {name: values.reshape(1, b * s) for name, values in batch.items()}
    elif task.labels == "pairs":
        positives = torch.where(mask.bool(), draw(vocabulary, b, s, low=first_word), pad)
        batch |= {"positive_input_ids": positives, "positive_attention_mask": mask.clone()}
    elif task.labels == "masked tokens":
        batch["labels"] = masked(ids, mask, generator)
    elif task.labels == "the same tokens":
        batch["labels"] = ids.masked_fill(mask == 0, IGNORED_LABEL)
    elif task.labels == "other tokens":
        batch["labels"] = draw(vocabulary, b, s, low=first_word).masked_fill(
            mask == 0, IGNORED_LABEL
        )
    elif task.labels == "a class a token":
        batch["labels"] = draw(config.num_labels, b, s).masked_fill(mask == 0, IGNORED_LABEL)
    elif task.labels == "a span":
        batch["start_positions"] = draw(max(1, s // 4), b)
        batch["end_positions"] = batch["start_positions"] + draw(max(1, s // 4), b)
    elif task.labels == "a choice":
        batch = {name: t.view(b, task.texts, s) for name, t in batch.items()}
        batch["labels"] = draw(task.texts, b)
    else:
        if getattr(config, "is_encoder_decoder", False):
            batch["input_ids"] = ended(ids, lengths, config.eos_token_id)
        batch["labels"] = draw(config.num_labels, b)
    if options.images:
        batch = with_images(batch, config, auto_class, options.images, generator)
    return _to(batch, device)


def make_optimizer(model: torch.nn.Module, options: StepOptions) -> torch.optim.Optimizer:
    """The optimizer that `options` names, over the trainable parameters; weight decay 0.01.

    SGD has no momentum, as `transformers.Trainer` makes it.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    name, rate = options.optimizer, options.learning_rate
    if name.endswith("bit"):
        import bitsandbytes

        kind = "".join(part.capitalize() for part in name.split("-")).replace("Adamw", "AdamW")
        optimizer: torch.optim.Optimizer = getattr(bitsandbytes.optim, kind)(parameters, lr=rate)
        return optimizer
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, lr=rate, scale_parameter=False, relative_step=False)
    plain = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rmsprop": torch.optim.RMSprop}
    if name in plain:
        return plain[name](parameters, lr=rate)
    how = {"adamw": {}, "adamw-fused": {"fused": True}, "adamw-foreach": {"foreach": True}}
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, **how[name])


def make_scaler(case: Case, device: str) -> torch.amp.GradScaler | None:
    """A loss scaler where the case has a place for one and does not do without; else None."""
    if not (case.scales_loss and case.step.loss_scaling):
        return None
    return torch.amp.GradScaler(torch.device(device).type, init_scale=FIRST_LOSS_SCALE)


def _to(batch: Batch, device: str) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def hold_in_float32(model: torch.nn.Module) -> None:
    """Of a float16 model what trains beside its adapters: copies of whole modules, and the base
    model's own parameters that PEFT sets free (`bias`)."""
    _saved_copies_in_float32(model)
    _freed_parameters_in_float32(model)


def _saved_copies_in_float32(model: torch.nn.Module) -> None:
    """Adam's second moment vanishes in float16.

    Inputs are cast on the way in, outputs back to float16 for the frozen layers that follow.
    """
    from peft.utils.other import ModulesToSaveWrapper

    def cast(value: Any, dtype: torch.dtype) -> Any:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    def enter(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(cast(arg, torch.float32) for arg in args)

    def leave(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return cast(output, torch.float16)

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for copy in module.modules_to_save.values():
                copy.float()
                copy.register_forward_pre_hook(enter)
                copy.register_forward_hook(leave)


class _Half(torch.nn.Module):  # type: ignore[misc]
    """What a float16 module sees of a parameter that is held in float32."""

    def forward(self, held: torch.Tensor) -> torch.Tensor:
        return held.half()


def _freed_parameters_in_float32(model: torch.nn.Module) -> None:
    """As PEFT holds its adapters: a GradScaler refuses float16 gradients.

    They are cast where they are used, as autocast would: torch multiplies no float16 weight with a
    float32 bias beside it.
    """
    held: dict[torch.nn.Parameter, torch.nn.Parameter] = {}  # shared ones stay shared
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad and parameter.dtype == torch.float16:
                wide = held.setdefault(parameter, torch.nn.Parameter(parameter.detach().float()))
                parametrize.register_parametrization(module, name, _Half(), unsafe=True)
                module.parametrizations[name].original = wide
