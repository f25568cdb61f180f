"""The ready-made ways to run `bench check`: the composite action's script, and the hook with the
real pre-commit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from warm import Warm

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = ROOT / "fixtures" / "readers"
SCRIPT = ROOT / ".github" / "actions" / "check" / "check.sh"
needs_checkout = pytest.mark.skipif(not SCRIPT.exists(), reason="runs in a checkout")


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", **variables}
    return subprocess.run(
        command, cwd=folder, env=environment, text=True, capture_output=True,
        check=False, timeout=300,
    )  # fmt: skip


@needs_checkout
def test_the_action_annotates_and_fails(tmp_path: Path, warm: Warm) -> None:
    shutil.copy(FILES / "axolotl" / "phi-3-mini-dead-names.yaml", tmp_path / "train.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    summary = tmp_path / "summary.md"
    done = run(
        ["bash", str(SCRIPT)], tmp_path, PATHS="train.yaml\n  list.yaml\n", MODEL="",
        OPTIONS="--no-gradients", GITHUB_STEP_SUMMARY=str(summary),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("::error file=train.yaml,line=8,title=bench%3A dead-entry::q_proj")
    wrong = [line for line in lines if "list.yaml" in line]
    assert len(wrong) == 1
    assert wrong[0].startswith(
        "::error file=list.yaml,line=1,title=bench%3A input::list.yaml: a list at the"
    )
    assert "2 errors" in summary.read_text()


@needs_checkout
def test_the_action_takes_an_option_and_its_value_on_one_line(tmp_path: Path, warm: Warm) -> None:
    """And escapes the name of a file; what is wrong with an option is said once, of no file."""
    name = "x:y,z%.yaml"
    (tmp_path / name).write_text("- a\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    given = {"PATHS": f"{name}\nlist.yaml", "MODEL": ""}
    done = run(["bash", str(SCRIPT)], tmp_path, OPTIONS=" --fail-on  unknown-key ", **given)
    assert done.returncode == 2, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("::error file=x%3Ay%2Cz%25.yaml,line=1,title=bench%3A input::x:y,z%25")
    assert second.startswith("::error file=list.yaml,line=1,")
    done = run(["bash", str(SCRIPT)], tmp_path, OPTIONS="--fail-on none-such", **given)
    assert done.returncode == 2, done.stderr
    (only,) = done.stdout.splitlines()
    assert only.startswith("::error title=bench check::bench: error: ")
    assert "none-such" in only


@pytest.mark.evidence
@needs_checkout
def test_the_hook_stops_a_commit_with_a_dead_entry(tmp_path: Path, warm: Warm) -> None:
    pytest.importorskip("pre_commit", reason="pip install pre-commit")
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    shutil.copy(ROOT / ".pre-commit-hooks.yaml", hooks)
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.copy(FILES / "peft" / "rank-pattern" / "adapter_config.json", mine)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for folder in (hooks, mine):
        run([*git, "init", "-q", "."], folder)
        run([*git, "add", "-A"], folder)
        run([*git, "commit", "-q", "-m", "first", "--no-verify"], folder)
    home = {"PRE_COMMIT_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "pre_commit", "try-repo", str(hooks), "--all-files"]
    fine = run(command, mine, **home)
    assert fine.returncode == 0, fine.stdout + fine.stderr
    shutil.copy(FILES / "peft" / "llama" / "adapter_config.json", mine)
    dead = run(command, mine, **home)
    assert dead.returncode == 1, dead.stdout + dead.stderr
    assert "qkv_proj  reaches nothing" in dead.stdout
