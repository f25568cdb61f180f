"""`bench check`: one file or folder taken for what it is, and held against its base model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.check.base import find_base, label_heads, with_saved_labels
from bench.check.gate import HazardGate
from bench.errors import BenchError, check_most
from bench.formulas import Parameters, lora_parameters
from bench.models.architectures import MOST_LABELS, Model
from bench.readers import Recipe, RecipeFault, read_recipe
from bench.saved.folder import CONFIG, AdapterFound, find, further
from bench.saved.header import SavedTensor, read_header
from bench.saved.keys import KeysFound, Mismatch, compare_keys
from bench.saved.values import Values, read_values
from bench.scenarios.subjects import Subject
from bench.targets import Hazard, Ledger, match
from bench.units import counted

if TYPE_CHECKING:
    from bench.predict.gpus import Gpu
    from bench.predict.result import Prediction
    from bench.training.options import StepOptions


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


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (`error`) or probably not meant, at a line of a file."""

    code: str
    text: str
    file: Path
    line: int = 1
    error: bool = True


def check(path: Path, question: Question) -> Checked:
    """Everything that is asked of the file or folder at `path`.

    Raises BenchError where it is none that is understood, or the base model is not found.
    """
    found = find(path)
    recipe, model = _read(found.config, question)
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
    held = model
    if recipe.step is not None and "quantization_config" not in model.config:
        held = model.loaded_in(recipe.step.precision)  # PEFT refuses some of it on integers
    try:
        ledger = match(held.table, adapter, model.role_of)
        if held is not model:  # sizes are told of the model as it is stored, grown where it grows
            plain = match(model.table, adapter, model.role_of, described=False)
            ledger = replace(ledger, table=plain.table)
    except BenchError as error:
        raise BenchError(f"{found.config}: {error}") from None
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
        checked = _with_prediction(checked, question)
    failing = question.gate.failing(checked.ledger)
    return replace(checked, failing=failing, findings=tuple(_findings(checked, failing)))


def _read(file: Path, question: Question) -> tuple[Recipe, Model]:
    """The recipe and its base model. BenchError with what is wrong with either, told together."""
    faults: list[BenchError] = []
    recipe: Recipe | None = None
    model: Model | None = None
    try:
        recipe = read_recipe(file)
        named = recipe.model
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


def _with_prediction(checked: Checked, question: Question) -> Checked:
    """The file's own step, predicted; or why it is not."""
    from bench.predict import predict
    from bench.training.cases import StepOptions

    step = checked.recipe.step
    length = question.seq_len or (step.seq_len if step else None)
    if step is None:
        return replace(checked, not_predicted=f"{checked.kind} describes no step: see bench memory")
    if checked.ledger.refusals:
        return replace(checked, not_predicted="PEFT refuses the configuration")
    if not step.optimizer:
        return replace(checked, not_predicted=next(n for n in step.notes if "optimizer" in n))
    if length is None:
        return replace(checked, not_predicted="the file names no length: give --seq-len")
    options = StepOptions(
        batch_size=step.batch_size or 1,
        seq_len=length,
        optimizer=step.optimizer.removeprefix(_PAGED),
        gradient_checkpointing=step.gradient_checkpointing,
        autocast=step.autocast,
        reentrant=step.reentrant,
        compute_dtype=step.compute_dtype,
    )
    reasons = []
    if step.liger:
        options, checked = _with_liger(options, checked)
    for left_out in _LEFT_OUT:
        try:
            plainer = replace(options, **{name: _PLAIN[name] for name in left_out})
            case = replace(checked.subject, precision=step.precision).case(plainer)
            prediction = predict(case, gpu=question.gpu)
        except BenchError as error:
            reasons.append(str(error))
            continue
        said = [name for name in left_out if getattr(options, name) != _PLAIN[name]]
        notes = tuple(f"the file's {name} is left out of the prediction" for name in said)
        if step.optimizer.startswith(_PAGED):
            notes += (
                f"{step.optimizer}: its state can move to the host; it is predicted on the GPU",
            )
        return replace(checked, prediction=prediction, notes=(*checked.notes, *notes))
    return replace(checked, not_predicted=reasons[0])


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
_LEFT_OUT = ((), ("autocast",), ("autocast", "reentrant", "compute_dtype"))
"""What is left out of the step, in turn, where it cannot be predicted with it."""
_PLAIN: dict[str, Any] = {"autocast": None, "reentrant": False, "compute_dtype": None}


def _findings(checked: Checked, failing: Collection[str]) -> list[Finding]:
    """Everything that was found, errors first, each at the line of its file."""
    recipe, ledger, optional = checked.recipe, checked.ledger, checked.subject.optional
    found = []
    for entry in ledger.entries:
        if entry.dead and entry.entry not in optional:
            line = recipe.line(entry.field, entry.entry)
            text = f"{entry.entry} {entry.nothing}"
            found.append(Finding("dead-entry", text, recipe.path, line))
    for dead in ledger.dead_fields:
        if dead.entry not in optional:
            line = recipe.line(dead.field, dead.entry)
            found.append(Finding("dead-field", str(dead), recipe.path, line))
    for reason in ledger.refusals:
        line = recipe.line("target_modules", "")
        found.append(Finding("refused", f"PEFT refuses: {reason}", recipe.path, line))
    if checked.weights is not None:
        found += _saved_findings(checked, checked.weights)
    for hazard in ledger.hazards:
        line = recipe.line("target_modules", "")
        if hazard.code == "unknown-key":
            line = recipe.slips[0].line
        error = hazard.code in failing
        found.append(Finding(hazard.code, hazard.reason, recipe.path, line, error))
    return found


def _saved_findings(checked: Checked, file: Path) -> list[Finding]:
    found = []
    if (keys := checked.comparison) is not None:
        for move in keys.moves:
            old, new = (_in_model(prefix) for prefix in (move.old, move.new))
            text = (
                f"what the file calls {old} is {new} on this model: explains {move.keys} of "
                f"{keys.saved} keys"
            )
            found.append(Finding("prefix-moved", text, file))
        if keys.missing:
            found.append(Finding("missing-keys", _some("missing", keys.missing), file))
        if keys.ignored:
            found.append(Finding("ignored-keys", _some("ignored", keys.ignored), file))
        if keys.lost:
            found.append(
                Finding("missing-keys", _some("missing, and PEFT raises", keys.lost), file)
            )
        if keys.mismatches:
            found.append(
                Finding("other-shape", _shapes(keys.mismatches, checked.subject.model), file)
            )
        if keys.overwritten:
            text = _some("replace weights of the base model", keys.overwritten)
            found.append(Finding("base-weights", text, file, error=False))
    if (values := checked.values) is not None:
        if values.broken:
            found.append(Finding("not-finite", _some("hold NaN or infinity", values.broken), file))
        if values.never_trained:
            text = "every B is zero: this adapter was never trained, and changes nothing"
            if values.beside:
                text = (
                    f"every B is zero: the adapters of {counted(len(values.updates), 'module')} "
                    "were never trained, and change nothing; not looked at is what stands beside "
                    f"them, {_some('tensors', values.beside)}"
                )
            found.append(Finding("never-trained", text, file))
        if values.unchanged:
            text = _some("changed nothing", values.unchanged)
            found.append(Finding("unchanged", text, file, error=False))
    return found


def _shapes(wrong: tuple[Mismatch, ...], model: Model) -> str:
    """Tensors of another shape in one line, and the rank or the labels where it is those."""
    shown = tuple(f"{w.key} {_shape(w.saved)} for {_shape(w.wanted)}" for w in wrong)
    ranks = {
        (w.saved[0], w.wanted[0]) for w in wrong if w.saved and w.key.endswith("lora_A.weight")
    }
    text = _some("of another shape than the model's, at which PEFT raises", shown)
    if ranks and all(saved != wanted for saved, wanted in ranks):
        saved, wanted = (
            ", ".join(map(str, sorted(set(side)))) for side in zip(*ranks, strict=True)
        )
        text += f"; the file's rank is {saved}, {CONFIG} says {wanted}"
    heads = label_heads(model, (w.key for w in wrong))
    for w in wrong:
        if w.saved and w.key in heads and w.saved[0] != w.wanted[0]:
            text += (
                f"; the file's head has {w.saved[0]} labels, the base model's configuration "
                f"{w.wanted[0]}: load it with num_labels={w.saved[0]}"
            )
    return text


def _shape(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes)) or "scalar"


def _in_model(prefix: str) -> str:
    """A prefix of keys as a module of the model: PEFT puts two wrappers before it."""
    return prefix.removeprefix("base_model.model").removeprefix(".") or "the model itself"


def _some(what: str, names: tuple[str, ...], shown: int = 3) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} {what}: {', '.join(names[:shown])}{rest}"
