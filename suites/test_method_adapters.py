"""Saved adapters of the other methods: the command that `bench check` prints, as it is given."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from method_models import COMMON, CONFIGS

from bench.cli import main

LLAMA = {"model_type": "llama", **COMMON, **CONFIGS["llama"][0],
         "architectures": ["LlamaForCausalLM"]}  # fmt: skip
TWO = {"target_modules": ["q_proj", "v_proj"]}
VIRTUAL = {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}
SAVED: dict[str, tuple[str, dict[str, Any]]] = {
    "adalora": ("AdaLoraConfig", {**TWO, "init_r": 5, "total_step": 7, "r": 3}),
    "loha": ("LoHaConfig", {**TWO, "r": 3, "rank_pattern": {"q_proj": 5}}),
    "lokr": ("LoKrConfig", {**TWO, "r": 2, "decompose_both": True, "layers_to_transform": [1]}),
    "vera": ("VeraConfig", {**TWO, "r": 4, "bias": "vera_only"}),
    "oft": ("OFTConfig", {**TWO, "r": 4, "oft_block_size": 0, "block_share": True}),
    "boft": ("BOFTConfig", {**TWO, "boft_block_size": 8}),
    "fourierft": ("FourierFTConfig", {**TWO, "n_frequency": 9, "n_frequency_pattern":
                                      {"q_proj": 7}}),
    "ia3": ("IA3Config", {"target_modules": ["k_proj", "down_proj"],
                          "feedforward_modules": ["down_proj"], "task_type": "SEQ_CLS"}),
    "ln-tuning": ("LNTuningConfig", {"target_modules": ["input_layernorm"],
                                     "modules_to_save": ["lm_head"]}),
    "trainable-tokens": ("TrainableTokensConfig", {"token_indices": [1, 4]}),
    "prefix-tuning": ("PrefixTuningConfig", {**VIRTUAL, "prefix_projection": True,
                                             "encoder_hidden_size": 6}),
    "prompt-tuning": ("PromptTuningConfig", {**VIRTUAL, "modules_to_save": ["norm"]}),
    "p-tuning": ("PromptEncoderConfig", {**VIRTUAL, "encoder_reparameterization_type": "LSTM"}),
}  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    model, adapter = tmp_path / "the model", tmp_path / "adapter"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA))
    return model, adapter


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAVED)
def test_the_printed_command_tells_what_peft_trains(
    name: str, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

    folder, adapter = folders
    peft_class, fields = SAVED[name]
    task = fields.get("task_type")
    auto = AutoModelForSequenceClassification if task == "SEQ_CLS" else AutoModelForCausalLM
    torch.manual_seed(0)
    network = auto.from_config(LlamaConfig(**LLAMA))
    made = peft.get_peft_model(network, getattr(peft, peft_class)(**fields))
    counts = made.get_nb_trainable_parameters()
    made.save_pretrained(adapter)

    assert main(["check", str(adapter), "--model", str(folder)]) == 2
    said = capsys.readouterr().err
    asked = shlex.split(re.findall(r"`bench ([^`]*)`", said)[0])
    assert main([*asked, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["trainable_parameters"], answer["total_parameters"]) == counts
    assert answer["dead_entries"] == []


def test_the_printed_command_takes_the_base_that_was_found(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of the file is looked for beside it; what was asked with belongs to the command."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (project / "base").mkdir(parents=True)
    elsewhere.mkdir()
    (project / "base" / "config.json").write_text(json.dumps(LLAMA))
    named = {"peft_type": "LOHA", "base_model_name_or_path": "base", **TWO}
    file = project / "adapter_config.json"
    file.write_text(json.dumps(named))
    monkeypatch.chdir(elsewhere)
    options = ["--auto-class", "AutoModel", "--trust-remote-code"]
    assert main(["check", str(file), *options]) == 2
    asked = shlex.split(re.findall(r"`bench ([^`]*)`", capfd.readouterr().err)[0])
    assert asked[1] == str(project / "base")
    assert asked[-3:] == options
    assert main([*asked, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["total_parameters"] > 0


def _written(adapter: Path, **values: Any) -> Path:
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps(values))
    return adapter


@pytest.mark.parametrize(
    ("values", "method", "options", "said"),
    [
        ({"peft_type": "LOHA"}, "lokr", [], "an adapter of LOHA, not of lokr"),
        ({"peft_type": "LOHA", "rr": 3}, "loha", [], "unknown field of loha in "),
        ({"peft_type": "ADALORA", "use_rslora": True, "total_step": 9, **TWO}, "adalora", [],
         "no closed form is known here of what use_rslora changes"),
        ({"peft_type": "LOHA", **TWO}, "loha", ["--target-modules", "q_proj"],
         "give one of --adapter, --target-modules"),
        ({"peft_type": "LOHA", "r": "x", **TWO}, "loha", [], "r must be"),
        ({"peft_type": "LORA", **TWO}, "lora-fa", [], "--adapter does not go with --method"),
    ],
)  # fmt: skip
def test_no_field_of_a_file_is_ignored(
    values: dict[str, Any], method: str, options: list[str], said: str,
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, adapter = folders
    asked = ["targets", str(folder), "--method", method]
    assert main([*asked, "--adapter", str(_written(adapter, **values)), *options]) == 2
    assert said in capsys.readouterr().err


def test_options_come_before_the_file(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, adapter = folders
    _written(adapter, peft_type="LOHA", r=3, **TWO)
    asked = ["targets", str(folder), "--json", "--method", "loha", "--adapter", str(adapter)]
    counts = []
    for options in ([], ["--rank", "6"], ["--set", "r=9"]):
        assert main([*asked, *options]) == 0
        counts.append(json.loads(capsys.readouterr().out)["trainable_parameters"])
    assert counts == [counts[0], 2 * counts[0], 3 * counts[0]]
