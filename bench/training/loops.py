"""The loops: what the code around a training step does, and so how long its tensors live.

`STEP_OF` is where a loop plugs in: a function of a `Training` and of `mark`, which it calls with
"forward", "backward" and "optimizer" as each phase begins (again for every batch that is
accumulated) and with "end"; it returns the loss, detached. The worker measures that function and
the predictor traces it, so it must run on `meta` too. What a loop needs beside the step (another
way to make the optimizer or the batch) belongs where `loading.prepared` makes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from bench.compat import instead_of, patched
from bench.training.options import EFFICIENT, KEEP_OUTPUT, MATH, PINNED, PLAIN, SFT, TRAINER
from bench.training.step import Mark, training_step, unmarked
from bench.training.trainers import trainer_step

if TYPE_CHECKING:
    from bench.training.step import Training

Loop = Callable[["Training", Mark], torch.Tensor]


def _own_step(training: Training, mark: Mark) -> torch.Tensor:
    """The step of this project: `training_step`, which holds the output only if asked to."""
    t = training
    return training_step(t.model, t.batch, t.optimizer, t.scaler, mark, options=t.options)


STEP_OF: Mapping[str, Loop] = {
    PLAIN: _own_step,
    KEEP_OUTPUT: _own_step,
    TRAINER: trainer_step,
    SFT: trainer_step,
}
"""By name."""


def run_step(training: Training, mark: Mark = unmarked) -> torch.Tensor:
    """One step of the training's loop under its options; the loss, a detached scalar."""
    with pinned_attention(training.options.attention), patched(*training.patches):
        return STEP_OF[training.options.loop](training, mark)


@contextlib.contextmanager
def pinned_attention(attention: str) -> Iterator[None]:
    """While active, `scaled_dot_product_attention` takes the kernel that `attention` names.

    The memory-efficient kernel takes no grouped heads: transformers then expands key and value to
    the query's heads first, as it does wherever sdpa cannot group them.
    """
    if attention not in PINNED:
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    expanded = [instead_of("grouped attention", lambda *_: False)] if attention == EFFICIENT else []
    backend = "MATH" if attention == MATH else f"{attention.upper()}_ATTENTION"
    with patched(*expanded), sdpa_kernel(getattr(SDPBackend, backend)):
        yield
