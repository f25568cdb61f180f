"""`bench ab`: two configurations in one environment, and a comparison that was cut short."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from model_folders import write_model
from warm import Warm

from bench.ab import pair
from bench.ab.pair import FILE, PairJournal, Plan
from bench.baselines import find_runs, load_run
from bench.cli import main
from bench.errors import BenchError
from bench.scenarios.subjects import Request
from bench.training.options import StepOptions

TWO = ("--model", "opt-350m", "--target-modules", "q_proj", "--contender-rank", "2")
FEW = ("--rounds", "2", "--launches", "1", "1", "--seq-len", "8")


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_model(tmp_path / "mine", num_hidden_layers=1))


def test_two_configurations_are_one_case_and_a_cut_comparison_goes_on(
    model: str,
    warm: Warm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Trained: r (in + out) of q_proj 32 → 32; of q_proj and v_proj at another rank, twice that."""
    asked = ["ab", "--model", model, "--precision", "fp32", "--precision", "bf16", *FEW,
             "--target-modules", "q_proj,nothere", "--rank", "4", "--contender-rank", "8",
             "--contender-target-modules", "(.*)[.](q|v)_proj",
             "--save", str(tmp_path / "runs"), "--json"]  # fmt: skip
    measure = pair.measure_case
    started: list[Any] = []

    def cut(keys: Any, *rest: Any) -> Any:
        started.append(keys)
        if len(started) == 2:
            raise KeyboardInterrupt
        return measure(keys, *rest)

    monkeypatch.setattr(pair, "measure_case", cut)
    started.append("one")  # so that the first is cut
    assert main(asked) == 130
    assert "no case was finished: nothing is kept" in capsys.readouterr().err
    assert not list((tmp_path / "runs").iterdir())
    started.clear()
    assert main(asked) == 130
    told = capsys.readouterr().err
    assert "go on with --resume" in told
    assert told.startswith("mine-own: nothere reaches nothing\n")
    assert main([*asked, "--rounds", "4"][:-2]) == 2  # without --resume: nothing is overwritten
    assert "go on with it (--resume), or remove the file" in capsys.readouterr().err
    write_model(Path(model), num_hidden_layers=1, vocab_size=30)
    assert main([*asked, "--resume"]) == 2
    assert "is of another comparison: mine: vocab_size 20 -> 30" in capsys.readouterr().err
    write_model(Path(model), num_hidden_layers=1)
    assert main([*asked, "--resume"]) == 1  # the figures differ
    verdicts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [keys[0] for keys in started] == ["mine-own-r4-fp32", "mine-own-r4-bf16",
                                             "mine-own-r4-bf16"]  # fmt: skip
    found = {(v["record"], v["metric"]): v for v in verdicts}
    for precision in ("fp32", "bf16"):
        trained = found[f"mine-own-{precision}", "trainable_parameters"]
        assert (trained["baseline"], trained["contender"]) == (4 * 64, 8 * (64 + 48))
        assert "rank 4 -> 8" in trained["explanation"]
    assert not {v["verdict"] for v in verdicts} & {"vanished", "new"}
    assert not (tmp_path / "runs" / FILE).exists()
    stored = [load_run(path) for path in find_runs(tmp_path / "runs", "*")]
    assert [len(run.records) for run in stored] == [2, 2]


def test_two_sides_that_both_fail_have_not_passed(
    model: str, warm: Warm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CorDA wants data seen before: the layers alone do not say that PEFT will raise."""
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"], "r": 4,
                                  "init_lora_weights": "corda"}))  # fmt: skip
    asked = ["ab", "--model", model, "--precision", "fp32", *FEW, "--adapter", str(config)]
    assert main([*asked, "--contender-rank", "8"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "nothing was measured on either side: " in said.err
    assert "preprocess_corda" in said.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "there is nothing to compare: give --contender-env"),
        (("--rounds", "0"), "--rounds 0: an even number"),
        (("--launches", "24", "8"), "--launches 24 8: the fewest"),
        (("--batch-size", "0"), "batch_size: expected a whole number"),
        (("--save", "/dev/null"), "--save /dev/null: this is no folder"),
        (("--model", "lama-7b"), "unknown architecture"),
        (("--scenario", "atention"), "unknown scenario"),
        (("--precision", "fp31"), "fp31"),
        (("--baseline-env", "/nonexist"), "--baseline-env /nonexist: neither the folder"),
        (("--model", "opt-350m", "--rounds", "4"), "there is nothing to compare"),
        (
            (
                "--model",
                "opt-350m",
                "--target-modules",
                "q_proj",
                "--contender-target-modules",
                "q_proj",
            ),
            "there is nothing to compare",
        ),
        ((*TWO[:4], "--contender-rank", "8"), "both sides are configured alike"),  # PEFT's default
        (
            (
                *TWO[:2],
                "--target-modules",
                "q_proj,v_proj",
                "--contender-target-modules",
                "v_proj,q_proj",
            ),
            "both sides are configured alike",
        ),
        (("--adapter", "a", "--target-modules", "b", "--contender-rank", "2"), "give one of"),
        (("--contender-rank", "0"), "r must be a whole number of at least 1, not 0"),
        (("--contender-target-modules", ""), "target_modules is empty"),
        (("--contender-rank", "2", "--rank", "0"), "r must be a whole number of at least 1, not 0"),
        (("--contender-rank", "2", "--resume"), "--resume needs --save DIR"),
        ((*TWO[:2], "--target-modules", "zzz", "--contender-rank", "2"), "nothing matches"),
        ((*TWO, "--contender-target-modules", "zzz"), "zzz reaches nothing"),
        ((*TWO, "--save", "/proc/none"), "cannot be written to"),
        ((*TWO, "--save", "new", "--resume"), "no unfinished comparison lies"),
        ((*TWO[:2], "--contender-target-modules", "q_proj"), "have no case in common"),
        ((*TWO[:2], "--scenario", "query", "--contender-rank", "2"), "have no case in common"),
    ],
)
def test_wrong_input_is_told_before_anything_is_measured(
    options: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ab", *options]) == 2
    assert said in capsys.readouterr().err


def _side(rank: int = 8, hidden: int = 32, torch: str = "1", clock: str = "processor") -> Any:
    subject = {"model": "mine", "ranked": "mine-own-r8", "class": "A", "weights": None,
               "code": None, "adapter": {"r": rank}, "digest": f"{rank} {hidden}"}  # fmt: skip
    decided = {"subjects": {"mine-own-r8-fp32": subject}, "models": {"mine": {"hidden": hidden}}}
    return SimpleNamespace(
        label="x", clock=clock, versions={"torch": torch}, machine={}, decided=decided
    )


def test_a_journal_is_of_one_comparison(tmp_path: Path) -> None:
    sides: list[Any] = [_side()]
    plan = Plan(Request(models=("mine",), target_modules=("q_proj",)))
    journal = PairJournal(tmp_path, plan, resume=False)
    journal.begin(sides)
    journal.add("one", [{"loss": float("nan")}, None])
    journal.close(done=False)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"key": "two", "rec')  # it was killed here
    for other, said in (
        (Plan(replace(plan.request, target_modules=("q_proj", "k_proj")), rounds=4),
         "target modules q_proj -> q_proj, k_proj; rounds 20 -> 4"),
        (replace(plan, step=StepOptions(seq_len=16)), "seq len 64 -> 16"),
        (replace(plan, contender=replace(plan.request, r=4)), "contender None -> one of its own"),
    ):  # fmt: skip
        with pytest.raises(BenchError, match=f"is of another comparison: {said}$"):
            PairJournal(tmp_path, other, resume=True)  # before anything is started
    again = PairJournal(tmp_path, plan, resume=True)
    assert again.records == {"one": [{"loss": "nan"}, None]}
    for side, said in (
        (_side(rank=4), "mine-own-r8: r 8 -> 4"),
        (_side(hidden=64), "mine: hidden 32 -> 64"),
        (_side(torch="2"), "torch 1 -> 2"),
        (_side(clock="wall"), "--clock processor -> wall"),
    ):
        with pytest.raises(BenchError, match=f"is of another comparison: {said}$"):
            again.begin([side])
    again.begin(sides)
    with pytest.raises(BenchError, match="a comparison goes on there"):
        PairJournal(tmp_path, plan, resume=True)
    again.close(done=False)
    assert PairJournal(tmp_path, plan, resume=True).records == again.records


def test_a_resumed_comparison_that_is_killed_at_once_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was finished is not written anew: it would be gone between."""
    sides: list[Any] = [_side()]

    def opened(*, resume: bool = True) -> PairJournal:
        journal = PairJournal(tmp_path, Plan(Request()), resume=resume)
        journal.begin(sides)
        return journal

    journal = opened(resume=False)
    for key in ("one", "two"):
        journal.add(key, [{"loss": 1.0}, None])
    journal.close(done=False)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"key": "three", "rec')
    with monkeypatch.context() as patch:
        patch.setattr(PairJournal, "_write", lambda *_: os._exit(1))
        if (child := os.fork()) == 0:
            opened()
            os._exit(0)
        os.waitpid(child, 0)
    again = opened()
    assert again.records.keys() == {"one", "two"}
    again.add("three", [{"loss": 1.0}, None])
    again.close(done=False)
    last = opened()
    assert last.records.keys() == {"one", "two", "three"}
    last.close(done=True)


def test_a_comparison_goes_on_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be kept is said, and what was kept before stands by whole lines."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sides: list[Any] = [_side()]
    journal = PairJournal(tmp_path, Plan(Request()), resume=False)
    journal.begin(sides)
    journal.add("one", [{"loss": 1.0}, None])
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        journal.add("two", [{"loss": 2.0}, None])
    assert "not written: No space left" in journal.trouble
    journal.add("three", [{"loss": 3.0}, None])
    journal.close(done=False)
    assert PairJournal(tmp_path, Plan(Request()), resume=True).records.keys() == {"one", "three"}


def test_a_side_refuses_sequences_that_the_model_has_no_positions_for(model: str) -> None:
    """Before anything is measured, and each side on its own: either may know other models."""
    from dataclasses import asdict

    from bench.ab.side import Side
    from bench.scenarios.subjects import Request
    from bench.training.cases import StepOptions

    write_model(Path(model), num_hidden_layers=1, max_position_embeddings=16)
    request = asdict(Request(models=(model,), target_modules=("q_proj",), precisions=("fp32",)))
    limits = {"memory_bytes": None, "seconds": None}
    with pytest.raises(BenchError, match="--seq-len 17: mine has positions for 16 tokens"):
        Side().do_select(request, asdict(StepOptions(seq_len=17)), limits)
