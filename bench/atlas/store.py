"""The atlas as files: one folder a transformers version, one JSON file a first letter."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from bench.atlas.entries import Atlas, TypeEntry
from bench.atlas.rows import FORMAT, check_type, dump, entry_from_json, entry_to_json
from bench.errors import BenchError, UnknownName, check_keys
from bench.files import FIXTURES, read_json

ROOT = FIXTURES / "atlas"
_PREFIX = "transformers-"
_FILE = "types-{}.json"


def stored_versions(root: Path | None = None) -> list[str]:
    """The transformers versions that an atlas is stored of, oldest first."""
    root = root or ROOT
    found = [p.name.removeprefix(_PREFIX) for p in root.glob(f"{_PREFIX}*") if holds_atlas(p)]
    return sorted(found, key=_version_key)


def find_atlas(name: str, root: Path | None = None) -> Path:
    """The folder of an atlas, given as a folder or as a version ("5.23.0").

    Raises UnknownName, with the stored versions, when there is none.
    """
    root = root or ROOT
    for folder in (root / f"{_PREFIX}{name.removeprefix(_PREFIX)}", Path(name)):
        if holds_atlas(folder):
            return folder
    raise UnknownName("atlas", name, stored_versions(root), "; or give a folder that holds one")


def holds_atlas(folder: Path) -> bool:
    """Whether an atlas is stored in this folder."""
    return any(folder.glob(_FILE.format("*")))


def check_writable(folder: Path) -> None:
    """Raise BenchError unless an atlas can be stored in `folder`: to be told before it is built."""
    there = next(p for p in folder.absolute().parents if p.exists())
    if folder.is_file() or not there.is_dir() or not os.access(there, os.W_OK):
        raise BenchError(f"{folder}: no folder can be written here; give another --output")


def save_atlas(atlas: Atlas, folder: Path) -> None:
    """Write the atlas to `folder`: all of it or nothing. Other files there are kept."""
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
        data = read_json(path)
        keys = ("format", "transformers", "types")
        check_keys(data, str(path), keys, keys)
        if data["format"] != FORMAT:
            raise BenchError(f"{path}: format is {data['format']!r}; this bench reads {FORMAT}")
        check_type(data["transformers"], str, f"{path}: transformers")
        version = version or data["transformers"]
        if data["transformers"] != version:
            raise BenchError(f"{path}: transformers {data['transformers']}, the rest is {version}")
        check_type(data["types"], dict, f"{path}: types")
        for model_type, values in data["types"].items():
            where = f"{path}: {model_type}"
            if path.name != _FILE.format(_initial(model_type)):
                raise BenchError(f"{where}: does not belong in this file")
            if isinstance(values, dict) and "unbuilt" in values:
                check_keys(values, where, ("unbuilt",))
                check_type(values["unbuilt"], str, f"{where}: unbuilt")
                unbuilt[model_type] = values["unbuilt"]
            else:
                types[model_type] = entry_from_json(values, where)
    return Atlas(version, types, unbuilt)


def _initial(model_type: str) -> str:
    first = model_type[:1].lower()
    return first if first.isascii() and first.isalnum() else "other"


def _version_key(version: str) -> tuple[tuple[bool, int, str], ...]:
    return tuple((p.isdigit(), int(p) if p.isdigit() else 0, p) for p in version.split("."))
