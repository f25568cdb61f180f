"""The action that comments on pull requests, run as it stands, GitHub's program recorded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_baselines import sample

from bench.baselines import KEY, write_run
from bench.reports.comment import MARKER

ACTION = Path(__file__).resolve().parents[2] / ".github" / "actions" / "report" / "report.sh"
pytestmark = [
    pytest.mark.skipif(not ACTION.is_file(), reason="an installation has no action"),
    pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed: the action needs it"),
]

GH = """#!/usr/bin/env bash
all="$*"; printf '%s\\n' "$all" >> "$CALLS"
case "$all" in *--paginate*) cat "$COMMENTS" ;; *body=@*) cat "${all##*body=@}" >> "$POSTED" ;; esac
"""


class Run:
    """One run of the action in a folder: its status, what was posted, and the calls."""

    def __init__(
        self, folder: Path, *, worse: bool, labels: tuple[str, ...] = (), comments: Any = ()
    ) -> None:
        before, after = sample("before"), sample("after")
        if worse:
            records = after[KEY]["records"]
            key = next(k for k, r in records.items() if "trainable_parameters" in r["metrics"])
            records[key]["metrics"]["trainable_parameters"] += 1
        stored = [write_run(folder / "runs", name, run)
                  for name, run in (("before", before), ("after", after))]  # fmt: skip
        tools = folder / "bin"
        tools.mkdir()
        (tools / "gh").write_text(GH)
        (tools / "gh").chmod(0o755)
        (tools / "python").symlink_to(sys.executable)
        event = folder / "event.json"
        event.write_text(
            json.dumps({"pull_request": {"number": 7, "labels": [{"name": n} for n in labels]}})
        )
        (folder / "comments.json").write_text(json.dumps(comments))
        self.calls, self.posted = folder / "calls", folder / "posted"
        self.summary = folder / "summary"
        for file in (self.calls, self.posted, self.summary):
            file.touch()
        done = subprocess.run(
            ["bash", str(ACTION)], capture_output=True, text=True, check=False, cwd=folder,
            env={
                "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "BASELINE": str(stored[0]), "CONTENDER": str(stored[1]), "GH_TOKEN": "x",
                "GITHUB_EVENT_PATH": str(event), "GITHUB_STEP_SUMMARY": str(self.summary),
                "GITHUB_REPOSITORY": "me/mine", "CALLS": str(self.calls),
                "COMMENTS": str(folder / "comments.json"), "POSTED": str(self.posted),
            },
        )  # fmt: skip
        self.status, self.said = done.returncode, done.stderr


def test_a_failing_gate_fails_the_job_and_comments_once(tmp_path: Path) -> None:
    run = Run(tmp_path, worse=True)
    assert run.status == 1, run.said
    assert run.posted.read_text().startswith(MARKER)
    assert run.posted.read_text() == run.summary.read_text()
    assert "repos/me/mine/issues/7/comments --field" in run.calls.read_text()


def test_an_earlier_comment_is_edited(tmp_path: Path) -> None:
    comments = [{"id": 1, "body": "hello"}, {"id": 42, "body": f"{MARKER}\nold"}]
    run = Run(tmp_path, worse=False, comments=comments)
    assert run.status == 0, run.said
    assert "--method PATCH repos/me/mine/issues/comments/42" in run.calls.read_text()
    assert "the gate passes" in run.posted.read_text()


def test_a_label_lets_a_named_verdict_pass_and_is_recorded(tmp_path: Path) -> None:
    run = Run(tmp_path, worse=True, labels=("bug", "allow-lora: changed:trainable_parameters"))
    assert run.status == 0, run.said
    assert "Allowed by name**: `changed:trainable_parameters`" in run.posted.read_text()


def test_a_label_is_no_code(tmp_path: Path) -> None:
    run = Run(tmp_path, worse=True, labels=("allow-lora: $(touch pwned); `touch pwned`",))
    assert run.status == 2
    assert not list(tmp_path.rglob("pwned"))
    assert run.posted.read_text() == ""
