"""Two environments side by side: a real one, and the same with an upgrade that breaks things."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from model_folders import LLAMA, write_adapter, write_model
from test_baselines import STEP, run_with
from warm import Warm

import bench
from bench.ab import Environment, Pair, Plan, find_python, measure
from bench.ab.launches import WARMUP_STEPS, interleave, take_rounds
from bench.baselines import compare, find_runs, gate, load_run
from bench.cli import main
from bench.errors import BenchError
from bench.files import FIXTURES
from bench.measure import StepTime
from bench.scenarios.subjects import Request
from bench.training.cases import StepOptions

OPT = {"model_type": "opt", "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1,
       "num_attention_heads": 2, "vocab_size": 50, "word_embed_proj_dim": 32,
       "architectures": ["OPTForCausalLM"]}  # fmt: skip
PHI = {**LLAMA, "model_type": "phi3", "pad_token_id": 0, "architectures": ["Phi3ForCausalLM"]}
LLAMA_CASE, OPT_CASE, PHI_CASE = (f"{name}-own-r4-fp32" for name in ("llama", "opt", "phi"))

# An upgrade, as changes of modules when they are imported: one operation more in each of Llama's
# MLPs, an OPT that fails in its first step, and no Phi-3 any more.
UPGRADE = """
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

MODELS = "transformers.models."

def one_more(module):
    forward = module.LlamaMLP.forward
    module.LlamaMLP.forward = lambda self, x: forward(self, x) + 0

def broken(module):
    def forward(self, *args, **kwargs):
        raise RuntimeError("OPT has a bug in this release")
    module.OPTDecoderLayer.forward = forward

def gone(module):
    raise RuntimeError("Phi-3 was removed in this release")

class Upgrade(MetaPathFinder):
    changes = {
        MODELS + "llama.modeling_llama": one_more,
        MODELS + "opt.modeling_opt": broken,
        MODELS + "phi3.modeling_phi3": gone,
    }

    def find_spec(self, name, path=None, target=None):
        change = self.changes.get(name)
        if change is None:
            return None
        del self.changes[name]
        spec = find_spec(name)
        execute = spec.loader.exec_module
        def changed(module):
            execute(module)
            change(module)
        spec.loader.exec_module = changed
        return spec

sys.meta_path.insert(0, Upgrade())
"""


def _environment(folder: Path, *lines: str) -> Path:
    """A virtual environment that has what this one has; `lines` run as its interpreter starts."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    here = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "lent.pth").write_text("\n".join([*here, *lines]) + "\n")
    return packages


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upgraded")
    packages = _environment(folder, "import upgrade")
    (packages / "upgrade.py").write_text(UPGRADE)
    metadata = packages / "transformers-99.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 99.0\n")
    return folder


def _model(folder: Path, config: dict[str, object], targets: list[str]) -> str:
    write_model(folder, config)
    write_adapter(folder, targets)
    return str(folder)


@pytest.fixture(scope="module")
def pair(upgraded: Path, tmp_path_factory: pytest.TempPathFactory, warm_process: Warm) -> Pair:
    """Measured once: this environment beside the upgraded one."""
    folder = tmp_path_factory.mktemp("models")
    models = (
        _model(folder / "llama", LLAMA, ["q_proj", "v_proj"]),
        _model(folder / "opt", OPT, ["q_proj", "v_proj"]),
        _model(folder / "phi", PHI, ["qkv_proj"]),
    )
    plan = Plan(Request(models, precisions=("fp32",)), StepOptions(seq_len=8), 4, (8, 8))
    said: list[str] = []
    with (
        Environment(Path(warm_process.python), "--baseline-env", "here", "wall") as baseline,
        Environment(
            find_python(str(upgraded), "--contender-env"), "--contender-env", "there",
            "processor",
        ) as contender,
    ):  # fmt: skip
        found = measure(baseline, contender, plan, said.append)
    assert said[0].startswith(f"--contender-env there: {models[2]}: ")
    assert said[1:] == [f"1/3 {LLAMA_CASE}", f"2/3 {OPT_CASE}", f"3/3 {PHI_CASE}"]
    return found


@pytest.mark.evidence
def test_what_the_upgrade_changed(pair: Pair) -> None:
    before, after = pair.runs
    assert list(before.records) == [LLAMA_CASE, OPT_CASE, PHI_CASE]
    assert after.versions["transformers"] == "99.0" != before.versions["transformers"]
    verdicts = {(v.record, v.metric): v for v in compare(before, after)}
    changed = verdicts[LLAMA_CASE, "operations"]
    assert changed.verdict == "changed"
    assert changed.contender - changed.baseline >= LLAMA["num_hidden_layers"]
    assert "-> 99.0" in changed.explanation
    same = ("ledger_digest", "adapted_layers", "trainable_parameters", "loaded_bytes", "flops")
    assert {verdicts[LLAMA_CASE, name].verdict for name in same} == {"unchanged"}
    # r (in + out) of q_proj 32 → 32 and v_proj 32 → 16, in two layers
    assert before.records[LLAMA_CASE].metrics["trainable_parameters"] == 2 * 4 * (64 + 48)
    assert before.records[LLAMA_CASE].metrics["adapted_layers"] == 4


def test_what_the_upgrade_broke(pair: Pair) -> None:
    before, after = pair.runs
    (broken,) = [
        v for v in compare(before, after) if v.record == OPT_CASE and v.metric == "outcome"
    ]
    assert (broken.verdict, broken.baseline, broken.contender) == ("regressed", "ok", "crashed")
    assert "OPT has a bug in this release" in broken.explanation
    (gone,) = [v for v in compare(before, after) if v.record == PHI_CASE]
    assert gone.verdict == "vanished"


def test_rounds_of_every_launch_are_kept(pair: Pair) -> None:
    before, after = (run.records[LLAMA_CASE] for run in pair.runs)
    assert len(before.metrics["step_seconds"]) == len(after.metrics["step_seconds"]) == 8 * 4
    assert before.detail["interleaved"] == after.detail["interleaved"]
    assert before.detail["launches"] == after.detail["launches"] == 8
    (verdict,) = [v for v in compare(*pair.runs) if v.metric == "step_seconds"]
    assert verdict.interval is not None
    assert "launches" not in verdict.explanation


@pytest.fixture
def run_ab(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    """The command on what was measured before."""

    def ab(*options: object) -> int:
        def measured(
            baseline: Environment, contender: Environment, *_: object, **__: object
        ) -> Pair:
            return pair

        monkeypatch.setattr("bench.ab.pair.measure", measured)
        here = ["--baseline-env", sys.executable, "--contender-env", sys.executable]
        return main(["ab", *here, *map(str, options)])

    return ab


def test_command_tells_and_fails(run_ab, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "verdicts.json"
    assert run_ab("--verdict-file", file, "--save", tmp_path / "runs") == 1
    said = capsys.readouterr().out
    assert "What differs: transformers" in said
    assert "-> 99.0" in said
    assert "Every case" in said
    assert "step before: " in said  # a narrow terminal's paragraphs name every figure
    assert "benchmark-save" not in said  # there is no baseline to renew
    assert json.loads(file.read_text())["passed"] is False
    stored = [load_run(path) for path in find_runs(tmp_path / "runs", "*")]
    assert [run.name for run in stored] == ["here", "there"]


def test_command_in_json(run_ab, capsys: pytest.CaptureFixture) -> None:
    allow = ("changed:operations", "changed:allocated_bytes_total", "regressed:opt*", "*-own-*")
    assert run_ab(*(w for each in allow for w in ("--allow", each)), "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    operations = next(line for line in lines if line["metric"] == "operations")
    assert (operations["record"], operations["verdict"]) == (LLAMA_CASE, "changed")
    assert not any(line["fails"] for line in lines)


def test_a_verdict_is_allowed_for_one_metric(pair: Pair) -> None:
    verdicts = compare(*pair.runs)
    kept = gate(verdicts, ["changed:operations"])
    assert {(v.record, v.metric) for v in gate(verdicts)} - {
        (v.record, v.metric) for v in kept
    } == {(LLAMA_CASE, "operations")}


def test_module_names_explain_a_changed_ledger(pair: Pair) -> None:
    before, after = pair.runs
    record = after.records[LLAMA_CASE]
    names = record.detail["adapted_modules"]
    other = replace(
        record,
        metrics={**record.metrics, "ledger_digest": "another"},
        detail={**record.detail, "adapted_modules": [*names[1:], "model.new"]},
    )
    moved = compare(before, replace(after, records={LLAMA_CASE: other}))
    (verdict,) = [v for v in moved if v.metric == "ledger_digest"]
    assert f"no longer adapts {names[0]}; now adapts model.new" in verdict.explanation


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--threshold step_secs=5%", "step_secs"),
        ("--allow chnged", "did you mean changed"),
    ],
)
def test_wrong_options(run_ab, options: str, said: str, capsys) -> None:
    assert run_ab(*options.split()) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("options", ["--format html", "--clock sun"])
def test_values_that_are_none_of_the_choices(run_ab, options: str, capsys) -> None:
    with pytest.raises(SystemExit) as wrong:
        run_ab(*options.split())
    assert wrong.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_environments_that_cannot_be_used(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    (tmp_path / "empty").mkdir()
    for environment, said in [
        ("empty", "no Python in this folder"),
        ("absent", "neither the folder of a virtual environment nor a Python executable"),
        ("bare", "it lacks torch, transformers, peft, bitsandbytes"),
    ]:
        with pytest.raises(BenchError, match=f"--baseline-env .*{environment}: {said}"):
            find_python(str(tmp_path / environment), "--baseline-env")
    with pytest.raises(BenchError, match="does not answer as Python 3"):
        find_python(shutil.which("true") or "/bin/true", "--contender-env")


def test_another_bench_is_refused(tmp_path: Path) -> None:
    source = Path(bench.__file__).parent
    shutil.copytree(source, tmp_path / "other" / "bench")
    (tmp_path / "other" / "fixtures").mkdir()  # what it reads when it is imported
    shutil.copy(FIXTURES / "roles.toml", tmp_path / "other" / "fixtures")
    other = str(tmp_path / "other")
    _environment(tmp_path / "env", f"import sys; sys.path.insert(0, {other!r})")
    python = find_python(str(tmp_path / "env"), "--contender-env")
    with (
        Environment(python, "--contender-env", "env") as environment,
        pytest.raises(BenchError, match=r"--contender-env env: .*another bench, .*other"),
    ):
        environment.wait_open()


def test_a_side_that_refuses_its_input_says_which(warm: Warm) -> None:
    plan = Plan(Request(models=("opt-35m",)))
    python = Path(sys.executable)
    with (
        Environment(python, "--baseline-env", "a") as a,
        Environment(python, "--contender-env", "b") as b,
        pytest.raises(BenchError, match="--baseline-env a: unknown architecture 'opt-35m'"),
    ):
        measure(a, b, plan)


def _steps(name: str, seconds: Iterator[float], log: list[str]):
    def step() -> StepTime:
        log.append(name)
        each = next(seconds)
        return StepTime(each, each, 0.0, 0.0)

    return step


def test_rounds_go_a_b_b_a() -> None:
    log: list[str] = []
    times = iter(range(1, 100)).__next__
    steps = [_steps(name, iter(lambda: float(times()), None), log) for name in "AB"]
    before, after = interleave(*steps, rounds=4)
    assert "".join(log) == "ABBA" * ((WARMUP_STEPS + 4) // 2)
    assert len(before) == len(after) == 4


def test_what_comes_second_in_a_pair_may_be_slower() -> None:
    """A B B A with cold caches: each side is second in every other pair."""

    def run(*pair: float, interleaved: str = "together"):
        def edit(body: dict) -> None:
            body["records"][STEP]["metrics"]["step_seconds"] = [*pair] * 10
            body["records"][STEP]["detail"] |= {"interleaved": interleaved, "launches": 10}

        return run_with(edit)

    def step_time(before, after):
        return next(
            v for v in compare(before, after) if (v.record, v.metric) == (STEP, "step_seconds")
        )

    first = run(1.0, 1.3)
    assert step_time(first, run(1.3, 1.0)).interval == pytest.approx((1.0, 1.0))
    assert step_time(first, run(1.43, 1.1)).interval == pytest.approx((1.1, 1.1))
    low, high = step_time(first, run(1.3, 1.0, interleaved="another time")).interval
    assert high - low > 0.2


@pytest.mark.parametrize(
    ("of_launch", "launches", "taken"),
    [
        ([1.0], (8, 24), 8),  # quiet: the fewest
        ([1.0, 1.1], (8, 24), 24),  # processes differ: no number is enough
        ([1.0, 1.02], (8, 24), 8),
        ([1.0], (9, 24), 9),
        ([1.0], (2, 24), 8),  # fewer cannot have an interval
        ([1.0], (2, 3), 3),
    ],
)
def test_launches_go_on_while_processes_differ(
    of_launch: list[float], launches: tuple[int, int], taken: int
) -> None:
    started: list[str] = []

    def launch():
        contender = of_launch[len(started) % len(of_launch)]
        started.append("both")
        return (
            _steps("A", iter(lambda: 1.0, None), []),
            _steps("B", iter(lambda: contender, None), []),
        )

    found = take_rounds(launch, 4, launches)
    assert found.launches == len(started) == taken
    assert len(found.baseline) == len(found.contender) == 4 * taken


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"rounds": 0}, "--rounds 0: an even number"),
        ({"rounds": 5}, "--rounds 5: an even number"),
        ({"launches": (0, 4)}, "--launches 0 4: the fewest, at least 1"),
        ({"launches": (4, 3)}, "--launches 4 3: "),
    ],
)
def test_numbers_that_cannot_be(numbers: dict[str, object], said: str) -> None:
    with pytest.raises(BenchError, match=said):
        Plan(Request(), **numbers)
