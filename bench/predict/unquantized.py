"""What a quantized precision leaves as it is, though one would expect it quantized."""

from __future__ import annotations

from typing import Any

import torch

from bench.models.modules import CONV1D, LINEAR, layer_of, read_table
from bench.models.precision import precision
from bench.training.cases import Case

EXPERTS = "experts"


def left_unquantized(model: Any, case: Case) -> tuple[dict[str, list[torch.nn.Parameter]], float]:
    """The base model's weights that stay as they are, and their share of those expected not to.

    Expected are the linear and expert weights of the repeated layers, but for what is trained
    whole; heads and embeddings are never quantized. The weights are by kind: `EXPERTS`, which are
    fused into parameters and no modules, or the class of the linear layer. The share is of
    elements, 0 in a precision that quantizes nothing.
    """
    if not precision(case.precision).quantized:
        return {}, 0.0
    table = read_table(model)
    whole = tuple(case.adapter.get("modules_to_save") or ())
    kinds = {
        f"{m.name}.weight": "" if m.quantized else m.class_name
        for m in table.modules
        if m.kind in (LINEAR, CONV1D) and not (whole and m.name.endswith(whole))
    } | {p.name: EXPERTS for p in table.expert_parameters}
    held = dict(model.named_parameters(remove_duplicate=False))
    left: dict[str, list[torch.nn.Parameter]] = {}
    expected = missed = 0
    for parameter in table.parameters:
        kind = kinds.get(parameter.name)
        if kind is None or parameter.same_as or not layer_of(parameter.name):
            continue
        expected += parameter.elements
        if kind:
            missed += parameter.elements
            left.setdefault(kind, []).append(held[parameter.name])
    return left, missed / expected if expected else 0.0
