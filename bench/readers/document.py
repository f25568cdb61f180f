"""A YAML or JSON file of another tool: its values, and the line that each of them stands on.

Files come from anywhere: nothing in them is executed, and what would blow up is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.files import check_readable, malformed, read_text

if TYPE_CHECKING:
    from yaml import Node

LARGEST_DOCUMENT = 1 << 20
"""Bytes. A training configuration has a few thousand; more is another kind of file."""
MOST_VALUES = 100_000
"""Values after every alias is written out: ten aliases of ten aliases make a bomb of a page."""


@dataclass(frozen=True)
class Document:
    """The table that a file holds.

    `lines` is (key, inner key, ...) → line, counted from 1; `items` is (key, item as text) → line,
    for lists at the top. `repeated` names keys that stand twice, of which the last counts. `wrong`
    gathers what a reader finds wrong with the values, so that all of it is said at once.
    """

    path: Path
    values: Mapping[str, Any]
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict, repr=False)
    items: Mapping[tuple[str, str], int] = field(default_factory=dict, repr=False)
    repeated: tuple[str, ...] = ()
    wrong: list[str] = field(default_factory=list, compare=False)

    def misread(self, key: str) -> bool:
        """Whether the file has the key with a value that was left out as wrong."""
        return (key,) in self.lines and key not in self.values

    def line(self, *keys: str, item: str | None = None) -> int:
        """Where a key, or an item of its list, stands; the first line where that is not known."""
        found = self.items.get((keys[-1], item)) if keys and item is not None else None
        return found or self.lines.get(keys, 1)


def read_document(path: Path) -> Document:
    """Read a .yaml, .yml or .json file.

    Raises BenchError, naming the file: missing, too large, not in that format, not a table at its
    top, aliases that multiply beyond measure.
    """
    if (size := check_readable(path)) > LARGEST_DOCUMENT:
        raise BenchError(
            f"{path}: {size:,} bytes; a configuration has at most {LARGEST_DOCUMENT:,}"
        )
    text = read_text(path)
    return _json(path, text) if path.suffix == ".json" else _yaml(path, text)


def _json(path: Path, text: str) -> Document:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{path}: not JSON: {malformed(error)}") from None
    _check_table(path, values)
    try:  # JSON is YAML, but for tabs, and YAML knows the lines
        root = _compose(text)
    except Exception:  # the values are there; only the lines are not
        return Document(path, values)
    return Document(path, values, *_places(root))


def _yaml(path: Path, text: str) -> Document:
    import yaml

    try:
        root = _compose(text)
        if _written_out(root) > MOST_VALUES:
            raise BenchError(
                f"{path}: its aliases stand for more than {MOST_VALUES:,} values: not a "
                "configuration"
            )
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise BenchError(f"{path}: not YAML: {_one_line(error)}") from None
    _check_table(path, values)
    return Document(path, values, *_places(root))


def _compose(text: str) -> Node | None:
    import yaml

    return yaml.compose(text, Loader=yaml.SafeLoader)


def _check_table(path: Path, values: object) -> None:
    if isinstance(values, list):
        raise BenchError(f"{path}: a list at the top; a configuration is a table of keys")
    if not isinstance(values, dict) or not values:
        found = "nothing" if not values else type(values).__name__
        raise BenchError(f"{path}: expected a table of keys, found {found}")
    if odd := [key for key in values if not isinstance(key, str)]:
        raise BenchError(f"{path}: keys must be text, not {odd[0]!r}")


def _children(node: Node) -> Iterator[Node]:
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from (key, value)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _written_out(root: Node | None) -> int:
    """Values of the tree, each alias counted as all that it stands for; too many for one that
    holds itself."""
    sizes: dict[int, int] = {}

    def size(node: Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST_VALUES + 1  # until it is known: a node within itself has no end
            sizes[id(node)] = 1 + sum(map(size, _children(node)))
        return sizes[id(node)]

    return 0 if root is None else size(root)


def _places(
    root: Node | None,
) -> tuple[dict[tuple[str, ...], int], dict[tuple[str, str], int], tuple[str, ...]]:
    import yaml

    lines: dict[tuple[str, ...], int] = {}
    items: dict[tuple[str, str], int] = {}
    repeated: list[str] = []

    def visit(node: Node, above: tuple[str, ...]) -> None:
        if not isinstance(node, yaml.MappingNode) or len(above) > 2:
            return
        for key, value in node.value:
            where = (*above, str(key.value))
            if where in lines and not above:
                repeated.append(where[0])
            lines[where] = key.start_mark.line + 1
            if isinstance(value, yaml.SequenceNode):
                for item in value.value:
                    if isinstance(item, yaml.ScalarNode):
                        items[where[-1], item.value] = item.start_mark.line + 1
            visit(value, where)

    if root is not None:
        visit(root, ())
    return lines, items, tuple(repeated)


def _one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or malformed(error).strip().partition("\n")[0]
    where = f" (line {mark.line + 1})" if mark is not None else ""
    return f"{problem or type(error).__name__}{where}"
