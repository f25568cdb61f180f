"""What is told apart only on hosts of their own: other files there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from measure_support import tiny_case

from bench.ab.launches import Far, SideAsked
from bench.errors import BenchError
from bench.measure.folders import require_same
from bench.measure.nodes import Node
from bench.training.machine import machine


@cache
def two_nodes() -> list[Node]:
    return [Node("a", "first", 1, 0, machine()), Node("b", "second", 1, 0, machine())]


class OtherDisks:
    """Two nodes, of which the second has `there` where this one has `here`."""

    address = "auto"

    def __init__(self, here: Path, there: Path) -> None:
        self.nodes = two_nodes()
        self.here, self.there = here, there

    def submit(
        self, function: Callable[..., Any], asked: Any, *, nodes: Any, cpus: float
    ) -> SimpleNamespace:
        def answer() -> Any:
            if nodes == [two_nodes()[0]]:
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
    disks: Any = OtherDisks(tmp_path / "here", tmp_path / "there")
    require_same(disks, two_nodes(), [tiny_case("t5"), case, case])
    other = tmp_path / "there" / "own" / name
    other.write_bytes(b"two")
    with pytest.raises(BenchError) as refused:
        require_same(disks, two_nodes(), [case])
    line = str(refused.value)
    assert line.startswith(f"--cluster auto: node second: {told.format(folder)}: other ")
    assert "node first" not in line
    other.unlink()
    other.parent.rmdir()
    with pytest.raises(BenchError, match=r"node second: .*own: no such folder there$"):
        require_same(disks, two_nodes(), [case])


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
            return SimpleNamespace(answer=second if nodes == [two_nodes()[1]] else lambda: same)

        there: Any = SimpleNamespace(address="auto", nodes=two_nodes(), submit=submit)
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
