"""Weight tying: what PEFT trains once, or twice, where modules share the input embedding's weight.

`ensure_weight_tying` rewrites a configuration on a tied model: where an entry ends in
`embed_tokens` or `lm_head`, PEFT works on the input embedding, whatever that is called, and makes
every module that shares its weight follow. `trainable_token_indices` follows the tied weights by
itself.

Source: peft 0.21 `tuners/tuners_utils.py` (`_check_tied_modules`), `tuners/lora/model.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from bench.adapters.config import AdapterConfig
from bench.errors import BenchError
from bench.models.modules import EMBEDDING, LINEAR, ModuleTable

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
        wanted = tuple(dict.fromkeys((*adapter.saved_modules, table.input_embedding)))
        kept, _ = _take_out(wanted, table)
        # The heads of the task type come back by themselves.
        return replace(unchanged, adapter=replace(adapter, modules_to_save=kept), saved=table.tied)
    if isinstance(targets, str):
        if not any(re.fullmatch(targets, name) for name in _NAMES):
            return unchanged
        whole = rf"(?:{targets}|^{re.escape(table.input_embedding)}$)"
        try:
            re.compile(whole)
        except re.error as error:
            raise BenchError(
                f"target_modules {targets!r}: PEFT puts it into a larger expression for "
                f"ensure_weight_tying, where it is none: {error}"
            ) from None
        return replace(unchanged, targets=whole, adapted=table.tied)
    if any(name.rpartition(".")[2] in _NAMES for name in targets or ()):
        # Where the input embedding is itself listed as tied (Marian), it is taken out again.
        wanted = tuple(dict.fromkeys((*(targets or ()), table.input_embedding)))
        kept, gone = _take_out(wanted, table)
        replaced = tuple(entry for entry in gone if entry[0] in (targets or ()))
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


@dataclass(frozen=True)
class TokenLayer:
    """A module with `tokens` trained rows of `width`; one that follows another adds none."""

    name: str
    tokens: int
    width: int
    follows: bool = False


def token_layers(table: ModuleTable, adapter: AdapterConfig) -> tuple[TokenLayer, ...]:
    """The modules that `trainable_token_indices` reaches.

    On a tied model the output embedding follows the input embedding's tokens; PEFT lets both train
    apart where a mapping gives them different indices. Raises BenchError where PEFT raises.

    Source: peft 0.21 `utils/other.py` (`set_additional_trainable_modules`).
    """
    given = adapter.trainable_token_indices
    if given is None:
        return ()
    embedding = table.input_embedding or "embed_tokens"
    asked = {embedding: given} if isinstance(given, tuple) else dict(given)
    saved = tie(table, adapter, None).adapter.guarded_modules
    # PEFT asks for the embedding's name after saving: within a saved container it is another.
    held = isinstance(given, tuple) and any(
        re.match(rf"(^|.*\.){entry}\..*", embedding) for entry in saved
    )
    if both := [] if held else [key for key in asked if key in saved]:
        raise BenchError(f"trainable_token_indices: {both[0]} is in modules_to_save as well")
    shared = [
        key
        for key in asked
        if embedding.endswith(key)
        or any(name.endswith(key) or key in name.split(".") for name in table.tied)
    ]
    together = len({asked[key] for key in shared}) < 2
    if table.says_tied and not together and adapter.ensure_weight_tying:
        raise BenchError("trainable_token_indices: tied modules need the same indices")
    if table.says_tied and together and len(shared) > 1:
        asked = {key: value for key, value in asked.items() if key not in table.tied}
    layers: dict[str, TokenLayer] = {}
    for key, indices in asked.items():
        found = [m for m in table.modules if m.name.endswith(key)]
        if not found:
            raise BenchError(f"trainable_token_indices: no module is called {key!r}")
        for module in found:
            if module.kind not in (EMBEDDING, LINEAR):
                raise BenchError(f"{module.name} is a {module.class_name} and holds no tokens")
            rows = module.in_features if module.kind == EMBEDDING else module.out_features
            if indices and max(indices) >= rows:
                raise BenchError(
                    f"trainable_token_indices: {module.name} has {rows} rows, and {max(indices)} "
                    "is not one of them"
                )
            width = module.out_features if module.kind == EMBEDDING else module.in_features
            layers.setdefault(module.name, TokenLayer(module.name, len(indices), width))
    if table.says_tied and embedding in layers and (together or adapter.ensure_weight_tying):
        for name in table.tied:
            layers.setdefault(name, TokenLayer(name, 0, 0, follows=True))
    return tuple(layers.values())
