"""Every case of a study, in as many processes as there is room for, and what is done is kept.

A case is the tuning of an arm, or its training with one seed. Each is told as it ends, so that an
interruption costs no more than the cases that were running.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from bench.baselines.configuration import differing, recorded
from bench.errors import BenchError
from bench.learning import fit as fitting
from bench.learning.arms import TOLERANCE, Arm
from bench.learning.fit import FIRST_SEED, tune
from bench.learning.records import Shown
from bench.learning.study import Origin, Study, load_study
from bench.process import broken_library
from bench.training.machine import usable_processors
from bench.units import counted, first_of, text_of

TUNE, FIT = "tune", "fit"
Ended = Callable[[Shown], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One case. rate: of a training; follow: whether its memory is followed."""

    do: str
    arm: str
    seed: int
    rate: float = 0.0
    follow: bool = False


def default_workers() -> int:
    """Two processes of one thread each, where there are two processors."""
    return min(2, usable_processors())


def jobs(study: Study, shown: Mapping[str, Shown]) -> list[Job]:
    """The cases that can be run now, in the order of the arms: what they wait for is done."""
    found = []
    for arm in study.arms:
        mine = shown[arm.name]
        if not arm.same_rate_as:
            wanted = range(FIRST_SEED, FIRST_SEED + arm.tuning_seeds)
            found += [Job(TUNE, arm.name, seed) for seed in wanted if seed not in mine.tuned]
        rate = rate_of(arm, shown)
        if rate is not None:
            found += [
                Job(FIT, arm.name, seed, rate, follow=seed == 0)
                for seed in range(arm.seeds)
                if seed not in mine.fitted
            ]
    return found


def rate_of(arm: Arm, shown: Mapping[str, Shown]) -> float | None:
    """The rate of an arm, or of the one that it takes its own from; None while nobody knows."""
    return shown[arm.same_rate_as or arm.name].rate


def cases(study: Study) -> int:
    """How many cases there are in all."""
    return sum(arm.seeds + (0 if arm.same_rate_as else arm.tuning_seeds) for arm in study.arms)


def plan(study: Study, workers: int) -> str:
    """What is going to be done, in a few lines."""
    settings = study.settings
    matched = [arm for arm in study.arms if arm.budget and not arm.shift]
    counts = sorted(arm.trainable for arm in matched)
    lines = [
        f"{study.name}: {counted(len(study.arms), 'arm')}, {counted(cases(study), 'case')} in "
        f"{counted(workers, 'worker')} of one thread",
        f"each {settings.steps} steps of {settings.batch_size} × at most {settings.length} tokens; "
        f"{len(study.plain.train):,} examples to train on, {len(study.plain.held_back)} held back "
        f"for the rates, {len(study.plain.evaluation)} to evaluate on",
    ]
    if counts:
        lines.append(
            f"matched budget, each within {TOLERANCE:.0%}: {counts[0]:,} to {counts[-1]:,} "
            f"trainable parameters in {counted(len(matched), 'arm')}"
        )
    lines += [f"left out: {why}" for why in study.left_out.values()]
    return text_of(lines)


def run_study(
    study: Study,
    origin: Origin | None,
    *,
    workers: int = 1,
    done: Mapping[str, Shown] | None = None,
    ended: Ended = lambda shown: None,
    say: Say = lambda text: None,
) -> dict[str, Shown]:
    """Run what is not done yet; every arm by name.

    ended: called with an arm after each of its cases. Without an origin everything runs in this
    process, whatever `workers` says. Raises what a case raises; Ctrl-C ends the workers.
    """
    shown = {arm.name: (done or {}).get(arm.name, Shown(arm)) for arm in study.arms}
    before = _count(shown)
    total, begun = cases(study), time.monotonic()
    for job, result in _results(study, origin, workers, shown):
        mine = shown[job.arm]
        if job.do == TUNE:
            mine.tuned[job.seed] = result
            told = f"rate {result.rate:g}{' (the edge of those tried)' if result.at_edge else ''}"
        else:
            mine.fitted[job.seed] = result
            told = f"diverged at step {result.diverged}" if result.diverged else (
                f"loss {result.losses[0]:.3f} -> {result.final:.3f}"
            )  # fmt: skip
        ended(mine)
        count = _count(shown)
        left = (time.monotonic() - begun) / (count - before) * (total - count)
        say(f"[{count}/{total}] {job.do} {job.arm} seed {job.seed}: {told}; "
            f"about {left / 60:.0f} min left")  # fmt: skip
    return shown


def _count(shown: Mapping[str, Shown]) -> int:
    return sum(len(one.fitted) + len(one.tuned) for one in shown.values())


def _results(
    study: Study, origin: Origin | None, workers: int, shown: Mapping[str, Shown]
) -> Iterator[tuple[Job, Any]]:
    if origin is None or workers <= 1:
        _prepare_process()
        while ready := jobs(study, shown):
            yield ready[0], do(study, ready[0])
        return
    running: dict[Future[Any], Job] = {}
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker)
    try:
        while True:
            ready = [job for job in jobs(study, shown) if job not in running.values()]
            for job in ready[: workers - len(running)]:
                running[pool.submit(_work, origin, job)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                yield job, future.result()
    except BrokenProcessPool:
        raise BenchError(
            broken_library()
            or "a worker was killed, perhaps for the memory that it took: try --workers 1 (what "
            "was finished is kept where the run is stored: --resume)"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def do(study: Study, job: Job) -> Any:
    """Run one case: a Tuned or a Fitted."""
    arm = study.arm(job.arm)
    if job.do == TUNE:
        return tune(study, arm, job.seed)
    return fitting.fit_arm(study, arm, job.rate, job.seed, follow=job.follow)


def _prepare_process() -> None:
    """One thread."""
    import torch

    torch.set_num_threads(1)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it decides
    _prepare_process()


def _work(origin: Origin, job: Job) -> Any:
    return do(load_study(origin), job)


def resumed(study: Study, records: Mapping[str, Any], described: Mapping[str, Any]) -> None:
    """BenchError where the records to go on with are of other settings or another text."""
    now = recorded(described)
    for record in records.values():
        before = record.detail.get("step_options")
        if before != described:
            changed = differing(recorded(before), now) if isinstance(before, Mapping) else ()
            raise BenchError(
                f"--resume: {record.id} was made with other settings, weights or another text than "
                f"{study.name} has now: {first_of(changed) or 'which, it does not say'}; give them "
                "again, or leave out --resume"
            )
