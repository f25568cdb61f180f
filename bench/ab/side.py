"""One environment's end of a comparison: `python -m bench.ab.side FD`, run by that environment, FD
being its end of a line. Its requests (`bench.measure.messages`):

- {"do": "open", "clock": ...}: start the measuring session; what this environment is;
- {"do": "select", "request": {...}, "step": {...}, "limits": {...}}: the keys of its cases;
- {"do": "prepare", "key": ...}: load a case in a worker; whether it can take steps;
- {"do": "relaunch"}: the same case in a new worker; whether it can take steps;
- {"do": "step"}: the times of one step, null once the case has failed;
- {"do": "finish", "rounds": [...], "detail": {...}}: end the worker; the case's record.

What failed is a message, where the input was wrong.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.baselines.configuration import decided
from bench.baselines.runlog import Recorder
from bench.errors import BenchError
from bench.formulas import lora_parameters
from bench.measure import CaseFailed, Running, Session, StepTime
from bench.measure.messages import Line
from bench.process import collect_seldom
from bench.scenarios.subjects import MEASURED, Request, Subject, select
from bench.training.cases import StepOptions
from bench.training.machine import machine, versions
from bench.training.options import check_positions

SUITE = "ab"


class Side:
    """This environment's cases, at most one of them in a worker."""

    def __init__(self) -> None:
        self._session = Session()
        self._subjects: Mapping[str, Subject] = {}
        self._step_options = StepOptions()
        self._recorder: Recorder | None = None
        self._running: Running | None = None

    def answer(self, request: Mapping[str, Any]) -> Any:
        """Carry out one request; the result is JSON-safe. Raises BenchError."""
        method = getattr(self, f"do_{request['do']}")
        return method(**{name: value for name, value in request.items() if name != "do"})

    def do_open(self, clock: str) -> dict[str, Any]:
        """The session's imports go on while this process makes its own."""
        self._session = Session(clock=clock)
        self._session.__enter__()
        return {"bench": str(Path(__file__).resolve().parents[1]), "versions": versions()}

    def do_select(
        self, request: Mapping[str, Any], step: Mapping[str, Any], limits: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The machine as this environment's torch knows it, and the cases by their keys, with what
        decides each."""
        given: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in request.items()}
        given |= {name: Path(given[name]) for name in ("adapter", "weights") if given[name]}
        wanted = Request(**given)
        subjects: dict[str, Subject] = {}
        broken = {}
        for name in wanted.models or MEASURED:
            try:
                found = select(replace(wanted, models=(name,))).measured
                if twice := subjects.keys() & found.keys():
                    raise BenchError(f"two models are called alike: {sorted(twice)[0]}")
                subjects |= found
            except BenchError:
                raise
            except Exception as error:  # its cases vanish, and the others go on
                broken[name] = _one_line(error)
        self._subjects = subjects
        self._step_options = StepOptions(**step)
        for subject in subjects.values():
            check_positions(subject.model.config, self._step_options.seq_len, subject.model.label)
        self._session.memory_limit_bytes = limits["memory_bytes"]
        self._session.time_limit_seconds = limits["seconds"]
        _ = self._session.devices  # waits for the imports, and says so where one fails
        return {
            "decided": decided(subjects),
            "machine": machine().to_dict(),
            "broken": broken,
        }

    def do_prepare(self, key: str) -> bool:
        """What the case adapts, by the ledger and as this environment's PEFT injects it; then
        its memory and exact cost, in a worker."""
        subject = self._subjects[key]
        recorder = self._recorder = Recorder(SUITE, subject)
        recorder.detail |= self._step_options.recorded()
        try:
            _structure(subject, recorder)
            self._running = self._session.start(subject.case(self._step_options))
            recorder.measurement(self._running.prepare())
            recorder.outcome = "ok"
        except CaseFailed as failure:
            self._fail(failure.outcome.name, str(failure))
        except Exception as error:  # whatever a release breaks is a finding, not the end
            self._fail("failed", _one_line(error))
        return recorder.outcome == "ok"

    def do_relaunch(self) -> bool:
        """What the case takes is known by now: only its process is another."""
        if self._running is None:
            return False
        case = self._running.case
        self._end_worker()
        try:
            self._running = self._session.start(case)
            self._running.prepare()
        except CaseFailed as failure:
            self._fail(failure.outcome.name, str(failure))
        return self._running is not None

    def do_step(self) -> dict[str, float] | None:
        """One timed step."""
        if self._running is None:
            return None
        try:
            return asdict(self._running.step())
        except CaseFailed as failure:
            self._fail(failure.outcome.name, str(failure))
            return None

    def do_finish(
        self, rounds: Sequence[Mapping[str, Any]], detail: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The record, with the rounds that the comparison kept."""
        recorder = self._recorder
        assert recorder is not None
        self._end_worker()
        recorder.detail |= detail
        if rounds:
            recorder.times([StepTime(**each) for each in rounds])
        return recorder.record().to_dict()

    def close(self) -> None:
        """End the worker and the session."""
        self._session.close()

    def _fail(self, outcome: str, message: str) -> None:
        assert self._recorder is not None
        self._recorder.outcome = outcome
        self._recorder.detail["failure"] = message
        self._end_worker()

    def _end_worker(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _structure(subject: Subject, recorder: Recorder) -> None:
    """Counts and names: where bench's ledger and PEFT differ, PEFT's, which is what trains."""
    from bench.measure.counting import count, inject

    ledger = subject.ledger
    recorder.ledger(ledger)
    if not ledger.refusals:
        recorder.parameters(lora_parameters(ledger))
    counted = count(inject(subject.model.build(), subject.adapter))
    names = [*sorted(counted.adapted), *sorted(f"{name} (whole)" for name in counted.saved)]
    digest = hashlib.sha256("\n".join([recorder.metrics["ledger_digest"], *names]).encode())
    recorder.metrics |= {
        "adapted_layers": len(counted.adapted),
        "ledger_digest": digest.hexdigest()[:16],
        "trainable_parameters": counted.trainable,
        "total_parameters": counted.total,
    }
    recorder.detail["adapted_modules"] = names


def main() -> None:
    """Answer until the other end is closed."""
    line, side = Line(int(sys.argv[1])), Side()
    try:
        while True:
            request = line.receive()
            try:
                line.send({"result": side.answer(request)})
            except BenchError as error:
                line.send({"failed": str(error)})
    except EOFError:
        pass
    finally:
        side.close()


if __name__ == "__main__":
    collect_seldom()
    main()
