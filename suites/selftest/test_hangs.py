"""Input that would never come to an end is refused, and says that PEFT would hang on it too."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from model_folders import write_model

from bench.adapters.config import AdapterConfig
from bench.adapters.patterns import check_patterns, fitting
from bench.check.targets import check_targets
from bench.errors import BenchError
from bench.models.architectures import find_model
from bench.targets import match

NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.10.mlp.down_proj"]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.adapters.patterns.CPU_SECONDS", 1)


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock on the wall: a second is the least that the limit of processor time can be."""
    monkeypatch.setattr("bench.adapters.patterns._WALL_SECONDS", 0.2)


BOMBS = {
    "a repeat in a repeat": r"([a-z_.0-9]+)+!",
    "alternatives that overlap": r"([a-z]+\.?|[a-z._0-9]+)*!",
    "a repeat of anything": r"(.*)*!",
    "many open repeats": r"(.*.*.*.*.*.*.*.*.*.*.*.*)!",
    "a reference back": r"((.+)\2?)+!",
}


@pytest.mark.usefixtures("_at_once")
@pytest.mark.parametrize("kind", BOMBS)
def test_an_expression_that_never_ends_is_refused(kind: str) -> None:
    adapter = AdapterConfig(BOMBS[kind], r=4)
    with pytest.raises(BenchError, match="PEFT would hang on it too") as refused:
        check_patterns(adapter.expressions(), NAMES)
    assert str(refused.value).startswith("target_modules ")


@pytest.mark.usefixtures("_at_once")
@pytest.mark.parametrize(
    "fields",
    [
        {"exclude_modules": r"([a-z_.0-9]+)+!"},
        {"rank_pattern": {r"([a-z_.0-9]+)+!": 4}},
        {"alpha_pattern": {r"([a-z_.0-9]+)+!": 4}},
        {"layers_pattern": r"([a-z_.0-9]+)+!", "layers_to_transform": (0,)},
        {"modules_to_save": (r"([a-z_.0-9]+)+!",)},
    ],
)
def test_in_every_field_that_holds_expressions(fields: dict[str, object]) -> None:
    adapter = AdapterConfig(("q_proj",), r=4, **fields)  # type: ignore[arg-type]
    with pytest.raises(BenchError, match=f"{next(iter(fields))} .*PEFT would hang"):
        check_patterns(adapter.expressions(), NAMES)


@pytest.mark.usefixtures("_at_once")
def test_a_list_holds_names_which_hang_nothing() -> None:
    """PEFT compares them as they are, but where tied weights are looked for among them."""
    bomb = BOMBS["a repeat in a repeat"]
    fields = {"exclude_modules": (bomb,), "r": 4}
    check_patterns(AdapterConfig((bomb, "q_proj"), **fields).expressions(), NAMES)
    tied = AdapterConfig((bomb, "q_proj"), ensure_weight_tying=True, **fields)
    with pytest.raises(BenchError, match=r"target_modules .*PEFT would hang"):
        check_patterns(tied.expressions(), NAMES)


def test_a_list_with_a_bomb_is_answered(tmp_path: Path) -> None:
    write_model(tmp_path)
    with pytest.raises(AssertionError, match="reaches nothing"):
        check_targets(str(tmp_path), {"target_modules": [BOMBS["a repeat in a repeat"], "q_proj"]})


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q|v)_proj",
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|mlp).*?(?:q_proj|down_proj).*?)",
        r"(model\.)?layers\.(\d+\.)*self_attn\.q_proj",
    ],
)
def test_expressions_that_people_write_pass(pattern: str) -> None:
    check_patterns(AdapterConfig(pattern, r=4).expressions(), NAMES)


def test_a_users_check_does_not_hang(tmp_path: Path) -> None:
    write_model(tmp_path)
    with pytest.raises(BenchError, match="PEFT would hang on it too"):
        check_targets(str(tmp_path), {"target_modules": BOMBS["a repeat in a repeat"]})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 10**8}, "num_hidden_layers is 100,000,000"),
        ({"text_config": {"num_experts": 10**9}}, "text_config: num_experts is 1,000,000,000"),
        ({"depths": [2, 10**8]}, "depths is 100,000,002"),
    ],
)
def test_more_layers_than_anybody_has(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    write_model(tmp_path, **changes)
    with pytest.raises(BenchError, match=said):
        find_model(str(tmp_path))


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    for name in (str(tmp_path), str(tmp_path / "config.json"), "/dev/zero"):
        with pytest.raises(BenchError, match="not a regular file"):
            find_model(name)
    with pytest.raises(BenchError, match="not a regular file"):
        AdapterConfig.from_file(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(" * 3000 + "a" + ")" * 3000, "nested too deeply"),
        ("a{99999999999}", "is not a regular expression: the repetition number is too large"),
        ("a|" * 30_000 + "b", "it has 60,001 characters, and 50,000 is most"),
    ],
    ids=["deep", "large", "long"],
)
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern"])
def test_an_expression_that_python_does_not_compile(field: str, pattern: str, said: str) -> None:
    fields: dict[str, object] = {"target_modules": ["q_proj"]}
    fields[field] = {pattern: 4} if field == "rank_pattern" else pattern
    with pytest.raises(BenchError, match=re.escape(said).replace("60,001", "[0-9,]+")) as refused:
        AdapterConfig.from_dict(fields)
    assert len(str(refused.value)) < 400


def test_one_that_takes_long_to_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Python makes of it: the process that compiles it first does not come back."""
    monkeypatch.setattr("bench.adapters.patterns._TRY", "import time\nwhile True: pass")
    monkeypatch.setattr("bench.adapters.patterns._WALL_SECONDS", 0.2)
    with pytest.raises(BenchError, match="PEFT would hang on it too"):
        AdapterConfig(r"((b{1,9999}){1,9999}){1,9999}")


def test_a_pipe_is_no_page_and_no_weights(tmp_path: Path) -> None:
    from bench.cli import main
    from bench.saved.header import read_header

    pipe = tmp_path / "adapter_model.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(BenchError, match="not a regular file"):
        read_header(pipe)
    assert main(["atlas", "--page", str(pipe)]) == 2


def test_no_repeat_of_a_repeat_is_offered_back(tmp_path: Path) -> None:
    """It fits no name as it stands, and would fit wrapped: what it is offered in is no better."""
    write_model(tmp_path)
    table = find_model(str(tmp_path)).table
    bare = match(table, AdapterConfig(r"(q_proj|v_proj)"))
    assert bare.entries[0].suggestion == r".*\.(q_proj|v_proj)"
    ledger = match(table, AdapterConfig(r"((q_proj|v_proj){1,9999}){1,9999}"))
    assert ledger.dead_entries
    assert ledger.entries[0].suggestion == ""
    assert fitting(r".*\.(q|v)_proj", table.by_name) == [
        f"model.layers.{n}.self_attn.{p}_proj" for n in (0, 1) for p in "qv"
    ]
    assert fitting("(", table.by_name) == fitting(r"([a-z_.0-9]+)+!", table.by_name) == []
