"""Stored runs: what is read, what is refused and why. `sample` builds a run for the others too."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.baselines import KEY, Selection, StoredRun, digest, load_run, parse_run, runs, seal
from bench.errors import BenchError

QUERY = "suites/test_counts.py::test_counts[opt-350m-query]"
STEP = "suites/test_steps.py::test_step_time[opt-350m-query-r8-fp32]"
STEP_NF4 = "suites/test_steps.py::test_step_time[opt-350m-query-r8-nf4]"
MIB = 1024**2


def sample(name: str = "first", **changes: Any) -> dict[str, Any]:
    """An unsealed document with one counted and two measured cases; `changes` to lora_bench."""
    case = {"model": "opt-350m", "scenario": "query", "rank": 8, "outcome": "ok"}
    measured = {"batch_size": 2, "seq_len": 64}
    body = {
        "schema": 1,
        "name": name,
        "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "peft": "0.21.2"},
        "machine": {
            "id": "linux-x86_64-cpu",
            "system": "Linux",
            "processor": "A processor",
            "cpu_count": 2,
            "memory_bytes": 8 * 1024**3,
            "threads": 1,
            "accelerator": None,
        },
        "seed": 0,
        "records": {
            QUERY: {
                **case,
                "suite": "counts",
                "precision": None,
                "metrics": {
                    "adapted_layers": 24,
                    "trainable_parameters": 786432,
                    "total_parameters": 331982848,
                },
                "detail": {"adapted_by_role": {"query": 24}, "dead_entries": []},
            },
            STEP: {
                **case,
                "suite": "steps",
                "precision": "fp32",
                "metrics": {
                    "peak_allocated_bytes": 1000 * MIB,
                    "peak_rss_bytes": 1500 * MIB,
                    "step_seconds": [0.80, 0.79, 0.81, 0.80, 0.82, 0.78],
                },
                "detail": measured,
            },
            STEP_NF4: {
                **case,
                "suite": "steps",
                "precision": "nf4",
                "metrics": {
                    "peak_allocated_bytes": 300 * MIB,
                    "peak_rss_bytes": 700 * MIB,
                    "step_seconds": [1.2, 1.3, 1.25, 1.22, 1.28],
                },
                "detail": measured,
            },
        },
    }
    return {
        "machine_info": {},
        "commit_info": {"id": "ab12cd34ef567890", "dirty": True},
        "benchmarks": [{"name": "x", "stats": {"min": 0.78}}],
        "datetime": "2025-01-01T00:00:00+00:00",
        "version": "5.3.1",
        KEY: body | changes,
    }


def run_with(
    edit: Callable[[dict[str, Any]], None] = lambda body: None, name: str = "new"
) -> StoredRun:
    """The sample as a Run after `edit` has changed its lora_bench table."""
    document = sample(name)
    edit(document[KEY])
    return parse_run(seal(document), name)


def store(folder: Path, document: dict[str, Any], name: str = "0001_first.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_a_stored_run_comes_back_whole(tmp_path: Path) -> None:
    run = load_run(store(tmp_path, seal(sample())))
    assert (run.name, run.seed, run.commit, run.dirty) == ("first", 0, "ab12cd34ef56", True)
    assert run.machine.id == "linux-x86_64-cpu"
    assert run.machine.accelerator is None
    assert list(run.records) == [QUERY, STEP, STEP_NF4]
    assert run.records[QUERY].metrics["trainable_parameters"] == 786432
    assert run.records[STEP].metrics["step_seconds"] == (0.80, 0.79, 0.81, 0.80, 0.82, 0.78)
    assert run.path == tmp_path / "0001_first.json"


def refused(path: Path) -> str:
    with pytest.raises(BenchError) as caught:
        load_run(path)
    assert "\n" not in str(caught.value)
    message = str(caught.value)
    assert path.name in message
    return message


@pytest.mark.parametrize("kept", [0, 1, 100, -2])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = store(tmp_path, seal(sample()))
    path.write_text(path.read_text()[:kept])
    assert "truncated" in refused(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("786432", "786433"),  # an exact figure
        ("0.79", "0.78"),  # a round
        ('"min": 0.78', '"min": 0.77'),  # pytest-benchmark's own part
        ("linux-x86_64-cpu", "linux-x86_64-gpu"),  # the machine
        ("0.21.2", "0.21.3"),  # a version
    ],
)
def test_an_edited_digit_is_refused(tmp_path: Path, old: str, new: str) -> None:
    text = json.dumps(seal(sample()))
    assert old in text
    path = tmp_path / "0001_first.json"
    path.write_text(text.replace(old, new, 1))
    assert "edited" in refused(path)


def test_layout_of_the_file_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "0001_first.json"
    path.write_text(json.dumps(seal(sample()), indent=7, sort_keys=True))
    assert load_run(path).name == "first"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"benchmarks": [], "machine_info": {}}', "plain pytest-benchmark"),
        ('{"a": 1}', "foreign JSON"),
        ("[1, 2]", "foreign JSON"),
        ('{"lora_bench": 3}', "expected a table"),
        ('{"lora_bench": {}}', "schema"),
        ('{"lora_bench": {"schema": NaN}}', "not JSON"),
        ('{"lora_bench": {"schema": 1, "seed": 1e999}}', "not a stored run"),
        ('{"lora_bench": {"schema": true}}', "schema"),
        ("[" * 100_000, "not a stored run"),
    ],
)
def test_foreign_json_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "0001_first.json"
    path.write_text(text)
    assert reason in refused(path)


def test_not_text_and_not_there(tmp_path: Path) -> None:
    path = tmp_path / "0001_first.json"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not a stored run" in refused(path)
    assert "absent.json: no such file" in refused(tmp_path / "absent.json")
    assert "cannot be read: Is a directory" in refused(tmp_path)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path, sample())
    text = path.read_text()
    path.write_text(text.replace('"seed":', '"seed": 7, "seed":', 1))
    assert "the key 'seed' stands twice" in refused(path)


def test_a_newer_schema_is_refused_by_name(tmp_path: Path) -> None:
    document = sample(schema=2, something="else")
    document[KEY]["digest"] = digest(document)
    message = refused(store(tmp_path, document))
    assert "schema is 2" in message
    assert "upgrade" in message


def test_an_older_schema_migrates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = seal(sample())
    path = store(tmp_path, document)

    def rename(body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "schema": 2, "name": body["name"] + ", migrated"}

    monkeypatch.setattr(runs, "SCHEMA", 2)
    monkeypatch.setattr(runs, "MIGRATIONS", {1: rename})
    assert load_run(path).name == "first, migrated"


def test_every_older_schema_has_a_migration() -> None:
    assert set(runs.MIGRATIONS) == set(range(1, runs.SCHEMA))


def _metric(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(body: dict[str, Any]) -> None:
        body["records"][STEP]["metrics"][name] = value

    return edit


def _subject(**facts: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body.update(detail={"subjects": {"a": facts}})


def _detail(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["records"][STEP]["detail"].update({name: value})


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (_metric("peak_alocated_bytes", 1), "did you mean peak_allocated_bytes"),
        (_metric("peak_allocated_bytes", 1.5), "whole number"),
        (_metric("peak_allocated_bytes", -1), "whole number"),
        (_metric("peak_allocated_bytes", 10**400), "whole number from 0 to 1000000000000000000"),
        (_metric("peak_allocated_bytes", True), "whole number"),
        (_metric("peak_allocated_bytes", None), "whole number"),
        (_metric("step_seconds", []), "empty"),
        (_metric("step_seconds", [0.1, "0.2"]), "a number"),
        (_metric("step_seconds", [0.1, 1e308]), "a number from 0 to 1000000000000000000"),
        (_metric("step_seconds", float("nan")), "a number"),
        (_metric("step_seconds", [0.1, -0.0]), "step_seconds: expected a number from 0, found -0"),
        (_detail("breakdown", {"weights": 10**400}), "breakdown: weights: expected at most 308"),
        (_detail("operations", [{"a": -(10**308)}]), "operations: a: expected at most 308 digits"),
        (lambda body: body["machine"].update(memory_bytes=10**400), "memory_bytes: expected at "),
        (
            lambda body: body["records"].update({STEP: "\ud800"}),
            "expected a table, found '\\ud800'",
        ),
        (lambda body: body.update(detail={"subjects": "\ud800"}), "subjects: expected a table"),
        (_subject(digest="x"), "subjects: a: model: expected text"),
        (_subject(model=["m"]), "subjects: a: model: expected text"),
        (_subject(model="m", adapter="x"), "subjects: a: adapter: expected a table"),
        (_subject(model="m", code=["x"]), "subjects: a: code: expected text"),
        (lambda body: body["records"][STEP].update(rank="\ud800"), "rank: expected"),
        (_metric("ledger_digest", "a\x1b[31m"), "printable"),
        (lambda body: body["records"][STEP].update(outcome="fine"), "outcome"),
        (lambda body: body["records"][STEP].update(colour="red"), "colour"),
        (lambda body: body["records"][STEP].pop("model"), "model"),
        (lambda body: body["records"].update({"a\nb": {}}), "printable"),
        (lambda body: body["machine"].pop("threads"), "threads"),
        (lambda body: body["machine"].update(accelerator={"name": "x"}), "count"),
        (lambda body: body.update(selection={"arguments": "suites"}), "expected a list"),
        (lambda body: body.pop("versions"), "versions"),
        (lambda body: body.update(records=[1]), "expected a table"),
    ],
)
def test_wrong_content_is_named(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None], reason: str
) -> None:
    document = sample()
    edit(document[KEY])
    with pytest.raises(BenchError, match="the run to store"):
        seal(document)  # what could not be read back is not stored
    document = json.loads(json.dumps(document).replace("NaN", '"nan"'))
    document[KEY]["digest"] = digest(document)
    assert reason in refused(store(tmp_path, document))


def test_what_can_be_told_is_no_slip(tmp_path: Path) -> None:
    """A round that took no time, and 308 digits, which a report tells."""
    document = sample()
    record = document[KEY]["records"][STEP]
    record["metrics"]["step_seconds"] = [0.0]
    record["detail"]["breakdown"] = {"weights": 10**308 - 1}
    run = load_run(store(tmp_path, seal(document)))
    assert run.records[STEP].metrics["step_seconds"] == (0.0,)
    assert run.records[STEP].detail["breakdown"]["weights"] == 10**308 - 1


def test_sealing_keeps_its_argument_and_names_what_is_not_a_number() -> None:
    document = sample()
    document[KEY]["records"][STEP]["detail"]["loss"] = float("inf")
    before = copy.deepcopy(document)
    sealed = seal(document)
    assert document == before
    assert sealed[KEY]["records"][STEP]["detail"]["loss"] == "inf"
    assert sealed[KEY]["digest"] == digest(sealed)
    with pytest.raises(BenchError, match=KEY):
        seal({"benchmarks": []})


@pytest.mark.parametrize(
    ("arguments", "covered"),
    [
        ((), True),
        (("suites",), True),
        (("suites/",), True),
        (("./suites",), True),
        ((".",), True),
        (("suites/test_counts.py",), True),
        (("suites/test_counts.py::test_counts",), True),
        ((QUERY,), True),
        (("suites/test_steps.py",), False),
        (("suites/test_counts",), False),
        (("suites/test_counts.py::test_count",), False),
        (("suites/test_steps.py", "suites/test_counts.py"), True),
    ],
)
def test_what_a_selection_covers(arguments: tuple[str, ...], covered: bool) -> None:
    assert Selection(arguments).covers(QUERY) is covered
    assert not Selection(arguments, frozenset([QUERY])).covers(QUERY)
