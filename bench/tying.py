"""Weight tying, as PEFT's `ensure_weight_tying` changes a configuration on a tied model.

PEFT acts only where an entry ends in `embed_tokens` or `lm_head`; it then works on the input
embedding, whatever that is called, and makes every module that shares its weight follow.

Source: peft 0.21 `tuners/tuners_utils.py` (`_check_tied_modules`) and `tuners/lora/model.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from bench.adapters import AdapterConfig
from bench.modules import ModuleTable

_NAMES = ("embed_tokens", "lm_head")

Targets = tuple[str, ...] | str | None


@dataclass(frozen=True)
class Tying:
    """What the configuration became.

    Attributes:
        adapter, targets: with the input embedding in place of the entries that name tied modules.
        adapted: tied modules that get an adapter beside the input embedding's.
        saved: tied modules whose trained copy is the input embedding's own.
        replaced: the user's entries that were taken out, each with the tied modules it names.
    """

    adapter: AdapterConfig
    targets: Targets
    adapted: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    replaced: tuple[tuple[str, tuple[str, ...]], ...] = ()


def tie(table: ModuleTable, adapter: AdapterConfig, targets: Targets) -> Tying:
    """`adapter` and `targets` as PEFT rewrites them; unchanged where nothing is to be tied."""
    unchanged = Tying(adapter, targets)
    if not (adapter.ensure_weight_tying and table.tied):
        return unchanged
    if any(name.rpartition(".")[2] in _NAMES for name in adapter.saved_modules):
        kept, _ = _take_out(adapter.saved_modules, table)
        if table.input_embedding not in kept:
            kept = (*kept, table.input_embedding)
        # The heads of the task type come back by themselves.
        return replace(unchanged, adapter=replace(adapter, modules_to_save=kept), saved=table.tied)
    if isinstance(targets, str):
        if not any(re.fullmatch(targets, name) for name in _NAMES):
            return unchanged
        embedding = re.escape(table.input_embedding)
        return replace(unchanged, targets=rf"(?:{targets}|^{embedding}$)", adapted=table.tied)
    if any(name.rpartition(".")[2] in _NAMES for name in targets or ()):
        kept, replaced = _take_out(targets or (), table)
        kept = tuple(dict.fromkeys((*kept, table.input_embedding)))
        return replace(unchanged, targets=kept, adapted=table.tied, replaced=replaced)
    return unchanged


def _take_out(
    entries: tuple[str, ...], table: ModuleTable
) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[str, ...]], ...]]:
    kept = list(dict.fromkeys(entries))
    for name in table.tied:
        fits = [e for e in kept if re.match(rf"(^|.*\.){e}($|\..*)", name)]
        if fits:
            kept.remove(fits[0])
    gone = [e for e in entries if e not in kept]
    return tuple(kept), tuple(
        (e, tuple(n for n in table.tied if re.match(rf"(^|.*\.){e}($|\..*)", n))) for e in gone
    )
