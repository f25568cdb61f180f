"""PEFT's own adapter_config.json.

Fields: peft 0.21.2 `tuners/lora/config.py`; `bench.adapters` checks their values.
"""

from __future__ import annotations

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.readers.document import Document
from bench.readers.recipe import Recipe, RecipeFault

TOOL, VERSION = "PEFT", "0.21.2"


def read(document: Document) -> Recipe:
    """The recipe of an adapter_config.json. Raises BenchError where a field cannot be.

    The configuration of another method than LoRA is refused in one line that names it.
    """
    values = dict(document.values)
    method = values.get("peft_type")
    if method not in (None, "LORA"):
        raise BenchError(f"{document.path}: {other_method(str(method))}")
    named = values.get("base_model_name_or_path")
    model = named if isinstance(named, str) else None
    try:
        AdapterConfig.from_dict(values, str(document.path))
    except BenchError as error:
        raise RecipeFault(str(error), model, None) from error
    return Recipe(TOOL, VERSION, document, model, values)


def other_method(method: str) -> str:
    """What an adapter of another PEFT method is, and what can be said of it."""
    return (
        f"an adapter of {method}, no LoRA: its target modules are not checked here; `bench targets "
        f"MODEL --method {method.lower()}` says what that method reaches and trains"
    )
