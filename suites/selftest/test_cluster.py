"""Measured on a Ray cluster: here one of two nodes, both on this machine."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cluster_tasks
import pytest
from atlas_types import stored_atlas
from cluster_support import appears, ray_of, same_as_here
from measure_support import tiny_case
from model_folders import write_model
from warm import Warm

from bench.ab import Environment, Plan, measure
from bench.atlas.build import build_atlas
from bench.baselines import load_run
from bench.baselines.machines import choose_kinds, machine_kinds
from bench.errors import BenchError
from bench.measure import CaseFailed, Rounds, WorkerClock, cluster
from bench.measure.cluster import Cluster, ClusterSpread
from bench.measure.nodes import Facts, Node, obstacle
from bench.scenarios.subjects import Request
from bench.training.cases import StepOptions
from bench.training.machine import Accelerator, machine

ROOT = Path(__file__).resolve().parents[2]
CASES = [
    tiny_case("opt"),
    tiny_case("distilbert", learning_rate=1e30),
    tiny_case("phi3", "nf4"),
    tiny_case("distilbert"),
]


@pytest.fixture(scope="module")
def two_nodes(warm_process: Warm) -> Iterator[Any]:
    with ray_of({}, {}, warm=warm_process) as local:
        yield local


def test_exact_figures_are_those_of_this_machine(two_nodes) -> None:
    """Each case in a worker process of a node, as it would be here."""
    with Cluster(two_nodes.address) as connected:
        (kind,) = machine_kinds(connected.nodes)
        assert len(kind.nodes) == 2
        assert kind.machine == machine()
        clock = WorkerClock()
        with ClusterSpread(connected, kind.nodes, CASES, Rounds.exactly(3), 20) as spread:
            taken = {case.id: spread.start(case, clock) for case in CASES}
            with pytest.raises(BenchError, match="not among the cases"):
                spread.start(tiny_case("t5"), clock)
        on = {connected.submit(cluster_tasks.here, nodes=[node]).answer() for node in kind.nodes}
        assert on == {node.id for node in kind.nodes}
    for case in (CASES[0], CASES[2], CASES[3]):
        same_as_here(taken[case.id], case)
        steps = [taken[case.id].step() for _ in range(3)]
        assert min(step.total_seconds for step in steps) > 0
        assert taken[case.id].check_loss()[1] < taken[case.id].check_loss()[0]
        assert taken[case.id].reruns == 0
    with pytest.raises(CaseFailed, match="diverged in steady-step") as failed:
        taken[CASES[1].id].prepare()
    assert failed.value.outcome.name == "diverged"


@pytest.mark.slow
def test_a_node_that_dies_loses_its_running_case_only(tmp_path, monkeypatch) -> None:
    """That case is run again on the other node, and says so; its figures are the same."""
    monkeypatch.setenv(cluster_tasks.FOLDER, str(tmp_path))
    monkeypatch.setattr(cluster, "measure_here", cluster_tasks.never_ends_at_first)
    plan = [CASES[0], tiny_case("distilbert", scenario="lost"), CASES[2], CASES[3]]
    with ray_of({}, {}) as local, Cluster(local.address) as connected:
        with ClusterSpread(connected, connected.nodes, plan, Rounds.exactly(2), 0) as spread:
            appears(tmp_path / "begun")
            (lost,) = (
                n for n in local.worker_nodes if n.node_id == (tmp_path / "begun").read_text()
            )
            local.remove_node(lost, allow_graceful=False)
            taken = {case.id: spread.start(case, WorkerClock()) for case in plan}
        for case in plan:
            same_as_here(taken[case.id], case)
        assert [taken[case.id].reruns for case in plan] == [0, 1, 0, 0]
        # A case that ends whatever it runs in is given up; the others are not concerned.
        monkeypatch.setattr(cluster, "measure_here", cluster_tasks.ends_its_node)
        with ClusterSpread(connected, connected.nodes, plan[:1], Rounds.exactly(2), 0) as spread:
            given_up = spread.start(plan[0], WorkerClock())
        with pytest.raises(CaseFailed, match="gone in each of 3 attempts"):
            given_up.prepare()
        assert given_up.reruns == 2
        (left,) = local.worker_nodes
        local.remove_node(left, allow_graceful=False)
        nobody = connected.submit(cluster_tasks.here)
        with pytest.raises(BenchError, match="no node of this kind of machine is left"):
            nobody.answer()


@pytest.mark.slow
def test_a_process_that_is_killed_loses_its_running_case_only(tmp_path, monkeypatch) -> None:
    """In the middle of it, between two steps: it is run again, and its figures are the same."""
    monkeypatch.setenv(cluster_tasks.FOLDER, str(tmp_path))
    monkeypatch.setattr(cluster, "measure_here", cluster_tasks.is_killed_at_first)
    plan = [CASES[0], tiny_case("distilbert", scenario="lost"), CASES[2]]
    with ray_of({}, {}) as local, Cluster(local.address) as connected:
        with ClusterSpread(connected, connected.nodes, plan, Rounds.exactly(2), 0) as spread:
            taken = {case.id: spread.start(case, WorkerClock()) for case in plan}
        assert (tmp_path / "stepped").exists()
        for case in plan:
            same_as_here(taken[case.id], case)
        assert [taken[case.id].reruns for case in plan] == [0, 1, 0]
        assert len(connected.nodes) == 2


@pytest.mark.slow
def test_what_is_built_there_is_as_what_is_built_here() -> None:
    """In processes of their own too: one that dies loses itself alone. (Nodes of the real
    interpreter: a pool's process that is forked from the warm one is not seen to die there.)"""
    items = ["1", "crash", "2", "raise", "3"]
    with ray_of({}, {}) as local, Cluster(local.address) as connected:
        found = {item: (a, why) for item, a, why in connected.run_all(cluster_tasks.squared, items)}
        assert found == {
            "1": (1, ""), "2": (4, ""), "3": (9, ""), "raise": (None, "what is wrong"),
            "crash": (None, "its process died with status 3"),
        }  # fmt: skip
        types = ["llama", "t5", "wav2vec2"]
        built = build_atlas(types, connected.run_all)
        assert built.types == {name: stored_atlas().types[name] for name in types}
        assert not built.unbuilt


@pytest.mark.slow
def test_what_a_node_lacks_is_told_before_anything_is_measured(tmp_path) -> None:
    """One where bitsandbytes cannot be imported, and one that lends a GPU which torch does not
    find."""
    package = tmp_path / "bitsandbytes"
    package.mkdir()
    package.joinpath("__init__.py").write_text("raise ModuleNotFoundError('none here')\n")
    without = {"env_vars": {"PYTHONPATH": str(tmp_path)}}
    with ray_of({}, without, {"num_gpus": 1}) as local:
        done = _pytest("suites", "--cluster", local.address, "--benchmark-save=x", folder=tmp_path)
        assert done.returncode == 2
        assert done.stdout == ""
        (line,) = done.stderr.strip().splitlines()
        assert line.count("node ") == 2
        assert "bitsandbytes cannot be imported there (none here): install bitsandbytes==" in line
        assert "it lends 1 GPU, and torch 2." in line
        assert "finds none there" in line
        assert not list(tmp_path.glob("*/*.json*"))


def _pytest(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*arguments, folder=folder), capture_output=True, text=True,
                          cwd=ROOT, check=False)  # fmt: skip


def _command(*arguments: str, folder: Path) -> list[str]:
    own = ("-q", "-p", "no:cacheprovider", f"--benchmark-storage={folder / 'stored'}")
    return [sys.executable, "-P", "-m", "pytest", *arguments, *own]


FEW = (
    "suites/test_measurement.py", "--model=distilbert-base-uncased", "--scenario=query-value",
    "--rank=8", "--rounds=2", "--check-loss=0", "--benchmark-save=far",
)  # fmt: skip


@pytest.mark.slow
def test_a_driver_that_died_is_gone_on_with(two_nodes, tmp_path) -> None:
    """What was stored is not measured again, and the whole is the run that it would have been."""
    arguments = (*FEW, "--precision=fp32", "--precision=bf16", "--precision=nf4",
                 "--cluster", two_nodes.address)  # fmt: skip
    journal = tmp_path / "stored" / ".unfinished-far.jsonl"
    driver = subprocess.Popen(_command(*arguments, folder=tmp_path), cwd=ROOT,
                              stdout=subprocess.DEVNULL)  # fmt: skip
    while not (journal.exists() and len(journal.read_text().splitlines()) > 1):
        assert driver.poll() is None
        threading.Event().wait(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    done = _pytest(*arguments, "--resume", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "taken over from 0001_far, not measured again" in done.stdout
    first, last = (load_run(tmp_path / "stored" / f"000{n}_far.json") for n in (1, 2))
    assert first.interrupted
    assert 1 <= len(first.records) < len(last.records) == 3
    assert first.records.items() <= last.records.items()
    assert last.machine == machine()


@pytest.mark.slow
def test_each_kind_of_machine_has_a_run_of_its_own(tmp_path) -> None:
    """A processor that may not use all it has is another one: the runs never meet."""
    other = {"env_vars": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}
    with ray_of({}, other) as local:
        done = _pytest(*FEW, "--precision=fp32", "--cluster", local.address, folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        paths = sorted(tmp_path.glob("stored/*/0001_far.json"))
        runs = [load_run(path) for path in paths]
        assert len(runs) == 2
        overrides = [sorted(x for x in r.machine.instruction_sets if "=" in x) for r in runs]
        assert sorted(overrides) == [[], ["ONEDNN_MAX_CPU_ISA=AVX2"]]
        a, b = ({k: r.metrics["operations"] for k, r in run.records.items()} for run in runs)
        assert a == b
        names = {path.parent.name for path in paths}
        assert {name.rpartition("-")[0] for name in names} == {machine().id}
        assert all(f"{name} | 1 passed" in done.stdout for name in names)
        one = _pytest(*FEW, "--precision=fp32", "--cluster", local.address, "--machine",
                      min(names), folder=tmp_path)  # fmt: skip
        assert one.returncode == 0, one.stdout + one.stderr
        assert [p.parent.name for p in tmp_path.glob("stored/*/0002_far.json")] == [min(names)]
        none = _pytest(*FEW, "--cluster", local.address, "--machine=*h100*", folder=tmp_path)
        assert none.returncode == 2
        assert "--machine *h100*: the cluster has no such machine: it has" in none.stderr


@pytest.mark.slow
def test_launches_are_spread_and_a_pair_stays_together(two_nodes, tmp_path) -> None:
    """`bench ab` on both nodes: a launch is one task, and its steps are told as they were taken."""
    write_model(tmp_path)
    request = Request((str(tmp_path),), target_modules=("q_proj",), r=4, precisions=("fp32",))
    plan = Plan(request, StepOptions(seq_len=8), rounds=2, launches=(3, 3))
    python = Path(sys.executable)
    with (
        Cluster(two_nodes.address) as connected,
        Environment(python, "--baseline-env", "a") as before,
        Environment(python, "--contender-env", "b") as after,
    ):
        pair = measure(before, after, plan, cluster=connected)
    (a,), (b,) = (run.records.values() for run in pair.runs)
    assert a.outcome == b.outcome == "ok"
    assert a.detail["launches"] == b.detail["launches"] == 3
    assert len(a.metrics["step_seconds"]) == len(b.metrics["step_seconds"]) == 6
    assert a.metrics["operations"] == b.metrics["operations"] > 0


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:6379"])
def test_nobody_answers(address: str) -> None:
    pytest.importorskip("ray", reason="needs the extra [cluster]")
    with pytest.raises(BenchError, match=f"--cluster {address}: nobody answers there"):
        Cluster(address).__enter__()


@pytest.mark.parametrize("address", ["here", "ray://host:10001", "host:", "host:port", ""])
def test_what_is_no_address(address: str) -> None:
    pytest.importorskip("ray", reason="needs the extra [cluster]")
    with pytest.raises(BenchError, match=r"takes auto, or HOST:PORT"):
        Cluster(address).__enter__()


def test_something_else_answers(monkeypatch) -> None:
    """Within a bounded time."""
    pytest.importorskip("ray", reason="needs the extra [cluster]")
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BenchError, match=f"--cluster {address}: no Ray answers there within"):
            Cluster(address).__enter__()


VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2",
            "bitsandbytes": "0.50.2"}  # fmt: skip
HERE = Facts(None, VERSIONS, {}, "a")
GPU = Accelerator("NVIDIA H100", 8, 80 << 30)


def _with(gpu: Accelerator | None = None, **changed: Any) -> Callable[[], Facts]:
    """Facts of a node as this one, asked for in a test alone: torch tells the machine."""
    return lambda: replace(Facts(replace(machine(), accelerator=gpu), VERSIONS, {}, "a"), **changed)


@pytest.mark.parametrize(
    ("theirs", "gpus", "told"),
    [
        (_with(), 0, ""),
        (_with(GPU), 8, ""),
        (_with(versions=VERSIONS | {"peft": "0.21.1"}), 0,
         "peft 0.21.1 there, 0.21.2 here: install the same"),
        (_with(versions={"python": "3.11.7"}), 0, "bitsandbytes is missing there"),
        (_with(code="b"), 0, "another release or checkout of this project"),
        (_with(), 2, "it lends 2 GPU, and torch 2.13.0 finds none there"),
        (_with(GPU), 0, r"it has a GPU (NVIDIA H100) and lends none: ray start --num-gpus=8"),
        (_with(missing={"bitsandbytes": "no libcudart"}), 0,
         "bitsandbytes cannot be imported there (no libcudart): install bitsandbytes==0.50.2"),
    ],
)  # fmt: skip
def test_what_keeps_a_node_from_measuring_beside_us(
    theirs: Callable[[], Facts], gpus: int, told: str
) -> None:
    found = obstacle(HERE, theirs(), gpus)
    assert told in found if told else found == ""


def test_nodes_are_told_apart_as_comparisons_tell_machines() -> None:
    here = machine()
    with_gpus = replace(here, id="linux-x86_64-nvidia-h100-2cores", accelerator=GPU)
    slower = replace(here, processor="another")
    a_bit_less = replace(here, memory_bytes=int(here.memory_bytes * 0.995))
    nodes = [
        Node(str(number), "", 2, 0, each)
        for number, each in enumerate([here, with_gpus, slower, a_bit_less, with_gpus])
    ]
    kinds = {tuple(n.id for n in kind.nodes): kind.name for kind in machine_kinds(nodes)}
    assert kinds.keys() == {("0", "3"), ("1", "4"), ("2",)}
    assert kinds["1", "4"] == with_gpus.id
    assert kinds["0", "3"] != kinds["2",]
    assert {kinds["0", "3"].rpartition("-")[0], kinds["2",].rpartition("-")[0]} == {here.id}
    (chosen,) = choose_kinds(machine_kinds(nodes), "*h100*")
    assert chosen.machine == with_gpus
    with pytest.raises(BenchError, match=r"it has linux.* \(2 nodes\), .* \(1 node\)"):
        choose_kinds(machine_kinds(nodes), "*a100*")


def test_nodes_of_a_kind_that_lend_unlike_shares_are_refused() -> None:
    nodes = [Node("a", "", 2, 0, machine()), Node("b", "", 4, 0, machine())]
    with pytest.raises(BenchError, match="lend 2 and 4 processors, and a timed case takes a whole"):
        ClusterSpread(Cluster("auto"), nodes, [], Rounds.exactly(1), 0)
    ClusterSpread(Cluster("auto"), nodes, [], Rounds.exactly(1), 0, timed=False)
