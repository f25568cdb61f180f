"""A recipe: what a training tool's file asks for, in PEFT's and this project's own terms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.readers.document import Document

if TYPE_CHECKING:
    from bench.models.architectures import Model

Fields = dict[str, Any]
Targets = Callable[["Model"], tuple[Fields, tuple[str, ...]]]
"""Fields of `peft.LoraConfig` that a tool works out from the model, and what to say of them."""


@dataclass(frozen=True)
class Step:
    """The training step that a file describes; None where the file and the tool leave it open.

    `optimizer` and `precision` are this project's names; `optimizer` is "" where the file's own
    is none that is predicted. `notes` is said beside a prediction.
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
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """One file's LoRA configuration, base model and step.

    Attributes:
        tool: the tool's name, and `version` the one whose keys were read.
        model: the base model as the file names it; None where it names none.
        fields: keyword arguments of `peft.LoraConfig`.
        targets: adds what depends on the model, where the tool works that out.
        keys: our field → the file's keys for it, to find the line again.
        notes: what the answer does not cover, or what the tool does that one may not expect.
    """

    tool: str
    version: str
    document: Document = field(repr=False)
    model: str | None
    fields: Fields
    step: Step | None = None
    targets: Targets | None = None
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    num_labels: int | None = None

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
        config = AdapterConfig.from_dict({**self.fields, **fields}, str(self.path))
        return config, (*self.notes, *notes)

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
    same, and `recipe` what was read of it, where that much could be."""

    def __init__(self, message: str, model: str | None, recipe: Recipe | None) -> None:
        super().__init__(message)
        self.model = model
        self.recipe = recipe


@dataclass(frozen=True)
class Reader:
    """How one tool's files are read.

    Attributes:
        model_key: the key that names the base model.
        marks: keys that only this tool has; a file with `model_key` and one of them is its.
        fields: their key → the field of `peft.LoraConfig`, values as they are.
        understood: keys that `read` handles, beside those above.
        inert: patterns of keys that change neither what is adapted nor what a step takes.
        said: key → what it changes that is not computed here.
        said_of_step: the same, for what only the memory of a step depends on.
    """

    tool: str
    version: str
    source: str
    model_key: str
    marks: frozenset[str]
    fields: Mapping[str, str]
    understood: frozenset[str]
    inert: tuple[str, ...]
    said: Mapping[str, str]
    said_of_step: Mapping[str, str]
    read: Callable[[Document], Recipe]

    def fits(self, values: Mapping[str, Any]) -> int:
        """How many of its own keys the file has; 0 where it is not this tool's."""
        return len(self.marks & values.keys()) if self.model_key in values else 0


def given(value: object) -> bool:
    """Whether a value says anything: null, false and what is empty leave the default."""
    return value not in (None, False, "", [], {}, ())


def notes_on(reader: Reader, document: Document) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(what to say always, what to say beside a prediction) of the keys that `reader` does not
    compute, those that it does not know among them."""
    known = _known(reader)
    said, of_step = [], []
    for key, value in document.values.items():
        if not given(value) or key in known:
            continue
        if key in reader.said:
            said.append(f"{key}: {reader.said[key]}")
        elif key in reader.said_of_step:
            of_step.append(f"{key}: {reader.said_of_step[key]}")
    said += [f"{key} stands twice; the last counts" for key in document.repeated]
    if strange := not_understood(reader, document):
        said.append(f"not understood, and may change the answer: {strange}")
    return tuple(said), tuple(of_step)


def not_understood(reader: Reader, document: Document) -> str:
    """The keys that the tool is not known to have, each with its line and what it may be a slip
    of; "" where there are none."""
    known = {*_known(reader), *reader.said, *reader.said_of_step}
    inert = re.compile("|".join(f"(?:{pattern})" for pattern in reader.inert))
    found = []
    for key, value in document.values.items():
        if not given(value) or key in known or inert.fullmatch(key):
            continue
        near = get_close_matches(key, sorted(known), 1, 0.8)
        slip = f"; did you mean {near[0]}?" if near else ""
        found.append(f"{key} (line {document.line(key)}{slip})")
    if not found:
        return ""
    return (
        f"{', '.join(found)} (not among the keys of {reader.tool} {reader.version} that are read "
        "here)"
    )


def _known(reader: Reader) -> set[str]:
    return {*reader.fields, *reader.understood, reader.model_key}


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
    """A whole number of at least 1, written as one or as text; `default` for null, and for
    anything else, which the document's `wrong` then says."""
    value = document.values.get(key)
    if value is None:
        return default
    number = int(value) if isinstance(value, str) and value.strip().isdigit() else value
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        document.wrong.append(
            f"line {document.line(key)}: {key} must be a whole number of at least 1, not {value!r}"
        )
        return default
    return number


def listed(value: object) -> list[Any]:
    """A list as it is, text split at its commas, nothing as an empty list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        return list(value)
    return [] if value is None else [value]


def refuse_whole_model(document: Document, reader: Reader, why: str) -> BenchError:
    """The error for a file that trains no LoRA adapter."""
    return BenchError(
        f"{document.path}: a configuration of {reader.tool}, and {why}: there are no target "
        "modules to check"
    )
