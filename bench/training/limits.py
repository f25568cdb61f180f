"""The longest sequence that a model takes."""

from __future__ import annotations

from typing import Any

import torch

from bench.errors import BenchError
from bench.training import loading
from bench.training.cases import Case


def position_limit(config: Any, model: torch.nn.Module) -> int | None:
    """Tokens that the model has positions for; None where nothing bounds them.

    The config's `max_position_embeddings`, less what models of RoBERTa's family lose: they number
    positions from the one after the padding's.
    """
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or getattr(
        config, "max_target_positions", None
    )
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            learned = module.num_embeddings - offset
            limit = learned if limit is None else min(limit, learned)
    return limit if isinstance(limit, int) and limit > 0 else None


def check_length(case: Case, config: Any, model: torch.nn.Module) -> None:
    """Raise BenchError where the case's sequences are longer than the model takes."""
    if case.task.has_length:
        _check(case, position_limit(config, model))


def check_case_length(case: Case) -> None:
    """`check_length`, the model built for it on meta; one that cannot be built is let through, for
    the worker to meet and report."""
    try:
        limit = case_limit(case)
    except Exception:
        return
    _check(case, limit)


def _check(case: Case, limit: int | None) -> None:
    if limit and case.step.seq_len > limit:
        raise BenchError(
            f"sequence length {case.step.seq_len}: {case.model} has positions for {limit} tokens"
        )


def case_limit(case: Case) -> int | None:
    """`position_limit` of a case; None for images."""
    if not case.task.has_length:
        return None
    config = loading.make_config(case)
    return position_limit(config, loading.meta_model(case, config))
