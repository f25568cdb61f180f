"""What a saved adapter was trained on: the targets in PEFT's file, and what never trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from model_folders import LLAMA, write_model

from bench.adapters.config import AdapterConfig
from bench.cli import main
from bench.targets import match

TYPES_AND_PARTS = (
    ("llama-CausalLM", ".*mlp.*"),
    ("mixtral-CausalLM", ".*self_attn.*"),
    ("qwen2_moe-CausalLM", ".*shared_expert.*"),
    ("qwen2_vl-ImageTextToText", ".*visual.*"),
    ("gemma3-ImageTextToText", ".*vision_tower.*"),
    ("whisper-SpeechSeq2Seq", r".*fc1"),
    ("bert-SequenceClassification", ".*attention.*"),
    ("gpt2-CausalLM", ".*mlp.*"),
    ("t5-Seq2SeqLM", ".*DenseReluDense.*"),
)
"""Small types, and an expression for a part that each has."""


def trained_llama(folder: Path, base: Path, layers: int = 2, **fields: object) -> Path:
    """An adapter of a tiny Llama as PEFT saves it, its base model named as the one at `base`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {**LLAMA, "num_hidden_layers": layers}
    del values["model_type"], values["architectures"]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **values))
    adapted = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **fields))
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base")


def test_an_adapter_that_repeats_layers_spoils_no_later_answer(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PEFT writes the number of layers that layer_replication makes into the model's config."""

    repeated = [[0, 2], [1, 2], [0, 1]]
    first = trained_llama(
        tmp_path / "repeated", llama, target_modules=["q_proj"], layer_replication=repeated
    )
    four = trained_llama(tmp_path / "four", llama, layers=4, target_modules=["q_proj"])
    sound = trained_llama(tmp_path / "sound", llama, target_modules=["q_proj"])
    check = ["check", "--no-gradients"]
    alone = main([*check, str(four)])
    assert "PEFT finds no place for 4" in capsys.readouterr().out
    assert alone == main([*check, str(first), str(four)]) == 1
    assert "PEFT finds no place for 4" in capsys.readouterr().out
    assert main([*check, str(first), str(sound)]) == 0


@pytest.mark.parametrize("exclude", [["down_proj"], ".*(mlp).*"])
@pytest.mark.parametrize("layers", [2, 3])
def test_all_linear_but_some_is_a_sound_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], exclude: list[str] | str, layers: int
) -> None:
    """PEFT saves "all-linear" as every layer's name, what exclude_modules leaves alone included, or
    twenty names and more as their endings; the same list is a fault where a person wrote it, and so
    is another one."""

    base = write_model(tmp_path / "base", num_hidden_layers=layers)

    def answers(folder: Path) -> tuple[int, int]:
        check = main(["check", "--no-gradients", "--weights", str(folder), "--model", str(base)])
        return check, main(["targets", str(base), "--adapter", str(folder), "--strict"])

    folder = trained_llama(
        tmp_path / "but", base, layers, target_modules="all-linear", exclude_modules=exclude
    )
    file = folder / "adapter_config.json"
    written = json.loads(file.read_text())
    assert len(written["target_modules"]) == (7 if layers == 3 else 14)
    assert answers(folder) == (0, 0)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("left out of all-linear: ") >= 2
    assert "reaches nothing" not in said
    file.write_text(json.dumps({**written, "inference_mode": False}))
    assert answers(folder) == (1, 1)
    given = ["k_proj", "q_proj", "down_proj"]
    few = trained_llama(
        tmp_path / "few", base, layers, target_modules=given, exclude_modules=exclude
    )
    assert answers(few) == (1, 1)
    said = " ".join(capsys.readouterr().out.split())
    assert f"down_proj reaches nothing: {layers} modules held out by exclude_modules" in said


@pytest.mark.parametrize("label", [t[0] for t in TYPES_AND_PARTS])
def test_what_peft_saves_of_all_linear_has_no_dead_entry(label: str) -> None:
    """Held out: a part that each type has; the list is as PEFT itself leaves it to be saved."""
    from small_types import small

    from bench.measure.counting import inject

    model, part = small(label), dict(TYPES_AND_PARTS)[label]
    asked = AdapterConfig("all-linear", exclude_modules=part)
    before = match(model.table, asked)
    config = inject(model.build(), asked).peft_config["default"].to_dict()
    names = sorted(config["target_modules"])
    values = {**config, "target_modules": names, "inference_mode": True}
    after = match(model.table, AdapterConfig.from_dict(values))
    assert [a.name for a in after.adapted] == [a.name for a in before.adapted]
    assert [e for e in after.entries if e.left_out]  # the part was there
    assert after.dead_entries == ()


def test_what_was_not_trained_is_said_and_no_more(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head that is trained whole changes something though every B is zero."""
    from safetensors.torch import load_file, save_file

    for beside in ([], ["lm_head"]):
        folder = trained_llama(
            tmp_path / f"a{len(beside)}", llama, target_modules=["q_proj"], modules_to_save=beside
        )
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        save_file({k: t * 0 if "lora_B" in k else t for k, t in tensors.items()}, file)
        assert main(["check", "--no-gradients", "--weights", str(folder)]) == 1
        said = " ".join(capsys.readouterr().out.split())
        assert ("this adapter was never trained, and changes nothing" in said) == (not beside)
    assert "the adapters of 2 modules were never trained, and change nothing; not looked" in said
    assert "beside them, 1 tensors: base_model.model.lm_head.weight" in said


def test_the_updates_of_experts_are_called_by_their_parameters() -> None:
    """As PEFT's own wrappers name the parameter that each of them adapts."""
    from peft.tuners.lora.layer import ParamWrapper
    from small_types import small

    from bench.measure.counting import inject
    from bench.models.roles import role_in_table
    from bench.saved.values import parameter_of

    model = small("mixtral-CausalLM")
    adapter = AdapterConfig(
        ("q_proj",), target_parameters=("gate.weight", "gate_up_proj", "down_proj")
    )
    network = inject(model.build(), adapter).get_base_model()
    nested: dict[str, list[str]] = {}
    wrapped = {n: m for n, m in network.named_modules() if isinstance(m, ParamWrapper)}
    for item in match(model.table, adapter).adapted:
        if item.parameter is not None:
            nested.setdefault(item.owner, []).append(item.name)
    assert len(wrapped) == 9
    roles = set()
    for name, module in wrapped.items():
        found = parameter_of(name, nested)
        owner = name.replace(".base_layer", "")
        assert found == f"{owner}.{module.parameter_name}"
        roles.add(role_in_table(model.table, found))
    assert roles == {"router", "gate_up", "down"}
    assert parameter_of("model.layers.0.self_attn.q_proj", nested).endswith("q_proj")


def test_a_saved_adapter_of_some_layers_is_not_all_linear(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PEFT takes layers beside a list alone: what reaches nothing is told, as of any other file."""

    base = write_model(tmp_path / "base", num_hidden_layers=2)
    folder = trained_llama(tmp_path / "one", base, target_modules=["q_proj"], layers_to_transform=1)
    assert main(["check", "--no-gradients", str(folder), "--model", "gpt2"]) == 1
    assert "q_proj reaches nothing" in " ".join(capsys.readouterr().out.split())
    assert main(["targets", "gpt2", "--adapter", str(folder), "--strict"]) == 1


def test_labels_of_a_head_that_no_task_type_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BART's and T5's are called otherwise than PEFT's task type has it, and XLNet's too."""
    import transformers
    from peft import LoraConfig, get_peft_model
    from tiny_models import COMMON, MODELS, OTHERS

    xlnet = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
    heads = {"bart": (OTHERS["bart"].config, "classification_head", "q_proj"),
             "t5": (MODELS["t5"].config, "classification_head", "q"),
             "xlnet": (xlnet, "logits_proj", "layer_1")}  # fmt: skip
    for name, (given, head, target) in heads.items():
        plain = {**COMMON, "model_type": name, **given}
        base = transformers.AutoModelForSequenceClassification.from_config(
            transformers.AutoConfig.for_model(**plain, num_labels=5)
        )
        config = LoraConfig(r=4, target_modules=[target], modules_to_save=[head])
        model = get_peft_model(base, config)
        folder = tmp_path / name
        model.save_pretrained(folder)
        write_model(folder, plain, architectures=[type(base).__name__])
        assert main(["check", str(folder), "--no-gradients", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["trainable_parameters"] == model.get_nb_trainable_parameters()[0]
        assert any(note.startswith("5 labels, as the head in") for note in found["notes"])


@pytest.mark.parametrize(("named", "around"), [("base", "base"), (None, "base"), ("gone", "base")])
def test_the_base_of_a_further_adapter_is_the_one_around_it(
    named: str | None, around: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PEFT writes the name that the model was loaded by into the configurations of all adapters,
    and their folders into one another."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    saved, second = tmp_path / "saved", tmp_path / "saved" / "second"
    values = {k: v for k, v in LLAMA.items() if k not in ("model_type", "architectures")}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **values))
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
    adapted.add_adapter("second", LoraConfig(r=2, target_modules=["v_proj"]))
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.ones_(parameter)
    adapted.save_pretrained(saved)
    for folder, name in ((saved, around), (second, named)):
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = name
        (folder / "adapter_config.json").write_text(json.dumps(config))
    write_model(saved / "base")
    assert main(["check", str(second), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["base_model"] == named
    assert found["model"] == "base"
    (saved / "base" / "config.json").unlink()
    assert main(["check", str(second), "--json"]) == 2
    assert str(saved / "base" / "config.json") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("inside", "written"),
    [
        ("saved", "adapter_config.json"),
        ("saved", "./adapter_config.json"),
        ("saved", "."),
        (".", "saved"),
        (".", "saved/adapter_config.json"),
        ("saved/base", ".."),
        ("saved/base", "../adapter_model.safetensors"),
    ],
)
def test_an_adapter_is_the_same_however_its_path_is_written(
    inside: str,
    written: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained_llama(tmp_path / "saved", Path("base"), target_modules=["q_proj", "gone"])
    write_model(tmp_path / "saved" / "base")
    monkeypatch.chdir(tmp_path / inside)
    assert main(["check", written, "--no-gradients", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "base"
    assert {e["entry"]: e["matched"] for e in found["entries"]} == {"q_proj": 2, "gone": 0}


@pytest.mark.parametrize(("init", "status"), [("pissa", 1), ("olora", 0), ("true", 0)])
def test_what_peft_refuses_on_quantized_weights(
    init: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file's own precision decides: `init_lora_weights` that needs floats, loaded in 4 bits."""
    file = tmp_path / "train.yaml"
    file.write_text(
        "base_model: facebook/opt-125m\nadapter: qlora\nload_in_4bit: true\nlora_r: 16\n"
        "lora_alpha: 32\nlora_target_modules: [q_proj]\nmicro_batch_size: 1\n"
        f"peft_init_lora_weights: {init}\n"
    )
    assert main(["check", str(file), "--no-gradients"]) == status
    refused = "needs weights in floats, and this one is quantized" in capsys.readouterr().out
    assert refused == bool(status)
    file.write_text(file.read_text().replace("adapter: qlora\nload_in_4bit: true", "adapter: lora"))
    assert main(["check", str(file), "--no-gradients"]) == 0


def test_dropped_layers_leave_the_total(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a configuration's file as of `bench targets`: the model that `layer_replication` makes."""
    values = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"]}
    values |= {"layer_replication": [[0, 4]], "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    assert main(["targets", "llama-3.2-1b", "--adapter", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    asked = ["check", str(tmp_path), "--model", "llama-3.2-1b", "--no-gradients", "--json"]
    assert main(asked) == 0
    found = json.loads(capsys.readouterr().out)
    names = ("trainable_parameters", "total_parameters")
    assert [found[n] for n in names] == [told[n] for n in names]


def test_what_has_no_closed_form_names_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of several: the others are told of as usual."""
    for name, init in (("plain", True), ("shared-out", "eva")):
        (tmp_path / name).mkdir()
        values = {"peft_type": "LORA", "target_modules": ["q_proj"], "init_lora_weights": init}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(values))
    paths = [str(tmp_path / name) for name in ("shared-out", "plain")]
    assert main(["check", *paths, "--model", "opt-125m", "--no-gradients"]) == 2
    said = capsys.readouterr()
    file = tmp_path / "shared-out" / "adapter_config.json"
    assert f"bench: error: {file}: no closed form for init_lora_weights='eva'" in said.err
    assert "trainable" in said.out
