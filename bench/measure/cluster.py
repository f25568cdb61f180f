"""A Ray cluster as one queue of tasks: measured cases, and work that needs only a processor.

Ray places the tasks, moves what goes in and comes out, and begins one anew elsewhere when the node
that it ran on is gone. What a task does is what is done on one machine: a measured case runs in a
process of its own, forked by a `Session` that its node keeps for the next one.

Before anything runs, every node says what it is and what is installed there. The process that asks
must run on a node of the cluster, be it one that has no processor to lend.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

from bench.compat import instead_of, patched
from bench.errors import BenchError
from bench.measure import outcome
from bench.measure.engine import Session
from bench.measure.folders import anywhere
from bench.measure.nodes import Facts, Node, facts, last_line, obstacle
from bench.measure.outcome import CaseFailed, Outcome
from bench.measure.rounds import Rounds
from bench.measure.running import WorkerClock
from bench.measure.spread import Taken, measure_ahead
from bench.measure.submitted import LOOK_SECONDS, NODE_ID, NodeLost, Submitted
from bench.training.cases import Case

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
_FACTS_SECONDS = 300.0
"""Imports take minutes on a cold network disk, seconds otherwise."""
_PART = 16
"""Items of one task of `run_all`: each starts a process, and imports the libraries in it."""


class Cluster:
    """A connection to a cluster whose nodes all measure as this machine does; a context manager.

    `address` is HOST:PORT, or "auto" for the cluster that this machine is a node of. Entering
    raises BenchError where nobody answers there, where the nodes have other versions or other code,
    lack a library, or lend a GPU that torch does not find.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.nodes: tuple[Node, ...] = ()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        _connect(self.address)
        try:
            # Of a node that dies Ray prints the last lines of its log: records say what it cost.
            silent = instead_of("messages of nodes", lambda *_, **__: None)
            self._stack.enter_context(patched(silent))
            self.nodes = self._ask_nodes()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def kept(self) -> Iterator[Self]:
        """Enter, and leave only if something goes wrong meanwhile: `close` is the caller's."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self)
            yield self
            stack.pop_all()

    def close(self) -> None:
        """Leave the cluster, and end what still runs there for us. Safe to call twice."""
        import ray

        ray.shutdown()
        self._stack.close()

    def submit(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        nodes: Sequence[Node] = (),
        cpus: float = 1,
        gpus: float = 0,
    ) -> Submitted:
        """Queue a call of a module's function on one of `nodes`, or of all."""
        asks = {"num_cpus": cpus, "num_gpus": gpus}
        return Submitted((function, *arguments), nodes or self.nodes, asks)

    def map(
        self, function: Callable[[Any], Any], items: Iterable[Any]
    ) -> Iterator[tuple[Any, Submitted]]:
        """Each item with its finished task, in the order in which they finish."""
        import ray

        waiting = {}
        for item in items:
            task = self.submit(function, item)
            waiting[task.reference] = (item, task)
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=LOOK_SECONDS)
            if not ready:
                task.look()  # all of them are for the same nodes
            for reference in ready:
                yield waiting.pop(reference)

    def run_all(
        self, task: Callable[[str], Any], items: Sequence[str]
    ) -> Iterator[tuple[str, Any, str]]:
        """As `bench.atlas.workers.run_all`, on the nodes: in processes of their own there."""
        parts = [(task, tuple(items[at : at + _PART])) for at in range(0, len(items), _PART)]
        for (_, part), done in self.map(_run_part, parts):
            try:
                yield from done.answer()
            except NodeLost as lost:
                yield from ((item, None, str(lost)) for item in part)

    def _ask_nodes(self) -> tuple[Node, ...]:
        import ray

        lending = [
            found
            for found in ray.nodes()
            if found["Alive"] and any(found["Resources"].get(what) for what in ("CPU", "GPU"))
        ]
        if not lending:
            raise BenchError(f"--cluster {self.address}: no node of it lends a processor or a GPU")
        # A process that has asked torch for its GPUs holds memory on one: it ends with the task.
        ask = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(facts)
        asked = {
            ask.options(label_selector={NODE_ID: found["NodeID"]}).remote(): found
            for found in lending
        }
        _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_FACTS_SECONDS)
        own = facts(imports=False)
        nodes, wrong = [], []
        for reference, found in asked.items():
            name = f"{found['NodeManagerAddress']} ({found['NodeID'][:8]})"
            cpus, gpus = (found["Resources"].get(what, 0) for what in ("CPU", "GPU"))
            problem = f"no answer within {_FACTS_SECONDS:.0f} s"
            if reference not in silent:
                try:
                    theirs: Facts = ray.get(reference)
                    problem = obstacle(own, theirs, gpus)
                except Exception as error:  # this project cannot even be imported there
                    problem = f"it cannot say what it is: {last_line(error)}"
            if problem:
                wrong.append(f"node {name}: {problem}")
                continue
            assert theirs.machine is not None
            nodes.append(Node(found["NodeID"], name, cpus, gpus, theirs.machine))
        if wrong:
            raise BenchError(f"--cluster {self.address}: {'; '.join(wrong)}")
        return tuple(nodes)


class ClusterSpread:
    """What `Spread` is on one machine's devices, on the nodes of a cluster that are one kind of
    machine: a case a GPU at a time; where there are none and steps are timed, a case a node, else
    a case a processor.

    A case whose node is lost begins anew on another one, and `Taken.reruns` says so.
    """

    def __init__(
        self,
        cluster: Cluster,
        nodes: Sequence[Node],
        plan: Sequence[Case],
        rounds: Rounds,
        loss_steps: int,
        *,
        timed: bool = True,
        memory_limit_bytes: int | None = None,
        time_limit_seconds: float | None = None,
    ) -> None:
        self._cluster, self._nodes = cluster, nodes
        self._plan = [anywhere(case) for case in plan]
        self._slot = a_slot(nodes, timed=timed)
        on_gpu = self._slot["gpus"] > 0
        self._how = (on_gpu, rounds, loss_steps, memory_limit_bytes, time_limit_seconds)
        self._tasks: dict[str, Submitted] = {}

    def __enter__(self) -> Self:
        for case in self._plan:
            self._tasks[case.id] = self._cluster.submit(
                measure_here, case, *self._how, nodes=self._nodes, **self._slot
            )
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._tasks.values():
            task.cancel()

    def start(self, case: Case, clock: WorkerClock) -> Taken:
        """What the case gave, once it has been measured. BenchError for one not in the plan, and
        where none of the nodes is left."""
        if case.id not in self._tasks:
            raise BenchError(f"{case.id} is not among the cases to be measured ahead")
        task = self._tasks.pop(case.id)
        try:
            taken: Taken = task.answer()
        except NodeLost as lost:
            failed = Outcome(outcome.CRASHED, outcome.LOAD, str(lost))
            taken = Taken(case, "", error=CaseFailed(case.id, failed))
        taken.reruns = task.reruns
        taken.clock = clock
        return taken


def a_slot(nodes: Sequence[Node], *, timed: bool = True) -> dict[str, float]:
    """What one case asks for on nodes of one kind, `timed` or not: a GPU, where they have some;
    else a whole node, or a processor. BenchError where the nodes lend unlike shares."""
    if nodes[0].gpus:
        return {"cpus": 1, "gpus": 1}
    lent = {node.cpus for node in nodes}
    if timed and len(lent) > 1:
        raise BenchError(
            f"nodes of one kind of machine lend {' and '.join(f'{n:g}' for n in sorted(lent))} "
            "processors, and a timed case takes a whole node: start them alike "
            "(ray start --num-cpus)"
        )
    return {"cpus": lent.pop() if timed else 1, "gpus": 0}


# What runs on a node. A function goes there by its name: the same code must be there.


_sessions: dict[tuple[Any, ...], Session] = {}


def measure_here(  # noqa: PLR0917  # Ray's tasks take no names
    case: Case,
    on_gpu: bool,
    rounds: Rounds,
    loss_steps: int,
    memory_limit_bytes: int | None,
    time_limit_seconds: float | None,
) -> Taken:
    """One case in a worker process on this node. The session stays for the next one, as long as
    that is given the same GPU and the same limits."""
    limits = (memory_limit_bytes, time_limit_seconds)
    key = (on_gpu, os.environ.get("CUDA_VISIBLE_DEVICES"), *limits)
    if key not in _sessions:
        for other in _sessions.values():
            other.close()
        _sessions.clear()
        session = Session(*limits, device="cuda" if on_gpu else "cpu")
        _sessions[key] = session.__enter__()
    session = _sessions[key]
    return measure_ahead(session, case, session.devices[0], rounds, loss_steps)


def _run_part(part: tuple[Callable[[str], Any], Sequence[str]]) -> list[tuple[str, Any, str]]:
    from bench.atlas.workers import run_all

    return list(run_all(*part, jobs=1))


# The connection.


def _connect(address: str) -> None:
    """Raises BenchError, within seconds, where nobody answers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        raise BenchError("this process is connected to a cluster already")
    _require_answer(address)
    before = signal.getsignal(signal.SIGTERM)  # which Ray makes its own
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # ConnectionError, RuntimeError, and whatever a release raises
        raise BenchError(f"--cluster {address}: {last_line(error)}") from None
    finally:
        with contextlib.suppress(ValueError):  # not the main thread: Ray left it alone
            signal.signal(signal.SIGTERM, before)


def _require_answer(address: str) -> None:
    """Asked in a process of its own: Ray's client waits for minutes."""
    if address == "auto":
        where = []
    else:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or "/" in host:
            raise BenchError(f"--cluster {address}: it takes auto, or HOST:PORT of the head node")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise BenchError(f"--cluster {address}: nobody answers there: {why}") from None
        where = ["--address", address]
    ask = [sys.executable, "-m", "ray.scripts.scripts", "health-check", *where]
    try:
        done = subprocess.run(ask, capture_output=True, timeout=_ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise BenchError(
            f"--cluster {address}: no Ray answers there within {_ANSWER_SECONDS:.0f} s"
        ) from None
    if done.returncode:
        start = "start one with ray start --head"
        raise BenchError(f"--cluster {address}: no Ray cluster is well there: {start}")
