"""A Ray cluster on this machine, for the tests of what is measured on one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from measure_support import shared_session
from warm import Warm

EXACT = ("operations", "breakdown_by_phase", "flops", "allocated_bytes_total", "loaded_bytes",
         "peak_allocated_bytes", "loss", "trainable_parameters", "adapted_layers")  # fmt: skip


@contextlib.contextmanager
def ray_of(*nodes: dict[str, Any], warm: Warm | None = None) -> Iterator[Any]:
    """A head that lends nothing, and the nodes; each lends one processor. With `warm` what runs on
    them is forked."""
    pytest.importorskip("ray", reason="needs the extra [cluster]")
    from ray.cluster_utils import Cluster as LocalCluster

    small = {"object_store_memory": 80 << 20, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where cluster_tasks lies
        with warm.in_place() if warm else contextlib.nullcontext():
            local = LocalCluster(
                initialize_head=True,
                head_node_args={
                    **small,
                    "num_cpus": 0,
                    # A node that does not answer is given up within seconds.
                    "_system_config": {
                        "health_check_period_ms": 500,
                        "health_check_timeout_ms": 2000,
                    },
                },
            )
        try:
            with warm.in_place() if warm else contextlib.nullcontext():
                for node in nodes:
                    local.add_node(**{**small, "num_cpus": 1, **node})
            yield local
        finally:
            local.shutdown()


def same_as_here(taken: Any, case: Any) -> None:
    with taken as running, shared_session().start(case) as reference:
        mine, expected = running.prepare(), reference.prepare()
        assert {n: getattr(mine, n) for n in EXACT} == {n: getattr(expected, n) for n in EXACT}


def appears(path: Path) -> None:
    while not path.exists():
        threading.Event().wait(0.05)
