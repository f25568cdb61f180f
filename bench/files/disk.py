"""Where the project's data lie; how files are read and written: one error that names the file."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bench.errors import BenchError, nearest

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (PACKAGE / "fixtures").is_dir()
"""Whether the data lie inside the package, where a wheel has them, and not beside it, as in a
checkout: `setup.py` maps the folders in."""
_HOME = PACKAGE if INSTALLED else PACKAGE.parent
FIXTURES = _HOME / "fixtures"
RESULTS = _HOME / "results"
"""Stored predictions, experiments and baselines of the project's own."""
SUITES = _HOME / "suites"
"""What `pytest suites/` runs; in an installation `pytest --pyargs lora_target_bench.suites`."""

OWN_RESULTS = Path("results") if INSTALLED else RESULTS
"""Where results are written: in an installation the user's own folder, never the package's."""


LARGEST_BYTES = 1 << 28
"""No file that people or tools write for us is larger; reading one would take all memory."""


def read_text(path: Path, option: str = "") -> str:
    """The text in a regular file. BenchError as in `check_readable`, and for what is not UTF-8."""
    check_readable(path, option)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(f"{option} {path}".lstrip(), error) from None


def check_readable(path: Path | str, option: str = "") -> int:
    """The bytes in a file. BenchError, naming it and the option that named it, for what cannot be
    opened, never ends (a pipe, a device) or is larger than 256 MiB."""
    try:
        found = Path(path).stat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if found.st_size > LARGEST_BYTES:
            raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes")
    except OSError as error:
        raise unreadable(f"{option} {path}".lstrip(), error) from None
    return found.st_size


def unreadable(path: Path | str, error: Exception) -> BenchError:
    """What every command says of a file that it could not read: in words, without a number of the
    system's. `path` may have the option before it that named the file."""
    if isinstance(error, FileNotFoundError):
        return BenchError(f"{path}: no such file")
    if isinstance(error, UnicodeDecodeError):
        return BenchError(f"{path}: not text in UTF-8: {error}")
    reason = error.strerror if isinstance(error, OSError) else None
    return BenchError(f"{path}: cannot be read: {reason or error}")


def read_json(path: Path) -> Any:
    """The JSON in `path`; BenchError, naming the file, when it is missing or not JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, a number without end
        raise BenchError(f"{path}: not JSON: {malformed(error)}") from None


def malformed(error: Exception) -> str:
    """What a parser has against a text; in other words where its own are about Python."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if "set_int_max_str_digits" in str(error):
        return "it holds a whole number of more than 4,300 digits"
    return str(error)


def strict_json(text: str) -> Any:
    """JSON from somebody else. ValueError for what is none, NaN among it, and for a table in which
    a key stands twice: of two whoever reads would see the last."""
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)


def finite(value: Any) -> Any:
    """The value with a word in the place of each number that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"the key {twice!r:.80} stands twice in one table")
    return table


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is not JSON")


def read_toml(path: Path) -> dict[str, Any]:
    """The TOML in `path`; BenchError, naming the file, when it is missing or malformed."""
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{path}: not TOML: {malformed(error)}") from None


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, but for lines that begin with `#`, which say where it
    is from; BenchError as `read_text`."""
    lines = read_text(path).splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def project_file(folder: Path | None = None) -> Path | None:
    """The pyproject.toml of the project that `folder` (the current one) lies in: the nearest, there
    or above; None where there is none."""
    folder = folder or Path()
    found = (place / "pyproject.toml" for place in (folder, *folder.absolute().parents))
    with contextlib.suppress(OSError):  # a folder that is gone, or may not be looked into
        return next((path for path in found if path.exists()), None)
    return None


_SHORT, _ALIKE = 6, 0.85
"""A table is meant whose name is that much like ours, which is not as short as another tool's."""


def tool_table(path: Path, *names: str) -> dict[str, Any]:
    """`[tool.NAMES]` of a pyproject.toml; empty where there is none. BenchError where it is no
    table."""
    table: Any = read_toml(path).get("tool")
    for name in names:
        if isinstance(table, dict) and name not in table and len(name) > _SHORT:
            alike = {key.replace("_", "-").lower(): key for key in table}
            if near := nearest(name, alike, _ALIKE):
                raise BenchError(f"{path}: unknown table {alike[near]}: did you mean {name}?")
        table = table.get(name) if isinstance(table, dict) else None
    if table is not None and not isinstance(table, dict):
        raise BenchError(f"{path}: tool.{'.'.join(names)}: expected a table, found {table!r:.80}")
    return table or {}


def check_weights(folder: Path) -> None:
    """BenchError unless a user's folder of real weights holds a *.safetensors file: a pickle could
    execute anything. With an adapter in it transformers would load that, and its base model."""
    if not folder.is_dir():
        raise BenchError(f"--weights {folder}: there is no such folder")
    if not any(folder.glob("*.safetensors")):
        raise BenchError(f"--weights {folder}: no *.safetensors file is in that folder")
    if (folder / "adapter_config.json").exists():
        raise BenchError(
            f"--weights {folder}: an adapter is in that folder (adapter_config.json), which "
            "transformers would load too: give a folder with the base model's weights alone"
        )


WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
"""What is read of a folder of real weights."""
CODE = ("**/*.py",)
"""... and of one whose own code builds a model."""


def digest_of(
    folder: Path, *patterns: str, progress: Callable[[int, int], object] | None = None
) -> str:
    """SHA-256, in hex, over the names and bytes of the files in `folder` that a pattern finds.

    `progress` is told how many bytes were read, of how many, now and then.
    """
    digest = hashlib.sha256()
    try:
        found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
        files = {path: path.stat().st_size for path in found if path.is_file()}
        done, every = 0, sum(files.values())
        tell = progress or (lambda *_: None)
        tell(0, every)
        for path in files:
            digest.update(f"{path.relative_to(folder)}\0".encode(errors="surrogateescape"))
            inner = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    inner.update(chunk)
                    done += len(chunk)
                    tell(done, every)
            digest.update(inner.digest())
    except OSError as error:
        raise BenchError(f"{folder}: {error.strerror}") from None
    return digest.hexdigest()


_CHUNK = 1 << 26  # bytes read at once: a tenth of a second's work

SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "html": (".html", ".htm"), "csv": (".csv",), "json": (".json", ".jsonl"),
    "markdown": (".md",), "latex": (".tex",), "terminal": (".txt",), "svg": (".svg",),
    "png": (".png",),
}  # fmt: skip
"""How the names of files end that are written, by format."""
_ENDINGS = {ending for endings in SUFFIXES.values() for ending in endings}
_ANY = ("", ".txt")
"""Endings that promise no format."""
_PICTURES = {".svg", ".png"}


def check_output(path: Path | str, suffixes: Sequence[str] = (), ours: str = "") -> None:
    """BenchError, naming the path, unless `write_output` may write there.

    `suffixes`: how the names end of what is written; another format's name is a contradiction, and
    a file that is there already and ends in none of them is somebody else's. So is one that does
    not hold the text `ours`.

    A symbolic link stands for what it points to. Refused are folders, read-only files (for root
    too, whom the system would let) and files in a folder that is not there.
    """
    target = Path(os.path.realpath(path))
    if _is_stream(path):
        return
    known = " or ".join(suffixes)
    for ending in (Path(path).suffix.lower(), target.suffix.lower()):
        if suffixes and ending in _ENDINGS and ending not in (*_ANY, *suffixes):
            raise BenchError(f"{path}: what is written is no {ending}, but {known}: name it so")
    try:
        found = target.stat()
    except FileNotFoundError:
        if not target.parent.is_dir():
            raise BenchError(f"{path}: there is no folder {target.parent} to write it in") from None
        of_system = target.parts[:2] in (("/", "proc"), ("/", "sys"))  # root too
        if of_system or not os.access(target.parent, os.W_OK):
            raise BenchError(f"{path}: the folder {target.parent} cannot be written to") from None
        return
    except OSError as error:
        raise BenchError(f"{path}: cannot be written: {error.strerror}") from None
    if stat.S_ISDIR(found.st_mode):
        raise BenchError(f"{path}: this is a folder; name a file in it")
    free = () if {*suffixes} & _PICTURES else _ANY
    if suffixes and found.st_size and target.suffix.lower() not in (*free, *suffixes):
        raise BenchError(f"{path}: {target.name} is there, and no file in {known}: name another")
    if not found.st_mode & 0o222 or not os.access(target, os.W_OK):
        raise BenchError(f"{path}: this file is read-only")
    if ours and found.st_size and not _holds(target, ours):
        raise BenchError(f"{path}: {target.name} is there, and holds something else: name another")


def _holds(path: Path, text: str) -> bool:
    try:
        return text in read_text(path)
    except BenchError:
        return False


def write_output(path: Path | str, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) to what a user named: a regular file whole or not at all,
    where a symbolic link points; a pipe or a device as a stream.

    BenchError as in `check_output`, and for a full disk.
    """
    check_output(path)
    target = Path(os.path.realpath(path))
    if _is_stream(path):
        _stream(path, content)
        return
    try:
        write_atomically(target, content)
    except BenchError as error:
        # A file that is mounted by itself, or that lies in a folder of others', has no neighbours.
        cause = error.__cause__
        if (
            not isinstance(cause, OSError)
            or cause.errno not in _NO_NEIGHBOURS
            or not target.exists()
        ):
            raise
        _stream(target, content)


_NO_NEIGHBOURS = (errno.EACCES, errno.EPERM, errno.EBUSY, errno.EXDEV)


def _is_stream(path: Path | str) -> bool:
    """Whether it is a pipe or a device; `/dev/stdout` is one, wherever it leads."""
    if os.path.abspath(path).startswith(("/dev/std", "/dev/fd/", "/proc/")):
        return os.path.exists(path)
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


PATIENCE_SECONDS = 10.0
"""How long a named pipe waits for somebody who reads it."""


_OPEN = re.compile(r"/dev/std(?P<name>out|err)|/(?:dev|proc/self)/fd/(?P<number>\d+)")


def _stream(path: Path | str, content: str | bytes) -> None:
    try:
        with open(path, "wb", opener=_opened) as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise BenchError(f"{path}: not written: {error.strerror or error}") from error


def _opened(path: str, flags: int) -> int:
    """Open a file to write. A stream that is open already is written to itself: to open what it
    leads to once more would empty a log (`>> log`). A named pipe is opened only where somebody
    reads it, else OSError: to open one that nobody does would never end."""
    if named := _OPEN.fullmatch(os.path.abspath(path)):
        for ours in (sys.stdout, sys.stderr):
            ours.flush()
        return os.dup(int(named["number"] or ("1" if named["name"] == "out" else "2")))
    if not stat.S_ISFIFO(os.stat(path).st_mode):
        return os.open(path, flags, 0o666)
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            descriptor = os.open(path, flags | os.O_NONBLOCK)
            break
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() >= until:
                text = f"nobody has read this pipe within {PATIENCE_SECONDS:g} s"
                raise OSError(errno.ENXIO, text) from None
        time.sleep(0.05)
    os.set_blocking(descriptor, True)
    return descriptor


def write_atomically(path: Path | str, content: str | bytes) -> None:
    """Put `content` in the place of the regular file `path`, whole or not at all, in folders that
    are made where they are not there; BenchError if that cannot be. For the project's own files."""
    path = Path(path)
    with saving(path, content) as temporary:
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
        os.replace(temporary, path)


@contextlib.contextmanager
def saving(target: Path, content: str | bytes) -> Iterator[Path]:
    """A flushed temporary file with `content` in target's folder, gone at the end."""
    temporary = target.parent / f".saving-{secrets.token_hex(8)}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with open(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        _flush_folder(target.parent)
    except OSError as error:
        raise BenchError(
            f"{target}: not saved: {error.strerror or error}; nothing was written"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system lets a folder be flushed
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
