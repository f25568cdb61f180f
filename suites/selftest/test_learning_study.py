"""The learning suite on a small random model: splits, budgets, resuming, and what is wrong."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from learning_study import SETTINGS, WORDS, small_study, texts_of
from test_learning_claims import HIGH, LOW, arm_with

from bench.baselines import load_run, write_run
from bench.errors import BenchError
from bench.learning import packages, texts
from bench.learning.ranking import ranking
from bench.learning.records import (
    Shown,
    document_of,
    from_record,
    run_of,
    shown_in,
    to_record,
)
from bench.learning.signal import against, probe
from bench.learning.study import Origin, make_study, said_of, studies
from bench.learning.texts import Example, Material, Text

ARMS = {
    "query": {"scenario": "query", "budget": True, "seeds": 2},
    "everything": {"scenario": "everything", "budget": True, "seeds": 2},
    "everything-again": {"scenario": "everything", "same_rate_as": "everything", "seeds": 1},
}


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Here, so that collecting imports no torch."""
    global fit, cases, run_study
    from bench.learning import fit
    from bench.learning.schedule import cases, run_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("learning")


@pytest.fixture(scope="module")
def study(folder: Path):
    return small_study(folder, ARMS, {"steps": 6, "evaluate_at": [0, 6], "rungs": [2, 4]})


@pytest.fixture(scope="module")
def shown(study):
    return run_study(study, None)


# --- texts ----------------------------------------------------------------------------------------


def test_no_text_is_in_two_splits() -> None:
    found = [Text(f"sentence number {n}") for n in range(2000)]
    shares = {name: sum(t.split == name for t in found) / 2000 for name, _ in texts.SHARES}
    assert shares == pytest.approx({"evaluation": 0.2, "held-back": 0.15, "train": 0.65}, abs=0.03)
    assert Text("An  Example ").split == Text("an example").split
    assert Text("An  Example ").hash == Text("an example").hash


def test_the_split_of_a_text_is_its_own(tmp_path: Path) -> None:
    """Whatever else is in the file: half of it gives the same splits."""
    whole = texts.read_data(texts_of(tmp_path))
    (tmp_path / "half.txt").write_text("\n\n".join(t.text for t in whole[::2]), encoding="utf-8")
    half = {t.text: t.split for t in texts.read_data(tmp_path / "half.txt")}
    assert half == {t.text: t.split for t in whole[::2]}


def test_equal_texts_are_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One text\n\none  text\n\nanother", encoding="utf-8")
    assert len(texts.read_data(tmp_path / "a.txt")) == 2


def test_prose_is_split_without_an_overlap() -> None:
    found = texts.prose()
    hashes = [t.hash for t in found]
    assert len(set(hashes)) == len(hashes) > 1000


def test_batches_are_the_same_for_every_arm_and_differ_by_seed() -> None:
    examples = [Example((n,), n % 3) for n in range(40)]
    first, again, other = (texts.batches(examples, 8, 6, seed, 0) for seed in (1, 1, 2))
    ids = [[b["input_ids"].tolist() for b in batches] for batches in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]
    seen = [i for batch in ids[0] for (i,) in batch]
    assert len(set(seen[:40])) == 40  # everything once, before anything comes again


def test_a_batch_is_padded_and_masked() -> None:
    batch = texts.collate([Example((7, 8, 9)), Example((5,))], 0)
    assert batch["input_ids"].tolist() == [[7, 8, 9], [5, 0, 0]]
    assert batch["labels"].tolist() == [[7, 8, 9], [5, -100, -100]]


def test_the_shift_renames_the_most_frequent_words_everywhere_but_outside() -> None:
    part = (Example((0, 5, 6), 0), Example((5, 7), 1))
    shifted = texts.shifted(Material(part, part, part, part, pad=0), 100, 1)
    assert [e.ids for e in shifted.evaluation] == [(0, 100, 6), (100, 7)]
    assert shifted.other == part
    assert shifted.new_tokens == 1


# --- arms -----------------------------------------------------------------------------------------


def test_matched_arms_train_alike_in_peft_too(folder: Path) -> None:
    """The closed form's ranks, counted in the model that is trained: within 1 % of the budget."""
    names = ("query", "query-value", "attention", "feed-forward", "everything")
    # Rank 20 of everything, 30,720 elements in two layers of 32 and 64 wide.
    study = small_study(
        folder, {n: {"scenario": n, "budget": True} for n in names}, {"budget_rank": 20}
    )
    budget = 2 * 20 * (4 * (32 + 32) + 2 * (32 + 64))
    for arm in study.arms:
        model = fit.load_arm(study, arm, 0)
        adapters = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
        assert abs(adapters / budget - 1) <= 0.01, arm.name
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == arm.trainable


def test_an_arm_that_no_ranks_bring_to_the_budget_is_left_out_and_told(folder: Path) -> None:
    study = small_study(folder, {"up": {"roles": ["up"], "budget": True}}, {"budget_rank": 1})
    assert study.arms == ()
    assert "no ranks come within 1% of the budget" in study.left_out["up"]


def test_the_real_budgets_are_within_one_percent() -> None:
    """The widths of both models, from their own configs; r (in + out) a module, by hand."""
    minilm = 6 * (4 * 8 * (384 + 384) + 2 * 8 * (384 + 1536))
    assert minilm == 331_776
    for roles, width in (((1,), 768), ((29,), 1920)):
        for r in roles:
            near = 6 * width * (72 if width == 768 else r)
            assert abs(near / minilm - 1) <= 0.01


def test_full_and_head_train_what_they_say(folder: Path) -> None:
    study = small_study(folder, {"full": {"kind": "full"}, "head": {"kind": "head"}})
    for arm in study.arms:
        model = fit.load_arm(study, arm, 0)
        trained = [n for n, p in model.named_parameters() if p.requires_grad]
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == arm.trainable
        if arm.name == "head":
            assert sorted(trained) == ["classifier.bias", "classifier.weight"]


def test_all_arms_start_from_the_same_model(folder: Path) -> None:
    arms = {n: {"scenario": n, "budget": True} for n in ("query", "everything")}
    study = small_study(folder, {**arms, "full": {"kind": "full"}})
    losses = set()
    for arm in study.arms:
        one = fit.ArmFit(study, arm, 1e-3, 3)
        losses.add(round(one.loss_on(study.plain.evaluation), 6))
    assert len(losses) == 1


def test_the_new_words_of_a_shift_are_grown(folder: Path) -> None:
    study = small_study(
        folder, {"a": {"scenario": "everything", "roles": ["embedding"], "shift": True}}
    )
    model = fit.load_arm(study, study.arms[0], 0)
    rows = study.model.config["vocab_size"] + 12
    assert model.get_input_embeddings().base_layer.weight.shape[0] == rows
    assert study.grown.config["vocab_size"] == rows
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == study.arms[0].trainable


# --- training, records, resuming ------------------------------------------------------------------


def test_every_case_is_recorded(study, shown) -> None:
    assert cases(study) == 2 + 2 + 1 + 2
    record = to_record(study, shown["query"])
    assert record.outcome == "ok"
    assert len(record.metrics["evaluation_loss"]) == 2
    assert record.metrics["peak_allocated_bytes"] > 0
    (first, _) = record.detail["fits"]
    assert list(first["losses"]) == ["0", "6"]
    assert set(first["gradient_norms"]) == {"query", "head"}
    assert first["tokens"] > 6 * 8
    assert first["forgetting"] >= 0
    assert first["flops"] > 0


def test_the_same_again_gives_the_same(study, shown) -> None:
    again = fit.fit_arm(study, study.arm("query"), shown["query"].rate, 1)
    assert again.losses == shown["query"].fitted[1].losses


def test_following_memory_changes_no_loss(study, shown) -> None:
    plain = fit.fit_arm(study, study.arm("query"), shown["query"].rate, 0)
    assert plain.losses == shown["query"].fitted[0].losses  # whose memory was followed
    assert plain.peak_allocated_bytes is None


def test_a_stored_run_holds_everything(study, shown, tmp_path: Path) -> None:
    run = run_of(study, shown, "one", interrupted=False)
    read = load_run(write_run(tmp_path, "one", document_of(run)))
    back = shown_in(read)
    assert {n: s.losses for n, s in back.items()} == pytest.approx(
        {n: pytest.approx(s.losses, abs=1e-6) for n, s in shown.items()}
    )
    assert {n: s.rate for n, s in back.items() if n != "everything-again"} == {
        n: s.rate for n, s in shown.items() if n != "everything-again"
    }


def test_an_interrupted_run_goes_on_without_repeating(study, shown) -> None:
    """After Ctrl-C in its fourth case three are kept, and four are left to do."""
    kept: dict[str, Shown] = {}
    done: list[str] = []

    def interrupt(text: str) -> None:
        done.append(text)
        if len(done) == 3:
            raise KeyboardInterrupt

    def keep(one: Shown) -> None:
        kept[one.arm.name] = replace(one, tuned=dict(one.tuned), fitted=dict(one.fitted))

    with pytest.raises(KeyboardInterrupt):
        run_study(study, None, ended=keep, say=interrupt)
    more: list[str] = []
    again = run_study(study, None, done=kept, say=more.append)
    assert (len(done), len(more)) == (3, cases(study) - 3)
    assert {n: s.losses for n, s in again.items()} == {n: s.losses for n, s in shown.items()}


def test_a_run_on_ones_own_weights_does_not_go_on_with_others(
    study, shown, folder: Path, tmp_path: Path
) -> None:
    """Two trainings of one model differ in nothing but the bytes."""
    from bench.learning.schedule import resumed

    records = run_of(study, shown, "cut", interrupted=True).records
    resumed(study, records, study.described)
    kept = [from_record(record) for record in records.values()]
    assert {s.arm.name: s.losses for s in kept} == {n: s.losses for n, s in shown.items()}
    other = shutil.copytree(folder / "weights", tmp_path / "weights")
    moved = replace(study, weights=other)
    resumed(moved, records, moved.described)
    file = other / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    changed = replace(study, weights=other)
    with pytest.raises(
        BenchError, match=r"than .* has now: weights_digest [0-9a-f]+ -> [0-9a-f]+;"
    ):
        resumed(changed, records, changed.described)
    longer = replace(study, settings=replace(study.settings, length=study.settings.length + 1))
    with pytest.raises(BenchError, match=r" has now: length (\d+) -> \d+; give them again"):
        resumed(longer, records, longer.described)


def test_a_loss_that_is_no_number_is_recorded_and_the_run_goes_on(
    study, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = fit.training_step
    monkeypatch.setattr(
        fit, "training_step",
        lambda model, *a, **k: step(model, *a, **k) * (
            math.nan if _adapted(model) == {"query"} else 1
        ),
    )  # fmt: skip
    found = run_study(study, None)
    assert to_record(study, found["query"]).outcome == "diverged"
    assert "evaluation_loss" not in to_record(study, found["query"]).metrics
    assert found["query"].fitted[0].diverged == 1
    assert to_record(study, found["everything"]).outcome == "ok"
    order = ranking(list(found.values()))
    assert order.left_out == ("query",)


def _adapted(model) -> set[str]:
    names = (n for n, _ in model.named_parameters() if "lora_A" in n)
    return {n.partition(".lora_A")[0].rpartition(".")[2] for n in names}


def test_the_first_gradient_is_held_against_the_ranking(study, shown) -> None:
    norms = probe(study)
    assert {"query", "key", "value", "output", "up", "down", "head"} <= norms.keys()
    arms = [arm_with("up", LOW), arm_with("query", HIGH), arm_with("key", [1.0] * 5)]
    assert against({"up": 3, "query": 2, "key": 1}, arms).tau == 1
    assert against({"up": 1, "query": 2, "key": 3}, arms).single_tau == -1
    assert against({"up": 1, "query": 2, "key": 3}, arms).singles == 3


# --- what is wrong is said ------------------------------------------------------------------------


def test_every_study_names_arms_that_it_has() -> None:
    for name in studies():
        said = said_of(name)
        assert len(said.claims) >= 4
        assert all(claim.source for claim in said.claims)


KNOWN = WORDS[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "", "it holds no text"),
        ("short.txt", f"{KNOWN} {KNOWN}", "the train part is shorter than 8 tokens"),
        (
            "one.jsonl",
            f'{{"text": "{KNOWN}", "label": "x"}}\n{{"text": "b", "label": "x"}}',
            "two labels",
        ),
        ("strange.txt", "unheard words", "its tokenizer knows no word of the text"),
        ("bad.jsonl", '{"text": "a"}\n{nonsense', "line 2 is not JSON"),
        ("none.csv", "words,label\nhello,x", 'line 2 has no "text"'),
        ("number.jsonl", '{"text": 3}', 'line 1: "text" is 3, and no text'),
        ("mixed.jsonl", '{"text": "a", "label": "x"}\n{"text": "b"}', "some have none"),
        ("what.bin", "x", "expected a file .txt, .jsonl or .csv"),
    ],
)
def test_bad_text_is_told(folder: Path, tmp_path: Path, name, content, message) -> None:
    small_study(folder, {})
    (tmp_path / name).write_text(content, encoding="utf-8")
    values = {"study": SETTINGS, "arm": {}}
    with pytest.raises(BenchError, match=message):
        make_study(Origin("small", folder / "weights", tmp_path / name), values, "small")


def test_less_than_a_batch_is_told(folder: Path) -> None:
    with pytest.raises(BenchError, match="less than one batch of 1000"):
        small_study(folder, {}, {"batch_size": 1000})


def test_weights_without_safetensors_are_told(tmp_path: Path) -> None:
    texts_of(tmp_path)
    values = {"study": SETTINGS, "arm": {}}
    with pytest.raises(BenchError, match=r"no \*\.safetensors file"):
        make_study(Origin("small", tmp_path, tmp_path / "texts.jsonl"), values, "small")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., packages.Package]:
    """A package of one file, installed in a folder of its own."""
    (tmp_path / "made_up").mkdir()
    (tmp_path / "made_up" / "a.txt").write_text("as it was", encoding="utf-8")
    info = tmp_path / "made_up-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    digest = packages.digest_of(tmp_path / "made_up" / "a.txt")

    def make(name: str = "made-up", version: str = "1.0") -> packages.Package:
        module = name.replace("-", "_")
        return packages.Package(name, module, version, "MIT", "a text", {"a.txt": digest})

    return make


def test_a_package_is_found_and_checked(package, tmp_path: Path) -> None:
    assert package().folder() == tmp_path / "made_up"


def test_a_missing_package_is_told(package) -> None:
    with pytest.raises(BenchError, match=r"not-there is missing \(a text\): pip install not-there"):
        package("not-there").folder()


def test_another_version_is_told(package) -> None:
    with pytest.raises(BenchError, match=r"made-up is 1\.0, and the stored figures are of 2\.0"):
        package(version="2.0").folder()


def test_a_changed_file_is_told(package, tmp_path: Path) -> None:
    (tmp_path / "made_up" / "a.txt").write_text("changed", encoding="utf-8")
    with pytest.raises(BenchError, match=r"made-up: a\.txt has changed"):
        package().folder()


def test_the_extra_and_the_listed_packages_agree() -> None:
    """pyproject's pins are those whose digests are recorded."""
    import tomllib

    from bench.files import SUITES

    project = tomllib.loads((SUITES.parent / "pyproject.toml").read_text(encoding="utf-8"))
    extra = project["project"]["optional-dependencies"]["learning"]
    known = packages.packages().values()
    assert {p.requirement for p in known if not p.without_dependencies} <= set(extra)
    tox = (SUITES.parent / "tox.ini").read_text(encoding="utf-8")
    assert all(p.requirement in tox for p in known if p.without_dependencies)


def test_json_of_a_report(study, shown) -> None:
    from bench.reports.learning import learning_json, learning_report

    run = run_of(study, shown, "one", interrupted=False)
    rows = list(learning_json(run, study.said))
    assert json.loads(json.dumps(rows))[0]["place"] == 1
    report = learning_report(run, study.said)
    assert len(report.tables) == 2
