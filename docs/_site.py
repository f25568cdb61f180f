"""What the site has besides the pages that lie here, made anew whenever it is built."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Files, config: Any) -> Files:
    """Add the front page (the README), the changelog, and every command's help."""
    pages = {
        "index.md": (ROOT / "README.md").read_text(encoding="utf-8"),
        "results.md": (ROOT / "results" / "README.md").read_text(encoding="utf-8"),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "commands.md": _commands(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


_ELSEWHERE = {"results/README.md": "results.md", "CONTRIBUTING.md": "contributing.md"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links as they are in the repository, to where the pages lie in the site."""
    for written, here in _ELSEWHERE.items():
        for start in ("", "../"):
            markdown = markdown.replace(f"]({start}{written}", f"]({here}")
    return markdown.replace("](docs/", "](")


def _commands() -> str:
    from bench.cli.parser import COMMANDS, make_parser

    os.environ["COLUMNS"] = "96"
    (choices,) = (a.choices for a in make_parser()._actions if getattr(a, "choices", None))
    told = [f"## bench {name}\n\n```text\n{choices[name].format_help()}```\n" for name in COMMANDS]
    head = (
        "# Commands\n\nWhat `bench COMMAND --help` says. A command exits with 0 where all holds, "
        "with 1 where a check failed, and with 2 where the input was wrong.\n"
    )
    return "\n".join([head, *told])
