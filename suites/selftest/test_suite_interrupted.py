"""A run of `pytest suites/` that is cut: what is kept of it, and how it goes on."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from model_folders import LLAMA, write_adapter, write_model
from suite_runs import STEPS, results_of
from test_baselines import run_with

from bench.adapters.config import AdapterConfig
from bench.baselines import KEY, StoredRun, find_runs, load_run, seal
from bench.baselines.configuration import decided
from bench.errors import BenchError
from bench.models.architectures import Model
from bench.plugin.cluster import run_by_kind
from bench.plugin.resuming import check_same
from bench.scenarios.subjects import Subject

KILLED = """
import os, pytest, signal, weakref

class Storage:
    pass

def get(_=None):
    os.kill(os.getpid(), signal.{name})
    signal.sigtimedwait([], 5)  # the handler runs before this returns

def in_a_callback():
    storage = Storage()
    watch = weakref.ref(storage, get)  # what is raised in it, Python drops
    del storage
    signal.sigtimedwait([], 5)

@pytest.fixture(autouse=True)
def killed(request):
    if "bf16" in request.node.name:
        {arrives}()
"""


@pytest.mark.parametrize(
    ("name", "arrives"),
    [
        pytest.param("SIGTERM", "get", marks=pytest.mark.evidence),
        ("SIGHUP", "in_a_callback"),
        ("SIGKILL", "get"),
    ],
)
def test_a_killed_run_keeps_its_cases_and_goes_on(
    run, pytester: pytest.Pytester, name: str, arrives: str
) -> None:
    """What is finished is on the disk; --resume measures the rest, and the whole is one run."""
    two = ("--precision", "fp32", "--precision", "bf16", *STEPS[2:], "--model", "mine")
    saved = (*two, "--benchmark-save", "long", "-p", "no:randomly")
    pytester.makeconftest(KILLED.format(name=name, arrives=arrives))
    cut = run(*saved, apart=True)
    assert cut.ret == (-9 if name == "SIGKILL" else 2)
    assert "Traceback" not in cut.stderr.str()
    pytester.makeconftest("")
    seven = ("7" if word == "5" else word for word in saved)
    other = run(*seven, "--resume", apart=True)
    assert other.ret == 2
    assert "--rounds 5 -> 7" in other.stdout.str() + other.stderr.str()
    if name != "SIGKILL":
        another = [each.replace("mine", "opt-125m") for each in saved]
        strange = run(*another, "--scenario", "query", "--resume", apart=True)
        assert strange.ret == 2
        assert "0001_long has 1 measured case, and none is asked for here" in (
            strange.stdout.str() + strange.stderr.str()
        )
    whole = run(*saved, "--resume", apart=True)
    assert whole.ret == 0, whole.stdout.str()
    whole.stdout.fnmatch_lines(["1 case taken over from 0001_long, not measured again"])
    runs = {path.name: load_run(path) for path in find_runs(results_of(pytester), "long")}
    first, last = runs["0001_long.json"], runs["0002_long.json"]
    assert first.interrupted
    assert not last.interrupted
    assert len(first.records) == 2
    assert {r.precision for r in last.records.values()} == {None, "fp32", "bf16"}
    assert first.records.items() <= last.records.items()
    timed = json.loads((results_of(pytester) / "0002_long.json").read_text())["benchmarks"]
    assert sorted(each["fullname"] for each in timed) == sorted(
        key for key, record in last.records.items() if record.precision
    )  # as if it had never been cut
    assert not list(results_of(pytester).glob(".unfinished*"))
    over = run(*saved, "--resume", apart=True)
    assert over.ret == 2
    assert "0002_long came to its end" in over.stdout.str() + over.stderr.str()


STORING = """
import os, pytest, signal, subprocess

ended = []

@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    ended.append(session)

def pytest_benchmark_generate_commit_info(config):
    if ended:
        os.kill(os.getpid(), signal.{name})
        # Ctrl-C reaches what was started too.
        subprocess.run(["sh", "-c", "kill -s {short} $$"], check=True)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_the_run_is_stored_cuts_nothing_short(
    run, pytester: pytest.Pytester, name: str
) -> None:
    """Git is asked for the commit then, and the first run of a machine is accepted after it."""
    pytester.makeconftest(STORING.format(name=name, short=name[3:]))
    done = run("-m", "not measured", "--model", "mine", "--benchmark-save", "whole", apart=True)
    assert done.ret == 2
    assert "Traceback" not in done.stdout.str() + done.stderr.str()
    assert f"{name} came after the last test: nothing is cut short" in done.stderr.str()
    done.stdout.fnmatch_lines(["stored run: *0001_whole.json", "accepted as the first baseline *"])
    assert not load_run(results_of(pytester) / "0001_whole.json").interrupted
    assert not list(results_of(pytester).glob(".unfinished*"))


CUT = """
import pytest

@pytest.fixture(autouse=True)
def cut(request):
    if request.node.name.startswith("test_step"):
        {what}
"""


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("raise KeyboardInterrupt", ()),
        pytest.param("assert 1 == 2", ("-x",), marks=pytest.mark.evidence),
    ],
)
def test_an_interrupted_run_is_kept_and_is_no_baseline(
    run, pytester: pytest.Pytester, what: str, options: tuple[str, ...], capsys
) -> None:
    pytester.makeconftest(CUT.format(what=what))
    with contextlib.suppress(KeyboardInterrupt):  # pytester raises it again, at the end
        # In the order of the files: the count comes first, and has a record.
        run("--benchmark-save", "cut", *STEPS, *options, "-p", "no:randomly")
    (path,) = find_runs(results_of(pytester), "cut")
    stored = load_run(path)
    assert stored.interrupted
    # The case that was cut has no record: it did not fail.
    assert {r.suite: r.outcome for r in stored.records.values()} == {"counts": "ok"}
    (pytester.path / "conftest.py").unlink()
    counts = {"suites": "suites/test_counts.py"}
    refused = run("--benchmark-compare", "--gate", apart=True, **counts)
    assert refused.ret == 2
    refused.stderr.fnmatch_lines(
        ["*no run in * may be a baseline: 0001_cut (it was interrupted). Go on with the one cut "
         "last: pytest * suites/test_counts.py*--benchmark-save=cut --resume, or store one: *"]
    )  # fmt: skip
    run("--benchmark-save", "whole", **counts)
    run("--benchmark-save", "cut-later", **counts)
    later = find_runs(results_of(pytester), "cut-later")[0]
    document = json.loads(later.read_text())
    document[KEY]["detail"] = {"interrupted": True}
    later.write_text(json.dumps(seal(document)))
    run("--benchmark-compare", "--gate", **counts).stdout.fnmatch_lines(["*against whole*"])
    gated = run("--benchmark-compare=cut-later", "--gate", apart=True, **counts)
    assert gated.ret == 2
    assert "it was interrupted; name another or compare without --gate" in gated.stderr.str()
    named = run("--benchmark-compare=cut-later", **counts)
    assert named.ret == pytest.ExitCode.OK
    assert "interrupted: not every case was reached" in " ".join(named.stdout.str().split())
    if not options:
        pytester.makeconftest(CUT.format(what=what))
        with contextlib.suppress(KeyboardInterrupt):
            again = ("--benchmark-save=again", "--benchmark-compare", "--gate", *STEPS)
            run(*again, "-p", "no:randomly")
        told = capsys.readouterr().out
        assert re.search(r"Go on with it: pytest .* --benchmark-compare --gate .* --resume\n", told)


ENDS = {
    # Ctrl-C twice, the second while pytest looks where the first arrived.
    "twice": """
import os, signal

def pytest_runtest_setup(item):
    if item.name.startswith("test_step"):
        os.kill(os.getpid(), signal.SIGINT)

def pytest_keyboard_interrupt(excinfo):
    os.kill(os.getpid(), signal.SIGINT)
    signal.sigtimedwait([], 5)
""",
    "exit": """
import pytest

def pytest_runtest_setup(item):
    if item.name.startswith("test_step"):
        pytest.exit("enough", returncode=0)
""",
    "internal": """
def pytest_runtest_logstart(nodeid):
    assert "test_step" not in nodeid
""",
}


@pytest.mark.parametrize("what", ENDS)
def test_a_run_that_ends_before_its_last_test_is_cut(
    run, pytester: pytest.Pytester, what: str
) -> None:
    """Whatever status pytest has for that: it is no baseline, goes on with --resume, and is red."""
    pytester.makeconftest(ENDS[what])
    mine = ("--model", "mine", *STEPS, "-p", "no:randomly")
    done = run("--benchmark-save", "cut", *mine, apart=True)
    assert done.ret == (3 if what == "internal" else 2)
    assert "Traceback" not in done.stderr.str()
    told = done.stderr if what == "internal" else done.stdout
    told.fnmatch_lines(["it is no baseline for later runs: it was interrupted. Go on *"])
    (path,) = find_runs(results_of(pytester), "cut")
    assert load_run(path).interrupted
    assert len(load_run(path).records) == 1
    assert not (results_of(pytester) / "accepted.json").exists()


def test_a_full_disk_while_saving_loses_no_case(
    run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is told of, kept elsewhere, and nothing half-written lies in results/."""
    elsewhere = pytester.mkdir("elsewhere")
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    link = os.link

    def full(source: Path, target: Path) -> None:
        if "results" in Path(target).parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        link(source, target)

    counts = {"suites": "suites/test_counts.py"}
    run("--benchmark-save", "base", **counts)
    before = {path.name for path in results_of(pytester).iterdir() if path.is_file()}
    monkeypatch.setattr("os.link", full)
    gated = ("--benchmark-compare", "--gate", "--verdict-file", "v.json")
    result = run("--benchmark-save", "gated", *gated, **counts)
    assert result.ret == 2
    document = json.loads((pytester.path / "v.json").read_text())
    assert (document["passed"], document["failed_beside"]) == (False, "the run was not stored")
    assert "FAILED: the run was not stored; no verdict fails (" in result.stdout.str()
    shutil.rmtree(next(elsewhere.iterdir()))
    result = run(*STEPS, "--benchmark-save", "full")
    assert result.ret == 2
    output = result.stdout.str() + result.stderr.str()
    assert "No space left on device; nothing was written; the run is kept in" in output
    assert {path.name for path in results_of(pytester).iterdir() if path.is_file()} == before
    (kept,) = elsewhere.glob("*/0001_full.json")
    assert {r.outcome for r in load_run(kept).records.values()} == {"ok"}
    assert len(load_run(kept).records) == 2


FAILS = """
import pytest

@pytest.fixture(autouse=True)
def fails(request):
    assert request.node.name.startswith("test_step")
"""


def test_a_run_does_not_go_on_with_what_has_changed(run, pytester: pytest.Pytester) -> None:
    """Figures of one configuration under the name of another would be a gate that lies."""
    mine, two = pytester.path / "mine", ("--precision", "fp32", "--precision", "bf16", *STEPS[2:])
    saved = (*two, "--model", "mine", "--benchmark-save", "long", "-p", "no:randomly")
    pytester.makeconftest(KILLED.format(name="SIGKILL", arrives="get"))
    assert run(*saved, apart=True).ret == -9
    pytester.makeconftest("")

    def refused(*options: str) -> str:
        result = run(*saved, *options, "--resume", apart=True)
        assert result.ret == 2
        return " ".join((result.stdout.str() + result.stderr.str()).split())

    write_adapter(mine, ["gate_proj"])
    said = "was another: mine-own-r4: target_modules ['q_proj', 'v_proj'] -> ['gate_proj']."
    assert said in refused()
    write_adapter(mine, ["q_proj", "v_proj"])
    beside = ["q_proj", "v_proj"]
    given = refused("--target-modules", "q_proj,v_proj,nope", "--rank", "4", "-m", "not measured")
    assert f"target_modules {beside} -> {['nope', *beside]}" in given
    write_model(mine, rms_norm_eps=0.5)  # the loss alone knows
    assert "was another: mine: rms_norm_eps absent -> 0.5." in refused()
    write_model(mine)
    pytester.makeconftest(FAILS)
    assert run(*saved, "--resume", apart=True).ret == 1  # what is not measured is not taken over


def _subject(folder: Path, targets: tuple[str, ...] = ("q_proj",), **changed: object) -> Subject:
    model = Model("mine", {**LLAMA, **changed}, "AutoModelForCausalLM", source_folder=folder)
    model = replace(model, trust_remote_code="auto_map" in changed)
    return Subject(model, "own", AdapterConfig(targets), precision="fp32", weights=folder)


def test_what_decides_a_case_is_told_apart(tmp_path: Path) -> None:
    """Weights by their bytes, a list by every item, code by its text."""
    weights, code = tmp_path / "model.safetensors", tmp_path / "sub" / "modeling.py"
    weights.write_bytes(b"one")
    code.parent.mkdir()
    code.write_text("one = 1")
    many = [f"name{number}" for number in range(20)]
    own: dict[str, object] = {"auto_map": {"AutoConfig": "modeling.Config"}}

    def now(**changed: object) -> StoredRun:
        found = decided({"mine-own-r8-fp32": _subject(tmp_path, **changed)})  # type: ignore[arg-type]
        return replace(run_with(), **found)

    def differs(before: StoredRun, after: StoredRun) -> str:
        check_same(before, before)
        with pytest.raises(BenchError) as refused:
            check_same(before, after)
        return str(refused.value).partition("was another: ")[2].partition(". Its")[0]

    plain = now()
    assert "hidden_size 32 -> 64" in differs(plain, now(hidden_size=64))
    assert differs(plain, now(**own)).startswith("mine: auto_map.AutoConfig absent -> ")
    assert differs(now(a=[*many, "x"]), now(a=[*many, "y"])).startswith("mine: a 21 items (")
    assert differs(now(a="x" * 300 + "a"), now(a="x" * 300 + "b")) == "mine: another configuration"
    assert "target_modules 20 items" in differs(
        now(targets=(*many,)), now(targets=(*many[1:], "y"))
    )
    with_code = now(**own)
    code.write_text("one = 2")
    assert differs(with_code, now(**own)) == "mine: other code"
    weights.write_bytes(b"two")
    assert differs(plain, now()) == "mine: other weights"


NEVER = """
import os, signal

def {hook}:
    os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.parametrize("hook", ["pytest_runtest_setup(item)", "pytest_sessionstart(session)"])
def test_a_run_without_a_case_says_that_nothing_is_kept(
    run, pytester: pytest.Pytester, hook: str
) -> None:
    """Beside pytest's own lines, which tell where it was."""
    pytester.makeconftest(NEVER.format(hook=hook))
    cut = run("--benchmark-save", "none", *STEPS, apart=True)
    assert cut.ret == pytest.ExitCode.INTERRUPTED
    cut.stderr.fnmatch_lines(["interrupted before a case had ended: nothing is kept*"])
    assert not list(results_of(pytester).glob("**/*none*"))


def test_a_run_that_is_ended_while_the_nodes_are_asked_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a line: there is no session yet whose end pytest would tell."""

    def cut(cluster: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.measure.cluster.Cluster.kept", cut)
    asked = SimpleNamespace(
        cluster="auto", collectonly=False, help=False, version=False, verdict_file=None
    )
    config = SimpleNamespace(option=asked, invocation_params=SimpleNamespace(args=()))
    monkeypatch.setattr("bench.plugin.cluster.under_xdist", lambda config: False)
    assert run_by_kind(config) == pytest.ExitCode.INTERRUPTED
    assert "interrupted while the nodes were asked" in capfd.readouterr().err
