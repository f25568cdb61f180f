"""The commands in the documents are run as printed, and print what stands there.

`UPDATE_DOCUMENTS=1 pytest suites/selftest/test_documents.py` writes new outputs into them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from documents import ROOT, UPDATE, blocks, check, commands, fits, run
from warm import Warm

DOCUMENTS = sorted(
    path
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if "```console" in path.read_text(encoding="utf-8") and path.name != "atlas.md"
)  # docs/atlas.md is generated whole, and suites/test_atlas_reach.py holds it


def _dear(command: str) -> bool:
    """What takes as long as all else that the README shows."""
    return command.startswith("bench choose ")


@pytest.mark.skipif(not DOCUMENTS, reason="an installation has no documents")
@pytest.mark.parametrize(
    ("path", "chosen"),
    [
        pytest.param(
            path,
            chosen,
            id=f"{path.relative_to(ROOT)}{name}",
            marks=[] if name == "-few" else pytest.mark.evidence,
        )
        for path in DOCUMENTS
        for name, chosen in (
            {"-few": lambda c: not _dear(c), "-dear": _dear}
            if path.name == "README.md"
            else {"": bool}
        ).items()
    ],
)
def test_commands_print_what_stands_there(
    path: Path,
    chosen: Callable[[str], bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warm: Warm,
    one_process: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    # A busy machine's times are not what a document is held to.
    (tmp_path / "pyproject.toml").write_text(
        '[tool.bench.thresholds]\ntime = "1000%"\nreserved = "1000%"\n'
    )
    wrong = check(path, chosen)
    assert not wrong, "\n".join(wrong)


def test_links_lead_somewhere() -> None:
    """Every relative link of a document names a file that is there."""
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        if not path.is_file():
            continue
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_a_document_that_lies_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(UPDATE, raising=False)
    page = tmp_path / "page.md"
    file = "<!-- file: a/b.txt -->\n```text\nfour\n```\n\n"
    page.write_text(f"{file}```console\n$ cat a/b.txt\nfour\n$ echo one two\none three\n```\n")
    (wrong,) = check(page)
    assert "obtained:\none two" in wrong
    monkeypatch.setenv(UPDATE, "1")
    assert check(page) == []
    monkeypatch.delenv(UPDATE)
    assert "one two\n" in page.read_text()
    assert check(page) == []
    page.write_text("```console\n$ echo one two\none three\n$ echo four\nfour\n```\n")
    assert check(page, lambda command: "four" in command) == []
    assert len(check(page, lambda command: "four" not in command)) == 1


def test_how_a_block_is_read() -> None:
    (block,) = blocks("x\n<!-- not run: a GPU -->\n```console\n$ a \\\n  b\nc\n```\n")
    assert (block.mark, block.word) == ("not run", "a GPU")
    assert commands(block.body) == [("a b", "c\n")]
    assert fits("a ... c\n...\nz\n", "a b c\nmore\nlines\nz\n")
    assert not fits("a ... c\n", "a b d\n")
    assert not fits("...\n", "a\n(exit 1)\n")
    assert fits("...\n(exit 1)\n", "a\n(exit 1)\n")
    assert run("bash -c 'echo x; exit 3'") == "x\n(exit 3)\n"
