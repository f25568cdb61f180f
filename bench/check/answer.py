"""`bench check`: one file or folder taken for what it is, and held against its base model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.check.base import base_folder, find_base, with_saved_labels
from bench.check.findings import Finding, findings_of
from bench.check.gate import HazardGate
from bench.check.memory import with_prediction
from bench.errors import BenchError, check_most
from bench.formulas import Parameters, lora_parameters
from bench.models.architectures import Model
from bench.models.configs import MOST_LABELS
from bench.readers import Recipe, RecipeFault, read_recipe
from bench.readers.peft import OtherMethod
from bench.saved.folder import CONFIG, AdapterFound, find, further
from bench.saved.header import SavedTensor, read_header
from bench.saved.keys import KeysFound, compare_keys
from bench.saved.values import Values, read_values
from bench.scenarios.subjects import Subject
from bench.targets import Hazard, Ledger, match

if TYPE_CHECKING:
    from bench.predict.gpus import Gpu
    from bench.predict.result import Prediction


@dataclass(frozen=True)
class Question:
    """What to check beside the ledger.

    `gpu` and `seq_len` ask for the memory of the file's own step; `weights` for the values of a
    trained adapter; `gradients` for the adapters that get none.
    """

    model: str | None = None
    auto_class: str | None = None
    trust_remote_code: bool = False
    optional: tuple[str, ...] = ()
    gpu: Gpu | None = None
    seq_len: int | None = None
    weights: bool = False
    gradients: bool = True
    gate: HazardGate = field(default_factory=HazardGate)


@dataclass(frozen=True)
class Checked:
    """One file's answer.

    Attributes:
        path: what was asked about; `recipe.path` is the file that was read.
        kind: what it was taken for.
        failing: codes of hazards that fail, as the gate says.
        comparison, values: of a trained adapter, where there is one (and `--weights`).
        prediction: of the file's own step; `not_predicted` says why there is none.
    """

    path: Path
    kind: str
    recipe: Recipe
    subject: Subject
    ledger: Ledger
    parameters: Parameters | None
    notes: tuple[str, ...] = ()
    weights: Path | None = None
    comparison: KeysFound | None = None
    values: Values | None = None
    prediction: Prediction | None = None
    not_predicted: str = ""
    failing: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = field(default=())

    @property
    def failed(self) -> bool:
        """Whether anything was found that makes the configuration or the adapter wrong, or the
        memory was asked for and cannot be told: what nobody has checked has not passed."""
        short = self.prediction is not None and self.prediction.fit is not None
        return (
            any(f.error for f in self.findings)
            or bool(self.not_predicted)
            or (short and not self.prediction.fit.fits)  # type: ignore[union-attr]
        )


def check(path: Path, question: Question) -> Checked:
    """Everything that is asked of the file or folder at `path`.

    Raises BenchError where it is none that is understood, or the base model is not found.
    """
    found = find(path)
    try:
        return _answer(path, found, question)
    except BenchError as error:
        if str(found.config) in str(error):
            raise
        raise BenchError(f"{found.config}: {error}") from error  # one of several, perhaps


def _answer(path: Path, found: AdapterFound, question: Question) -> Checked:
    recipe, model = _read(found.config, question)
    recipe = recipe.on(model)
    kind = _kind(found, recipe)
    if recipe.num_labels is not None:
        check_most(f"{found.config}: num_labels", recipe.num_labels, MOST_LABELS)
        model = replace(model, config={**model.config, "num_labels": recipe.num_labels})
    if question.auto_class is None:
        model = model.for_task(recipe.fields.get("task_type"))
    tensors = read_header(found.weights) if found.weights is not None else {}
    told: tuple[str, ...] = ()
    if found.weights is not None:
        model, told = with_saved_labels(model, found.weights, tensors)
    if checkpoints := further(path)[1]:
        names = ", ".join(map(str, checkpoints))
        told += (f"the folder also holds checkpoints, which are not checked: {names}",)
    adapter, notes = recipe.adapter(model)
    file = found.config if found.config.name == CONFIG else None
    subject = Subject(model, "own", adapter, None, question.optional, adapter_file=file)
    # PEFT refuses some of it on integers.
    held = model if recipe.step is None else model.held_in(recipe.step.precision)
    ledger = match(held.table, adapter, model.role_of)
    if held is not model:  # sizes are told of the model as it is stored, grown where it grows
        plain = match(model.table, adapter, model.role_of, described=False)
        ledger = replace(ledger, table=plain.table)
    ledger = replace(ledger, hazards=(*ledger.hazards, *_slips(recipe)))
    ledger = question.gate.judge(recipe.advised(ledger))
    checked = Checked(
        path=path,
        kind=kind,
        recipe=recipe,
        subject=subject,
        ledger=ledger,
        parameters=None if ledger.refusals else lora_parameters(ledger),
        notes=(*notes, *told),
        weights=found.weights,
    )
    if found.weights is not None:
        checked = _with_weights(checked, found.weights, tensors, question.weights)
    elif question.weights:
        raise BenchError(f"{path}: --weights needs a trained adapter, and there are no weights")
    if question.gradients and not ledger.refusals:
        checked = _with_gradients(checked)
    if question.gpu is not None:
        checked = with_prediction(checked, question.gpu, question.seq_len)
    failing = question.gate.failing(checked.ledger)
    return replace(checked, failing=failing, findings=tuple(findings_of(checked, failing)))


def _read(file: Path, question: Question) -> tuple[Recipe, Model]:
    """The recipe and its base model. BenchError with what is wrong with either, told together."""
    faults: list[BenchError] = []
    recipe: Recipe | None = None
    model: Model | None = None
    try:
        recipe = read_recipe(file)
        named = recipe.model
    except OtherMethod as error:
        base = question.model or base_folder(error.model, file)
        options = ["--auto-class", question.auto_class] if question.auto_class else []
        options += ["--trust-remote-code"] if question.trust_remote_code else []
        raise error.on(base, *options) from None
    except RecipeFault as error:
        faults.append(error)
        recipe, named = error.recipe, error.model
        if error.misnamed and question.model is None:
            raise
    try:
        model = find_base(
            named, file, question.model, question.auto_class, question.trust_remote_code
        )
    except BenchError as error:
        faults.append(error)
    if recipe is not None and model is not None and not faults:
        return recipe, model
    if recipe is not None and not (model is None and recipe.targets):
        try:
            recipe.adapter(model)  # type: ignore[arg-type]  # without targets it asks for none
        except BenchError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    told = "; ".join(str(fault).removeprefix(f"{file}: ") for fault in faults)
    raise BenchError(f"{file}: {told}") from faults[0]


def _slips(recipe: Recipe) -> list[Hazard]:
    """A hazard for the keys that the tool is not known to have, where they may decide the answer:
    a misspelt one leaves the tool's default."""
    if not recipe.slips:
        return []
    keys = ", ".join(map(str, recipe.slips))
    return [
        Hazard("unknown-key", f"{keys}: not among the keys of {recipe.tool} {recipe.version} that "
               "are read here, and may change the answer")
    ]  # fmt: skip


def _kind(found: AdapterFound, recipe: Recipe) -> str:
    if found.weights is not None:
        return f"{found.kind} of {recipe.tool} ({CONFIG}, {found.weights.name})"
    return recipe.title


def _with_weights(
    checked: Checked, weights: Path, tensors: Mapping[str, SavedTensor], values: bool
) -> Checked:
    comparison = None
    if not checked.ledger.refusals:
        comparison = compare_keys(checked.subject.model, checked.recipe.path, tensors)
    return replace(checked, comparison=comparison, values=read_values(weights) if values else None)


def _with_gradients(checked: Checked) -> Checked:
    """The hazards of a step that gives adapters no gradient; a note where it cannot be told."""
    from bench.predict.gradients import with_gradients

    try:
        ledger = with_gradients(checked.subject.model, checked.ledger)
    except BenchError as error:
        return replace(checked, notes=(*checked.notes, str(error)))
    return replace(checked, ledger=ledger)
