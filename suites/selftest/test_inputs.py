"""Wrong input gets a message that names the thing, status 2 and no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from model_folders import write_model

from bench.cli import main
from bench.cli.parser import make_parser
from bench.errors import BenchError
from bench.scenarios.subjects import Request, select
from bench.training.cases import StepOptions


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = tmp_path / "my-llama"
    return write_model(folder)


@pytest.fixture
def refused(capsys):
    """Run a command that must end with status 2; gives its message."""

    def run(*arguments: object) -> str:
        assert main([str(a) for a in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert captured.err.startswith("bench: error: ")
        return captured.err

    return run


def test_unknown_architecture_offers_the_nearest(refused) -> None:
    assert "'lama-3-8b': did you mean llama-3-8b" in refused("targets", "lama-3-8b")


def test_unknown_scenario_offers_the_nearest(refused) -> None:
    message = refused("targets", "gpt2", "--scenario", "query-key-valve")
    assert "unknown scenario 'query-key-valve': did you mean query-key-value" in message


def test_scenario_without_its_roles(refused) -> None:
    message = refused("targets", "gpt2", "--scenario", "query")
    assert "wants role query, which gpt2 does not have" in message
    assert "fuses query, key, value" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no model's folder: it holds no config.json"),
        ("{", "config.json: not JSON"),
        ("[1]", "has no model_type"),
        ('{"hidden_size": 3}', "has no model_type"),
        ('{"model_type": "lama"}', "unknown model_type in my-llama: 'lama': did you mean llama"),
        ('{"model_type": "llama", "num_attention_heads": "many"}', "refuses the config"),
    ],
)
def test_wrong_config(llama: Path, refused, content: str | None, said: str) -> None:
    config = llama / "config.json"
    config.unlink()
    if content is not None:
        config.write_text(content)
    assert said in refused("targets", llama, "--target-modules", "q_proj")


def test_remote_code_is_refused(llama: Path, refused) -> None:
    values = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
    (llama / "config.json").write_text(json.dumps(values))
    assert "--trust-remote-code" in refused("targets", llama, "--target-modules", "q_proj")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target-modules", "q_proj", "--rank", "0"], "r must be a whole number of at least 1"),
        (["--target-modules", "q_proj", "--rank", "9999999"], "r is 9,999,999: no layer is that"),
        (["--target-modules", "re:(q_proj"], "'(q_proj' is not a regular expression"),
        (["--target-modules", ""], "target_modules is empty"),
        (["--target-modules", "q_proj", "--task-type", "MULTIPLE_CHOICE"],
         "unknown task type 'MULTIPLE_CHOICE'"),
        (["--target-modules", "q_proj", "--auto-class", "AutoModelForCausalML"],
         "did you mean AutoModelForCausalLM"),
    ],
)  # fmt: skip
def test_wrong_option(llama: Path, refused, options: list[str], said: str) -> None:
    assert said in refused("targets", llama, *options)


@pytest.mark.parametrize(
    "options",
    [
        ("methods", "opt-350m", "--budget", "99999999999999"),
        *(("learn", f"--{name}", "99999999999")
          for name in ("seeds", "steps", "batch-size", "seq-len", "workers")),
        ("learn", "--seeds", "1" * 5000),
        ("targets", "opt-350m", "--rank", "1" * 5000),
        ("targets",),
        ("nothing",),
    ],
)  # fmt: skip
def test_what_the_parser_refuses_is_one_line(options: tuple[str, ...], capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(options))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert len(said) < 500
    assert ("is most" in said) == ("999" in options[-1])
    assert ("at most 20 digits" in said) == ("--rank" in options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--adapter", "a", "--target-modules", "b"), "give one of --adapter, --target-modules"),
        (("--target-modules", "q_proj", "--rank", "-3"), "r must be a whole number"),
        (("--target-modules", "q_proj", "--task-type", "FOO"), "unknown task type"),
        (("--target-modules", "("), "is not a regular expression"),
        (("--scenario", "qeury"), "unknown scenario 'qeury'"),
    ],
)
@pytest.mark.parametrize("command", ["targets", "memory"])
def test_a_configuration_is_checked_before_the_model(
    refused, command: str, options: tuple[str, ...], said: str
) -> None:
    assert said in refused(command, "./nowhere", *options)


def test_nothing_is_no_name(llama: Path, refused, monkeypatch, capsys) -> None:
    """As from a variable that is not set: it means neither this folder nor the latest run."""
    (llama / "results").mkdir()
    monkeypatch.chdir(llama)
    assert "the model's name is empty" in refused("targets", "", "--target-modules", "q_proj")
    for asked in (("report", ""), ("compare", "", ""), ("accept", "", "--reason", "x")):
        assert "the name of a stored run is empty" in refused(*asked)
    for paths in (("check", ""), ("targets", "my-llama", "--adapter", "")):
        with pytest.raises(SystemExit):
            main([*paths])
        assert "expected a path, found nothing" in capsys.readouterr().err


def test_no_option_takes_nothing(capsys) -> None:
    """A variable that is not set would leave out what it was to ask for, such as `--gpu`."""
    parsers = make_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    taken, refused = [], 0
    for command, parser in parsers.items():
        wanted = ["x" for a in parser._actions if not a.option_strings and a.nargs is None]
        options = [
            a.option_strings[-1] for a in parser._actions if a.option_strings and a.nargs != 0
        ]
        for option in options:
            try:
                parser.parse_args([*wanted, option, ""])
                taken.append(f"{command} {option}")
            except BenchError as error:
                refused += "target_modules is empty" in str(error)
            except SystemExit as ended:
                refused += ended.code == 2 and option in capsys.readouterr().err
    assert taken == ["learn --compare", "learn --read"]  # the latest run, as without a value
    assert refused > 100


@pytest.mark.parametrize("field", ["target_modules", "rank_pattern", "layers_to_transform"])
def test_more_entries_than_any_model_has_layers(llama: Path, refused, field: str) -> None:
    values: dict[str, object] = {
        "target_modules": [f"layers.{n}" for n in range(10_001)],
        "rank_pattern": {f"layers.{n}": 4 for n in range(10_001)},
        "layers_to_transform": list(range(10_001)),
    }
    file = llama / "adapter_config.json"
    adapter = {"peft_type": "LORA", "target_modules": ["q_proj"], field: values[field]}
    file.write_text(json.dumps(adapter))
    assert f"{field} has 10,001 entries: 10,000 is most" in refused("targets", llama)


def test_a_misspelt_optional_entry_makes_nothing_optional(llama: Path, refused, capsys) -> None:
    named = ["--target-modules", "q_proj,fc3", "--rank", "4"]
    assert "did you mean fc3" in refused("targets", llama, *named, "--optional", "fc33")
    assert main(["targets", str(llama), *named, "--optional", "fc3", "--strict"]) == 0
    assert "fc3     reaches nothing" in capsys.readouterr().out
    methods = ["--method", "ia3", "--target-modules", "q_proj", "--optional", "q_porj"]
    assert "did you mean q_proj" in refused("targets", llama, *methods, "--set",
                                            "feedforward_modules=q_proj")  # fmt: skip
    request = Request(models=(str(llama),), target_modules=("q_proj",), optional=("k_porj",))
    with pytest.raises(BenchError, match="unknown entry in --optional: 'k_porj'"):
        select(request)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": -2}, "num_hidden_layers is -2: it cannot be less than 0"),
        ({"num_attention_heads": -4}, "num_attention_heads is -4"),
        ({"text_config": {"intermediate_size": -1}}, "text_config: intermediate_size is -1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0: such a model has nothing to adapt"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0: it must be at least 1"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0: it must be at least 1"),
        ({"text_config": {"num_attention_heads": 0}}, "text_config: num_attention_heads is 0"),
        ({"num_hidden_layers": 2001}, "num_hidden_layers is 2,001: no model has more than 2,000"),
        ({"text_config": {"n_layer": 2001}}, "text_config: n_layer is 2,001: no model has more"),
        ({"encoder_layers": 2001}, "encoder_layers is 2,001: no model has more than 2,000"),
        ({"depths": [1000, 1001]}, "depths is 2,001: no model has more than 2,000"),
        ({"num_layers": [1000, 1001]}, "num_layers is 2,001: no model has more than 2,000"),
        ({"num_local_experts": 20_001}, "num_local_experts is 20,001: no model has more"),
        ({"architectures": 5}, "architectures must be a list of names, not 5"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of names, not 'Ll"),
        ({"architectures": [5]}, "architectures must be a list of names, not [5]"),
        ({"auto_map": ["x"]}, "auto_map must be a table of names, not ['x']"),
        ({"num_labels": 10**12}, "num_labels is 1,000,000,000,000: 1,000,000 is most"),
    ],
)
def test_an_impossible_model(llama: Path, refused, changes: dict[str, object], said: str) -> None:
    write_model(llama, **changes)
    assert said in refused("targets", llama, "--target-modules", "q_proj")


def test_which_layers_are_not_how_many(llama: Path, capsys) -> None:
    """Three layers by their numbers, of a model that could have them."""
    write_model(llama, mlp_only_layers=[900, 901, 902], num_local_experts=4096)
    assert main(["targets", str(llama), "--target-modules", "q_proj"]) == 0


def test_a_refusal_of_transformers_is_one_line(llama: Path, refused) -> None:
    write_model(llama, hidden_size="x")
    assert refused("targets", llama, "--target-modules", "q_proj").count("\n") == 1


def test_numbers_and_names_without_end_are_told(llama: Path, refused) -> None:
    (llama / "config.json").write_text('{"model_type": "llama", "hidden_size": ' + "1" * 9999 + "}")
    assert "not JSON" in refused("targets", llama, "--target-modules", "q_proj")
    assert len(refused("targets", "x" * 100_000)) < 2000


def test_somebody_elses_tool_table_is_theirs(tmp_path: Path, monkeypatch, refused) -> None:
    monkeypatch.chdir(tmp_path)
    project = tmp_path / "pyproject.toml"
    project.write_text('tool.bench = "theirs"\ntool.lora-target-bench = 5\n')
    asked = ("targets", "opt-125m", "--target-modules", "q_proj")
    assert "tool.lora-target-bench: expected a table" in refused(*asked)
    project.write_text("tool.bench.thresholds = [1]\n")
    assert "tool.bench.thresholds: expected a table" in refused("compare", "a", "b")


def test_a_slip_in_the_name_of_a_table_is_told(tmp_path: Path, monkeypatch, refused) -> None:
    """What it holds would not act; another tool's table is none of ours."""
    monkeypatch.chdir(tmp_path)
    project = tmp_path / "pyproject.toml"
    asked = ("targets", "opt-125m", "--target-modules", "q_proj")
    for slip in ("lora_target_bench", "lora-target-benchs", "Lora-Target-Bench"):
        project.write_text(f"[tool.{slip}]\nminimum-coverage = 0.9\n")
        assert f"unknown table {slip}: did you mean lora-target-bench?" in refused(*asked)
    project.write_text('[tool.bench.threshold]\nstep_seconds = "5%"\n')
    assert "unknown table threshold: did you mean thresholds?" in refused("compare", "a", "b")
    project.write_text("[tool.benches.threshold]\n[tool.lora]\n[tool.target-benchmark]\n")
    assert main([*asked]) == 0


def test_what_libraries_warn_of_is_not_shown() -> None:
    code = (
        "import warnings, bench.cli.list\n"
        "bench.cli.list.run = lambda options: warnings.warn('of a library') or 0\n"
        "from bench.cli import main\n"
        "main(['list', 'models'])"
    )
    for options, shown in (([], False), (["-W", "always"], True)):
        done = subprocess.run(
            [sys.executable, *options, "-c", code], capture_output=True, text=True, check=True
        )
        assert ("of a library" in done.stderr) == shown


@pytest.mark.parametrize("way", ["adapter", "scenario"])
def test_parameters_beside_a_whole_configuration(llama: Path, refused, way: str) -> None:
    """Both name the parameters: neither is dropped without a word."""
    options = [f"--{way}", "file.json", "--target-parameters", "q_proj.weight"]
    message = refused("targets", llama, *options)
    assert f"--target-parameters goes with --target-modules, not with --{way}" in message


def test_excluded_by_a_regular_expression(llama: Path, capsys) -> None:
    options = ["--target-modules", "q_proj", "--exclude-modules", r"re:.*layers\.0\..*"]
    assert main(["targets", str(llama), *options, "--json", "--strict"]) == 0
    assert json.loads(capsys.readouterr().out)["adapted_layers"] == 1


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": "LORA", "r": 8, "target_modules": []}, "target_modules is empty"),
        ({"peft_type": "LORA", "r": -1, "target_modules": ["q_proj"]}, "r must be"),
        ({"peft_type": "LORA", "target_modules": ["q_proj"], "arrow_config": {"a": 1}},
         "arrow_config"),
    ],
)  # fmt: skip
def test_wrong_adapter(llama: Path, refused, adapter: dict, said: str) -> None:
    file = llama / "adapter_config.json"
    file.write_text(json.dumps(adapter))
    message = refused("targets", llama, "--adapter", file)
    assert said in message
    assert str(file) in message


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("target_modules", [1], "a list of names"),
        ("target_modules", {"q_proj": 1}, "a list of names"),
        ("target_modules", ["q_proj", ""], "expression, and one is empty: ['q_proj', '']"),
        ("target_modules", ["", 1], "expression, not ['', 1]"),
        ("modules_to_save", [""], "must be a list of names, and one is empty: ['']"),
        ("modules_to_save", "lm_head", "a list of names"),
        ("modules_to_save", ["["], "'[' is not a regular expression"),
        ("target_parameters", [3], "a list of names"),
        ("exclude_modules", "(", "'(' is not a regular expression"),
        ("rank_pattern", {"[": 4}, "'[' is not a regular expression"),
        ("rank_pattern", {"q_proj": "x"}, "whole numbers of at least 1"),
        ("rank_pattern", [1], "names with whole numbers"),
        ("alpha_pattern", {"q_proj": "x"}, "names with numbers"),
        ("layers_to_transform", ["a"], "a layer's index"),
        ("layers_to_transform", [0.5], "a layer's index"),
        ("trainable_token_indices", [-1], "token indices"),
        ("trainable_token_indices", {"x": "y"}, "token indices"),
        ("layer_replication", [["a", 1]], "start < end"),
        ("layer_replication", [[0, 99]], "layers 0 to 1"),
        ("use_dora", "yes", "true or false"),
        ("lora_alpha", "x", "a number"),
        ("lora_dropout", 2, "from 0 to 1"),
        ("init_lora_weights", "pisssa", "did you mean pissa"),
        ("init_lora_weights", 7, "true, false or a name"),
        ("use_bdlora", 3, "an object with fields of its own"),
    ],
)
def test_wrong_adapter_value(llama: Path, refused, field: str, value: object, said: str) -> None:
    file = llama / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "LORA", "target_modules": ["q_proj"], field: value}))
    message = refused("targets", llama)
    assert field in message
    assert said in message


def test_real_weights_must_be_one_models_and_safetensors(llama: Path) -> None:
    request = Request(models=(str(llama),), target_modules=("q_proj",), weights=llama)
    with pytest.raises(BenchError, match=r"no \*\.safetensors file"):
        select(request)
    (llama / "model.safetensors").touch()
    (measured, *_) = select(request).measured.values()
    assert measured.case(StepOptions()).weights == str(llama)
    assert measured.measured_key.endswith("-real-weights")
    with pytest.raises(BenchError, match="exactly one --model"):
        select(replace(request, models=()))


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"benchmarks": [], "machine_info": {}}', '{"a": 1}'],
    ids=["empty", "truncated", "plain-pytest-benchmark", "foreign"],
)
def test_corrupt_baseline(tmp_path: Path, refused, content: str) -> None:
    path = tmp_path / "0001_run.json"
    path.write_text(content)
    assert str(path) in refused("report", path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_output_that_cannot_be_written_is_told() -> None:
    command = [sys.executable, "-m", "bench", "report", "--format", "csv"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "bench: error: the output was not written: No space left on device\n"
