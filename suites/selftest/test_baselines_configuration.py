"""What two runs have configured otherwise: each field of PEFT's LoraConfig is told, by a verdict or
beside them."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from test_baselines import QUERY, run_with

from bench.adapters.config import NOT_UNDERSTOOD, AdapterConfig
from bench.baselines import KEY, Verdict, compare, seal, write_verdicts
from bench.baselines.configuration import decided, recorded, unseen_changes
from bench.cli import main
from bench.models.architectures import load_model
from bench.reports.closing import closing
from bench.reports.comment import comment
from bench.reports.layout import markdown_cell
from bench.reports.verdicts import beside_data, verdict_report
from bench.scenarios.subjects import Subject

AT_8 = "suites/test_parameters.py::test_user[opt-350m-own-r8]"

GIVEN: dict[str, Any] = {"target_modules": ["q_proj"], "r": 8}
NEEDED = {"layers_pattern": {"layers_to_transform": [0]}}
BOOKKEEPING = frozenset(
    """peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode
    megatron_core qalora_group_size""".split()
)
"""Fields that change nothing: the last two are read with what is refused alone."""
# field: (before, after), of a configuration that both have; what is said, where that is no more
# than the field and both values.
OTHER: dict[str, tuple[Any, Any] | tuple[Any, Any, str]] = {
    "task_type": (None, "CAUSAL_LM"),
    "r": (8, 4),
    "target_modules": (["q_proj"], ["k_proj"], "target_modules ['q_proj'] -> ['k_proj']"),
    "exclude_modules": (None, ["k_proj"], "exclude_modules absent -> ['k_proj']"),
    "lora_alpha": (16, 32),
    "lora_dropout": (0.1, 0.05),
    "fan_in_fan_out": (False, True),
    "bias": ("none", "all"),
    "use_rslora": (False, True),
    "modules_to_save": (None, ["lm_head"], "modules_to_save absent -> ['lm_head']"),
    "init_lora_weights": (True, "olora"),
    "layers_to_transform": (None, [0], "layers_to_transform absent -> [0]"),
    "layers_pattern": (None, "layers"),
    "rank_pattern": ({"q": 4, "k": 8}, {"k": 8, "q": 4},
                     "rank_pattern in order ['q', 'k'] -> ['k', 'q']"),
    "alpha_pattern": ({"q.*": 4, "q_p.*": 8}, {"q_p.*": 8, "q.*": 4},
                      "alpha_pattern in order ['q.*', 'q_p.*'] -> ['q_p.*', 'q.*']"),
    "trainable_token_indices": (None, [1], "trainable_token_indices absent -> [1]"),
    "loftq_config": ({}, {"loftq_bits": 4}, "loftq_config.loftq_bits absent -> 4"),
    "eva_config": ({"rho": 1.0}, {"rho": 2.0}, "eva_config.rho 1.0 -> 2.0"),
    "corda_config": (None, {"corda_method": "kpm"}, "corda_config.corda_method absent -> kpm"),
    "lora_ga_config": ({"direction": "ArBr"}, {"direction": "ArB2r"},
                       "lora_ga_config.direction ArBr -> ArB2r"),
    "use_dora": (False, True),
    "velora_config": (None, {}),
    "alora_invocation_tokens": (None, [1], "alora_invocation_tokens absent -> [1]"),
    "monteclora_config": (None, {"num_samples": 4}, "monteclora_config.num_samples absent -> 4"),
    "layer_replication": (None, [[0, 1]], "layer_replication absent -> [[0, 1]]"),
    "runtime_config": (None, {"ephemeral_gpu_offload": True},
                       "runtime_config.ephemeral_gpu_offload absent -> True"),
    "lora_bias": (False, True),
    "target_parameters": (None, ["a"], "target_parameters absent -> ['a']"),
    "use_bdlora": (None, {"nblocks": 2}, "use_bdlora.nblocks absent -> 2"),
    "kasa_config": (None, {}),
    "ensure_weight_tying": (False, True),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_each_field_that_changed_is_told(name: str) -> None:
    """The stored run keeps of it what tells the two apart, its digest too."""
    before, after, *rest = OTHER[name]
    (said,) = rest or [f"{name} {'absent' if before is None else before} -> {after}"]
    given = {**GIVEN, **NEEDED.get(name, {})}
    runs = [of({**given, name: value}) for value in (before, after, before)]
    (told,) = unseen_changes(*runs[:2], ())
    assert told == f"opt-125m-own-r{8 if name != 'r' else 4}: {said}"
    assert unseen_changes(*runs[::2], ()) == ()


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("target_modules", ["q_proj", "v_proj"], ["v_proj", "q_proj", "v_proj"]),
        ("exclude_modules", ["k_proj", "fc1"], ["fc1", "k_proj"]),
        ("modules_to_save", ["lm_head", "fc1"], ["fc1", "lm_head"]),
        ("layers_to_transform", [0, 1], [1, 0]),
    ],
)
def test_the_order_of_what_has_none_is_no_change(name: str, one: Any, other: Any) -> None:
    """Many names are kept as a digest, of which the order must be none either."""
    many = [f"name{number}" for number in range(20)] if isinstance(one[0], str) else [*range(2, 20)]
    for before, after in ((one, other), ([*many, *one], [*other, *many])):
        runs = [of({**GIVEN, name: value}) for value in (before, after)]
        assert runs[0].subjects == runs[1].subjects
        assert unseen_changes(*runs, ()) == ()


def of(given: dict[str, Any]) -> Any:
    subject = Subject(load_model("opt-125m"), "own", AdapterConfig.from_dict(given))
    return replace(run_with(lambda body: None), **decided({"one": subject}))


def test_every_field_of_peft_is_told() -> None:
    """A new field of a new PEFT fails here until somebody says how a change of it is told."""
    from peft import LoraConfig

    assert {*OTHER} | BOOKKEEPING | {*NOT_UNDERSTOOD} == {f.name for f in fields(LoraConfig)}


def test_patterns_that_were_added_are_told_without_their_order() -> None:
    one, two = ({"r": 8, "alpha_pattern": given} for given in ({"a": 1}, {"b": 1, "a": 2, "c": 3}))
    assert "alpha_pattern in order" not in recorded(one)
    runs = [of({**GIVEN, **fields}) for fields in (one, {**one, "alpha_pattern": {"a": 1, "b": 1}},
                                                  two)]  # fmt: skip
    assert unseen_changes(*runs[:2], ()) == ("opt-125m-own-r8: alpha_pattern.b absent -> 1",)
    assert unseen_changes(*runs[1:], ()) == (
        "opt-125m-own-r8: alpha_pattern.a 1 -> 2, alpha_pattern.c absent -> 3",
    )


def configured(digest: str, layers: int = 2, **fields: Any):
    """A run whose one case is of a user's own configuration and model."""

    def edit(body: dict[str, Any]) -> None:
        record, adapter = body["records"][QUERY], {"r": 8, **fields}
        body["records"] = {AT_8: {**record, "model": "mine", "scenario": "own", "rank": 8,
                                  "detail": {"adapter": adapter}}}  # fmt: skip
        subject = {"model": "mine", "ranked": "mine-own-r8", "class": "A", "weights": None,
                   "code": None, "adapter": adapter, "digest": digest}  # fmt: skip
        config = {"num_hidden_layers": layers, "transformers_version": digest}
        body["detail"] = {"models": {"mine": config}, "subjects": {"mine-own-r8-fp32": subject}}

    return run_with(edit)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (configured("2", use_rslora=True), "mine-own-r8: use_rslora False -> True"),
        (configured("2", layers=3), "mine: num_hidden_layers 2 -> 3"),
        (configured("2"), ""),  # another transformers, which the versions say
        (configured("1", use_rslora=True), ""),  # one digest: nothing differs
    ],
)
def test_what_no_figure_shows_is_said_beside_the_verdicts(after, said: str, tmp_path: Path) -> None:
    """A gate that passes has not looked at a scaling factor: it says that this changed."""
    before = configured("1")
    verdicts = compare(before, after)
    assert {v.verdict for v in verdicts} == {"unchanged"}
    line = [f"Configured otherwise, which no figure shows: {said}."] if said else []
    assert list(verdict_report(verdicts, [], before, after).notes) == line
    assert beside_data(verdicts, before, after) == line
    text = comment(verdicts, [], before, after)
    assert ("Configured otherwise" in text, all(markdown_cell(x) in text for x in line)) == (
        bool(said),
        True,
    )
    write_verdicts(tmp_path / "v.json", verdicts, [], before, after)
    assert (
        json.loads((tmp_path / "v.json").read_text())["configured_otherwise"] == [said][: len(line)]
    )


def test_what_a_verdict_says_is_not_said_twice() -> None:
    """The rank is among the facts there, other fields are changes of the configuration."""
    before, after = configured("1"), configured("2", r=16, use_dora=True, use_rslora=True)
    told = [Verdict("a", "b", "changed", explanation="rank 8 -> 16; use_dora False -> True")]
    assert unseen_changes(before, after, told) == ("mine-own-r8: use_rslora False -> True",)
    assert unseen_changes(before, after, []) == (
        "mine-own-r8: r 8 -> 16, use_dora False -> True, use_rslora False -> True",
    )


FORMATS = ("terminal", "markdown", "latex", "html", "csv", "json")


def stored(path: Path, monkeypatch: pytest.MonkeyPatch, many: int = 1) -> list[str]:
    """The files of three runs, of which the last is configured as the first."""
    files = []
    more = {f"field{n}": True for n in range(5)}
    for name, plain in (
        ("one", configured("1")),
        ("two", configured("2", **more)),
        ("three", configured("1")),
    ):
        (case, record), (key, subject) = *plain.records.items(), *plain.subjects.items()
        number = range(many)
        run = replace(
            plain,
            name=name,
            records={f"{case[:-1]}-{n}]": replace(record, id=f"{case[:-1]}-{n}]") for n in number},
            subjects={f"{key}-{n}": {**subject, "ranked": f"mine-own{n}-r8"} for n in number},
        )
        file = path / f"{name}.json"
        file.write_text(json.dumps(seal({"benchmarks": [], "machine_info": {}, KEY: run.table()})))
        files.append(str(file))
    monkeypatch.chdir(path)
    monkeypatch.setenv("COLUMNS", "300")
    return files


def read(captured: Any, format: str) -> str:
    """What a format that holds data alone tells beside it, or what another one says."""
    out, err = captured
    text = err if format in ("csv", "json") else out
    return text.replace("\\", "").replace("textgreater{}", ">").replace("&gt;", ">")


@pytest.mark.parametrize("many", [1, 5])
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_names_all_that_is_configured_otherwise(
    format: str,
    many: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """However many cases, and fields of a case, there are: a line each where they are many."""
    one, two, three = stored(tmp_path, monkeypatch, many)
    commands = [["report", two, "--baseline", one], ["report", one, two, "--baseline", one]]
    commands += [["compare", one, two]] * (format != "html")
    for command in commands:
        assert main([*command, "--format", format]) == 0
        told = read(capsys.readouterr(), format)
        assert told.count("Configured otherwise") == 1
        for n in range(many):
            fields = ", ".join(f"field{f} absent -> True" for f in range(5))
            assert told.count(f"mine-own{n}-r8: {fields}") == 1
        assert "more" not in told.partition("Configured otherwise")[2].partition("own4-r8")[0]
    assert main(["report", one, "--baseline", three, "--format", format]) == 0
    assert "otherwise" not in read(capsys.readouterr(), format)


def test_what_has_no_room_for_all_of_it_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, _ = stored(tmp_path, monkeypatch, 5)
    assert main(["compare", one, two, "--format", "comment"]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("Configured"))
    assert line.endswith("and 2 more; and 2 more: bench compare names all of it.")
    before, after = configured("1"), configured("2", **{f"field{n}": 1 for n in range(5)})
    said = [
        closing(run, before, compare(before, run), [], places=(), save_command="pytest", width=999)
        for run in (after, replace(after, path=tmp_path / "0001_two.json"))
    ]
    assert "2 more: of a run that is stored (--benchmark-save=NAME) bench compare names" in said[0]
    assert "2 more: bench compare names all of it." in said[1]
    assert "bench compare" not in closing(
        configured("3", r2=1), before, [], [], places=(), save_command="pytest", width=999
    )
