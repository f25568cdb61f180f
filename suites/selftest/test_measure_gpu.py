"""What only a GPU can show: the allocator's figures, its limit, and a fresh context a case."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from measure_support import MODELS, tiny_case

from bench.measure import CaseFailed, Session
from bench.models.precision import PRECISIONS

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: torch finds none here")
    with Session(time_limit_seconds=120, device="cuda") as session:
        yield session


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_measured(session: Session, precision: str) -> None:
    with session.start(tiny_case("phi3", precision)) as running:
        m = running.prepare()
        times = [running.step() for _ in range(3)]
        before, after = running.check_loss()
    assert m.device != "cpu"
    assert sum(m.breakdown.values()) == m.peak_allocated_bytes
    assert min(m.breakdown.values()) >= 0
    assert m.peak_reserved_bytes is not None
    assert m.peak_allocated_bytes <= m.peak_reserved_bytes
    assert m.adapted_layers == MODELS["phi3"][3]
    assert m.quantized_layers == (8 if PRECISIONS[precision].quantized else 0)
    assert all(t.total_seconds > 0 for t in times)
    assert after < before


@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_exact_metrics_repeat(session: Session, precision: str) -> None:
    found = []
    for _ in range(2):
        with session.start(tiny_case("opt", precision)) as running:
            m = running.prepare()
            found.append((m.operations, m.flops, m.allocated_bytes_total, m.peak_allocated_bytes))
    assert found[0] == found[1]


def test_tracking_does_not_change_the_peak(session: Session) -> None:
    """The allocator's peak of a steady step with the tracker on equals that of a bare step."""
    import torch

    from bench.training.loading import load
    from bench.training.step import training_step

    case = tiny_case("opt", "bf16", batch_size=8)
    with session.start(case) as running:
        tracked = running.prepare().peak_allocated_bytes
    t = load(case, "cuda")
    training_step(t.model, t.batch, t.optimizer, t.scaler)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    training_step(t.model, t.batch, t.optimizer, t.scaler)
    assert tracked == pytest.approx(torch.cuda.max_memory_allocated(), rel=1e-3)


def test_a_limit_on_the_gpu_is_an_outcome(session: Session) -> None:
    session.memory_limit_bytes = 200 * 2**20
    try:
        case = tiny_case("distilbert", batch_size=4000)
        with session.start(case) as running, pytest.raises(CaseFailed) as failed:
            running.prepare()
    finally:
        session.memory_limit_bytes = None
    assert failed.value.outcome.name == "oom"
    with session.start(tiny_case("opt")) as running:
        assert running.prepare().outcome.name == "ok"


@pytest.mark.parametrize("optimizer", ["adamw-8bit", "paged-adamw-8bit"])
def test_quantized_optimizers_hold_less(session: Session, optimizer: str) -> None:
    states = []
    for name in ("adamw", optimizer):
        case = tiny_case("phi3", "bf16", optimizer=name)
        with session.start(case) as running:
            states.append(running.prepare().breakdown["optimizer_state"])
    assert states[1] < states[0]


def test_every_gpu_takes_cases(session: Session) -> None:
    for device in session.devices:
        with session.start(tiny_case("opt"), device) as running:
            assert running.prepare().outcome.name == "ok"
