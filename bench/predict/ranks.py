"""What one of several GPUs does in a step, traced in one process: torch's own DDP and FSDP2 run on
meta, in a process group whose other ranks are not there.

Nothing of either is written again here. What a process group of real GPUs has and this one lacks is
put in: FSDP2's streams and events are the CPU's, which do nothing; a collective gives back the
tensor that it was given, at once; and rank 0's own values stand for those that it would send.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from bench.compat import patched, private
from bench.errors import BenchError
from bench.predict.journal import COMMUNICATION, Journal
from bench.training.options import DDP
from bench.training.storages import followed_shards

if TYPE_CHECKING:
    from bench.predict.kernels import Device
    from bench.training.cases import Case
    from bench.training.options import StepOptions

_DispatchMode = private("dispatch mode")
_COPY = torch.ops.aten.copy_.default
_META = torch.device("meta")


def _collective(tensors: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
    """A collective that has ended: what it was to write to, and work that nobody waits for."""
    future: Any = torch.futures.Future()
    future.set_result(list(tensors) if isinstance(tensors, (list, tuple)) else [tensors])
    return tensors, private("ended work")(future).boxed()


def _gathered(received: Any, sent: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
    """What every rank counted, by rank 0's own: a trainer asks whether there is anything."""
    for parts, own in zip(received, sent, strict=True):
        for part in parts:
            part.copy_(own)
    return _collective(received)


def _reduced(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    """DTensor's collectives leave what they were given: a norm's sum is a tensor of its own."""
    return torch.empty_like(tensor)


COLLECTIVES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        (
            "c10d.allreduce_.default",
            "c10d.broadcast_.default",
            "c10d._allgather_base_.default",
            "c10d._reduce_scatter_base_.default",
        ),
        _collective,
    ),
    "c10d.allgather_.default": _gathered,
    "_c10d_functional.all_reduce.default": _reduced,
    **dict.fromkeys(
        ("_c10d_functional.wait_tensor.default", "_c10d_functional._wrap_tensor_autograd.default"),
        lambda tensor: tensor,
    ),
}
"""NCCL sends from and to the tensors that it is given; its own buffers are outside torch's
allocator, as the CUDA context is."""
WRITING = frozenset(
    f"fsdp.{name}.default" for name in ("all_gather_copy_in", "split_with_sizes_copy", "chunk_cat")
)
"""FSDP2's own operations, which write into what they are given: on CUDA each is one kernel."""


def of_rank(device: Device) -> Device:
    """The device as one of several has it: with the operations between them."""
    return replace(
        device, substitutes={**device.substitutes, **COLLECTIVES}, plain=device.plain | WRITING
    )


@contextlib.contextmanager
def as_rank(case: Case, journal: Journal) -> Iterator[None]:
    """While active, this process is rank 0 of the case's group. Raises BenchError where it has
    joined a real one."""
    if case.step.parallel is None:
        yield
        return
    from torch import distributed

    if not distributed.is_available():
        raise BenchError(
            f"--parallel {case.step.parallel}: this torch is built without distributed"
        )
    if distributed.is_initialized():
        raise BenchError(
            f"--parallel {case.step.parallel}: this process has joined a process group already; "
            "predict in one that has not"
        )
    replacements = _ddp(journal) if case.step.parallel == DDP else _fsdp(journal)
    distributed.init_process_group(
        "fake", rank=0, world_size=case.step.gpus, store=private("fake store")()
    )
    try:
        with (
            patched(*replacements),
            followed_shards(journal.storages),
            _launched(case.step),
        ):
            yield
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def _launched(step: StepOptions) -> Iterator[None]:
    """The environment in which torchrun starts rank 0, which accelerate reads for a trainer."""
    ranks = str(step.gpus)
    said = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    before = {name: os.environ.get(name) for name in (*said, "MASTER_PORT")}
    if step.by_trainer:
        os.environ.update(said)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _fsdp(journal: Journal) -> list[tuple[Any, str, Any]]:
    """FSDP2 on meta: its device, its streams, and no refusal of it. What it gathers, and what it
    sends, is filed as communication."""
    sent = journal.storages.under(COMMUNICATION)
    group = private("fsdp groups")
    collectives = private("fsdp collectives")
    replacements: list[tuple[Any, str, Any]] = [
        (private("fsdp devices"), "_get_device_from_mesh", lambda mesh: _META),
        (group.FSDPParamGroup, "_validate_no_meta_params", lambda self: None),
    ]
    # One empty tensor stands for every rank's share of too few rows, however many ranks there are.
    replacements.append((private("fsdp parameters"), "_chunk_with_empty", _chunks))
    for module in (group, collectives, private("fsdp states")):
        replacements.append((module, "_get_device_handle", lambda kind: torch.cpu))
    for name in ("foreach_all_gather", "foreach_all_gather_copy_out", "foreach_reduce"):
        replacements.append((group, name, sent(getattr(group, name))))
    return replacements


def _chunks(tensor: torch.Tensor, parts: int, dim: int) -> list[torch.Tensor]:
    chunks = list(torch.chunk(tensor, parts, dim=dim))
    return chunks + [chunks[0].new_empty(0)] * (parts - len(chunks))


def _ddp(journal: Journal) -> list[tuple[Any, str, Any]]:
    """DDP on meta: ranks that agree on shapes and on the order of gradients, no statistics of
    time. Its buckets, and the buffers that it sends, are filed as communication."""
    module = private("ddp")
    wrapper = module.DistributedDataParallel
    begin, forward = wrapper.__init__, wrapper._pre_forward

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        with journal.storages.under(COMMUNICATION):
            begin(self, *args, **kwargs)
        self.logger = SimpleNamespace(set_runtime_stats_and_log=lambda: None)

    def pre_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _OwnOrder(), journal.storages.under(COMMUNICATION):
            return forward(self, *args, **kwargs)

    return [
        (module, "_verify_param_shape_across_processes", lambda *_, **__: None),
        (wrapper, "__init__", made),
        (wrapper, "_pre_forward", pre_forward),
    ]


class _OwnOrder(_DispatchMode):  # type: ignore[misc, valid-type]  # torch is seen untyped
    """The order of gradients that rank 0 sends and reads back is the one that it has."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is _COPY and args[0].device.type == "cpu" and args[1].device.type == "meta":
            return args[0]
        return func(*args, **(kwargs or {}))
