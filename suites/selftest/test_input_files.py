"""Wrong files of architectures and scenarios are told with the file and the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cli import main
from bench.errors import BenchError
from bench.models.architectures import find_model
from bench.models.declared import load_architecture, registered
from bench.models.expressions import evaluate
from bench.scenarios.scenario import load_scenarios


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('role = "query"', 'rule = "query"', "unknown key"),
        ('role = "query"', 'role = "queery"', "did you mean query"),
        ('kind = "linear"', 'kind = "linar"', "did you mean linear"),
        ('count = "num_hidden_layers"', 'count = "num_hiden_layers"', "num_hidden_layers"),
        ('count = "num_hidden_layers"', 'count = "__import__(1)"', "only whole numbers"),
        ("[[projection]]", "[[projection", "not TOML"),
    ],
)
def test_wrong_architecture_file(tmp_path: Path, old: str, new: str, said: str) -> None:
    source = registered()["llama-3-8b"] / "architecture.toml"
    (tmp_path / "architecture.toml").write_text(source.read_text().replace(old, new))
    with pytest.raises(BenchError, match=said) as error:
        load_architecture(tmp_path).projections(find_model("llama-3-8b").fields)
    assert "projection" in str(error.value) or str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[scenario.a]\nroles = ["query"]\nrnak = 3', "'rnak'"),
        ('[scenario.a]\nroles = ["quary"]', "did you mean query"),
        ('[scenario.a]\nroles = ["query"]\nr = 0', "at least 1"),
        ('[scenario.a]\nroles = ["query"]\ntarget_modules = ["q"]', "either roles or"),
        ("[scenario.a]", "either roles or"),
        ("scenarios = 1", "'scenarios'"),
    ],
)
def test_wrong_scenario_file(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(BenchError, match=said) as error:
        load_scenarios(tmp_path)
    assert "mine.toml" in str(error.value)


@pytest.mark.parametrize("name", ["adapter_config.json", "mine.yaml"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"peft_type": "LORA", "target_modules": ["q"], "r": %s}' % ("9" * 5000),
         "it holds a whole number of more than 4,300 digits"),
        ("[" * 100_000, "it is nested too deeply"),
    ],
)  # fmt: skip
def test_what_python_cannot_hold_is_told_in_words(
    name: str, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback, and no word of Python's own settings."""
    file = tmp_path / name
    file.write_text(text)
    assert main(["check", str(file), "--model", "opt-125m"]) == 2
    assert capsys.readouterr().err == f"bench: error: {file}: not {NAMES[file.suffix]}: {said}\n"
    assert main(["targets", "opt-125m", "--adapter", str(file)]) == 2
    told = said if file.suffix == ".json" else "`bench check` takes training files"
    assert told in capsys.readouterr().err


NAMES = {".json": "JSON", ".yaml": "YAML"}


@pytest.mark.parametrize(
    "text", ["2 ** 9", "f(2)", "a.b", "[1]", "1.5", "'x'", "True", "1 if 1 else 2", "~1", "", "1 +"]
)
def test_expressions_are_arithmetic_only(text: str) -> None:
    with pytest.raises(BenchError, match="where"):
        evaluate(text, {"a": 1}, "where")


def test_expressions() -> None:
    fields = {"layers": 3, "width": 10}
    assert evaluate("2 * layers + width * (layers - 1) // 4", fields) == 11
    assert evaluate(7, {}) == 7
    with pytest.raises(BenchError, match="not a whole number"):
        evaluate("width // layers", fields)
    with pytest.raises(BenchError, match="did you mean layers"):
        evaluate("layer", fields)
