"""One rank of real steps on the CPU: `python ranks_reference.py RANK RANKS FILE`, with the cases as
JSON, a line each, on standard input. For each, its peaks as a line of JSON.

FILE is where the ranks meet, to send by gloo; the storages of torch's operations are followed, as
where one process is measured. With "alone" in its place there are no other ranks, and nothing is
sent; no part of this project watches then: torch.profiler counts what the allocator hands out.
(gloo copies what it sends, and its threads hold that for a moment, in which the profiler sees it.)
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import distributed
from torch.distributed.fsdp import FSDPModule

from bench.compat import private
from bench.training.cases import Case
from bench.training.loading import load
from bench.training.loops import run_step
from bench.training.memory import MemoryTracker
from bench.training.storages import followed_shards

STEPS = ("first", "steady")


class Copying:
    """FSDP2's collectives, of copies that nobody counts: gloo's threads hold what they sent for a
    moment longer than the step does, which NCCL's do not."""

    def allocate(
        self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: Any,
        op: Any = None,
        async_op: bool = False,
    ) -> None:
        with private("no modes")():
            received, sent = torch.empty_like(output_tensor), input_tensor.clone()
            if op is None:
                distributed.all_gather_into_tensor(received, sent, group=group)
            else:
                distributed.reduce_scatter_tensor(received, sent, op=op, group=group)
            output_tensor.copy_(received)


def tracked(case: Case) -> dict[str, int]:
    """Bytes after loading, and the most in each step, of the storages that this rank holds."""
    tracker = MemoryTracker()
    found = {}
    with tracker, followed_shards(tracker.storages):
        training = load(case)
        for module in training.model.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_all_gather(Copying())
                module.set_custom_reduce_scatter(Copying())
        distributed.barrier()
        gc.collect()
        found["loaded"] = tracker.storages.live_bytes
        with _no_collections():
            for name in STEPS:
                gc.collect()
                tracker.storages.reset_peak()
                run_step(training)
                found[name] = tracker.storages.peak_bytes
    return found


def profiled(case: Case) -> dict[str, int]:
    """The same of what the allocator handed out."""
    from torch.profiler import ProfilerActivity, profile, record_function

    with (
        torch.backends.mkldnn.flags(enabled=False),  # its scratch space depends on the processor
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        training = load(case)
        with _no_collections():
            for name in STEPS:
                gc.collect()
                with record_function(name):
                    run_step(training)
    events = list(profiler.profiler.kineto_results.events())
    spans = {e.name(): (e.start_ns(), e.end_ns()) for e in events if e.name() in STEPS}
    found: dict[str, int] = dict.fromkeys(("loaded", *STEPS), 0)
    live = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        if event.start_ns() < spans["first"][0]:
            found["loaded"] = live
        for name, (start, end) in spans.items():
            if start <= event.start_ns() <= end:
                found[name] = max(found[name], live)
    return found


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def main() -> None:
    """Join the group, measure every case, and print."""
    rank, ranks, file = sys.argv[1:]
    torch.set_num_threads(1)
    store: Any
    if file == "alone":
        from torch.testing._internal.distributed.fake_pg import FakeStore

        backend, store, measure = "fake", FakeStore(), profiled
    else:
        backend, store, measure = "gloo", distributed.FileStore(file, int(ranks)), tracked
        # As torchrun says it, which a trainer's accelerate reads.
        os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), rank)
        os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), ranks)
    distributed.init_process_group(backend, rank=int(rank), world_size=int(ranks), store=store)
    for line in sys.stdin:
        print(json.dumps(measure(Case.from_dict(json.loads(line)))))
        gc.collect()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
