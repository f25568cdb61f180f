"""What a run is about: models × scenarios (× ranks × precisions), chosen from the options."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError, check_known
from bench.files import check_weights
from bench.models.architectures import Model, load_model
from bench.models.declared import registered
from bench.models.modules import ModuleTable
from bench.models.precision import precision
from bench.scenarios.scenario import Scenario, find_scenario, load_scenarios
from bench.targets import Ledger, match
from bench.training.cases import Case, StepOptions
from bench.units import harmless, one_line, text_of

RANKS = (1, 8, 16, 32, 64, 128)
USUAL = ("fp32", "bf16", "fp16", "int8", "nf4")
MEASURED = ("distilbert-base-uncased", "opt-350m", "phi-3-medium")


@dataclass(frozen=True)
class Subject:
    """One model with one LoRA configuration; `scenario` is None for a user's own adapter, and
    `adapter_file` where that was read, if anywhere."""

    model: Model
    name: str
    adapter: AdapterConfig
    scenario: Scenario | None = None
    optional: tuple[str, ...] = ()
    precision: str | None = None
    weights: Path | None = None
    adapter_file: Path | None = None

    @property
    def key(self) -> str:
        """Short, stable and readable: the part of a test id in brackets."""
        return f"{self.model.label}-{self.name}"

    @property
    def ranked_key(self) -> str:
        return f"{self.key}-r{self.adapter.r}"

    @property
    def measured_key(self) -> str:
        weights = "-real-weights" if self.weights else ""
        return f"{self.ranked_key}-{self.precision}{weights}"

    def case(self, step: StepOptions) -> Case:
        """The measured case of this subject."""
        assert self.precision is not None
        self.model.check_code()
        stored = precision(self.precision).stored
        config = self.model.config
        return Case(
            model=self.model.label,
            config={k: v for k, v in config.items() if stored or k != "quantization_config"},
            auto_class=self.model.task_class,
            scenario=self.name,
            adapter=self.adapter.to_dict(),
            precision=self.precision,
            step=step,
            weights=str(self.weights) if self.weights else None,
            code=str(self.model.own_code.resolve()) if self.model.own_code else None,
        )

    @property
    def table(self) -> ModuleTable:
        """The modules as the precision's step has them, on which PEFT decides: quantized but for
        those that are trained whole."""
        if self.precision is None or (held := self.model.held_in(self.precision)) is self.model:
            return self.model.table
        table, whole = held.table, self.adapter.saved_modules
        kept = (
            replace(m, class_name="Linear") if m.quantized and m.name.endswith(whole) else m
            for m in table.modules
        )
        return replace(table, modules=tuple(kept)) if whole else table

    @property
    def ledger(self) -> Ledger:
        """What each entry reaches on the model: worked out anew each time."""
        return match(self.table, self.adapter, self.model.role_of)

    def check_injectable(self) -> None:
        """BenchError, with what reaches nothing, where PEFT refuses the configuration."""
        ledger = self.ledger
        if ledger.refusals:
            said = [*ledger.refusals, *self.unreached().values(), *ledger.ways_out]
            raise BenchError(f"{self.key}: PEFT refuses: {'; '.join(said)}")

    def unreached(self) -> dict[str, str]:
        """What of the configuration has no effect on the model and is not optional: the entry, or
        the field and its entry, and a sentence on it."""
        ledger = self.ledger
        said = {e.entry: f"{e.entry} {e.nothing}" for e in ledger.entries if e.dead}
        said |= {f"{f.field} {f.entry}": str(f) for f in ledger.dead_fields}
        optional = {*self.optional, *(f"{f.field} {f.entry}" for f in ledger.dead_fields
                                      if f.entry in self.optional)}  # fmt: skip
        return {
            harmless(name): harmless(f"{self.key}: {text}")
            for name, text in said.items()
            if name not in optional
        }

    def dead_entries(self, ledger: Ledger) -> str:
        """What to tell the user of dead entries, and of other fields' entries without effect, that
        are not optional; "" if there are none."""
        dead = [e for e in ledger.entries if e.dead and e.entry not in self.optional]
        fields = [f for f in ledger.dead_fields if f.entry not in self.optional]
        said = []
        if dead:
            said.append(f"{len(dead)} of {len(ledger.entries)} entries reach nothing")
        if fields:
            said.append(f"{len(fields)} entries of other fields have no effect")
        if not said:
            return ""
        lines = [f"{self.model.label}: {', '.join(said)}"]
        lines += [f"  {entry.entry}: dead{entry.why_dead}" for entry in dead]
        lines += [f"  {field}" for field in fields]
        return harmless(text_of(lines))


def check_optional(
    optional: Iterable[str], subjects: Iterable[Subject], where: str = "--optional"
) -> None:
    """BenchError for an optional entry, given `where`, that no subject's configuration has: a slip,
    which would make nothing optional."""
    if not (optional := tuple(optional)):
        return
    known: set[str] = set()
    for subject in subjects:
        known |= subject.adapter.written
        if subject.adapter.target_modules is None:
            known |= _defaults(subject.model.model_type)
    for name in optional:
        check_known(f"entry in {where}:", name, known)


def _defaults(model_type: str) -> set[str]:
    """What PEFT adapts where no target is named."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFTS

    found = PEFTS.get(model_type, ())
    return {found} if isinstance(found, str) else set(found)


@dataclass(frozen=True)
class Request:
    """What the options ask for. Empty means everything that is registered."""

    models: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()
    adapter: Path | None = None
    target_modules: tuple[str, ...] | str = ()
    r: int | None = None
    precisions: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    auto_class: str | None = None
    full_geometry: bool = False
    trust_remote_code: bool = False
    weights: Path | None = None
    on_gpu: bool | None = None
    """Whether cases are measured on a GPU; None where that is for this machine to say."""


@dataclass(frozen=True)
class Subjects:
    """The subjects of a run, by the suite that asks for them."""

    architectures: tuple[str, ...] = ()
    structural: dict[str, Subject] = field(default_factory=dict)
    ranked: dict[str, Subject] = field(default_factory=dict)
    measured: dict[str, Subject] = field(default_factory=dict)
    own: dict[str, Subject] = field(default_factory=dict)


def select(request: Request, smaller: Callable[[], bool] = lambda: False) -> Subjects:
    """Every subject that `request` asks for; where a model has two reduced geometries, `smaller` is
    asked whether the smaller one is measured. Raises BenchError for a name or value that is wrong,
    and for a scenario that was asked for on a model that does not have its roles."""
    if request.r is not None and request.r < 1:
        raise BenchError(f"--rank must be a whole number of at least 1, not {request.r}")
    ways = {"adapter": request.adapter, "target-modules": request.target_modules,
            "scenario": request.scenarios}  # fmt: skip
    if len(named := [f"--{name}" for name, value in ways.items() if value]) > 1:
        raise BenchError(f"give one of {', '.join(named)}: each is a configuration")
    _check_weights(request)
    scenarios = [find_scenario(s) for s in request.scenarios] or list(load_scenarios().values())
    precisions = tuple(precision(p).name for p in request.precisions) or USUAL
    models = told_apart(
        {
            name: load_model(name, request.auto_class, request.trust_remote_code)
            for name in request.models or registered()
        }
    )
    if len(models) < len(request.models):
        twice = next(n for n in request.models if request.models.count(n) > 1)
        raise BenchError(f"--model {twice} is given twice")
    ranks = (request.r,) if request.r else RANKS
    found = Subjects(architectures=tuple(m.label for m in models if m.architecture))
    for model in models:
        given, file = _given_adapter(request, model)
        if given is not None:
            adapted = model if request.auto_class else model.for_task(given.task_type)
            subject = Subject(adapted, "own", given, None, request.optional, adapter_file=file)
            _add(found, [subject], own=True, precisions=precisions, weights=request.weights)
            continue
        chosen = _applicable(model, scenarios, bool(request.models and request.scenarios))
        for scenario in chosen:
            subject = Subject(
                model, scenario.name, scenario.adapter(model, request.r), scenario,
                (*request.optional, *scenario.optional),
            )  # fmt: skip
            if model.architecture is None:
                _add(found, [subject], own=True, precisions=precisions, weights=request.weights)
                continue
            found.structural[subject.key] = subject
            for r in ranks:
                ranked = replace(subject, adapter=subject.adapter.with_rank(r))
                found.ranked[ranked.ranked_key] = ranked
        if model.architecture is not None and (model.label in MEASURED or request.models):
            published = _measured(request, model, chosen, smaller)
            _add(found, published, precisions=precisions, weights=request.weights)
    check_optional(request.optional, {**found.structural, **found.measured, **found.own}.values())
    return found


def told_apart(models: Mapping[str, Model], given: str = "--model") -> list[Model]:
    """The models by the names they were given, each with a label of its own: where two would be
    called alike, by as much of the path (or the hub id) as it takes. A registered one keeps its.
    BenchError, which calls them `given`, for one folder by two names."""
    found = []
    for name, model in models.items():
        if model.architecture is None:
            alike = [n for n in models if n != name and models[n].label == model.label]
            label = _label(name, alike, given) if alike else model.label
            found.append(replace(model, label=label, place=_place(name)))
        else:
            found.append(model)
    return found


def _place(name: str) -> str:
    """The path of a folder within the current one, or a hub id; of a folder elsewhere a digest: it
    is nobody's business what lies around it."""
    path = "/".join(_path(name))
    if path.startswith("/"):
        return f"sha256 {hashlib.sha256(path.encode()).hexdigest()[:16]}"
    return one_line(path)


def _label(name: str, alike: Sequence[str], given: str) -> str:
    mine, others = _path(name), [_path(other) for other in alike]
    if mine in others:
        same = alike[others.index(mine)]
        raise BenchError(f"{given} {name} and {given} {same} are the same")
    lengths = range(2, len(mine))
    length = next((n for n in lengths if all(o[-n:] != mine[-n:] for o in others)), len(mine))
    return one_line("/".join(mine[-length:]))


def _path(name: str) -> tuple[str, ...]:
    """The parts of a folder's path, from the current folder where it lies within."""
    path = Path(name).expanduser()
    if not path.exists():
        return tuple(name.split("/"))  # a hub id, or a registered name
    path = path.resolve()
    path = path.parent if path.name == "config.json" else path
    here = Path.cwd().resolve()
    return (path.relative_to(here) if path.is_relative_to(here) else path).parts


def _applicable(model: Model, scenarios: Iterable[Scenario], explicit: bool) -> list[Scenario]:
    chosen = []
    for scenario in scenarios:
        if explicit:
            scenario.adapter(model)  # raises, naming what the model lacks
            chosen.append(scenario)
        elif model.architecture is not None:
            if scenario.applies_to(model.architecture):
                chosen.append(scenario)
        elif not scenario.literal and not scenario.architectures:
            try:
                scenario.adapter(model)
            except BenchError:
                continue
            chosen.append(scenario)
    return chosen


def _measured(
    request: Request, model: Model, chosen: Sequence[Scenario], smaller: Callable[[], bool]
) -> list[Subject]:
    """The scenarios published for this model, at their ranks, in a geometry that fits here."""
    published = [s for s in chosen if model.label in s.architectures] or [
        s for s in chosen if not s.literal
    ]
    if request.scenarios:
        published = list(chosen)
    assert model.architecture is not None
    on_gpu = has_gpu() if request.on_gpu is None else request.on_gpu
    full = request.full_geometry or request.weights is not None or on_gpu
    reduced = () if full else model.architecture.reduced
    shown = model.reduce(smallest=len(reduced) > 1 and smaller()) if reduced else model
    return [
        Subject(shown, s.name, s.adapter(shown, r), s)
        for s in published
        for r in ((request.r,) if request.r else s.measured_ranks)
    ]


def _check_weights(request: Request) -> None:
    """Real weights are one model's, and safetensors: a pickle could execute anything."""
    if request.weights is None:
        return
    if len(request.models) != 1:
        raise BenchError("--weights needs exactly one --model: the model that they belong to")
    check_weights(request.weights)


def _given_adapter(request: Request, model: Model) -> tuple[AdapterConfig | None, Path | None]:
    """The adapter that was given, or lies beside the model, and the file that it was read from."""
    file = request.adapter
    if file is None and request.target_modules:
        return AdapterConfig(request.target_modules, r=request.r or 8), None
    if file is None and model.architecture is None and not request.scenarios:
        file = model.adapter_beside
    if not file:
        return None, None
    adapter = AdapterConfig.from_file(file)
    return adapter if request.r is None else adapter.with_rank(request.r), file


def _add(
    found: Subjects,
    subjects: list[Subject],
    *,
    own: bool = False,
    precisions: tuple[str, ...],
    weights: Path | None = None,
) -> None:
    for subject in subjects:
        if own:
            found.own[subject.key] = subject
        for name in precisions:
            measured = replace(subject, precision=name, weights=weights)
            found.measured[measured.measured_key] = measured


def has_gpu() -> bool:
    """Whether a CUDA device can be used; torch is only asked where a driver is installed."""
    if shutil.which("nvidia-smi") is None and not Path("/proc/driver/nvidia").exists():
        return False
    import torch

    return bool(torch.cuda.is_available())
