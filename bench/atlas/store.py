"""The atlas as files: one folder a transformers version, one JSON file a first letter.

A projection is one line, so a renamed projection of one model is one changed line of a diff:

    "model.layers.[0-31].self_attn.q_proj": ["query","linear",4096,4096],

The list holds role, kind, in_features and out_features; then, where they are not the default,
`true` for a bias, and window and groups of a convolution. A weight that is a bare parameter is
its role and its shape: `["gate_up",8,28672,4096]`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.atlas import names
from bench.atlas.entries import Atlas, Bare, Folded, TypeEntry
from bench.errors import BenchError, UnknownName
from bench.files import FIXTURES, parse, read_json
from bench.models.modules import CONV1D, CONVOLUTIONS, EMBEDDING, LINEAR, MULTIHEAD
from bench.models.roles import UNKNOWN, check_role

ROOT = FIXTURES / "atlas"
_PREFIX = "transformers-"
_FILE = "types-{}.json"


def stored_versions() -> list[str]:
    """The transformers versions that an atlas is stored of, oldest first."""
    found = [p.name.removeprefix(_PREFIX) for p in ROOT.glob(f"{_PREFIX}*") if holds_atlas(p)]
    return sorted(found, key=_version_key)


def find_atlas(name: str) -> Path:
    """The folder of an atlas, given as a folder or as a version ("5.23.0").

    Raises UnknownName, with the stored versions, when there is none.
    """
    for folder in (ROOT / f"{_PREFIX}{name.removeprefix(_PREFIX)}", Path(name)):
        if holds_atlas(folder):
            return folder
    raise UnknownName("atlas", name, stored_versions(), "; or give a folder that holds one")


def holds_atlas(folder: Path) -> bool:
    """Whether an atlas is stored in this folder."""
    return any(folder.glob(_FILE.format("*")))


def check_writable(folder: Path) -> None:
    """Raise BenchError unless an atlas can be stored in `folder`: to be told before it is built."""
    target = Path(os.path.realpath(folder))
    there = next(p for p in target.parents if p.exists())
    taken = target.exists() and not target.is_dir()  # a file, a pipe, a device
    if taken or not there.is_dir() or not os.access(there, os.W_OK):
        raise BenchError(f"{folder}: no folder can be written here; give another --output")


def save_atlas(atlas: Atlas, folder: Path) -> None:
    """Write the atlas to `folder`, or where it points: all of it or nothing. Other files there are
    kept."""
    folder = Path(os.path.realpath(folder))
    texts: dict[str, dict[str, Any]] = {}
    for model_type in sorted({*atlas.types, *atlas.unbuilt}):
        texts.setdefault(_initial(model_type), {})[model_type] = (
            entry_to_json(atlas.types[model_type])
            if model_type in atlas.types
            else {"unbuilt": atlas.unbuilt[model_type]}
        )
    staged = folder.with_name(f".{folder.name}-{os.getpid()}")
    retired = folder.with_name(f"{staged.name}-old")
    try:
        staged.mkdir(parents=True)
        for kept in folder.iterdir() if folder.is_dir() else ():
            if not kept.match(_FILE.format("*")):
                shutil.copy2(kept, staged)
        for initial, types in texts.items():
            path = staged / _FILE.format(initial)
            path.write_text(dump(atlas.transformers, types), encoding="utf-8")
        if folder.is_dir():
            folder.rename(retired)
        staged.rename(folder)
    except OSError as error:
        raise BenchError(f"{folder}: cannot be written: {error.strerror}") from None
    finally:
        if retired.is_dir() and not folder.exists():  # interrupted between the two renames
            retired.rename(folder)
        shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def load_atlas(folder: Path) -> Atlas:
    """Read a stored atlas. Raises BenchError, naming file and key, on anything not understood."""
    types: dict[str, TypeEntry] = {}
    unbuilt: dict[str, str] = {}
    version = ""
    if not holds_atlas(folder):
        raise BenchError(f"{folder}: holds no atlas (no {_FILE.format('*')})")
    for path in sorted(folder.glob(_FILE.format("*"))):
        data = parse(read_json(path), _File, str(path))
        if data.format != FORMAT:
            raise BenchError(f"{path}: format is {data.format!r}; this bench reads {FORMAT}")
        version = version or data.transformers
        if data.transformers != version:
            raise BenchError(f"{path}: transformers {data.transformers}, the rest is {version}")
        for model_type, values in data.types.items():
            where = f"{path}: {model_type}"
            if path.name != _FILE.format(_initial(model_type)):
                raise BenchError(f"{where}: does not belong in this file")
            if isinstance(values, dict) and "unbuilt" in values:
                unbuilt |= {model_type: parse(values, _Unbuilt, where).unbuilt}
            else:
                types[model_type] = entry_from_json(values, where)
    return Atlas(version, types, unbuilt)


def _initial(model_type: str) -> str:
    first = model_type[:1].lower()
    return first if first.isascii() and first.isalnum() else "other"


def _version_key(version: str) -> tuple[tuple[bool, int, str], ...]:
    return tuple((p.isdigit(), int(p) if p.isdigit() else 0, p) for p in version.split("."))


FORMAT = 1
_KINDS = (LINEAR, CONV1D, EMBEDDING, MULTIHEAD, *CONVOLUTIONS)
_REQUIRED = ("auto_class", "class", "layers", "parameters")
"""Keys of a type that are written even where they hold nothing."""


@dataclass(frozen=True)
class _Unbuilt:
    unbuilt: str


@dataclass(frozen=True)
class _File:
    format: Any
    transformers: str
    types: dict[str, Any]


def entry_to_json(entry: TypeEntry) -> dict[str, Any]:
    """One type as JSON; what is empty or false is left out."""
    data: dict[str, Any] = {
        **{"class" if name == "class_name" else name: value for name, value in vars(entry).items()},
        "tied": list(entry.tied),
        "projections": {p.name: _projection_to_json(p) for p in entry.projections},
        "bare": {e.name: [e.role, *e.shape] for e in entry.bare},
        "other": " ".join(entry.other),
    }
    return {key: value for key, value in data.items() if value or key in _REQUIRED}


def entry_from_json(data: Any, where: str) -> TypeEntry:
    """One type from JSON; BenchError, naming `where` and the key, on anything not understood."""
    held = {"causal_lm": False, **parse(data, dict[str, Any], where)}
    rows = {
        key: parse(held.pop(key, {}), dict[str, Any], f"{where}: {key}")
        for key in ("projections", "bare")
    }
    other = parse(held.pop("other", ""), str, f"{where}: other")
    if "class" in held:
        held["class_name"] = held.pop("class")
    return replace(
        parse(held, TypeEntry, where),
        projections=tuple(
            _projection_from_json(name, row, f"{where}: projections: {name}")
            for name, row in rows["projections"].items()
        ),
        bare=tuple(
            _bare_from_json(name, row, f"{where}: bare: {name}")
            for name, row in rows["bare"].items()
        ),
        other=tuple(other.split()),
    )


def _projection_to_json(p: Folded) -> list[object]:
    row: list[object] = [p.role, p.kind, p.in_features, p.out_features]
    optional = [p.bias, p.kernel, p.groups]
    while optional and optional[-1] in (False, 1) and optional[-1] is not True:
        optional.pop()
    return row + optional


def _projection_from_json(name: str, row: Any, where: str) -> Folded:
    if not isinstance(row, list) or not 4 <= len(row) <= 7:
        raise BenchError(
            f"{where}: expected [role, kind, in, out, bias, kernel, groups], found {row!r}"
        )
    role, kind, *numbers = row
    bias = numbers.pop(2) if len(numbers) > 2 else False
    parse(bias, bool, f"{where}: bias")
    if kind not in _KINDS:
        raise UnknownName(f"kind in {where}:", str(kind), _KINDS)
    _check_sizes(numbers, where)
    into, out, *window = numbers
    return Folded(
        names.check_folded(name, where), _role(role, where), kind, into, out, bias, *window
    )


def _bare_from_json(name: str, row: Any, where: str) -> Bare:
    if not isinstance(row, list) or len(row) not in (3, 4):
        raise BenchError(f"{where}: expected [role, experts, rows, columns], found {row!r}")
    role, *shape = row
    _check_sizes(shape, where)
    return Bare(names.check_folded(name, where), _role(role, where), tuple(shape))


def _role(role: Any, where: str) -> str:
    return UNKNOWN if role == UNKNOWN else check_role(str(role), where)


def _check_sizes(values: list[Any], where: str) -> None:
    for value in values:
        if parse(value, int, where) < 0:
            raise BenchError(f"{where}: {value} is not a size")


def dump(version: str, types: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON with one projection, and one short value, a line."""

    def lines() -> Iterator[str]:
        yield f'{{\n"format": {FORMAT},\n"transformers": {json.dumps(version)},\n"types": {{'
        yield ",\n".join(map(type_lines, types))
        yield "}\n}\n"

    def type_lines(model_type: str) -> str:
        fields = []
        for key, value in types[model_type].items():
            if isinstance(value, dict):
                rows = ",\n".join(f"  {json.dumps(k)}: {_short(v)}" for k, v in value.items())
                fields.append(f' "{key}": {{\n{rows}\n }}')
            else:
                fields.append(f' "{key}": {_short(value)}')
        return f"{json.dumps(model_type)}: {{\n" + ",\n".join(fields) + "\n}"

    return "\n".join(lines())


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
