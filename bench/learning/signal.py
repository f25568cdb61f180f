"""What the first gradient foretells: its norm by role before any training, against the ranking.

A probe of seconds: forward and backward over a few texts, nothing trained. It is told with its rank
correlation with the losses that training then gave, whatever that is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.learning import texts
from bench.learning.arms import FULL, Arm
from bench.learning.study import CLASSES, LANGUAGE_MODEL, Origin, Study, text_of
from bench.models.architectures import Model, find_model
from bench.statistics import kendall_tau

if TYPE_CHECKING:
    from pathlib import Path

    from bench.learning.records import Shown
    from bench.models.modules import Module

BATCHES = 4


@dataclass(frozen=True)
class Signal:
    """Kendall's tau between an arm's gradient norm and how low its loss became: over all `arms`,
    and over those of one role alone, `singles` of them; NaN for fewer than two."""

    arms: tuple[str, ...]
    tau: float
    single_tau: float
    singles: int


def check_weights_of(model: Model, weights: Path) -> None:
    """Raise BenchError where the weights in a folder are another model's, by its modules: their
    names, classes and sizes, but for a task's head."""
    asked, found = model.table, find_model(str(weights), model.auto_class).table
    base = asked.base_model and f"{asked.base_model}."
    for name in dict.fromkeys((*asked.by_name, *found.by_name)):
        one, other = asked.by_name.get(name), found.by_name.get(name)
        if one != other and f"{name}.".startswith(base):
            raise BenchError(
                f"--weights {weights}: these are not the weights of {model.label}: {name} is "
                f"{_described(other)} there, not {_described(one)}"
            )


def _described(module: Module | None) -> str:
    if module is None:
        return "no module"
    size = f" {module.in_features} × {module.out_features}" if module.in_features else ""
    return f"{module.class_name or module.kind}{size}"


def probe_weights(weights: Path, data: Path | None = None, device: str = "cpu") -> dict[str, float]:
    """The same of one's own weights, on one's own text or on that of the study of their kind."""
    kind = find_model(str(weights)).task_class
    name = "smollm2" if kind == CLASSES[LANGUAGE_MODEL] else "minilm"
    return probe(text_of(Origin(name, weights, data, device)))


def probe(study: Study, seed: int = 0) -> dict[str, float]:
    """The norm of the loss' gradient by the base model's own weights, by role, over a few batches
    of the training text, with the head as the seed draws it."""
    from bench.learning.fit import load_arm, norms_by_role

    material, size = study.plain, study.settings.batch_size
    model = load_arm(study, Arm("probe", FULL, None, 0, 0), seed).eval()
    for batch in texts.batches(material.train, size, BATCHES, seed, material.pad):
        placed = {name: tensor.to(study.device) for name, tensor in batch.items()}
        (model(**placed).loss / BATCHES).backward()
    return norms_by_role(model, study.model.role_of)


def arm_norm(norms: Mapping[str, float], roles: Sequence[str]) -> float:
    """The norm over all the roles that an arm adapts."""
    return math.sqrt(sum(norms.get(role, 0.0) ** 2 for role in roles))


def against(norms: Mapping[str, float], shown: Sequence[Shown]) -> Signal:
    """The norms held against the losses of arms at one budget."""
    arms = [one for one in shown if one.arm.reached and one.losses]
    foretold = [-arm_norm(norms, tuple(one.arm.reached)) for one in arms]
    losses = [statistics.fmean(one.losses.values()) for one in arms]

    def tau(chosen: Sequence[int]) -> float:
        if len(chosen) < 2:
            return math.nan
        return kendall_tau([foretold[i] for i in chosen], [losses[i] for i in chosen])

    single = [i for i, one in enumerate(arms) if len(one.arm.reached) == 1]
    names = tuple(one.arm.name for one in arms)
    return Signal(names, tau(range(len(arms))), tau(single), len(single))
