"""`MemoryCallback`: a run's own memory, predicted when it begins and measured while it trains."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.files import check_output
from bench.models.architectures import Model
from bench.predict.contributed import append_step, measured_step
from bench.predict.live import kept_random_state, live_case
from bench.predict.result import Prediction, predict
from bench.reports.predicted import beside_text
from bench.scenarios.subjects import Subject
from bench.training.cases import Case
from bench.training.machine import gpu_facts
from bench.training.memory import MemoryTracker
from bench.training.options import PHASES
from bench.training.storages import tag_model, tag_optimizer
from bench.units import format_bytes, harmless, text_of

_SAMPLE = 256  # rows of a data set whose lengths are looked at


class MemoryCallback(TrainerCallback):  # type: ignore[misc]  # transformers is seen untyped
    """For `Trainer(callbacks=[...])` and `SFTTrainer`: hazards and the predicted peak at the start,
    predicted beside measured peak at the end, and one line of JSON that can be contributed.

    The prediction is of the longest batch that the run has shown: of the data set's first rows
    when it begins, of those that were trained on when it ends. Measured are the steps from the
    second on, by `torch.cuda`'s counters, which are reset at each phase; the first step makes the
    optimizer's state. On the CPU every tensor is followed instead, which takes time: it is there
    for small models. The loss is taken for the one that the model computes: where no labels reach
    it, that is said at the end in the place of the figures. Clipping counts as backward when it is
    measured, as optimizer when predicted: Trainer tells of the optimizer's step only after it.

    Args:
        seq_len: tokens of the longest sequence, where the data does not show it.
        gpu: a GPU by name to hold the prediction against.
        file: where the line of JSON is added, besides being said; BenchError when the run begins
            if it cannot be.
        say: what a line of text is given to (default: print).
    """

    def __init__(
        self,
        seq_len: int | None = None,
        gpu: str | None = None,
        file: str | Path | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.seq_len = seq_len
        self.gpu = gpu
        self.file = Path(file) if file is not None else None
        self._say = say
        self.record: dict[str, Any] | None = None
        """What was said at the end, as the JSON line has it."""
        self._predicted: Prediction | None = None
        self._case: Case | None = None
        self._seen: tuple[int, int, bool] = (0, 0, False)
        self._unlabelled = False

    def say(self, text: str) -> None:
        """To whom it was asked to; there is no command here whose `Output` makes it harmless."""
        self._say(harmless(text))

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The ledger's hazards and the prediction for this run."""
        if self.file is not None:
            check_output(self.file)
        model = given["model"]
        length = self.seq_len or _longest(given.get("train_dataloader"))
        self._predict(model, args, args.per_device_train_batch_size, length or 512, False)
        if self._case is not None:
            for hazard in hazards_of(self._case):
                self.say(text_of([f"bench: hazard {hazard}"]))
        device = next(model.parameters()).device.type
        self._meter = _Meter()
        if device != "cuda":
            self._meter = _Tracked(model, given.get("optimizer"))
        self._hooks = [
            model.register_forward_pre_hook(self._sees, with_kwargs=True),
            model.register_forward_hook(self._leaves),
        ]
        self._steps = 0
        self._meter.begin()

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """A step begins: the first only makes the optimizer's state."""
        self._steps += 1
        self._meter.phase("forward", counts=False)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Backward has ended, gradients are clipped."""
        self._meter.phase("optimizer", counts=self._steps > 1)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The optimizer's step has ended."""
        self._meter.phase("forward", counts=self._steps > 1)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Predicted beside measured, by phase, and the line of JSON."""
        for hook in self._hooks:
            hook.remove()
        self._meter.end()
        batch, length, padded = self._seen
        case = self._case
        if batch and case and (batch, length, padded) != _size(case):
            self._predict(given["model"], args, batch, length, padded)
        if self._predicted is None or self._case is None:
            return
        if self._steps < 2:
            self.say("bench: one step is too few to measure: the second has the optimizer's state")
            return
        if self._unlabelled:
            self.say(
                "bench: no labels reached the model: the loss was computed outside of it (label "
                "smoothing, compute_loss_func, a compute_loss of one's own), which is not the step "
                "that was predicted"
            )
            return
        line = json.dumps(self._measured())
        self.record = record = json.loads(line)
        self.say(f"bench: {beside_text(record['predicted'], record['measured'])}")
        self.say(f"bench: {line}")
        if self.file is not None:
            try:
                append_step(self.file, record)
            except BenchError as error:  # what was trained is not to be lost for it
                self.say(f"bench: {error}")

    def _measured(self) -> dict[str, Any]:
        assert self._case is not None
        assert self._predicted is not None
        by_phase = self._meter.by_phase
        peaks = {
            "peak_allocated_bytes": max(by_phase.values()),
            "peak_reserved_bytes": self._meter.reserved_bytes,
            "peak_by_phase": by_phase,
        }
        return measured_step(self._case, self._meter.device, self._predicted, peaks)

    def _predict(self, model: Any, args: Any, batch: int, length: int, padded: bool) -> None:
        self._predicted = self._case = None
        cpu = next(model.parameters()).device.type == "cpu"
        try:
            options = _options_of(args)
            self._case = live_case(
                model, batch_size=batch, seq_len=length, padded=padded, **options
            )
            with kept_random_state():
                self._predicted = _predicted(self._case, self.gpu, cpu)
        except BenchError as error:  # a run is not stopped because it cannot be predicted
            self.say(f"bench: this run is not predicted: {error}")
            return
        found = self._predicted
        self.say(
            f"bench: {found.case}: predicted peak {format_bytes(found.peak_allocated_bytes)} "
            f"allocated, {format_bytes(found.peak_reserved_bytes)} reserved, in {found.peak_phase} "
            f"({found.step}, with the loss that the model computes)"
        )
        if found.fit is not None and found.fit.doubt:
            self.say(f"bench: that {found.fit.doubt}")

    def _sees(self, model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A forward pass begins; notes the largest batch."""
        if not torch.is_grad_enabled():
            return
        self._meter.phase("forward", counts=self._steps > 1)
        self._unlabelled |= not any("label" in k or k.endswith("_positions") for k in kwargs)
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if ids is not None:
            batch, length = ids.shape
            if (batch * length, batch) > (self._seen[0] * self._seen[1], self._seen[0]):
                padded = mask is not None and batch > 1 and bool((mask == 0).any())
                self._seen = (batch, length, padded)

    def _leaves(self, *_: Any) -> None:
        """The model's forward has ended: what follows is the loss's and the backward pass's."""
        if torch.is_grad_enabled():
            self._meter.phase("backward", counts=self._steps > 1)


class _Meter:
    """Peaks by phase, of torch's counters on a GPU."""

    def __init__(self) -> None:
        self.by_phase = dict.fromkeys(PHASES, 0)
        self._phase = "forward"

    def begin(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def end(self) -> None:
        pass

    def phase(self, name: str, *, counts: bool) -> None:
        """Another phase begins; what the one before took counts, or not."""
        if counts:
            self.by_phase[self._phase] = max(self.by_phase[self._phase], self._peak())
        self._reset()
        self._phase = name

    def _peak(self) -> int:
        return int(torch.cuda.max_memory_allocated())

    def _reset(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    @property
    def reserved_bytes(self) -> int | None:
        return int(torch.cuda.memory_reserved())

    @property
    def device(self) -> dict[str, Any]:
        return gpu_facts()


class _Tracked(_Meter):
    """The same on the CPU, every storage followed: nothing is reserved there."""

    def __init__(self, model: torch.nn.Module, optimizer: Any) -> None:
        super().__init__()
        self._tracker = MemoryTracker()
        tag_model(self._tracker.storages, model)
        if optimizer is not None:  # it has its state where a run goes on
            tag_optimizer(self._tracker.storages, optimizer)

    def begin(self) -> None:
        self._tracker.__enter__()

    def end(self) -> None:
        self._tracker.__exit__(None, None, None)

    def _peak(self) -> int:
        return int(self._tracker.storages.peak_bytes)

    def _reset(self) -> None:
        self._tracker.storages.reset_peak()

    @property
    def reserved_bytes(self) -> int | None:
        return None

    @property
    def device(self) -> dict[str, Any]:
        return {"name": "cpu"}


def _options_of(args: Any) -> dict[str, Any]:
    """The step that transformers' arguments describe."""
    kinds = [kind.__name__ for kind in type(args).__mro__]
    packed = bool(getattr(args, "padding_free", False) or getattr(args, "packing", False))
    if packed:
        raise BenchError("padding-free batches have as many tokens as the data gives them")
    if getattr(args, "label_smoothing_factor", 0):
        raise BenchError("label_smoothing_factor: the loss is then computed outside of the model")
    liger = bool(getattr(args, "use_liger_kernel", False))
    if liger and getattr(args, "liger_kernel_config", None):
        raise BenchError("liger_kernel_config: only all of Liger's kernels together are predicted")
    return {
        "liger": liger,
        "loop": "sft" if "SFTConfig" in kinds else "trainer",
        "optimizer": str(getattr(args.optim, "value", args.optim)),
        "autocast": "bf16" if args.bf16 else "fp16" if args.fp16 else None,
        "accumulation": args.gradient_accumulation_steps,
        "max_grad_norm": args.max_grad_norm or None,
        "gradient_checkpointing": bool(args.gradient_checkpointing),
        "reentrant": bool(
            args.gradient_checkpointing
            and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
        ),
    }


def _predicted(case: Case, gpu: str | None, cpu: bool) -> Prediction:
    from bench.predict import kernels
    from bench.predict.gpus import find_gpu

    if cpu:
        return predict(case, device=kernels.cpu())
    card = find_gpu(gpu) if gpu else None
    return predict(case, gpu=card, device=kernels.this_gpu())


def _size(case: Case) -> tuple[int, int, bool]:
    return case.step.batch_size, case.step.seq_len, case.step.padded


def _longest(loader: Any) -> int | None:
    """The longest sequence of a data set's first rows; None where it does not show."""
    rows: Any = getattr(loader, "dataset", None)
    try:
        count = min(len(rows), _SAMPLE)
        return max(len(rows[n]["input_ids"]) for n in range(count))
    except (TypeError, KeyError, IndexError, ValueError):
        return None


def hazards_of(case: Case) -> list[str]:
    """The dead entries and hazards of a case's configuration, a line each."""
    found = Model(case.model, case.config, case.auto_class)
    adapter = AdapterConfig.from_dict(case.adapter)
    ledger = Subject(found, "own", adapter, precision=case.precision).ledger
    dead = [f"dead-entry: {e.entry}{e.why_dead}" for e in ledger.entries if e.dead]
    return [*dead, *(f"{hazard.code}: {hazard.reason}" for hazard in ledger.hazards)]
