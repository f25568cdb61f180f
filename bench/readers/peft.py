"""PEFT's own adapter_config.json.

Fields: peft 0.21.2 `tuners/lora/config.py`; `bench.adapters` checks their values.
"""

from __future__ import annotations

import shlex
from dataclasses import MISSING
from dataclasses import fields as fields_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.adapters.config import INERT, AdapterConfig
from bench.errors import BenchError, UnknownName
from bench.readers.document import Document, read_document
from bench.readers.recipe import Recipe, RecipeFault, located
from bench.readers.values import OF_FIELD, repeated_names, shown

if TYPE_CHECKING:
    from bench.formulas.kinds import Kind

TOOL, VERSION = "PEFT", "0.21.2"


def read(document: Document) -> Recipe:
    """The recipe of an adapter_config.json. Raises BenchError where a field cannot be.

    The configuration of another method than LoRA is refused in one line that names it.
    """
    values = dict(document.values)
    method = values.get("peft_type")
    if method not in (None, "LORA"):
        named = values.get("base_model_name_or_path")
        raise OtherMethod(document.path, str(method), named if isinstance(named, str) else None)
    model = values.get("base_model_name_or_path")
    if not isinstance(model, str | None):
        line = document.line("base_model_name_or_path")
        said = f"line {line}: base_model_name_or_path must be text, not {shown(model)}"
        raise RecipeFault(f"{document.path}: {said}", None, None, misnamed=True)
    try:
        AdapterConfig.from_dict(values, str(document.path))
    except BenchError as error:
        said = located(str(error), document, {field: (field,) for field in values})
        raise RecipeFault(said, model, None) from error
    notes = [f"{key} stands twice; the last counts" for key in document.repeated]
    notes += repeated_names(document, OF_FIELD)
    return Recipe(TOOL, VERSION, document, model, values, notes=tuple(notes))


class OtherMethod(BenchError):
    """An adapter of another PEFT method than LoRA: what can be said of it, and with what command.

    `model` is the base model that the file names.
    """

    def __init__(self, path: Path, method: str, model: str | None, *options: str) -> None:
        from bench.formulas.kinds import METHODS

        self.path, self.method, self.model = path, method, model
        said = f"{path}: an adapter of {method}, no LoRA: its target modules are not checked here"
        if (name := _name(method)) in METHODS:
            asked = ["bench", "targets", model or "MODEL", "--method", name, "--adapter", str(path)]
            asked += options
            said += f"; `{shlex.join(asked)}` says what it reaches and trains"
        else:
            said += ", and no closed form is known of that method"
        super().__init__(said)

    def on(self, model: str | None, *options: str) -> OtherMethod:
        """The same for the base model that was given or found, whatever the file names, and with
        these options of the command."""
        return OtherMethod(self.path, self.method, model or self.model, *options)


def _name(method: str) -> str:
    return method.lower().replace("_", "-")


def method_fields(path: Path, kind: Kind) -> dict[str, Any]:
    """The fields of an adapter_config.json of this method, as `method` takes them.

    Raises BenchError for another method's file, and for a field with a value of its own that is
    not counted here: none is ignored.
    """
    import peft

    file = path / "adapter_config.json" if path.is_dir() else path
    values = read_document(file).values
    found = str(values.get("peft_type"))
    if _name(found) != kind.name:
        raise BenchError(f"{file}: an adapter of {found}, not of {kind.name}")
    defaults = {
        f.name: f.default if f.default_factory is MISSING else f.default_factory()
        for f in fields_of(getattr(peft, kind.peft_class))
    }
    known = {*kind.settings, *kind.common, *(("bias",) if kind.bias else ())}
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key in known:
            if value is not None or kind.settings.get(key) is not None:
                given[key] = value
        elif key in INERT or key in _INERT_OF.get(kind.name, ()):
            continue
        elif key not in defaults:
            raise UnknownName(f"field of {kind.name} in {file}:", key, (*known, *defaults))
        elif value not in (defaults[key], None, False, [], {}, ""):
            raise BenchError(f"{file}: no closed form is known here of what {key} changes")
    return given


# AdaLoRA has LoRA's fields: it makes init_r ranks whatever r is, and no alpha is counted.
_INERT_OF = {"adalora": ("r", "alpha_pattern")}
