"""An arm's learning rate, by successive halving on the held-back part.

K. Jamieson, A. Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
AISTATS 2016: every rate is trained for a few steps, the better ones go on. The rates are half a
decade apart, so that the best is known to within that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bench.learning.fit import ArmFit, LossDiverged
from bench.learning.records import Tuned

if TYPE_CHECKING:
    from bench.learning.arms import Arm
    from bench.learning.study import Study

FIRST_SEED = 1000
"""Of tuning: no seed of a compared run."""


def tune(study: Study, arm: Arm, seed: int = FIRST_SEED) -> Tuned:
    """The rate among the arm's own. Of equal ones the smaller; where all diverge the smallest."""
    settings = study.settings
    held_back = study.material(arm).held_back
    running = {rate: ArmFit(study, arm, rate, seed) for rate in arm.rates}
    losses: dict[float, dict[int, float]] = {rate: {} for rate in arm.rates}
    for step, kept in zip(settings.rungs, settings.kept, strict=True):
        for rate, one in running.items():
            try:
                one.train_to(step)
                loss = one.loss_on(held_back)
            except LossDiverged:
                loss = math.inf
            losses[rate][step] = loss if math.isfinite(loss) else math.inf
        best = sorted(running, key=lambda rate: (losses[rate][step], rate))[:kept]
        running = {rate: running[rate] for rate in running if rate in best}
        if all(math.isinf(losses[rate][step]) for rate in best):
            return Tuned(min(arm.rates), losses)
    return Tuned(best[0], losses)
