"""Draws the picture of docs/architecture.md from the imports: `python docs/_rooms.py`."""

from __future__ import annotations

import ast
import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms, drawn by docs/_rooms.py -->", "<!-- end of rooms -->"


def floors() -> list[list[str]]:
    """The rooms that there are, floor by floor from the top, as the contract of the imports in
    pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = project["tool"]["importlinter"]["contracts"][0]
    layers = [[room.strip(" ()") for room in layer.split("|")] for layer in contract["layers"]]
    return [[room for room in layer if files_of(room)] for layer in layers]


def files_of(room: str) -> list[Path]:
    """The Python files of a room, a folder or one file."""
    single = ROOT / "bench" / f"{room}.py"
    return [single] if single.exists() else sorted((ROOT / "bench" / room).rglob("*.py"))


@cache
def names_of(path: Path) -> set[str]:
    """Every name that a file imports, with its module; lazily or not, for types alone left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    return {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node not in typed and node.module
        for alias in node.names
    }


def imported(path: Path) -> set[str]:
    """The rooms that a file imports from."""
    return {name.split(".")[1] for name in names_of(path) if name.startswith("bench.")}


def files_imported(path: Path) -> set[Path]:
    """The files that a file imports: a module, or the one that holds the name."""
    found = set()
    for name in names_of(path):
        module = ROOT.joinpath(*name.split("."))
        places = (module.with_suffix(".py"), module / "__init__.py",
                  module.parent.with_suffix(".py"), module.parent / "__init__.py")  # fmt: skip
        found |= {next((place for place in places if place.exists()), path)}
    return found


def arrows() -> dict[str, set[str]]:
    """Room -> the rooms below that it imports, less those that it reaches through another."""
    layers = floors()
    rooms = [room for layer in layers for room in layer]
    direct = {r: {i for f in files_of(r) for i in imported(f) if i in rooms} - {r} for r in rooms}
    below: dict[str, set[str]] = {}
    for room in reversed(rooms):  # the lower ones first: imports point downwards
        below[room] = direct[room].union(*(below.get(other, set()) for other in direct[room]))
    return {
        room: {
            other
            for other in direct[room]
            if not any(other in below[middle] for middle in direct[room] - {other})
        }
        for room in rooms
    }


def picture() -> str:
    """A Mermaid flow chart: a box a room, an arrow where one imports another."""
    lines = ["```mermaid", "flowchart TD"]
    for number, layer in enumerate(floors()):
        if layer:
            lines.append(f"  subgraph floor{number}[ ]")
            lines += [f"    {room}" for room in layer]
            lines.append("  end")
    lines += [f"  {a} --> {b}" for a, found in arrows().items() for b in sorted(found)]
    return "\n".join([*lines, "```"])


def drawn(page: str) -> str:
    """The page with the picture as the imports are now."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{picture()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
