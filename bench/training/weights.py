"""Whether the real weights that were loaded are those of the model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.training.cases import Case
from bench.units import first_of

_FLOATING = ("F64", "F32", "F16", "BF16")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
"""A layer's, or an expert's, within the name of a tensor."""


def check_loaded(case: Case, model: Any, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raise BenchError where tensors of the base model were not in the folder: transformers draws
    those at random. A task's own head is new where the folder is the base model's. And where the
    folder has further layers of the model's kind: it is of another one. (What else it has that this
    class does not, such as another task's head, is left.) And where a matrix is stored as whole
    numbers or in 8 bits, which mean nothing without the scales that a quantizer keeps apart."""
    if coded := coded_weights(Path(case.weights or "")):
        raise BenchError(
            f"--weights {case.weights}: {first_of(coded)}: stored in the codes of a quantizer, "
            "which are no weights without its scales: give the checkpoint in floating point"
        )
    base = f"{model.base_model_prefix}."
    language_model = case.auto_class in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
    absent = sorted(n for n in missing if n.startswith(base) or language_model)
    if absent:
        raise BenchError(
            f"--weights {case.weights}: these are not the weights of {case.model}: it lacks "
            f"{first_of(absent)}, which would be random"
        )
    kinds = {_NUMBER.sub("*", name) for name in model.state_dict()}
    kinds |= {name.removeprefix(base) for name in kinds}  # as the base model alone is stored
    extra = sorted(name for name in unexpected if _NUMBER.sub("*", name) in kinds)
    if extra:
        raise BenchError(
            f"--weights {case.weights}: these are not the weights of {case.model}, which has no "
            f"place for {first_of(extra)}"
        )


def coded_weights(folder: Path) -> list[str]:
    """The matrices that the folder's safetensors files do not hold in floating point of 16 bits or
    more, each with its dtype."""
    from safetensors import safe_open

    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                tensor = file.get_slice(name)
                matrix = name.endswith("weight") and len(tensor.get_shape()) > 1
                if matrix and tensor.get_dtype() not in _FLOATING:
                    found.append(f"{name} ({tensor.get_dtype()})")
    return found
