"""The training step, defined once: the worker measures this function, a predictor may trace it.

Nothing here depends on the device: on `meta` the same code runs without memory or arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.models.precision import Precision
from bench.training.cases import TASKS, StepOptions

Batch = dict[str, torch.Tensor]
Mark = Callable[[str], None]
"""Called with "forward", "backward", "optimizer" as each phase starts, and with "end"."""

IGNORED_LABEL = -100
"""The label that transformers' losses leave out (cross entropy's `ignore_index`)."""


def _unmarked(phase: str) -> None:
    pass


def training_step(
    model: torch.nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
    mark: Mark = _unmarked,
) -> torch.Tensor:
    """Forward, loss, backward, optimizer, zero_grad; returns the loss, a detached scalar."""
    mark("forward")
    loss: torch.Tensor = model(**batch).loss
    mark("backward")
    if scaler is None:
        loss.backward()
        mark("optimizer")
        optimizer.step()
    else:
        scaler.scale(loss).backward()
        mark("optimizer")
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    mark("end")
    return loss.detach()


def make_batch(config: Any, auto_class: str, options: StepOptions, device: str = "cpu") -> Batch:
    """The fixed batch that a case trains on, drawn from `options.seed` (the same on every device).

    `config` is a transformers config. Shapes, with b and s the batch size and sequence length:
    `input_ids` and `attention_mask` (b, s); `labels` (b, s) for language models and token
    classification, (b,) for classification; `pixel_values` (b, channels, height, width).
    """
    task = TASKS[auto_class]
    generator = torch.Generator().manual_seed(options.seed)
    b, s = options.batch_size, options.seq_len

    def draw(high: int, *shape: int, low: int = 0) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    if task == "image-classification":
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        pixels = torch.randn(b, config.num_channels, height, width, generator=generator)
        return _to({"pixel_values": pixels, "labels": draw(config.num_labels, b)}, device)

    vocabulary = config.get_text_config().vocab_size
    # Low ids are special tokens: a pad id within a sentence would shorten it for some models.
    first_word = min(10, vocabulary // 2)
    lengths = torch.full((b,), s)
    if options.padded:
        lengths[1:] = draw(s + 1, b - 1, low=max(1, s // 2))
    mask = (torch.arange(s) < lengths[:, None]).long()
    pad = config.pad_token_id if getattr(config, "pad_token_id", None) is not None else 0
    ids = torch.where(mask.bool(), draw(vocabulary, b, s, low=first_word), pad)
    batch = {"input_ids": ids, "attention_mask": mask}

    if task == "causal-lm":
        batch["labels"] = ids.masked_fill(mask == 0, IGNORED_LABEL)
    elif task == "seq2seq":
        batch["labels"] = draw(vocabulary, b, s, low=first_word).masked_fill(
            mask == 0, IGNORED_LABEL
        )
    elif task == "token-classification":
        batch["labels"] = draw(config.num_labels, b, s).masked_fill(mask == 0, IGNORED_LABEL)
    elif task == "question-answering":
        batch["start_positions"] = draw(max(1, s // 4), b)
        batch["end_positions"] = batch["start_positions"] + draw(max(1, s // 4), b)
    else:
        batch["labels"] = draw(config.num_labels, b)
    return _to(batch, device)


def make_optimizer(model: torch.nn.Module, options: StepOptions) -> torch.optim.Optimizer:
    """The optimizer that `options` names, over the trainable parameters; weight decay 0.01."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if options.optimizer.endswith("8bit"):
        import bitsandbytes

        kind = {
            "adamw-8bit": bitsandbytes.optim.AdamW8bit,
            "paged-adamw-8bit": bitsandbytes.optim.PagedAdamW8bit,
        }[options.optimizer]
        optimizer: torch.optim.Optimizer = kind(parameters, lr=options.learning_rate)
        return optimizer
    how = {"adamw": {}, "adamw-fused": {"fused": True}, "adamw-foreach": {"foreach": True}}
    return torch.optim.AdamW(
        parameters, lr=options.learning_rate, weight_decay=0.01, **how[options.optimizer]
    )


def make_scaler(precision: Precision, device: str) -> torch.amp.GradScaler | None:
    """A loss scaler where the precision needs one, else None."""
    if precision.loss_scale is None:
        return None
    return torch.amp.GradScaler(torch.device(device).type, init_scale=precision.loss_scale)


def _to(batch: Batch, device: str) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}
