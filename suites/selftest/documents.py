"""Documents whose commands are run: what stands in a fenced `console` block is what is printed.

In such a block a line that begins with `$ ` is a command, and the lines after it are its output; a
line `...` stands for any lines, and `...` within a line for any text. `(exit 1)` as the last line
says the exit status where it is not 0. A fenced block under `<!-- file: NAME -->` is put into NAME
beforehand. A block under `<!-- not run: REASON -->` is left alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from bench.cli import main

ROOT = Path(__file__).resolve().parents[2]
UPDATE = "UPDATE_DOCUMENTS"
"""With this variable set, an output that differs is written into the document."""

_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>file|not run): (?P<word>.+?) -->\n+)?```(?P<kind>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

_EXIT = re.compile(r"^\(exit \d+\)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block; start and end: where its body stands in the text."""

    kind: str
    body: str
    mark: str
    word: str
    start: int
    end: int


def blocks(text: str) -> Iterator[Block]:
    """Every fenced block of a document, in order."""
    for found in _BLOCK.finditer(text):
        yield Block(
            found["kind"], found["body"], found["mark"] or "", found["word"] or "",
            found.start("body"), found.end("body"),
        )  # fmt: skip


def commands(body: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output that it should have."""
    found: list[tuple[str, str]] = []
    for line in body.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append((line[2:].rstrip("\n"), ""))
        elif found:
            command, output = found[-1]
            if command.endswith("\\") and not output:
                found[-1] = (command[:-1] + line.strip(), "")
            else:
                found[-1] = (command, output + line)
    return found


def fits(expected: str, obtained: str) -> bool:
    """Whether the output is the expected one, `...` standing for anything but how it ends."""
    if ("".join(expected.splitlines()[-1:]) in ("...", "")) and _EXIT.search(obtained):
        return False
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "..." else
        r".*?".join(map(re.escape, line.rstrip("\n").split("..."))) + r"\n"
        for line in expected.splitlines(keepends=True)
    )  # fmt: skip
    return re.fullmatch(pattern, obtained) is not None


def run(command: str) -> str:
    """What a command prints, both streams, and how it ends. `bench` runs in this process."""
    words = shlex.split(command)
    if words[0] == "bench" and not {"|", ">", "&&"} & set(words):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                status = main(words[1:])
            except SystemExit as error:
                status = int(error.code or 0)
        text = printed.getvalue()
    else:
        folders = (Path(sys.executable).parent, sysconfig.get_path("scripts"), os.environ["PATH"])
        here = os.pathsep.join(map(str, folders))
        if words[0] == "pytest":
            command = shlex.join([sys.executable, "-m", *words])
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=300,
            env={**os.environ, "PATH": here, "COLUMNS": "100", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        text, status = done.stdout + done.stderr, done.returncode
    lines = [line.rstrip() for line in text.splitlines()]
    lines += [f"(exit {status})"] * bool(status)
    return "".join(f"{line}\n" for line in lines)


def script(name: str) -> ModuleType:
    """A script of docs/ that writes a page, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def check(document: Path, chosen: Callable[[str], bool] = bool) -> list[str]:
    """Run the `chosen` commands of a document, by default all, in the present folder; what differs,
    as readable text.

    With UPDATE_DOCUMENTS set, the document is rewritten instead, and nothing differs."""
    text = document.read_text(encoding="utf-8")
    rewritten, position, wrong = "", 0, []
    for block in blocks(text):
        if block.mark == "file":
            Path(block.word).parent.mkdir(parents=True, exist_ok=True)
            Path(block.word).write_text(block.body, encoding="utf-8")
        if block.kind != "console" or block.mark == "not run":
            continue
        body = ""
        for command, expected in commands(block.body):
            obtained = run(command) if chosen(command) else expected
            good = not chosen(command) or fits(expected, obtained)
            body += f"$ {command}\n{expected if good else obtained}"
            if not good:
                wrong.append(f"$ {command}\nexpected:\n{expected}\nobtained:\n{obtained}")
        if wrong:
            rewritten += text[position : block.start] + body
            position = block.end
    if wrong and os.environ.get(UPDATE):
        document.write_text(rewritten + text[position:], encoding="utf-8")
        return []
    return wrong
