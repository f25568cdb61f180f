"""The header of a safetensors file: names, dtypes and shapes, without a weight being read.

Format: https://huggingface.co/docs/safetensors (8 bytes with the header's length, the header in
JSON, the tensors).
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.files import malformed, unreadable

LARGEST_HEADER = 32 << 20
"""Bytes of header. An adapter of ten thousand tensors has one of 2 MB."""
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
         "BOOL": 1, "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip
"""dtype → bytes of an element."""


@dataclass(frozen=True)
class SavedTensor:
    """One tensor of a file, as its header tells."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return prod(self.shape)


def read_header(path: Path) -> dict[str, SavedTensor]:
    """Name → tensor. Raises BenchError, naming the file, where it is no whole safetensors file."""
    try:
        status = path.stat()
        size = status.st_size
        if stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode):
            raise BenchError(f"{path}: it is not a regular file")
        with path.open("rb") as file:
            first = file.read(8)
            if len(first) < 8:
                raise BenchError(f"{path}: {size} bytes: no safetensors file, or cut off")
            length = int.from_bytes(first, "little")
            if length > LARGEST_HEADER:
                raise BenchError(
                    f"{path}: a header of {length:,} bytes, more than {LARGEST_HEADER:,}: "
                    "no adapter"
                )
            if 8 + length > size:
                raise BenchError(
                    f"{path}: cut off: its header should have {length:,} bytes, and the file has "
                    f"{size:,}"
                )
            text = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BenchError(
            f"{path}: no safetensors file: its header is no JSON: {malformed(error)}"
        ) from None
    if not isinstance(entries, dict):
        raise BenchError(f"{path}: no safetensors file: its header is no table")
    found = {
        name: _tensor(path, name, entry, size - 8 - length)
        for name, entry in entries.items()
        if name != "__metadata__"
    }
    if not found:
        raise BenchError(f"{path}: holds no tensor")
    return found


def _tensor(path: Path, name: str, entry: Any, held: int) -> SavedTensor:
    if not isinstance(entry, Mapping):
        raise BenchError(f"{path}: tensor {name!r}: no table in the header")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    whole = all(
        isinstance(part, list) and all(type(n) is int and n >= 0 for n in part)
        for part in (shape, offsets)
    )
    if not isinstance(dtype, str) or not whole or len(offsets or ()) != 2:
        raise BenchError(f"{path}: tensor {name!r}: no dtype, shape and data_offsets in the header")
    assert isinstance(shape, list)
    assert isinstance(offsets, list)
    begin, end = offsets
    if end > held:
        raise BenchError(f"{path}: cut off: tensor {name!r} ends {end - held:,} bytes beyond it")
    if dtype in SIZES and end - begin != prod(shape) * SIZES[dtype]:
        raise BenchError(
            f"{path}: tensor {name!r}: {end - begin:,} bytes are no {dtype} of shape {shape}"
        )
    return SavedTensor(name, dtype, tuple(shape))
