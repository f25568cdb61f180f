"""A study: one model on one text, the arms that are compared on it, and what is claimed of them.

`fixtures/learning/*.toml` hold them, written before anything is run: margins and claims too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from bench.errors import BenchError, check_known, lookup
from bench.files import FIXTURES, check_weights, digest_of, keyed, parse, read_toml
from bench.learning import packages, texts
from bench.learning.arms import FULL, HEAD, LORA, Arm, budget_of, lora_arm, whole_arm
from bench.models.architectures import Model, find_model
from bench.models.precision import precision
from bench.scenarios.scenario import Scenario, find_scenario

if TYPE_CHECKING:
    from bench.learning.texts import Material, Text

FOLDER = FIXTURES / "learning"
WEIGHTS_OF = {"minilm": packages.minilm, "smollm2": packages.smollm2}
CLASSIFICATION, LANGUAGE_MODEL = "classification", "language-model"
CLASSES = {CLASSIFICATION: "AutoModelForSequenceClassification",
           LANGUAGE_MODEL: "AutoModelForCausalLM"}  # fmt: skip
_HELD = ("*.safetensors*", "config.json")
_VARIANTS = ("use_rslora", "use_dora", "init_lora_weights")
Names = tuple[str, ...]
Number = int | float


class _Arm(TypedDict, total=False):
    scenario: str
    roles: Names
    optional_roles: Names
    saved_roles: Names
    kind: str
    r: int
    lora_alpha: Number
    budget: bool
    precision: str
    shift: bool
    seeds: int
    same_rate_as: str
    tuning_seeds: int
    use_rslora: bool
    use_dora: bool
    init_lora_weights: bool | str
    quick: bool
    stands_for: Names


_TOLD = ("says", "source", "kind")
_OF_ARMS = ("better", "worse", "with", "without", "full", "sets", "expected", "metric")
_Published = dict[Literal["with", "without", "matched_with", "matched_without"], str]


@dataclass(frozen=True)
class Settings:
    """How every arm of a study is trained and evaluated; see the comments of its file.

    rungs: steps after which the rates are compared, and `kept` how many go on from each. margin:
    nats of loss below which a difference does not count, fixed before the run.
    """

    weights: str
    task: str
    text: Mapping[str, Any]
    other: Mapping[str, Any]
    length: int
    batch_size: int
    steps: int
    evaluate_at: tuple[int, ...]
    held_back: int
    evaluation: int
    other_examples: int
    new_tokens: int
    budget_scenario: str
    budget_rank: int
    lora_alpha: Number
    lora_dropout: Number
    rates: tuple[float, ...]
    full_rates: tuple[float, ...]
    head_rates: tuple[float, ...]
    rungs: tuple[int, ...]
    kept: tuple[int, ...]
    margin: float
    seeds: int

    def __post_init__(self) -> None:
        check_known("task", self.task, CLASSES)
        if len(self.rungs) != len(self.kept) or max(self.rungs) > self.steps:
            raise BenchError("rungs and kept go together, and no rung is beyond the last step")
        if self.evaluate_at[-1] != self.steps:
            raise BenchError("the last of evaluate_at must be the last step")


@dataclass(frozen=True)
class _File:
    study: Settings
    arm: dict[str, _Arm]
    claim: dict[str, dict[str, Any]] = field(default_factory=dict)
    published: _Published = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """Something that has been said, and between which arms it is tested here: see `claims`."""

    name: str
    says: str
    source: str
    kind: str
    arms: Mapping[str, Any]


@dataclass(frozen=True)
class Said:
    """What a study is to answer. margin: nats. published: the arms that stand for the published
    comparison, as it was made (`with`, `without`) and at one budget (`matched_with`,
    `matched_without`). stands_for: published shapes that are the same as an arm on this model."""

    claims: tuple[Claim, ...]
    margin: float
    published: Mapping[str, str] = field(default_factory=dict)
    stands_for: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Everything that decides a run. `weights` is the folder, `where` names the text in errors."""

    name: str
    settings: Settings
    weights: Path
    model: Model = field(repr=False)
    grown: Model = field(repr=False)
    """The model with the new words of the shift."""
    plain: Material = field(repr=False)
    shifted: Material = field(repr=False)
    arms: tuple[Arm, ...]
    said: Said | None = None
    quick: tuple[str, ...] = ()
    """Arms of the one-minute version."""
    device: str = "cpu"
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Arms that the model has not the roles for, and why."""
    whole: bool = True
    """Whether it has all its arms."""
    own_weights: bool = False
    """Whether the weights are a user's, which no package's version holds fast."""
    reading: Callable[[int, int], object] | None = None  # is told how these are read

    def material(self, arm: Arm) -> Material:
        """What an arm sees."""
        return self.shifted if arm.shift else self.plain

    def model_of(self, arm: Arm) -> Model:
        """The base model of an arm, with the words that its text has."""
        return self.grown if arm.shift else self.model

    def arm(self, name: str) -> Arm:
        """The arm of that name; UnknownName with the nearest."""
        return lookup("arm", name, {arm.name: arm for arm in self.arms})

    def only(self, names: Sequence[str]) -> Study:
        """With these arms alone, and those whose rates they take."""
        wanted = {self.arm(name).name for name in names}
        wanted |= {arm.same_rate_as for arm in self.arms if arm.name in wanted}
        arms = tuple(arm for arm in self.arms if arm.name in wanted)
        return replace(self, arms=arms, whole=len(arms) == len(self.arms))

    @cached_property
    def described(self) -> dict[str, Any]:
        """What must be the same for two runs to be comparable."""
        values = json.loads(json.dumps(asdict(self.settings)))
        for name in ("margin", "seeds"):
            del values[name]
        found = {**values, "text_digest": self.plain.digest, "shifted_digest": self.shifted.digest}
        if self.own_weights:
            found["weights_digest"] = digest_of(self.weights, *_HELD, progress=self.reading)
        return found


def studies() -> list[str]:
    """The studies that there are."""
    return sorted(p.stem for p in FOLDER.glob("*.toml") if p.stem != "packages")


@dataclass(frozen=True)
class Origin:
    """How a study is made, here and in another process: its name, or the same on one's own weights
    and text, with other numbers of steps, sequences in a batch and tokens where they are given."""

    name: str
    weights: Path | None = None
    data: Path | None = None
    device: str = "cpu"
    steps: int | None = None
    batch_size: int | None = None
    length: int | None = None

    def changes(self, settings: Settings) -> dict[str, Any]:
        """Of the settings of the study's file, what is given; fewer or more steps move those at
        which is evaluated, and at which rates are compared, in proportion."""
        given = {"batch_size": self.batch_size, "length": self.length, "steps": self.steps}
        found: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
        if self.steps is not None:
            share = self.steps / settings.steps
            found["evaluate_at"] = tuple(sorted({round(share * at) for at in settings.evaluate_at}))
            found["rungs"] = tuple(max(1, round(share * rung)) for rung in settings.rungs)
        return found


@lru_cache(maxsize=4)
def load_study(origin: Origin) -> Study:
    """The study of that origin.

    Raises BenchError for a missing or changed package, a text that is too short, and arms that do
    not reach the budget.
    """
    _check_device(origin.device)
    return _study(origin, *_file(origin.name))


def _file(name: str) -> tuple[_File, str]:
    check_known("study", name, studies())
    path = FOLDER / f"{name}.toml"
    return parse(read_toml(path), _File, str(path)), str(path)


def _check_device(device: str) -> None:
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise BenchError(f"--device {device}: expected cpu or cuda")
    if device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            raise BenchError(f"--device {device}: torch sees no GPU here")


def text_of(origin: Origin) -> Study:
    """The study without its arms: a model and its text."""
    file, where = _file(origin.name)
    return _study(origin, _File(file.study, {}), where)


def make_study(origin: Origin, values: Mapping[str, Any], where: str) -> Study:
    """A study from the values of its file. On one's own weights the arms whose roles the model
    lacks are left out."""
    return _study(origin, parse(values, _File, where), where)


def _study(origin: Origin, file: _File, where: str) -> Study:
    name, weights, data = origin.name, origin.weights, origin.data
    texts_given = None if data is None else texts.read_data(data)
    task = file.study.task
    if texts_given is not None:
        task = LANGUAGE_MODEL if texts_given[0].label is None else CLASSIFICATION
    settings = replace(file.study, task=task, **origin.changes(file.study))
    folder = weights or _weights(settings.weights)
    model = _model(folder, task, name if weights is None else folder.resolve().name)
    called = "the text" if data is None else f"--data {data}"
    plain = _material(settings, folder, texts_given, called, alone=not file.arm)
    model = _with_labels(model, plain.labels)
    vocabulary = int(model.config["vocab_size"])
    shifted = texts.shifted(plain, vocabulary, settings.new_tokens)
    grown = replace(model, config={**model.config, "vocab_size": vocabulary + shifted.new_tokens})
    study = Study(
        name, settings, folder, model, grown, plain, shifted, (), device=origin.device,
        own_weights=weights is not None,
    )  # fmt: skip
    arms: list[Arm] = []
    quick: list[str] = []
    left_out: dict[str, str] = {}
    for key, facts in file.arm.items():
        try:
            arms.append(_arm(study, key, facts))
        except BenchError as error:
            if weights is None:
                raise
            left_out[key] = str(error)
        quick += [key] if facts.get("quick") else []
    arms = [arm for arm in arms if arm.same_rate_as not in left_out]
    return replace(
        study, arms=tuple(arms), said=_said(file, where), quick=tuple(quick), left_out=left_out
    )


def _said(file: _File, where: str) -> Said:
    """Claims and what goes with them: no package is needed."""
    claims = []
    for key, facts in file.claim.items():
        given = {name: value for name, value in facts.items() if name in _OF_ARMS}
        rest = {name: value for name, value in facts.items() if name not in _OF_ARMS}
        told = parse(rest, keyed(_TOLD, str), f"{where}: claim.{key}")
        for arm_name in _names(given):
            check_known(f"arm in {where}: claim.{key}:", arm_name, file.arm)
        claims.append(Claim(key, arms=given, **told))
    stands_for = {k: facts["stands_for"] for k, facts in file.arm.items() if "stands_for" in facts}
    published: Mapping[str, str] = dict(file.published.items())
    return Said(tuple(claims), file.study.margin, published, stands_for)


def said_of(name: str) -> Said:
    """What the study of that name claims; UnknownName with the nearest."""
    return _said(*_file(name))


def _names(values: Mapping[str, Any]) -> list[str]:
    """Every arm that a claim names."""
    found: list[str] = []
    for key, value in values.items():
        if key in ("expected", "metric"):
            continue
        flat = value if isinstance(value, list) else [value]
        for item in flat:
            found += item if isinstance(item, list) else [item]
    return found


def _weights(name: str) -> Path:
    return lookup("weights", name, WEIGHTS_OF)()


def _model(folder: Path, task: str, label: str) -> Model:
    check_weights(folder)
    return replace(find_model(str(folder), CLASSES[task]), label=label, architecture=None)


def _with_labels(model: Model, labels: Sequence[str]) -> Model:
    if not labels:
        return model
    ids = {str(i): label for i, label in enumerate(labels)}
    more = {"id2label": ids, "label2id": {label: int(i) for i, label in ids.items()}}
    return replace(model, config={**model.config, "num_labels": len(labels), **more})


def _material(
    settings: Settings, folder: Path, given: list[Text] | None, where: str, *, alone: bool
) -> Material:
    text = given if given is not None else texts.from_source(settings.text)
    tokenizer = texts.tokenizer_of(folder, text)
    make = texts.classified if settings.task == CLASSIFICATION else texts.continued
    sizes = texts.Sizes(
        settings.length, settings.held_back, settings.evaluation, settings.other_examples
    )
    other = text if alone else texts.from_source(settings.other)  # untrained, nothing is forgotten
    return texts.checked(make(text, other, tokenizer, sizes, where), settings.batch_size, where)


def _arm(study: Study, name: str, facts: _Arm) -> Arm:
    settings = study.settings
    kind = facts.get("kind", LORA)
    grids = {LORA: settings.rates, FULL: settings.full_rates, HEAD: settings.head_rates}
    check_known("kind of arm", kind, grids)
    common: dict[str, Any] = {
        "precision": precision(facts.get("precision", "fp32")).name,
        "shift": facts.get("shift", False),
        "seeds": facts.get("seeds", settings.seeds),
        "rates": grids[kind],
        "same_rate_as": facts.get("same_rate_as", ""),
        "tuning_seeds": facts.get("tuning_seeds", 1),
    }
    model = study.grown if common["shift"] else study.model
    if kind != LORA:
        return whole_arm(name, kind, model, **common)
    scenario = _scenario(name, facts)
    scenario = replace(
        scenario,
        r=facts.get("r", settings.budget_rank),
        lora_alpha=facts.get("lora_alpha", settings.lora_alpha),
        lora_dropout=settings.lora_dropout,
    )
    budget = None
    if facts.get("budget"):
        budget = budget_of(
            study.model, find_scenario(settings.budget_scenario), settings.budget_rank
        )
    more = {key: value for key, value in facts.items() if key in _VARIANTS}
    return lora_arm(name, model, scenario, budget=budget, more=more, **common)


def _scenario(name: str, facts: _Arm) -> Scenario:
    if "scenario" in facts:
        found = find_scenario(facts["scenario"])
        saved = facts.get("saved_roles", found.saved_roles)
        roles = (*found.roles, *facts.get("roles", ()))
        return replace(found, name=name, roles=roles, saved_roles=saved)
    return Scenario(
        name,
        roles=facts.get("roles", ()),
        optional_roles=facts.get("optional_roles", ()),
        saved_roles=facts.get("saved_roles", ()),
    )
