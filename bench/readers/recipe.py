"""A recipe: what a training tool's file asks for, in PEFT's and this project's own terms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError, nearest
from bench.files import FIXTURES, parse, read_toml
from bench.readers.document import Document
from bench.readers.refusals import Refusal, given
from bench.readers.values import (
    OF_FIELD,
    Parser,
    ValueKind,
    named_kind,
    one_of,
    repeated_names,
    words_of,
)
from bench.training.options import SDPA

if TYPE_CHECKING:
    from bench.models.architectures import Model
    from bench.targets import Ledger

_LIST_OF_ONE = re.compile(r'^the list \["[\w.]+"\], or ')

T = TypeVar("T")
Fields = dict[str, Any]
TargetsOf = Callable[["Model"], tuple[Fields, tuple[str, ...]]]
"""Fields of `peft.LoraConfig` that a tool works out from the model, and what to say of them."""


@dataclass(frozen=True)
class RecipeStep:
    """The training step that a file describes; None where the file and the tool leave it open.

    `optimizer` and `precision` are this project's names; `optimizer` is "" where the file's own
    is none that is predicted. `reentrant` is a way of checkpointing, and off where that is.
    `attention` is what `bench memory --attention` calls it. `notes` is said beside a prediction.
    """

    batch_size: int | None = None
    seq_len: int | None = None
    optimizer: str | None = None
    gradient_checkpointing: bool = False
    precision: str = "bf16"
    autocast: str | None = None
    reentrant: bool = False
    compute_dtype: str | None = None
    liger: bool = False
    attention: str = SDPA
    accumulation: int = 1
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.gradient_checkpointing:  # the tools leave the key beside it unread then
            object.__setattr__(self, "reentrant", False)


@dataclass(frozen=True)
class Slip:
    """A key that the tool is not known to have; `near` is the known one that it may be a slip of,
    and `decides` whether it looks like one that the answer depends on."""

    key: str
    line: int
    near: str = ""
    decides: bool = True

    def __str__(self) -> str:
        near = f"; did you mean {self.near}?" if self.near else ""
        return f"{self.key} (line {self.line}{near})"


@dataclass(frozen=True)
class Recipe:
    """One file's LoRA configuration, base model and step.

    Attributes:
        tool: the tool's name, and `version` the one whose keys were read.
        model: the base model as the file names it; None where it names none.
        fields: keyword arguments of `peft.LoraConfig`.
        targets: adds what depends on the model, where the tool works that out.
        keys: our field → the file's keys for it, to find the line again.
        step_keys: an option of `StepOptions` → the tool's keys that say it.
        step_on: the step on a model, where the tool does other things on some models.
        notes: what the answer does not cover, or what the tool does that one may not expect.
        slips: keys that the tool is not known to have, and that may be slips of what decides.
        list_of_one: whether a list of one name stays a list.
    """

    tool: str
    version: str
    document: Document = field(repr=False)
    model: str | None
    fields: Fields
    step: RecipeStep | None = None
    targets: TargetsOf | None = None
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    num_labels: int | None = None
    slips: tuple[Slip, ...] = ()
    list_of_one: bool = True
    step_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    step_on: Callable[[Model], RecipeStep] | None = field(default=None, repr=False)

    @property
    def path(self) -> Path:
        return self.document.path

    @property
    def title(self) -> str:
        """ "axolotl YAML", and so on: what the file was taken for."""
        kind = "JSON" if self.path.suffix == ".json" else "YAML"
        return f"{self.tool} {kind} (keys of {self.tool} {self.version})"

    def adapter(self, model: Model) -> tuple[AdapterConfig, tuple[str, ...]]:
        """(the LoRA configuration that the tool builds for `model`, every note on it).

        Raises BenchError, naming the file, for values that PEFT does not take.
        """
        fields, notes = self.targets(model) if self.targets else ({}, ())
        try:
            config = AdapterConfig.from_dict({**self.fields, **fields}, str(self.path))
        except BenchError as error:
            said = located(str(error), self.document, self.keys)
            if self.slips:
                said += f"; not understood: {', '.join(map(str, self.slips))}"
            raise BenchError(said) from None
        return config, (*self.notes, *notes)

    def on(self, model: Model) -> Recipe:
        """The recipe with the step that `model` gets. Raises BenchError where the tool refuses."""
        return self if self.step_on is None else replace(self, step=self.step_on(model))

    def advised(self, ledger: Ledger) -> Ledger:
        """The ledger without the advice to write a list of one name, where the tool makes a string
        of it."""
        if self.list_of_one:
            return ledger
        entries = (
            replace(entry, suggestion=_LIST_OF_ONE.sub("", entry.suggestion))
            for entry in ledger.entries
        )
        return replace(ledger, entries=tuple(entries))

    def line(self, field: str, entry: str) -> int:
        """The line of an entry of one of our fields."""
        document = self.document
        keys = self.keys.get(field, (field,))
        for key in keys:
            if (key, entry) in document.items:
                return document.line(key, item=entry)
        return next((document.line(key) for key in keys if (key,) in document.lines), 1)


class RecipeFault(BenchError):
    """Everything that is wrong with a tool's file. `model` is the base model that it names all the
    same, and `recipe` what was read of it, where that much could be. `misnamed`: the model's key
    holds something that is no name."""

    def __init__(
        self, message: str, model: str | None, recipe: Recipe | None, misnamed: bool = False
    ) -> None:
        super().__init__(message)
        self.model = model
        self.recipe = recipe
        self.misnamed = misnamed


@dataclass(frozen=True, kw_only=True)
class _Keys:
    """Tables of keys as a file of `fixtures/tools/` has them: Trainer's, which several tools take.

    Attributes:
        inert: patterns of keys that change neither what is adapted nor what a step takes.
        said_of_step: key → what it changes that is not computed here, of the memory of a step.
        values: the name of a kind of value (`named_kind`) → the keys that take it.
        names: an enumeration → its texts.
        choices: key → the only texts that it takes, or enumerations of them.
        words: key → the words that it takes, in a text or a list.
    """

    inert: tuple[str, ...]
    said_of_step: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, tuple[str, ...]]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _ToolKeys(_Keys):
    """The tables of one tool's keys; `values` has those that are read beside `fields`, and those of
    which something is said.

    Attributes:
        model_key: the key that names the base model.
        trainer: whether Trainer's keys are its own too.
        marks: keys that only this tool has; a file with `model_key` and one of them is its.
        fields: their key → the field of `peft.LoraConfig`, values as they are.
        step: an option of `StepOptions` → the keys that say it, for what is wrong with it.
        said: key → what it changes that is not computed here, of what is adapted.
        optimizers: key → the optimizer that it puts in the place of another, "" for its value.
        passed_over: a kind of value → the keys of which nothing but that is looked at.
        beside: key → texts that it takes beside its kind of value.
        not_null: "always", or a key that must be given → the keys that are not null then.
        refused: what the tool's own checks refuse of keys that stand together.
        defaults: key → what the tool takes where a file is silent, for `refused`.
    """

    tool: str
    version: str
    source: str
    model_key: str
    trainer: bool
    marks: frozenset[str]
    fields: Mapping[str, str]
    step: Mapping[str, tuple[str, ...]]
    said: Mapping[str, str] = field(default_factory=dict)
    optimizers: Mapping[str, str] = field(default_factory=dict)
    passed_over: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    beside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    not_null: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()
    defaults: Mapping[str, bool | int | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reader(_ToolKeys):
    """How one tool's files are read: `kinds` is what belongs to each key of its tables, `parser`
    what is made of a text."""

    kinds: Mapping[str, ValueKind]
    parser: Parser
    read: Callable[[Document], Recipe]

    @property
    def known(self) -> set[str]:
        """The keys that are read, but for those of which something is said instead."""
        keys = {key for key in self.kinds if "." not in key}
        keys |= {*self.fields, self.model_key}
        keys.difference_update(self.said, self.said_of_step, *self.passed_over.values())
        return keys

    def fits(self, values: Mapping[str, Any]) -> int:
        """How many of its own keys the file has; 0 where it is not this tool's."""
        return len(self.marks & values.keys()) if self.model_key in values else 0


def load_reader(name: str, parser: Parser, read: Callable[[Document], Recipe]) -> Reader:
    """The reader with the keys of `fixtures/tools/`. Raises BenchError, naming file and key."""
    keys = _load_keys(name, _ToolKeys)
    shared = _load_keys("trainer", _Keys) if keys.trainer else _Keys(inert=(), values={})
    kinds = {key: OF_FIELD[ours] for key, ours in keys.fields.items() if ours in OF_FIELD}
    for table in (keys.passed_over, shared.values, keys.values):
        kinds |= {key: named_kind(kind, name) for kind, found in table.items() for key in found}
    choices = {
        key: tuple(each for text in texts for each in shared.names.get(text, (text,)))
        for key, texts in {**shared.choices, **keys.choices}.items()
    }
    kinds |= {key: one_of(*texts) for key, texts in choices.items()}
    kinds |= {key: words_of(*words) for key, words in {**shared.words, **keys.words}.items()}
    kinds |= {key: kinds[key].beside(*texts) for key, texts in keys.beside.items()}
    merged = {
        "inert": (*shared.inert, *keys.inert),
        "said_of_step": {**shared.said_of_step, **keys.said_of_step},
        "choices": choices,
    }
    return Reader(**{**vars(keys), **merged}, kinds=kinds, parser=parser, read=read)


@cache
def _load_keys(name: str, kind: type[T]) -> T:
    path = FIXTURES / "tools" / f"{name}.toml"
    return parse(read_toml(path), kind, str(path))


def notes_on(reader: Reader, document: Document) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(what to say always, what to say beside a prediction) of the keys that `reader` does not
    compute, those that it does not know among them."""
    known = reader.known
    said, of_step = [], []
    for key, value in document.values.items():
        if not given(value) or key in known:
            continue
        if key in reader.said:
            said.append(f"{key}: {reader.said[key]}")
        elif key in reader.said_of_step:
            of_step.append(f"{key}: {reader.said_of_step[key]}")
    said += [f"{key} stands twice; the last counts" for key in document.repeated]
    said += repeated_names(document, reader.kinds)
    if strange := [slip for slip in strange_keys(reader, document) if not slip.decides]:
        said.append(f"not understood, and may change the answer: {not_understood(reader, strange)}")
    return tuple(said), tuple(of_step)


def strange_keys(reader: Reader, document: Document) -> tuple[Slip, ...]:
    """The keys that the tool is not known to have."""
    known = {*reader.known, *reader.said, *reader.said_of_step}
    inert = re.compile("|".join(f"(?:{pattern})" for pattern in reader.inert))
    found = [*_strange_within(reader, document)]
    for key, value in document.values.items():
        if not given(value) or key in known or inert.fullmatch(key):
            continue
        near = nearest(key, sorted(known))
        decides = near in reader.known or bool(_OF_ADAPTERS.search(key))
        found.append(Slip(key, document.line(key), near, decides))
    return tuple(found)


def _strange_within(reader: Reader, document: Document) -> Iterator[Slip]:
    """The keys of a table within the file that are near to one that is read there, and none."""
    for outer in {key.partition(".")[0] for key in reader.kinds if "." in key}:
        known = [k.partition(".")[2] for k in reader.kinds if k.startswith(f"{outer}.")]
        table = document.values.get(outer)
        for key in table if isinstance(table, dict) else ():
            if key not in known and (near := nearest(str(key), known)):
                line = document.line(outer, str(key))
                yield Slip(f"{outer}.{key}", line, f"{outer}.{near}")


_OF_ADAPTERS = re.compile(r"(?i)lora|dora|peft|adapter|target|modules|quant|(4|8)_?bit")
"""In a key that speaks of the adapter, or of the precision of what it adapts."""


def not_understood(reader: Reader, strange: Iterable[Slip]) -> str:
    """Keys that the tool is not known to have, each with its line and what it may be a slip of."""
    return (
        f"{', '.join(map(str, strange))} (not among the keys of {reader.tool} {reader.version} "
        "that are read here)"
    )


def renamed(document: Document, table: Mapping[str, str]) -> tuple[Fields, dict[str, Any]]:
    """(PEFT's fields by `table`, the line keys of each), without values that are null."""
    fields: Fields = {}
    keys: dict[str, tuple[str, ...]] = {}
    for theirs, ours in table.items():
        value = document.values.get(theirs)
        if value is not None:
            fields[ours] = value
            keys[ours] = (*keys.get(ours, ()), theirs)
    return fields, keys


def whole(document: Document, key: str, default: int | None) -> int | None:
    """A whole number, or `default` for null and where there is none."""
    value: int | None = document.values.get(key)
    return default if value is None else value


def listed(value: object) -> list[Any]:
    """A list as it is, text split at its commas, nothing as an empty list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        return list(value)
    return [] if value is None else [value]


def located(message: str, document: Document, keys: Mapping[str, tuple[str, ...]]) -> str:
    """An error on fields of `peft.LoraConfig` in the file's own words: its keys and their lines."""
    path = f"{document.path}: "
    said = message.removeprefix(path)
    for ours, theirs in keys.items():
        if key := next((key for key in theirs if (key,) in document.lines), ""):
            there = rf"\g<1>line {document.line(key)}: \g<2>{key}"
            said = re.sub(rf"(^|; )(unknown )?{ours}\b", there, said, count=1)
    return path + said


def refuse_whole_model(document: Document, reader: Reader, why: str) -> BenchError:
    """The error for a file that trains no LoRA adapter."""
    return BenchError(
        f"{document.path}: a configuration of {reader.tool}, and {why}: there are no target "
        "modules to check"
    )
