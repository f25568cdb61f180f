"""PEFT's own adapter_config.json.

Fields: peft 0.21.2 `tuners/lora/config.py`; `bench.adapters` checks their values.
"""

from __future__ import annotations

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.readers.document import Document
from bench.readers.recipe import Recipe, RecipeFault, located
from bench.readers.values import OF_FIELD, repeated_names, shown

TOOL, VERSION = "PEFT", "0.21.2"


def read(document: Document) -> Recipe:
    """The recipe of an adapter_config.json. Raises BenchError where a field cannot be.

    The configuration of another method than LoRA is refused in one line that names it.
    """
    values = dict(document.values)
    method = values.get("peft_type")
    if method not in (None, "LORA"):
        raise BenchError(f"{document.path}: {other_method(str(method))}")
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


def other_method(method: str) -> str:
    """What an adapter of another PEFT method is, and what can be said of it."""
    from bench.formulas.kinds import METHODS

    said = f"an adapter of {method}, no LoRA: its target modules are not checked here"
    if method.lower().replace("_", "-") not in METHODS:
        return f"{said}, and no closed form is known of that method"
    return (
        f"{said}; `bench targets MODEL --method {method.lower()}` says what that method reaches "
        "and trains"
    )
