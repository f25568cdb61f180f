"""Random LoRA configurations on a model, over every field, in every way that people write names.

Drawn from a `random.Random`, so that a seed gives the same configurations everywhere and the
property tests can hand in hypothesis's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Any

from bench.adapters.config import AdapterConfig
from bench.models.modules import OTHER, ModuleTable
from bench.tasks import BY_TYPE

_HEADS = ("classifier", "score", "qa_outputs", "lm_head", "embed_tokens")
# Endings of what an injection adds, and of what is no layer at all.
_ODD_SAVES = ("dropout", "base_layer", "default", "lora_A", "norm", "weight", "0", "vector")
_VARIANTS: tuple[dict[str, object], ...] = (
    {"use_dora": True},
    {"lora_bias": True},
    {"kasa_config": {}},
    {"velora_config": {}},
    {"alora_invocation_tokens": (1, 2)},
    {"use_bdlora": {"target_modules_bd_a": ["q_proj", "dense", "fc1"],
                    "target_modules_bd_b": ["v_proj", "o_proj", "fc2"],
                    "nblocks": 2, "match_strict": False}},
)  # fmt: skip
_INITIALISATIONS = (False, "gaussian", "orthogonal", "pissa", "olora", "mica")


def random_adapter(draw: Random, table: ModuleTable) -> AdapterConfig:
    """A configuration for the model. Raises BenchError where its fields do not go together."""
    usable = [m.name for m in table.modules if m.kind != OTHER]
    every = [m.name for m in table.modules]
    leaves = sorted({name.rpartition(".")[2] for name in usable})
    targets = _targets(draw, table, usable, leaves)
    fields: dict[str, Any] = {
        "r": draw.randint(1, 12),
        "lora_alpha": draw.choice((8, 32)),
        "use_rslora": draw.random() < 0.3,
        "bias": draw.choice(("none", "none", "none", "all", "lora_only")),
        "ensure_weight_tying": draw.random() < 0.4,
    }
    if draw.random() < 0.25:
        patterns = [*leaves, *usable, r".*\.0\..*", "(?i)x"]
        weights = [*[8] * len(leaves), *[1] * len(usable), 4, 0.4]
        chosen = draw.choices(patterns, weights, k=draw.randint(1, 2))
        fields["rank_pattern"] = {name: draw.randint(1, 9) for name in chosen}
    if draw.random() < 0.1:
        fields["alpha_pattern"] = {draw.choice(leaves): 4}
    if draw.random() < 0.2:
        fields["init_lora_weights"] = draw.choice(_INITIALISATIONS)
    if draw.random() < 0.4:
        fields["modules_to_save"] = _saves(draw, table, every)
    if draw.random() < 0.2:
        fields["exclude_modules"] = draw.choice(
            (
                (draw.choice(leaves),),
                (draw.choice(usable), draw.choice(leaves)),
                r".*\.0\..*",
                (_ending(draw, draw.choice(every)),),
            )
        )
    if draw.random() < 0.4:
        fields["task_type"] = draw.choice(sorted(BY_TYPE))
    if draw.random() < 0.25:
        fields |= draw.choice(_VARIANTS)
    if not isinstance(targets, str) and draw.random() < 0.4:
        fields |= _layers(draw, every)
    if draw.random() < 0.15:
        fields["target_parameters"] = _parameters(draw, table)
        if draw.random() < 0.3:
            targets = draw.choice(((), None))
    if table.input_embedding and draw.random() < 0.15:
        fields["trainable_token_indices"] = _tokens(draw, table)
    if draw.random() < 0.06:
        depth = draw.randint(1, 3)
        fields["layer_replication"] = ((0, depth), (draw.randint(0, depth - 1), depth))
    return AdapterConfig(targets, **fields)


def _ending(draw: Random, name: str) -> str:
    """The last segments of a name."""
    parts = name.split(".")
    return ".".join(parts[-draw.randint(1, len(parts)) :])


def _targets(
    draw: Random, table: ModuleTable, usable: Sequence[str], leaves: Sequence[str]
) -> tuple[str, ...] | str | None:
    some = draw.sample(leaves, min(len(leaves), draw.randint(1, 4)))
    named = [name for name in usable if name.rpartition(".")[2] in some]
    match draw.choices(range(8), (6, 3, 3, 4, 2, 2, 1, 1))[0]:
        case 0:
            return tuple(some)
        case 1:  # full names of a few
            return tuple(draw.sample(usable, min(len(usable), draw.randint(1, 5))))
        case 2:  # full names of all that the leaves reach: many, which PEFT condenses
            return tuple(named)
        case 3:  # many names, some of them full
            many = draw.sample(usable, min(len(usable), draw.randint(18, 30)))
            return tuple(dict.fromkeys(n if draw.random() < 0.9 else _ending(draw, n)
                                       for n in many))  # fmt: skip
        case 4:
            return tuple(dict.fromkeys(_ending(draw, draw.choice(usable)) for _ in some))
        case 5:
            body = "|".join(re.escape(s) for s in some)
            return draw.choice(
                (rf".*\.({body})", rf"(.*\.)?({body})", "all-linear", "All-Linear",
                 rf"(?i).*\.({body.upper()})", "(?i)nothing", body)
            )  # fmt: skip
        case 6:
            return None
    extra = draw.choice(
        (table.input_embedding, table.output_embedding, *table.tied, "lm_head", "embed_tokens",
         draw.choice([m.name for m in table.modules]), "0", "no_such_module")
    )  # fmt: skip
    return (*some, *filter(None, (extra if draw.random() < 0.5 else extra.rpartition(".")[2],)))


def _saves(draw: Random, table: ModuleTable, every: Sequence[str]) -> tuple[str, ...]:
    names: list[str] = []
    for _ in range(draw.randint(1, 3)):
        kind = draw.random()
        if kind < 0.5:
            names.append(_ending(draw, draw.choice(every)))
        elif kind < 0.65:
            names.append(draw.choice(_HEADS))
        elif kind < 0.75:
            names.append(draw.choice(_ODD_SAVES))
        elif kind < 0.85:
            embeddings = (table.input_embedding, table.output_embedding, *table.tied)
            names += [name for name in [draw.choice(embeddings)] if name]
        else:  # one module in another
            inner = draw.choice(every)
            names += [inner, inner.rpartition(".")[0].rpartition(".")[0] or inner]
    return tuple(dict.fromkeys(names))


def _layers(draw: Random, every: Sequence[str]) -> dict[str, Any]:
    some = tuple(draw.sample(range(4), draw.randint(0, 3)))
    fields: dict[str, Any] = {"layers_to_transform": draw.choice((some, draw.randint(0, 3)))}
    if draw.random() < 0.5:
        lists = sorted({m[1] for name in every for m in [re.search(r"(\w+)\.\d+", name)] if m})
        lists = [*lists, "layers", "h", "blocks"]
        patterns = tuple(draw.sample(lists, min(len(lists), draw.randint(1, 3))))
        fields["layers_pattern"] = draw.choice((patterns, patterns[0], ()))
    return fields


def _parameters(draw: Random, table: ModuleTable) -> tuple[str, ...]:
    fit = [p.name for p in table.parameters if len(p.shape) in (2, 3)]
    fused = [p.name for p in table.expert_parameters]
    pool = fused if fused and draw.random() < 0.7 else fit
    few = draw.sample(pool, min(len(pool), draw.randint(1, 2)))
    return tuple(dict.fromkeys(".".join(name.split(".")[-draw.randint(2, 4) :]) for name in few))


def _tokens(draw: Random, table: ModuleTable) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    def indices() -> tuple[int, ...]:
        # Position tables have few rows; on the meta device PEFT sees no index beyond the last.
        return tuple(sorted(draw.sample(range(2), draw.randint(0, 2))))

    if draw.random() < 0.5:
        return indices()
    names = [table.input_embedding, table.input_embedding.rpartition(".")[2]]
    names += [*table.tied, *filter(None, [table.output_embedding]), "lm_head", "embed_tokens"]
    return {name: indices() for name in draw.sample(sorted({*names}), draw.randint(1, 2))}
