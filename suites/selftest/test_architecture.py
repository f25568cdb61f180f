"""docs/architecture.md is of what stands: every room is told, and the picture is current."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from documents import script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rooms():
    return script("_rooms")


def test_the_picture_is_drawn_from_the_imports(rooms) -> None:
    page = rooms.PAGE.read_text(encoding="utf-8")
    assert page == rooms.drawn(page), "out of date: python docs/_rooms.py"


def test_every_room_is_on_a_floor_and_told(rooms) -> None:
    here = {path.stem for path in (ROOT / "bench").iterdir() if not path.name.startswith("_")}
    placed = {room for layer in rooms.floors() for room in layer}
    assert placed == here
    page = rooms.PAGE.read_text(encoding="utf-8")
    assert [room for room in here if f"`{room}/`" not in page and f"`{room}`" not in page] == []


def test_imports_point_downwards(rooms) -> None:
    """The same as lint's contract, where only pytest is installed."""
    floor = {room: number for number, layer in enumerate(rooms.floors()) for room in layer}
    upwards = [
        f"{path.relative_to(ROOT)} -> {other}"
        for room in floor
        for path in rooms.files_of(room)
        for other in rooms.imported(path)
        if other in floor and other != room and floor[other] < floor[room]
    ]
    assert upwards == []


def test_no_file_leads_back_to_itself(rooms) -> None:
    """No circle of imports, lazy ones among them; imports for types alone bind nothing."""
    files = {path for layer in rooms.floors() for room in layer for path in rooms.files_of(room)}
    ahead = {path: rooms.files_imported(path) & files - {path} for path in files}
    while ends := {path for path, below in ahead.items() if not below & ahead.keys()}:
        ahead = {path: below for path, below in ahead.items() if path not in ends}
    assert sorted(str(path.relative_to(ROOT)) for path in ahead) == []


def test_twenty_nouns_are_each_defined_in_their_file_and_nowhere_else() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\w+)` \| `([\w/]+\.py)` \|", page, re.M)
    assert len(told) == len(dict(told)) == 20
    homes: dict[str, list[str]] = {noun: [] for noun, _ in told}
    for path in sorted((ROOT / "bench").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else ()
            named = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in (getattr(node, "name", ""), *named):
                if name in homes:
                    homes[name].append(path.relative_to(ROOT / "bench").as_posix())
    assert homes == {noun: [file] for noun, file in told}


def test_few_files_lie_loose() -> None:
    loose = [p.name for p in (ROOT / "bench").glob("*.py") if not p.name.startswith("__")]
    assert len(loose) <= 6, loose


def test_the_examples_for_contributors_hold(tmp_path: Path) -> None:
    """Those of data are read as what they are examples of, and none takes ten lines."""
    from bench.predict.gpus import load_gpus
    from bench.scenarios.scenario import load_scenarios

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    examples = re.findall(r"```(?:toml|python)\n(.*?)```", text, re.S)
    assert max(len(e.splitlines()) for e in examples) < 10
    (scenario,) = (e for e in examples if e.startswith("[scenario."))
    (tmp_path / "mine.toml").write_text(scenario)
    assert load_scenarios(tmp_path)["attention-output"].r == 16
    (gpu,) = (e for e in examples if e.startswith("[gpu."))
    (tmp_path / "gpus.toml").write_text(gpu)
    assert load_gpus(tmp_path / "gpus.toml")["l40s"].name == "L40S"
