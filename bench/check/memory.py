"""The memory of a file's own step, for `bench check --gpu`."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.check.answer import Checked
    from bench.predict.gpus import Gpu
    from bench.readers import Recipe, RecipeStep
    from bench.training.options import StepOptions


def with_prediction(checked: Checked, gpu: Gpu | None, seq_len: int | None) -> Checked:
    """The answer with the file's own step, predicted; or with why it is not. `seq_len` goes before
    the file's length. Raises BenchError, naming the line, for more than any step has."""
    from bench.predict import predict

    recipe, step = checked.recipe, checked.recipe.step
    length = seq_len or (step.seq_len if step else None)
    if step is None:
        return replace(checked, not_predicted=f"{checked.kind} describes no step: see bench memory")
    if checked.ledger.refusals:
        return replace(checked, not_predicted="PEFT refuses the configuration")
    if not step.optimizer:
        return replace(checked, not_predicted=next(n for n in step.notes if "optimizer" in n))
    if length is None:
        return replace(checked, not_predicted="the file names no length: give --seq-len")
    given = ("seq_len",) if seq_len else ()
    try:
        options = _options(step, length)
    except BenchError as error:
        raise BenchError(f"{recipe.path}: {in_its_words(str(error), recipe, given)}") from None
    reasons = []
    if step.liger:
        options, checked = _with_liger(options, checked)
    for left_out in _LEFT_OUT:
        try:
            plainer = replace(options, **{name: _PLAIN[name] for name in left_out})
            case = replace(checked.subject, precision=step.precision).case(plainer)
            prediction = predict(case, gpu=gpu)
        except BenchError as error:
            reasons.append(in_its_words(str(error), recipe, given))
            continue
        said = [name for name in left_out if getattr(options, name) != _PLAIN[name]]
        notes = tuple(f"the file's {name} is left out of the prediction" for name in said)
        if step.optimizer.startswith(_PAGED):
            notes += (
                f"{step.optimizer}: its state can move to the host; it is predicted on the GPU",
            )
        return replace(checked, prediction=prediction, notes=(*checked.notes, *notes))
    return replace(checked, not_predicted=reasons[0])


def _options(step: RecipeStep, length: int) -> StepOptions:
    from bench.training.options import StepOptions

    assert step.optimizer
    return StepOptions(
        batch_size=step.batch_size or 1,
        seq_len=length,
        optimizer=step.optimizer.removeprefix(_PAGED),
        gradient_checkpointing=step.gradient_checkpointing,
        autocast=step.autocast,
        reentrant=step.reentrant,
        compute_dtype=step.compute_dtype,
        attention=step.attention,
        accumulation=step.accumulation,
    )


def in_its_words(message: str, recipe: Recipe, given: Collection[str] = ()) -> str:
    """What is wrong with a step, in the words of the file that it is from: its key and line where
    the message has an option of `bench memory`. Options that are `given` stay as they are."""
    from bench.training.options import flag_of

    for option, keys in recipe.step_keys.items():
        if option in given:
            continue
        lines = recipe.document.lines
        key = next((key for key in keys if tuple(key.split(".")) in lines), None)
        said = f"{keys[0]} (the default of {recipe.tool})"
        if key is not None:
            said = f"line {recipe.document.line(*key.split('.'))}: {key}"
        pattern = rf"(?:step option {option}|(?<![\w-]){flag_of(option)})(?![\w-])"
        message = re.sub(pattern, said.replace("\\", r"\\"), message)
    return message


def _with_liger(options: StepOptions, checked: Checked) -> tuple[StepOptions, Checked]:
    """The step with Liger's kernels, or a note on why they are left out."""
    from bench.training.liger import check_liger

    with_kernels = replace(options, liger=True)
    assert checked.recipe.step is not None
    subject = replace(checked.subject, precision=checked.recipe.step.precision)
    try:
        check_liger(subject.case(with_kernels))
    except BenchError as error:
        why = str(error).removeprefix("--liger: ")
        note = f"the file's use_liger_kernel is left out of the prediction: {why}"
        return options, replace(checked, notes=(*checked.notes, note))
    return with_kernels, checked


_PAGED = "paged-"
"""bitsandbytes' optimizers whose state lies in managed memory, which no trace sees."""
_LEFT_OUT = (
    (), ("reentrant",), ("autocast",), ("autocast", "reentrant", "compute_dtype"),
)  # fmt: skip
"""What is left out of the step, in turn, where it cannot be predicted with it."""
_PLAIN: dict[str, Any] = {"autocast": None, "reentrant": False, "compute_dtype": None}
