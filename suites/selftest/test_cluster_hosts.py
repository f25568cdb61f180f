"""What is told apart only on hosts of their own: one that says no more, and other files there."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cluster_tasks
import pytest
from cluster_support import appears, ray_of, same_as_here
from measure_support import tiny_case

from bench.ab.launches import Far, SideAsked
from bench.errors import BenchError
from bench.measure import Rounds, WorkerClock, cluster, submitted
from bench.measure.cluster import Cluster, ClusterSpread
from bench.measure.folders import anywhere, require_same
from bench.measure.nodes import Node
from bench.training.machine import machine

NODES = [Node("a", "first", 1, 0, machine()), Node("b", "second", 1, 0, machine())]


@pytest.mark.slow
def test_a_host_that_says_no_more_loses_its_running_case_only(tmp_path, monkeypatch) -> None:
    """No connection breaks where a host loses its power or its network; here its processes are
    stopped. Ray alone waits for seven minutes."""
    psutil = pytest.importorskip("psutil")
    monkeypatch.setenv(cluster_tasks.FOLDER, str(tmp_path))
    monkeypatch.setattr(cluster, "measure_here", cluster_tasks.never_ends_at_first)
    monkeypatch.setattr(submitted, "_SILENT_SECONDS", 1.0)
    plan = [tiny_case("opt"), tiny_case("distilbert", scenario="lost"), tiny_case("distilbert")]
    with ray_of({}, {}) as local, Cluster(local.address) as connected:
        with ClusterSpread(connected, connected.nodes, plan, Rounds.exactly(2), 0) as spread:
            appears(tmp_path / "begun")
            (host,) = (
                n for n in local.worker_nodes if n.node_id in (tmp_path / "begun").read_text()
            )
            (raylet,) = host.all_processes["raylet"]
            raylet = psutil.Process(raylet.process.pid)
            silent = [raylet.pid, *(child.pid for child in raylet.children(recursive=True))]
            try:
                for pid in silent:
                    os.kill(pid, signal.SIGSTOP)
                taken = {case.id: spread.start(case, WorkerClock()) for case in plan}
            finally:
                for pid in silent:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
        for case in plan:
            same_as_here(taken[case.id], case)
        assert [taken[case.id].reruns for case in plan] == [0, 1, 0]


class OtherDisks:
    """Two nodes, of which the second has `there` where this one has `here`."""

    address = "auto"
    nodes = NODES

    def __init__(self, here: Path, there: Path) -> None:
        self.here, self.there = here, there

    def submit(
        self, function: Callable[..., Any], asked: Any, *, nodes: Any, cpus: float
    ) -> SimpleNamespace:
        def answer() -> Any:
            if nodes == [NODES[0]]:
                return function(asked)
            there = [(o, f.replace(str(self.here), str(self.there)), p) for o, f, p in asked]
            return function(there)

        return SimpleNamespace(answer=answer)


@pytest.mark.parametrize(
    ("field", "name", "told"),
    [("weights", "model.safetensors", "--weights {}"), ("code", "modeling_own.py", "--model {}")],
)
def test_what_is_read_on_a_node_is_what_is_here(
    tmp_path, monkeypatch, field: str, name: str, told: str
) -> None:
    """By its content; given by a path from here, too."""
    for host in ("here", "there"):
        (tmp_path / host / "own").mkdir(parents=True)
        (tmp_path / host / "own" / name).write_bytes(b"one")
    (tmp_path / "here" / "own" / "README.md").touch()
    monkeypatch.chdir(tmp_path / "here")
    folder = tmp_path / "here" / "own"
    case = replace(tiny_case("opt"), **{field: "own" if field == "weights" else str(folder)})
    case = anywhere(case)
    disks: Any = OtherDisks(tmp_path / "here", tmp_path / "there")
    require_same(disks, NODES, [tiny_case("t5"), case, case])
    other = tmp_path / "there" / "own" / name
    other.write_bytes(b"two")
    with pytest.raises(BenchError) as refused:
        require_same(disks, NODES, [case])
    line = str(refused.value)
    assert line.startswith(f"--cluster auto: node second: {told.format(folder)}: other ")
    assert "node first" not in line
    other.unlink()
    other.parent.rmdir()
    with pytest.raises(BenchError, match=r"node second: .*own: no such folder there$"):
        require_same(disks, NODES, [case])
    with pytest.raises(BenchError, match="no such folder there"):
        ClusterSpread(disks, NODES, [case], Rounds.exactly(1), 0).__enter__()


def test_bench_ab_reads_on_a_node_what_it_reads_here(monkeypatch) -> None:
    """Of models and adapters too, and says on which node not."""
    side = SideAsked(Path("/python"), "--baseline-env", "a", "wall", {}, {}, {})
    subject = {"digest": "1", "model": "m", "class": "c", "ranked": "m-own", "adapter": {},
               "weights": None, "code": None}  # fmt: skip
    here = {"subjects": {"m-own": subject}, "models": {"m": {"hidden_size": 4}}}
    other = {
        "subjects": {"m-own": subject | {"digest": "2"}},
        "models": {"m": {"hidden_size": 8}},
    }

    def far(second: Callable[[], Any]) -> Far:
        def submit(*_: Any, nodes: Any, **__: Any) -> SimpleNamespace:
            same = [({"peft": "1"}, here)] * 2
            return SimpleNamespace(answer=second if nodes == [NODES[1]] else lambda: same)

        there: Any = SimpleNamespace(address="auto", nodes=NODES, submit=submit)
        return Far(there, [side, side])

    asked = [{"peft": "1"}] * 2, [here] * 2
    far(lambda: [({"peft": "1"}, here)] * 2).check(*asked)
    with pytest.raises(BenchError, match=r"node second reads something else .*hidden_size 4 -> 8"):
        far(lambda: [({"peft": "1"}, other)] * 2).check(*asked)
    with pytest.raises(BenchError, match="on node second it has other versions"):
        far(lambda: [({"peft": "2"}, here)] * 2).check(*asked)

    def missing() -> Any:
        raise BenchError("--baseline-env a: /own: no such file")

    with pytest.raises(BenchError, match=r"on node second: .*/own: no such file"):
        far(missing).check(*asked)
