"""Which tool a file is of, told by keys that only that tool has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.errors import BenchError
from bench.readers import axolotl, litgpt, llama_factory, ms_swift, peft, trl
from bench.readers.document import Document, read_document
from bench.readers.recipe import Reader, Recipe, RecipeFault, not_understood, strange_keys
from bench.readers.refusals import refusals
from bench.readers.values import TEXT, parsed

READERS = (axolotl.READER, llama_factory.READER, trl.READER, litgpt.READER, ms_swift.READER)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file of PEFT, axolotl, LLaMA-Factory, TRL, LitGPT or ms-swift.

    Raises BenchError, naming the file: unreadable, of none of these tools, or one whose keys are of
    two of them.
    """
    document = read_document(path)
    if "peft_type" in document.values or path.name == "adapter_config.json":
        return peft.read(document)
    found = sorted(READERS, key=lambda reader: -reader.fits(document.values))
    best = found[0].fits(document.values)
    if not best:
        raise BenchError(f"{path}: {_unknown(document)}")
    if found[1].fits(document.values) == best:
        raise BenchError(
            f"{path}: as much of {found[0].tool} as of {found[1].tool}: name the tool's own keys"
        )
    return _read(found[0], document)


def _read(reader: Reader, document: Document) -> Recipe:
    """The recipe; BenchError with everything that is wrong, the keys that may be misspelt too."""
    kinds = {reader.model_key: TEXT, **reader.kinds}
    document = parsed(document, kinds, reader.parser, reader.not_null)
    strange = strange_keys(reader, document)
    document.wrong.extend(refusals(reader.refused, reader.tool, document, reader.defaults))
    refused: BenchError | None = None
    recipe: Recipe | None = None
    try:
        recipe = reader.read(document)
        if not document.wrong:
            slips = tuple(slip for slip in strange if slip.decides)
            return replace(recipe, slips=slips, step_keys=reader.step)
    except BenchError as error:
        refused = error
    said = [*document.wrong]
    if refused is not None:
        said.append(str(refused).removeprefix(f"{document.path}: "))
    if strange:
        said.append(f"not understood: {not_understood(reader, strange)}")
    raise RecipeFault(
        f"{document.path}: {'; '.join(said)}",
        document.values.get(reader.model_key),
        recipe,
        misnamed=reader.model_key not in document.values,
    ) from refused


def _unknown(document: Document) -> str:
    keys = document.values.keys()
    if "model_type" in keys and "architectures" in keys:
        return "a model's config.json, with no LoRA configuration; name the adapter's file"
    tools = ", ".join(f"{r.tool} ({r.model_key} with {min(r.marks)}, ...)" for r in READERS)
    return (
        f"a file of no tool that is known here: expected PEFT (peft_type), {tools}; "
        f"found {', '.join(list(keys)[:6])}"
    )
