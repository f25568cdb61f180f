"""Predicted against measured on a GPU: 2 % of the peak allocated, 5 % of the peak reserved.

With a GPU every case is measured here. Without one, the figures that a GPU machine stored in
`results/` are what predictions are held against.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench.baselines import Accelerator, Record, StoredRun, load_run
from bench.baselines.storage import RUN_FILE
from bench.measure import Session
from bench.scenarios.subjects import Request, select
from bench.training.cases import Case, StepOptions

RESULTS = Path(__file__).resolve().parents[2] / "results"
ALLOCATED, RESERVED = 0.02, 0.05
PUBLISHED = [("phi-3-medium", f"published-{number}") for number in range(1, 7)] + [
    ("opt-350m", "q_proj-v_proj"),
    ("distilbert-base-uncased", "query-value"),
]
PRECISIONS = ("fp16", "int8", "nf4")


def full_size(
    model: str, scenario: str, precision: str, step: StepOptions, rank: int | None = None
) -> Case:
    """A registered scenario on the whole model."""
    request = Request((model,), (scenario,), r=rank, precisions=(precision,), full_geometry=True)
    return next(iter(select(request).measured.values())).case(step)


def hold(case: Case, capability: float, allocated: object, reserved: object) -> None:
    """Assert that the case's prediction is near both measured figures (bytes)."""
    from bench.predict import kernels, predict

    found = predict(case, device=kernels.cuda(capability=capability))
    assert found.peak_allocated_bytes == pytest.approx(allocated, rel=ALLOCATED)
    assert found.peak_reserved_bytes == pytest.approx(reserved, rel=RESERVED)


# With a GPU


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: torch finds none here")
    with Session(time_limit_seconds=600, device="cuda") as session:
        yield session


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("model", "scenario"), PUBLISHED, ids=lambda value: value)
def test_prediction_is_what_a_gpu_takes(
    session: Session, model: str, scenario: str, precision: str
) -> None:
    import torch

    case = full_size(model, scenario, precision, StepOptions(batch_size=1, seq_len=512))
    with session.start(case) as running:
        measured = running.prepare()
    major, minor = torch.cuda.get_device_capability()
    hold(
        case,
        major + minor / 10,
        measured.peak_allocated_bytes,
        measured.peak_reserved_bytes,
    )


# Without one


def stored_gpu_runs() -> list[Path]:
    """Runs in results/ of machines that have an accelerator: their folders name it."""
    return [
        path
        for path in sorted(RESULTS.glob("*/*.json"))
        if RUN_FILE.fullmatch(path.name) and "-cpu-" not in path.parent.name
    ]


def measured_cases(runs: Iterable[StoredRun]) -> list[tuple[Accelerator, Record]]:
    """Full-size cases that a GPU measured, with that GPU."""
    return [
        (run.machine.accelerator, record)
        for run in runs
        if run.machine.accelerator is not None
        for record in run.records.values()
        if record.suite == "measurement" and record.outcome == "ok" and "@" not in record.model
    ]


def hold_stored(accelerator: Accelerator, record: Record) -> None:
    """Assert that the prediction of a stored case is near what was measured."""
    assert record.precision is not None
    step = StepOptions(record.detail["batch_size"], record.detail["seq_len"])
    case = full_size(record.model, record.scenario, record.precision, step, record.rank)
    metrics = record.metrics
    hold(case, capability(accelerator.name), metrics["peak_allocated_bytes"],
         metrics["peak_reserved_bytes"])  # fmt: skip


def capability(name: str) -> float:
    """Compute capability by the GPU's name, as torch says it; 8.0 for one that is not known."""
    from bench.predict.gpus import load_gpus

    said = name.replace("-", " ").split()
    for gpu in load_gpus().values():
        model = next(word for word in gpu.name.split() if any(map(str.isdigit, word)))
        if model in said:
            return gpu.capability
    return 8.0


def test_predictions_against_stored_gpu_figures() -> None:
    cases = measured_cases(map(load_run, stored_gpu_runs()))
    if not cases:
        pytest.skip("results/ has no run of a machine with a GPU yet")
    for accelerator, record in cases:
        hold_stored(accelerator, record)


def test_a_stored_figure_that_is_far_off_is_found() -> None:
    """The comparison itself, on a made-up run: its figures are the prediction's, then wrong."""
    from bench.predict import predict

    path = next(RESULTS.glob("*-cpu-*/0001_*.json"))
    run = load_run(path)
    step = StepOptions(batch_size=2, seq_len=32)
    case = full_size("distilbert-base-uncased", "query-value", "nf4", step)
    right = predict(case)
    record = replace(
        next(r for r in run.records.values() if r.precision == "nf4" and r.suite == "measurement"),
        model="distilbert-base-uncased",
        scenario="query-value",
        rank=8,
        detail={"batch_size": 2, "seq_len": 32},
        metrics={
            "peak_allocated_bytes": right.peak_allocated_bytes,
            "peak_reserved_bytes": right.peak_reserved_bytes,
        },
    )
    card = Accelerator("NVIDIA A100-SXM4-80GB", 1, 80 * 1024**3)
    on_gpu = replace(
        run, machine=replace(run.machine, accelerator=card), records={record.id: record}
    )
    assert measured_cases([run]) == []
    assert measured_cases([on_gpu]) == [(card, record)]
    hold_stored(card, record)
    for name, tolerated in (("peak_allocated_bytes", 1.02), ("peak_reserved_bytes", 1.05)):
        metrics = {**record.metrics, name: int(record.metrics[name] * tolerated * 1.01)}
        with pytest.raises(AssertionError):
            hold_stored(card, replace(record, metrics=metrics))


def test_capabilities_by_the_names_that_torch_gives() -> None:
    assert capability("NVIDIA H200") == 9.0
    assert capability("NVIDIA L40S") == 8.9
    assert capability("NVIDIA A100-SXM4-80GB") == 8.0
    assert capability("Tesla T4") == 7.5
    assert capability("NVIDIA GeForce RTX 3090") == 8.6
