"""The other methods on the command line: no value is misread and no option ignored."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from method_models import COMMON, CONFIGS, counted_of, model_called

from bench.cli import main
from bench.formulas.kinds import METHODS, UNCOUNTED
from bench.formulas.methods import method, method_parameters
from bench.formulas.settings import check_settings, type_of
from bench.models.architectures import Model

LLAMA = {"model_type": "llama", **COMMON, **CONFIGS["llama"][0],
         "architectures": ["LlamaForCausalLM"]}  # fmt: skip


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`bench COMMAND` on a small Llama: the exit status and all that is printed."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))

    def run(name: str, *options: str) -> tuple[int, str]:
        status = main([name, str(tmp_path), *options])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def test_method_command(command: Callable[..., tuple[int, str]]) -> None:
    table = model_called("llama").table
    status, said = command("targets", *options_of("ia3"), "--json")
    assert status == 0
    answer = json.loads(said)
    found = method_parameters(table, method("ia3"))
    assert answer["trainable_parameters"] == found.trainable
    assert answer["terms"][0]["name"] == "ia3"
    status, said = command("targets", *options_of("prompt-tuning", "num_virtual_tokens=7"))
    assert (status, f"trainable {7 * 64:,}" in said) == (0, True)
    status, said = command("methods", "--budget", "5000", "--target-modules", "q_proj")
    assert (status, said.count("\n")) == (0, len(METHODS) + 2)
    status, said = command("targets", *options_of("ia3", "r"))
    assert (status, "FIELD=VALUE" in said) == (2, True)
    assert command("targets", *options_of("ia3", "rank=8"))[0] == 2


def options_of(name: str, *settings: str) -> list[str]:
    return ["--method", name, *(part for one in settings for part in ("--set", one))]


def test_every_setting_has_a_type() -> None:
    """And its default is of that type."""
    for name, kind in METHODS.items():
        assert all(type_of(name, field) for field in kind.settings), name
        check_settings(name, kind.settings)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("trainable-tokens", "token_indices=abcdef"),
        ("trainable-tokens", "token_indices=1,b"),
        ("trainable-tokens", "token_indices=[1.5]"),
        ("trainable-tokens", "token_indices=-1"),
        ("trainable-tokens", "token_indices=null"),
        ("prefix-tuning", "num_virtual_tokens=abc"),
        ("prefix-tuning", "num_virtual_tokens=0"),
        ("prefix-tuning", "prefix_projection=1"),
        ("prefix-tuning", "init_weights=one"),
        ("prompt-tuning", "prompt_tuning_init=TEXT"),
        ("oft", "oft_block_size=ab"),
        ("oft", "oft_block_size=-4"),
        ("lokr", "decompose_factor=x"),
        ("lokr", "decompose_both=maybe"),
        ("lokr", "r=true"),
        ("p-tuning", "encoder_reparameterization_type=XX"),
        ("p-tuning", "encoder_hidden_size=0"),
        ("loha", "r=2.5"),
        ("loha", "r=null"),
        ("loha", f"r={'9' * 5000}x"),
        ("loha", "rank_dropout=2"),
        ("loha", "alpha=NaN"),
        ("adalora", "beta1=1"),
        ("fourierft", "random_loc_seed=null"),
        ("ia3", "feedforward_modules=re:("),
        ("ia3", "feedforward_modules=[7]"),
        ("ia3", "task_type=XX"),
        ("ia3", "target_modules=[7]"),
    ],
)
def test_a_value_of_another_type(
    command: Callable[..., tuple[int, str]], name: str, setting: str
) -> None:
    """Exit status 2, and the field by its name."""
    status, said = command("targets", *options_of(name, setting))
    assert status == 2
    assert setting.partition("=")[0].replace("task_type", "task type") in said


@pytest.mark.parametrize(
    ("name", "settings", "fields"),
    [
        ("trainable-tokens", ["token_indices=1,2"], {"token_indices": [1, 2]}),
        ("trainable-tokens", ["token_indices=[1,2,3]"], {"token_indices": [1, 2, 3]}),
        ("trainable-tokens", ["token_indices=7"], {"token_indices": [7]}),
        ("ia3", ["feedforward_modules=down_proj", "target_modules=k_proj,down_proj"],
         {"feedforward_modules": ["down_proj"], "target_modules": ["k_proj", "down_proj"]}),
        ("ia3", [r"feedforward_modules=re:.*\.1\..*", "target_modules=k_proj,down_proj"],
         {"feedforward_modules": r".*\.1\..*", "target_modules": ["k_proj", "down_proj"]}),
        ("loha", ["target_modules=q_proj", "layers_to_transform=1", "modules_to_save=lm_head"],
         {"target_modules": ["q_proj"], "layers_to_transform": [1],
          "modules_to_save": ["lm_head"]}),
        ("vera", ["target_modules=all-linear", "modules_to_save=null"],
         {"target_modules": "all-linear"}),
        ("lokr", ["target_modules=q_proj", "decompose_factor=0"],
         {"target_modules": ["q_proj"], "decompose_factor": 0}),
    ],
)  # fmt: skip
def test_lists_on_the_command_line(
    command: Callable[..., tuple[int, str]], name: str, settings: list[str], fields: dict
) -> None:
    """Between commas, as JSON, or a single one: what PEFT makes of the list."""
    status, said = command("targets", "--json", *options_of(name, *settings))
    assert status == 0
    answer = json.loads(said)
    found = answer["trainable_parameters"], answer["total_parameters"]
    assert found == counted_of(Model("llama", LLAMA, "LlamaForCausalLM"), name, **fields)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--method", "lora", "--adapter", "A.json"], "--adapter does not go with --method"),
        (["--method", "vera", "--scenario", "attention"], "--target-modules"),
        (["--method", "vera", "--target-parameters", "experts.down_proj"], "only LoRA"),
        (["--method", "vera", "--precision", "nf4"], "--precision does not go with --method"),
        (
            ["--method", "ia3", "--format", "markdown"],
            "--format markdown does not go with --method",
        ),
        (["--method", "ia3", "--plot", "reach.svg"], "--plot does not go with --method"),
        (["--method", "ia3", "--rank", "4"], "it has no rank"),
        (["--method", "oft", "--rank", "4"], "--set oft_block_size=N"),
        (["--method", "loha", "--rank", "0"], "r must be a whole number of at least 1"),
        (["--method", "loha", "--rank", "4", "--set", "r=4"], "given twice"),
        (["--method", "loha", "--set", "r=4", "--set", "r=5"], "given twice"),
        (["--method", "vera", "--exclude-modules", "q_proj"], "VeraConfig has no exclude_modules"),
        (["--method", "prefix-tuning", "--target-modules", "q_proj"], "no target_modules"),
        (["--method", "vera", "--target-modules", ""], "target_modules is empty"),
        (["--method", "full", "--task-type", "SEQ_CLS"], "does not go with --method full"),
        (["--method", "lora", "--set", "use_dora=true"], "adapter_config.json: --adapter"),
        (["--method", "x"], "unknown method"),
        (["--set", "r=4"], "--set goes with --method"),
    ],
)
def test_no_option_is_ignored(
    command: Callable[..., tuple[int, str]], options: list[str], wanted: str
) -> None:
    status, said = command("targets", *options)
    assert status == 2
    assert wanted in said


def test_options_that_a_method_honours(command: Callable[..., tuple[int, str]]) -> None:
    """The rank, excluded modules and the task's class: each as PEFT has it."""
    model = Model("llama", LLAMA, "LlamaForCausalLM")
    both = ["--json", "--target-modules", "q_proj,k_proj"]
    cases = {
        ("vera", "--rank", "4"): ({"r": 4}, model),
        ("adalora", "--rank", "4"): ({"init_r": 4}, model),
        ("loha", "--exclude-modules", "k_proj"): ({"exclude_modules": ["k_proj"]}, model),
        ("ia3", "--task-type", "SEQ_CLS"): (
            {"task_type": "SEQ_CLS"}, model.for_task("SEQ_CLS"),
        ),
    }  # fmt: skip
    for (name, *options), (given, built) in cases.items():
        status, said = command("targets", *both, "--method", name, *options)
        assert status == 0, said
        answer = json.loads(said)
        counted = counted_of(built, name, target_modules=["q_proj", "k_proj"], **given)
        assert (answer["trainable_parameters"], answer["total_parameters"]) == counted


def test_dead_entries_of_a_method(command: Callable[..., tuple[int, str]]) -> None:
    """Told always; a failure where --strict asks, unless the entry is optional."""
    asked = ["--method", "vera", "--target-modules", "q_proj,nope"]
    status, said = command("targets", *asked)
    assert (status, "nope: dead" in said) == (0, True)
    assert command("targets", *asked, "--strict")[0] == 1
    assert command("targets", *asked, "--strict", "--optional", "nope")[0] == 0
    status, said = command("targets", *asked, "--strict", "--json")
    assert (status, json.loads(said)["dead_entries"]) == (1, ["nope"])


def test_methods_command(command: Callable[..., tuple[int, str]]) -> None:
    """Wrong input is told once and for all methods; an entry that reaches nothing is named."""
    status, said = command("methods", "--budget", "1000", "--task-type", "XX")
    assert (status, "unknown task type" in said) == (2, True)
    status, said = command("methods", "--budget", "1000", "--target-modules", "nope,nor")
    assert (status, "nope, nor" in said) == (2, True)
    asked = ("--budget", "1000", "--target-modules", "q_proj,nope")
    for how, status in (((), 0), (("--strict",), 1), (("--strict", "--json"), 1)):
        assert command("methods", *asked, *how)[0] == status
    assert "nope: dead" in command("methods", *asked)[1]


def test_a_size_far_from_the_budget_is_said_in_multiples(
    command: Callable[..., tuple[int, str]],
) -> None:
    """2 · 64 numbers of a layer at r = 1, and a budget of 1: not a percentage of nine digits."""
    (lora,) = [line for line in command("methods", "--budget", "1", "--target-modules", "q_proj")[1]
               .splitlines() if line.split()[0] == "lora"]  # fmt: skip
    cells = re.split(r" {2,}", lora.strip())
    count = int(cells[2].replace(",", ""))
    assert cells == ["lora", "r=1", f"{count:,}", f"× {count:,}"]
    assert count % 128 == 0


def test_the_methods_that_are_left_out_are_named(
    command: Callable[..., tuple[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    said = command("methods", "--budget", "1000")[1]
    assert main(["list", "methods"]) == 0
    listed = capsys.readouterr().out
    for name in UNCOUNTED:
        assert name in said
        assert name in listed
    line = command("methods", "--budget", "1000", "--json")[1].splitlines()[0]
    assert set(json.loads(line)["methods_left_out"]) == UNCOUNTED


@pytest.mark.parametrize("digits", [30, 4000, 5000])
def test_a_number_without_end_is_told_in_short(
    command: Callable[..., tuple[int, str]],
    capsys: pytest.CaptureFixture[str],
    digits: int,
) -> None:
    number = "9" * digits
    for options in (["--rank", number], options_of("loha", f"r={number}")):
        try:
            status, said = command("targets", "--target-modules", "q_proj", *options)
        except SystemExit as error:  # argparse's own way to end
            status, said = int(str(error.code)), capsys.readouterr().err
        assert status == 2
        assert "999" in said
        assert len(said) < 300


def test_modules_that_are_trained_whole_are_told_up_to_six(
    command: Callable[..., tuple[int, str]],
) -> None:
    said = command("targets", "--target-modules", "q_proj", "--modules-to-save", "norm,_proj")[1]
    (line,) = [line for line in said.splitlines() if "trained whole:" in line]
    assert line.count(",") == 5
    assert re.search(r"and \d+ more \(--modules lists all\)$", line)
