"""Trainers on meta: their own step is traced, and where it asks for the device it is told."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from bench.compat import instead_of, patched, private
from bench.predict.journal import LOGITS
from bench.training.options import SFT, StepOptions
from bench.training.trainers import MAX_GRAD_NORM, kept_accelerate_state

if TYPE_CHECKING:
    from bench.predict.journal import Journal
    from bench.predict.kernels import Device
    from bench.training.step import Training


def assumed(options: StepOptions, quantized: bool) -> tuple[str, ...]:
    """What a trainer's loop takes for granted, in words; nothing for the other loops."""
    if not options.by_trainer:
        return ()
    norm = MAX_GRAD_NORM if options.max_grad_norm is None else options.max_grad_norm
    whose = "trl.SFTTrainer" if options.loop == SFT else "transformers.Trainer"
    packages = ("transformers", "accelerate", *(("trl",) if options.loop == SFT else ()))
    said = [
        f"the step is {whose}'s own ({', '.join(f'{p} {version(p)}' for p in packages)}); "
        "what it does beside (loading data, logging, saving) is left out",
        f"gradients are clipped to a norm of {norm:g}",
    ]
    if options.autocast:
        said.append("under autocast the model's output is cast to float32, as accelerate does")
    if options.loop == SFT:
        if options.fused_head:
            said.append(
                "TRL's fused head: tiles of 4,096 tokens x 32,768 words, positions with a label "
                "alone, Triton kernels on CUDA"
            )
        if quantized:
            said.append("the adapters of a quantized model are held in bfloat16")
        other = [
            name
            for name, differs in (
                ("bf16=True (--autocast bf16)", options.autocast != "bf16"),
                ("gradient_checkpointing=True", not options.gradient_checkpointing),
                ("optim=adamw_torch_fused", options.optimizer != "adamw-fused"),
                ("per_device_train_batch_size=8", options.batch_size != 8),
                ("max_length=1024", options.seq_len != 1024),
            )
            if differs
        ]
        if other:
            said.append(f"not as SFTConfig has it by default: {', '.join(other)}")
    return tuple(said)


@contextlib.contextmanager
def as_in_trainers(options: StepOptions, device: Device, journal: Journal) -> Iterator[None]:
    """While active, a trainer's step can be traced as `device` runs it, and none that is alive in
    this process is touched."""
    if not options.by_trainer:
        yield
        return
    with kept_accelerate_state(), contextlib.ExitStack() as stack:
        if options.loop == SFT and options.fused_head:
            stack.enter_context(_fused_head(device.name == "cuda", journal))
        yield


@contextlib.contextmanager
def strict_within(journal: Journal, training: Training) -> Iterator[None]:
    """A trainer reads values that it logs; within the model a value that is read may decide what
    is computed, so there it has to be known."""
    if training.trainer is None:
        yield
        return
    model = training.trainer.model_wrapped

    def enter(*_: Any) -> None:
        journal.logging = False

    def leave(*_: Any) -> None:
        journal.logging = True

    handles = [
        model.register_forward_pre_hook(enter),
        model.register_forward_hook(leave, always_call=True),
    ]
    backward = training.trainer.accelerator.backward

    def strict_backward(loss: torch.Tensor, **kwargs: Any) -> None:
        enter()
        backward(loss, **kwargs)
        leave()

    training.trainer.accelerator.backward = strict_backward
    leave()
    try:
        yield
    finally:
        enter()
        training.trainer.accelerator.backward = backward
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _fused_head(on_cuda: bool, journal: Journal) -> Iterator[None]:
    """TRL's fused head, `trl/kernels/chunked_logprob.py`, filed as logits and loss.

    On CUDA its tiles are folded by Triton kernels, which write to what they are given and allocate
    nothing (`_forward_kernel`, `_backward_kernel`), only the positions with a label are projected,
    and `_addmm_fp32` accumulates products of halves in float32 without a copy of them
    (`torch.addmm` with `out_dtype` and `out`). On the CPU its torch code runs as it is.
    """
    function = private("fused head")
    head = importlib.import_module(function.__module__)
    filed = journal.storages.under(LOGITS)
    replacements: list[tuple[Any, str, Any]] = [
        (function, name, staticmethod(filed(getattr(function, name))))
        for name in ("forward", "backward")
    ]
    if on_cuda:
        replacements += [
            (head, "_use_triton", lambda device: True),
            instead_of("fused head's chunks", lambda device: True),
            (head, "_forward_kernel", _Kernel()),
            (head, "_backward_kernel", _Kernel()),
            (head, "triton", _Triton),
            (head, "_addmm_fp32", _accumulated),
        ]
    with patched(*replacements):
        yield


class _Kernel:
    """A Triton kernel that only writes to its arguments: `kernel[grid](...)`."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: None


class _Triton:
    @staticmethod
    def cdiv(a: int, b: int) -> int:
        return -(-a // b)


def _accumulated(acc: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """`acc += a @ b` in one product, whatever the dtype of the factors: float32 ones as they are,
    halves through `torch.addmm(..., out_dtype=float32, out=acc)`. Nothing is allocated."""
    if a.dtype == torch.float32:
        acc.addmm_(a, b)
    else:
        acc.add_(1)  # the same storage written, for want of such an operation on meta
