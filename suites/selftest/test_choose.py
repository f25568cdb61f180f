"""`bench choose`: the rows are PEFT's, the front and the limits are worked out a second time."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.adapters.config import AdapterConfig
from bench.choose import code, costs, rows, table
from bench.choose.published import FILE, load_results
from bench.choose.report import choice_report
from bench.cli import main
from bench.errors import BenchError, UnknownName
from bench.files import FIXTURES
from bench.measure.counting import count, inject
from bench.models.architectures import Model, load_model
from bench.predict.gpus import gpu_with_memory
from bench.predict.result import predict
from bench.targets import match
from bench.training.cases import BATCH_SIZE, SEQ_LEN, StepOptions, with_value
from bench.training.options import OPTIMIZERS, optimizer_name, trainer_name

STEP = StepOptions(batch_size=1, seq_len=64)
pytestmark = pytest.mark.usefixtures("one_process", "traced_once", "ranks_alone")


def _choice(model: Model, memory: str = "2GiB", **more: object) -> table.Choice:
    return table.choose(model, gpu_with_memory(memory), STEP, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def small() -> Model:
    """Llama 3.2 1B narrowed to one small layer: a real architecture that traces in no time."""
    model = load_model("llama-3.2-1b")
    narrow = {
        "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16,
        "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 512,
    }  # fmt: skip
    return Model("small", {**model.config, **narrow}, auto_class=model.auto_class)


@pytest.fixture(scope="module")
def ranks_alone() -> Iterator[None]:
    """Of each row the largest rank is searched for. No other length or batch is tried, each of
    which takes as long: test_choose_costs.py holds every limit against whole traces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(costs.LARGEST, SEQ_LEN, STEP.seq_len)
        patch.setitem(costs.LARGEST, BATCH_SIZE, STEP.batch_size)
        yield


@pytest.fixture(scope="module")
def choice(small: Model, one_process: None, traced_once: None, ranks_alone: None) -> table.Choice:
    return _choice(small, "700MiB", precisions=("bf16",))


@pytest.mark.evidence
def test_rows_are_scenarios_by_precision_by_checkpointing(choice: table.Choice) -> None:
    told = {(r.plan.scenario, r.precision, r.checkpointing) for r in choice.rows}
    assert len(told) == len(choice.rows) == len(rows.PROPOSED_SCENARIOS) * 2
    assert not any(r.cost.error for r in choice.rows)


def test_front_is_what_no_row_dominates(choice: table.Choice) -> None:
    """Worked out again, from the JSON, by sorting out pairs."""
    from bench.choose.report import choice_json

    found = [row for row in choice_json(choice)["rows"] if row["fits"] == "yes"]
    bits = {"bf16": 16}

    def worse(a: dict[str, Any], b: dict[str, Any]) -> bool:
        """Whether a is no better than b anywhere, and not its equal."""
        ours, theirs = ((-row["reached"], -bits[row["precision"]], row["flops"]) for row in (a, b))
        return ours != theirs and not any(x < y for x, y in zip(ours, theirs, strict=True))

    front = {a["row"] for a in found if not any(worse(a, b) for b in found)}
    assert front == {row.number for row in choice.rows if row.on_front}
    assert 0 < len(front) < len(found)


@pytest.mark.evidence
@pytest.mark.parametrize("memory", ["513MiB", "560MiB"])
def test_what_does_not_fit_is_on_no_front(small: Model, memory: str) -> None:
    for row in _choice(small, memory, precisions=("bf16",)).rows:
        assert row.fits or not row.on_front


def test_wider_scenarios_never_reach_less(choice: table.Choice) -> None:
    by = {r.plan.scenario: r.plan for r in choice.rows}
    assert by["query-value"].reached < by["attention"].reached < by["everything"].reached
    assert by["everything"].reached < by[rows.EVERYTHING].reached
    assert by["attention"].reached + by["feed-forward"].reached == by["everything"].reached


@pytest.mark.parametrize("scenario", ["query-value", "everything"])
def test_the_largest_rank_is_the_last_that_whole_predictions_fit(
    choice: table.Choice, scenario: str
) -> None:
    """And what fits is monotone in the rank, which the search takes for granted. The predictions
    are `bench memory`'s own, of whole traces."""
    row = next(r for r in choice.rows if r.plan.scenario == scenario and r.precision == "bf16")
    limit = row.cost.limits["rank"]
    assert limit is not None

    def fits(rank: int) -> bool:
        fit = predict(with_value(row.case, "rank", rank), gpu=choice.gpu).fit
        assert fit is not None
        return fit.fits

    assert fits(limit.value)
    assert limit.bounded or not fits(limit.value + 1)
    told = [fits(rank) for rank in (1, 16, limit.value // 2, limit.value, 2 * limit.value + 2)]
    assert told == sorted(told, reverse=True)


VISION_LANGUAGE = str(FIXTURES / "field" / "qwen2.5-vl-3b-llm-only")


def test_rows_of_a_model_with_towers_reach_its_language_model_alone() -> None:
    plans, missing = rows.plans(load_model(VISION_LANGUAGE))
    assert [plan.scenario for plan in plans] == list(rows.PROPOSED_SCENARIOS)
    assert not missing
    for plan in plans:
        names = [item.name for item in plan.ledger.adapted]
        assert names
        assert all(".language_model.layers." in f".{name}" for name in names)


@pytest.mark.evidence
@pytest.mark.parametrize("model", ["llama-3.2-1b", "phi-3-mini", "opt-350m", VISION_LANGUAGE])
def test_peft_reaches_the_rows_modules_from_the_printed_code(model: str) -> None:
    found = load_model(model)
    plans, _ = rows.plans(found)
    assert plans
    for plan in plans:
        namespace: dict[str, object] = {}
        text = code.lora_config(plan.adapter)
        exec(text.replace("\nLoraConfig(", "\nconfig = LoraConfig("), namespace)
        from peft import LoraConfig

        config = namespace["config"]
        assert isinstance(config, LoraConfig)
        fields = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
        same = AdapterConfig.from_dict(fields, "printed")
        injected = count(inject(found.build(), same))
        assert sorted(injected.adapted) == sorted(item.name for item in plan.ledger.adapted)
        assert injected.trainable == plan.trainable


def test_fused_projections_have_no_row_for_a_part_of_them() -> None:
    _, missing = rows.plans(load_model("phi-3-mini"))
    assert set(missing) == {"query-value"}
    assert "fuses" in missing["query-value"]


def test_tools_for_language_models_have_no_lines_for_another(choice: table.Choice) -> None:
    row = choice.rows[0]
    assert "# axolotl\nadapter:" in code.as_code(row)
    images = replace(row, case=replace(row.case, auto_class="AutoModelForImageClassification"))
    said = code.as_code(images)
    assert "LoraConfig(" in said
    for tool in ("axolotl", "LLaMA-Factory"):
        assert f"# {tool} trains language models, and this is AutoModelForImage" in said
    assert "sequence_len" not in said


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
@pytest.mark.parametrize("tool", ["axolotl", "llama_factory"])
def test_the_lines_are_read_back_as_the_row(
    choice: table.Choice, tool: str, precision: str, tmp_path: Path
) -> None:
    from bench.readers import read_recipe

    model = load_model("llama-3.2-1b")
    optimizers = cycle(("adamw", "paged-adamw-8bit", "lion-32bit", "adamw-fused"))
    for each in choice.rows[::3]:
        step = replace(each.case.step, optimizer=next(optimizers))
        row = replace(each, precision=precision, case=replace(each.case, step=step))
        path = tmp_path / "train.yaml"
        extra = "base_model: x\n" if tool == "axolotl" else "model_name_or_path: x\nstage: sft\n"
        path.write_text(extra + getattr(code, tool)(row) + "\n")
        recipe = read_recipe(path)
        adapter, _ = recipe.adapter(model)
        ledger = match(model.table, adapter, model.role_of)
        expected = match(model.table, row.plan.adapter, model.role_of)
        assert [a.name for a in ledger.adapted] == [a.name for a in expected.adapted]
        assert set(ledger.saved) == set(expected.saved)
        assert adapter.r == row.plan.adapter.r
        step = recipe.step
        assert step is not None
        assert (step.batch_size, step.seq_len) == (1, 64)
        assert step.gradient_checkpointing == row.checkpointing
        assert step.precision == row.precision
        assert step.optimizer == row.case.step.optimizer


def test_optimizers_are_called_as_trainer_calls_them() -> None:
    """And the two that it has not are left out, which the printed code says."""
    from transformers.training_args import OptimizerNames

    theirs = {str(name.value) for name in OptimizerNames}
    read = {}
    for name in theirs:
        with suppress(UnknownName):
            read[optimizer_name(name)] = name
    for ours in OPTIMIZERS:
        name = trainer_name(ours)
        assert (name in theirs) == (ours in read), ours
        assert name is None or optimizer_name(name) == ours


def test_a_row_whose_configuration_is_a_hazard_says_so(choice: table.Choice) -> None:
    """Embeddings and head that share a weight, and are trained apart."""
    from bench.choose.report import choice_json

    (row, *_) = [row for row in choice.rows if row.plan.scenario == rows.EVERYTHING]
    said = "untied-copy: lm_head, model.embed_tokens"
    assert f"# hazard {said}" in code.as_code(row)
    notes = [note for note in choice_report(choice).notes if said in note]
    assert [note.partition(": ")[0] for note in notes] == [f"Hazard of {rows.EVERYTHING}"]
    stored = choice_json(choice)["rows"]
    assert {"untied-copy" in each["hazards"] for each in stored} == {True, False}
    step = replace(row.case.step, optimizer="adamw-foreach")
    other = code.as_code(replace(row, case=replace(row.case, step=step)))
    assert "Neither tool has adamw-foreach" in other
    assert "optim" not in other


def test_matched_parameters_come_from_the_nearest_rank(small: Model) -> None:
    budget = 40_000
    plans, missing = rows.plans(small, budget=budget)
    assert rows.EVERYTHING in missing  # its copies alone are more
    for plan in plans:

        def trained(r: int, adapter: AdapterConfig = plan.adapter) -> int:
            """The trainable count by hand: r (in + out) of each adapted layer."""
            ledger = match(small.table, adapter, small.role_of)
            return r * sum(a.module.in_features + a.module.out_features for a in ledger.adapted)

        r = plan.adapter.r
        assert plan.trainable == trained(r)
        nearest = min((r - 1, r, r + 1), key=lambda rank: abs(trained(rank) - budget))
        assert nearest == r


@pytest.mark.evidence
def test_nothing_is_proposed_where_nothing_fits(small: Model) -> None:
    found = _choice(small, "513MiB", precisions=("bf16",))
    assert found.proposed is None
    assert "nothing fits" in found.reason


def test_a_length_that_nobody_asked_for_is_the_models_own(
    small: Model, predicted: list[costs.Cost], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what cannot be is said before anything is predicted."""
    monkeypatch.setattr(table, "costs", lambda *_: predicted)
    short = replace(small, config={**small.config, "max_position_embeddings": 32})
    found = _choice(short, precisions=("bf16",), shorten=True)
    assert {row.case.step.seq_len for row in found.rows} == {32}
    assert found.shortened_from == STEP.seq_len == 64
    assert any("positions for no more" in note for note in choice_report(found).notes)
    monkeypatch.setattr(table, "costs", lambda *_: pytest.fail("predicted"))
    with pytest.raises(BenchError, match="--seq-len 64: small has positions for 32"):
        _choice(short, precisions=("bf16",))
    with pytest.raises(BenchError, match="--show 11: the rows are 1 to 10"):
        _choice(small, precisions=("bf16",), show=11)


def test_published_results_are_cited_with_source_and_contradiction(choice: table.Choice) -> None:
    """Each claim that is cited stands in the file, and both sides of it are there."""
    results = tomllib.loads(FILE.read_text(encoding="utf-8"))["result"]
    assert len(load_results()) == len(results)
    for result in load_results():
        assert result.source in str(result)
        assert result.setting in str(result)
        known = {*rows.PROPOSED_SCENARIOS, "query"}
        assert {name for pair in (*result.better, *result.alike) for name in pair} <= known
    assert choice.proposed is not None
    assert choice.proposed.plan.scenario == "everything"
    assert any("QLoRA" in text for text in choice.supports)
    assert any("Qwen3-8B" in text for text in choice.against)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["opt-350m", "--gpu", "Voodoo2"], "unknown GPU"),
        (["opt-350m"], "--gpu"),
        (["opt-350m", "--gpu-memory", "24GiB", "--budget", "0"], "--budget must be at least 1"),
        (["opt-350m", "--gpu-memory", "24GiB", "--budget", "100"], "more than the budget"),
        (["opt-350m", "--gpu-memory", "24GiB", "--budget", "9", "--rank", "4"], "not both"),
        (["opt-350m", "--gpu-memory", "24GiB", "--precision", "fp3"], "unknown precision"),
        (["opt-350m", "--gpu-memory", "24GiB", "--seq-len", "4096"], "positions for"),
        (["opt-350m", "--gpu-memory", "24GiB", "--show", "1", "--json"], "--show"),
        (["vit-base", "--gpu-memory", "24GiB", "--seq-len", "5"], "takes images, which have none"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["choose", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def test_a_model_without_roles_is_refused() -> None:
    with pytest.raises(BenchError, match="no scenario to choose from"):
        rows.plans(Model("bare", {"model_type": "resnet"}, "AutoModelForImageClassification"))


def test_json_show_and_plot_say_the_same_choice(
    choice: table.Choice,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.models.architectures.load_model", lambda *_: choice.model)
    monkeypatch.setattr("bench.choose.table.choose", lambda *_, **__: choice)
    common = ["choose", "small", "--gpu-memory", "700MiB", "--precision", "bf16"]
    assert main([*common, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 10
    assert main([*common, "--show", "3"]) == 0
    said = capsys.readouterr().out
    assert "LoraConfig(" in said
    for part in said.split("# axolotl\n")[1].split("\n\n# LLaMA-Factory\n"):
        assert isinstance(yaml.safe_load(part), dict)
    assert main([*common, "--show", "11"]) == 2
    assert main([*common, "--plot", str(tmp_path / "choice.png")]) == 0
    assert (tmp_path / "choice.png").read_bytes().startswith(b"\x89PNG")
    assert main([*common, "--plot", str(tmp_path / "choice.jpg")]) == 2


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_has_one_table(choice: table.Choice, width: int) -> None:
    """One header, a line for each row, nothing beside the edge; what every row shares above."""
    from bench.choose.report import choice_report
    from bench.reports.layout import terminal

    lines = terminal(choice_report(choice), width).splitlines()
    assert max(map(len, lines)) <= width
    (head,) = [i for i, line in enumerate(lines) if line.split()[:2] == ["row", "ckpt"]]
    rows_of = [line.split() for line in lines[head:] if re.match(r" *\d+  (yes|no) ", line)]
    assert [int(words[0]) for words in rows_of] == list(range(1, 11))
    marked = {int(words[0]) for words in rows_of if words[-1] == "*"}
    assert marked == {row.number for row in choice.rows if row.on_front}
    assert lines[2].endswith("bf16, r 16")


def test_side_by_side_and_alone_give_the_same(small: Model) -> None:
    from bench.scenarios.subjects import Subject

    gpu = gpu_with_memory("2GiB")
    asked = [
        costs.CostAsked(Subject(small, "x", plan.adapter, precision="bf16").case(STEP), gpu, None)
        for plan in rows.plans(small)[0][:2]
    ]
    heard: list[int] = []
    assert costs.costs(asked, heard.append, 2) == costs.costs(asked, heard.append, 1)
    assert heard == [1, 2, 1, 2]


@pytest.fixture(scope="module")
def predicted(small: Model, one_process: None) -> list[costs.Cost]:
    """Steps whose peaks differ, so that a GPU has room for some of them; what else would fit is
    not searched for."""
    heavier = StepOptions(batch_size=8, seq_len=512)
    deeper = replace(small, config={**small.config, "num_hidden_layers": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "largest_fitting", lambda *_: None)
        patch.setattr(costs, "settled", lambda *_: 0)
        found = table.choose(deeper, gpu_with_memory("2GiB"), heavier, precisions=("bf16",))
    return [row.cost for row in found.rows]


@pytest.mark.parametrize(
    ("mebibytes", "said"),
    [
        (2048, "most of the published .* it needs no checkpointing"),
        (610, "most of the published .* it may not fit without checkpointing"),
        (600, "^everything, feed-forward and attention may not fit; "),
        (
            590,
            "^nothing surely fits .* row 2, the smallest, lacks .* at the upper end of what it may",
        ),
        (
            560,
            "^nothing fits .* row 2, the smallest, lacks .* reserved, beside 512.0 MiB",
        ),
    ],
)
def test_what_may_fit_is_not_said_not_to(
    small: Model, predicted: list[costs.Cost], monkeypatch: pytest.MonkeyPatch,
    mebibytes: int, said: str,
) -> None:  # fmt: skip
    """The bounds of the rows, beside the 512 MiB of the context, lie between 578 and 630 MiB."""
    room = (mebibytes - 512) * 2**20

    def judged(cost: costs.Cost) -> costs.Cost:
        fit = cost.fit
        assert fit is not None
        verdict = "yes" if fit.high_bytes <= room else "no" if fit.low_bytes > room else "uncertain"
        return replace(cost, fit=replace(fit, verdict=verdict, margin_bytes=room - fit.high_bytes))

    monkeypatch.setattr(table, "costs", lambda *_: [judged(cost) for cost in predicted])
    found = _choice(small, f"{mebibytes}MiB", precisions=("bf16",))
    assert re.search(said, found.reason)
    assert (found.proposed is None) == ("nothing" in said)
