"""The action that comments on pull requests and the workflow around it, run as they stand, GitHub's
program recorded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_baselines import sample
from warm import Warm

from bench.baselines import KEY, write_run
from bench.reports.comment import MARKER

ROOT = Path(__file__).resolve().parents[2]
ACTION = ROOT / ".github" / "actions" / "report" / "report.sh"
WORKFLOW = ROOT / ".github" / "workflows" / "lora-targets.yml"
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
        self,
        folder: Path,
        *,
        worse: bool,
        labels: tuple[str, ...] = (),
        comments: Any = (),
        gh: str = GH,
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
        (tools / "gh").write_text(gh)
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
        self.status, self.said = done.returncode, done.stdout + done.stderr


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


@pytest.mark.parametrize("worse", [False, True])
def test_where_no_comment_may_be_written_the_verdict_stands(tmp_path: Path, worse: bool) -> None:
    """A pull request from a fork has a token that only reads."""
    gh = "#!/usr/bin/env bash\ncase \"$*\" in *--paginate*) echo '[]' ;; *) exit 4 ;; esac\n"
    run = Run(tmp_path, worse=worse, gh=gh)
    assert run.status == int(worse), run.said
    assert "::warning title=LoRA targets::the comment was not posted" in run.said
    assert run.summary.read_text().startswith(MARKER)


def test_a_label_lets_a_named_verdict_pass_and_is_recorded(tmp_path: Path) -> None:
    run = Run(tmp_path, worse=True, labels=("bug", "allow-lora: changed:trainable_parameters"))
    assert run.status == 0, run.said
    assert "Allowed by name**: `changed:trainable_parameters`" in run.posted.read_text()


def test_a_label_is_no_code(tmp_path: Path) -> None:
    run = Run(tmp_path, worse=True, labels=("allow-lora: $(touch pwned); `touch pwned`",))
    assert run.status == 2
    assert not list(tmp_path.rglob("pwned"))
    assert "    bench: error: unknown verdict to allow '$(touch pwned);" in run.posted.read_text()


def test_a_mistyped_label_is_named_in_the_comment_and_fails(tmp_path: Path) -> None:
    labels = ("allow-lora: changed:trainable_parameters", "allow-lora: bogus")
    run = Run(tmp_path, worse=True, labels=labels)
    assert run.status == 2
    posted = run.posted.read_text()
    assert posted.startswith(f"{MARKER}\n### ❌ LoRA targets: no verdict\n")
    assert "unknown verdict to allow 'bogus'" in posted
    assert posted == run.summary.read_text()


# --- the workflow ---------------------------------------------------------------------------------


def scripts_of(job: str) -> dict[str, str]:
    """By its name, what each step of a job runs."""
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"][job]["steps"]
    return {step["name"]: step["run"] for step in steps if "run" in step}


def shell(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """As GitHub runs a step: `bash -e`."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "python").unlink(missing_ok=True)
    (tools / "python").symlink_to(sys.executable)
    return subprocess.run(
        ["bash", "-e", "-c", script], capture_output=True, text=True, check=False, cwd=folder,
        env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
             "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), **variables},
    )  # fmt: skip


def test_the_workflow_holds_a_run_against_the_baseline_of_its_verdicts(
    tmp_path: Path, warm: Warm
) -> None:
    """Its own steps, on the stored runs of this repository, for a few of its cases; then a change
    that the gate refuses, and the label that lets it pass."""
    shutil.copytree(ROOT / "results" / "structure", tmp_path / "results" / "structure")
    steps = scripts_of("structure")
    few = f"{ROOT}/suites/test_counts.py -k 'test_counts and opt-125m and attention'"
    verdicts = steps["Verdicts"].replace("pytest suites", f"pytest {few} -p no:cacheprovider")
    done = shell(verdicts, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    base, new = runs_of(steps["Runs"], tmp_path)
    assert (base, new) == (
        "results/structure/0001_first.json", "results/structure/0002_contender.json"
    )  # fmt: skip
    event = tmp_path / "event.json"
    event.write_text(json.dumps({"pull_request": {"number": 7, "labels": []}}))
    given = {"GITHUB_EVENT_PATH": str(event), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
             "BASELINE": base, "CONTENDER": new}  # fmt: skip
    report = f"bash {ACTION}"
    done = shell(report, tmp_path, **given)
    assert done.returncode == 0, done.stderr

    document = json.loads((tmp_path / new).read_text())
    for record in document[KEY]["records"].values():
        record["metrics"]["adapted_layers"] += 1
    write_run(tmp_path / "results" / "structure", "contender", document)
    _, given["CONTENDER"] = runs_of(steps["Runs"], tmp_path)
    assert given["CONTENDER"].endswith("0003_contender.json")
    assert shell(report, tmp_path, **given).returncode == 1
    label = {"name": "allow-lora: changed:adapted_layers"}
    event.write_text(json.dumps({"pull_request": {"number": 7, "labels": [label]}}))
    done = shell(report, tmp_path, **given)
    assert done.returncode == 0, done.stderr


def runs_of(script: str, folder: Path) -> tuple[str, str]:
    """The baseline and the contender that the step "Runs" names."""
    output = folder / "output"
    output.write_text("")
    done = shell(script, folder, GITHUB_OUTPUT=str(output))
    assert done.returncode == 0, done.stderr
    said = dict(line.split("=", 1) for line in output.read_text().splitlines())
    return said["base"], said["new"]


def test_a_gate_before_the_labels_would_let_none_pass() -> None:
    assert "--gate" not in scripts_of("structure")["Verdicts"]


def gitlab_job(name: str) -> str:
    """What a job of the recipe in docs/ci.md runs, in one shell as a runner does."""
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    recipe = page.partition("## GitLab\n")[2].partition("```yaml\n")[2].partition("```")[0]
    return "\n".join(yaml.safe_load(recipe)[name]["script"])


ALLOWED = ["--allow", "changed:trainable_parameters", "--allow", "vanished; $(touch pwned)"]


@pytest.mark.parametrize("recipe", ["GitHub", "GitLab", "no labels"])
def test_labels_let_pass_where_it_is_measured_too(recipe: str, tmp_path: Path) -> None:
    """What pytest is given of them: the labels of that beginning, each as one argument."""
    names = ["bug", "measure", *(f"allow-lora: {label}" for label in ALLOWED[1::2])]
    script, variables = scripts_of("measured")["Gate"], {"LABELS": json.dumps(names)}
    if recipe == "GitLab":
        script, variables = gitlab_job("measured"), {"CI_MERGE_REQUEST_LABELS": ",".join(names)}
    elif recipe == "no labels":
        variables = {"LABELS": "null"}
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    (tools / "python").write_text(
        f'#!/usr/bin/env bash\nif [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\n'
        "printf '%s\\n' \"$@\" > given\n"
    )
    (tools / "pytest").write_text("#!/usr/bin/env bash\nprintf '%s\\n' \"$@\" > given\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    done = shell(f'PATH="{tools}:$PATH"\n{script}', tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    given = (tmp_path / "given").read_text().splitlines()
    assert given[given.index("--benchmark-save=contender") + 1 :] == (
        [] if recipe == "no labels" else ALLOWED
    )
    assert "--gate" in given
    assert not list(tmp_path.rglob("pwned"))


def test_the_recipe_for_gitlab_runs_with_its_labels(tmp_path: Path, warm: Warm) -> None:
    """Its own gate, for a few cases: an allowance of nothing is named, a mistyped one fails."""
    shutil.copytree(ROOT / "results" / "structure", tmp_path / "results" / "structure")
    few = f"{ROOT}/suites/test_counts.py -k 'test_counts and opt-125m and attention'"
    lines = gitlab_job("structure").splitlines()
    script = "\n".join(line for line in lines if "-n 2" not in line).replace(
        "pytest suites", f"python -m pytest {few} -p no:cacheprovider"
    )
    done = shell(script, tmp_path, CI_MERGE_REQUEST_LABELS="measure,allow-lora: changed:*nosuch*")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed:*nosuch*" in done.stdout
    done = shell(script, tmp_path, CI_MERGE_REQUEST_LABELS="allow-lora: bogus")
    assert done.returncode == 2
    assert "unknown verdict to allow 'bogus'" in done.stdout + done.stderr


def test_the_table_of_a_measured_run_is_of_the_baseline_of_its_gate(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "machine"
    base = write_run(folder, "first", sample("first"))
    (folder / "accepted.json").write_text("{}")
    write_run(folder, "contender", sample("contender"))
    (tmp_path / "verdicts.json").write_text(json.dumps({"baseline": {"path": str(base)}}))
    script = scripts_of("measured")["Verdict table"].replace(".venv/bin/python", "python")
    done = shell(script, tmp_path, GITHUB_STEP_SUMMARY=str(tmp_path / "summary"))
    assert done.returncode == 0, done.stderr
    assert "Baseline 0001\\_first" in (tmp_path / "summary").read_text()
