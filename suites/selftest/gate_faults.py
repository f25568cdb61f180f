"""Preloaded into a test's workers: faults that a model's config.json asks for by name.

`"bench_fault": "extra-op"` adds one operation to every decoder layer, `"leak"` keeps a tensor of
every step, and with `"dtype"` models are built in bfloat16, whatever they were asked for.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.training import loading
from bench.training.step import Training

_load, _meta_model = loading.load, loading.meta_model
_leaked: list[torch.Tensor] = []


def _one_more(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output + 0


def _keep(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    _leaked.append(inputs[0])  # what the embedding gave: no graph hangs on it


def _faulty_load(case: Any, device: str = "cpu") -> Training:
    training = _load(case, device)
    layers = [m for m in training.model.modules() if type(m).__name__.endswith("DecoderLayer")]
    match case.config.get("bench_fault"):
        case "extra-op":
            for layer in layers:
                layer.register_forward_hook(_one_more)
        case "leak":
            layers[0].register_forward_pre_hook(_keep)
    return training


def _other_dtype(case: Any, config: Any) -> Any:
    model = _meta_model(case, config)
    return model.bfloat16() if case.config.get("bench_fault") == "dtype" else model


loading.load, loading.meta_model = _faulty_load, _other_dtype
