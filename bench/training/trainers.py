"""The trainers that people use, run on a case's model: transformers' Trainer and TRL's SFTTrainer.

Nothing of their step is written here again. The trainer is constructed around the model, batch and
optimizer that a case has, prepares them as `train` would (`_prepare_for_training`: accelerate's
autocast around the model's forward, outputs cast to float32), and then its own `training_step`,
gradient clipping and optimizer step run. What `train` does beside a step (data loading, logging,
saving) is left out. On `meta` the same code runs; the trainer is then told that this is its device.

Read in transformers 5.23 (`trainer.py`: `_run_epoch`, `training_step`, `compute_loss`), trl 1.16
(`trainer/sft_trainer.py`, `trainer/utils.py`: `add_fused_lm_head`) and accelerate 1.15.
"""

from __future__ import annotations

import contextlib
import importlib
import tempfile
from collections.abc import Callable, Iterator
from types import MethodType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from bench.compat import private
from bench.errors import BenchError
from bench.training.options import SFT

if TYPE_CHECKING:
    from bench.training.batches import Batch
    from bench.training.cases import Case
    from bench.training.step import Mark, Training

MAX_GRAD_NORM = 1.0
"""Both trainers clip to this where nothing is said (`TrainingArguments.max_grad_norm`)."""


def make_trainer(
    case: Case, model: torch.nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, device: str
) -> Any:
    """The case's trainer around a model that carries its adapters, prepared to train.

    SFTTrainer gives the base model its fused head, and holds the adapters of a 4-bit or 8-bit model
    in bfloat16. Raises BenchError where the trainer refuses the case.
    """
    step = case.step
    if "labels" not in batch and "start_positions" not in batch:
        raise BenchError(
            f"--loop {step.loop}: the trainer asks the model for its loss, and a model for "
            f"{case.task.name} has none"
        )
    if step.loop == SFT and case.task.labels != "the same tokens":
        raise BenchError(
            f"--loop {SFT}: SFTTrainer trains language models, and this one is for "
            f"{case.task.name}: --loop trainer"
        )
    base = model.get_base_model()
    if getattr(base, "is_quantized", False) and getattr(base, "hf_quantizer", None) is None:
        # Built in its precision, not by from_pretrained, which leaves this for the trainers.
        base.hf_quantizer = SimpleNamespace(is_trainable=True, is_qat_trainable=False)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder,
            "use_cpu": torch.device(device).type != "cuda",
            "bf16": step.autocast is not None,  # fp16 is asked for below: no CPU takes it
            "fp16": False,
            "gradient_checkpointing": step.gradient_checkpointing,
            "gradient_checkpointing_kwargs": {"use_reentrant": step.reentrant},
            "gradient_accumulation_steps": step.accumulation,
            "per_device_train_batch_size": step.batch_size,
            "max_grad_norm": MAX_GRAD_NORM if step.max_grad_norm is None else step.max_grad_norm,
            "learning_rate": step.learning_rate,
            "lr_scheduler_type": "constant",
            "max_steps": 1,  # no step is counted: `train` does not run
            "report_to": [],
            "disable_tqdm": True,
            "seed": step.seed,
        }
        try:
            build = _sft if step.loop == SFT else _plain
            trainer = build(settings, model, optimizer, torch.device(device))
        except (ValueError, ImportError) as error:
            raise BenchError(f"--loop {step.loop}: the trainer refuses: {error}") from error
    if step.autocast == "fp16":
        _in_float16(trainer, device, step.loss_scaling)
    if step.loop == SFT and not step.fused_head:
        # As before TRL had a head of its own: Trainer's loss, which is the model's.
        transformers = importlib.import_module("transformers")
        trainer.compute_loss = MethodType(transformers.Trainer.compute_loss, trainer)
    if torch.device(device).type == "meta":
        _tell_device(torch.device(device))
    for name in ("trainer, prepared", "trainer's items", "trainer's clipping"):
        private(name)
    trainer.model_wrapped, _ = trainer._prepare_for_training(settings["max_steps"], None, None)
    trainer._tr_loss = torch.tensor(0.0, device=device)
    return trainer


def _plain(settings: dict[str, Any], model: Any, optimizer: Any, device: torch.device) -> Any:
    transformers = importlib.import_module("transformers")
    args = _arguments(transformers.TrainingArguments, settings, device)
    return transformers.Trainer(model=model, args=args, optimizers=(optimizer, None))


def _sft(settings: dict[str, Any], model: Any, optimizer: Any, device: torch.device) -> Any:
    datasets, trl = importlib.import_module("datasets"), importlib.import_module("trl")
    # The batch is the case's own, so the data and the tokenizer are never asked for anything.
    data = datasets.Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[1, 2]]})
    prepared = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    args = _arguments(trl.SFTConfig, {**settings, **prepared}, device)
    return trl.SFTTrainer(
        model=model,
        args=args,
        train_dataset=data,
        processing_class=_tokenizer(),
        optimizers=(optimizer, None),
    )


def _arguments(kind: Callable[..., Any], settings: dict[str, Any], device: torch.device) -> Any:
    args = kind(**settings)
    if device.type == "meta":
        _ = args.device  # found once, and then kept
        args.__dict__["_setup_devices"] = device
    return args


def _tokenizer() -> Any:
    """A tokenizer of four words, which SFTTrainer asks for its padding."""
    tokenizers = importlib.import_module("tokenizers")
    transformers = importlib.import_module("transformers")
    words = ("<pad>", "<s>", "</s>", "<unk>")
    model = tokenizers.models.WordLevel({w: n for n, w in enumerate(words)}, unk_token=words[3])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model), pad_token=words[0], eos_token=words[2]
    )


def _in_float16(trainer: Any, device: str, scaled: bool) -> None:
    """float16 autocast, which accelerate only takes on a GPU: its state is put in place."""
    from bench.training.step import FIRST_LOSS_SCALE

    accelerator = trainer.accelerator
    private("accelerate's precision")["_mixed_precision"] = "fp16"
    if scaled:
        accelerator.scaler = torch.amp.GradScaler(
            torch.device(device).type, init_scale=FIRST_LOSS_SCALE
        )


def _tell_device(device: torch.device) -> None:
    for state in ("accelerate's process", "accelerate's precision"):
        private(state)["device"] = device


@contextlib.contextmanager
def kept_accelerate_state() -> Iterator[None]:
    """While active, accelerate's state is free to change: it is one for the whole process, and a
    live trainer may be using it."""
    names = ("accelerate's process", "accelerate's precision", "accelerate's accumulation")
    states = [private(name) for name in names]
    before = [dict(state) for state in states]
    try:
        for state in states:
            state.clear()
        yield
    finally:
        for state, values in zip(states, before, strict=True):
            state.clear()
            state.update(values)


def trainer_step(training: Training, mark: Mark) -> torch.Tensor:
    """One optimizer step of the trainer, as `Trainer._run_epoch` makes it; the loss, detached."""
    trainer, model = training.trainer, training.trainer.model_wrapped
    accelerator = trainer.accelerator
    batches: list[Batch] = [dict(training.batch) for _ in range(training.options.accumulation)]
    items = trainer._get_num_items_in_batch(batches, trainer.args.device)
    trainer.current_gradient_accumulation_steps = len(batches)
    backward = accelerator.backward

    def marked(loss: torch.Tensor, **kwargs: Any) -> None:
        mark("backward")
        backward(loss, **kwargs)

    accelerator.backward = marked
    try:
        for number, batch in enumerate(batches, 1):
            last = number == len(batches)
            accelerator.gradient_state._set_sync_gradients(last)
            mark("forward")
            with contextlib.nullcontext() if last else accelerator.no_sync(model=model):
                loss = trainer.training_step(model, batch, items)
            trainer._tr_loss += loss
    finally:
        accelerator.backward = backward
    mark("optimizer")
    norm = trainer._clip_grad_norm(model) if trainer.args.max_grad_norm > 0 else None
    trainer._get_grad_norm(model, grad_norm=norm)
    trainer.optimizer.step()
    if not accelerator.optimizer_step_was_skipped:
        trainer.lr_scheduler.step()
    model.zero_grad()
    mark("end")
    detached: torch.Tensor = loss.detach()
    return detached
