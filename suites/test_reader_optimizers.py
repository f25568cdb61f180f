"""One rule for optimizers, over all tools: predicted by the name here, or said and not predicted;
and the dtypes that a step is in, where a tool takes them from others of its keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from model_folders import LLAMA, write_model
from test_reader_choices import BY_TOOL, OPTIMIZER, refused, without_optimizer
from test_reader_steps import FILES, TOOLS, predicted, step_of

from bench.check.answer import Question, check
from bench.errors import BenchError, UnknownName
from bench.readers import read_recipe
from bench.readers.recipe import RecipeStep
from bench.training.options import OPTIMIZERS, optimizer_name

# LitGPT's, of torch.optim.
OF_TORCH = ("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "Muon",
            "NAdam", "RAdam", "RMSprop", "Rprop", "SGD", "SparseAdam")  # fmt: skip


def asked(tool: str) -> list[str]:
    """Every way in which a file of the tool names an optimizer, as lines of it."""
    key, reader = OPTIMIZER[tool], BY_TOOL[tool]
    names = reader.choices.get(key) or (*OF_TORCH, *(f"torch.optim.{n}" for n in OF_TORCH),
                                        "bitsandbytes.optim.PagedAdamW", "mine.AdamW")  # fmt: skip
    lines = [f"{key}: {name}\n" for name in names]
    if not reader.choices.get(key):
        lines += [f"{key}: {{class_path: {name}}}\n" for name in names if "." in name]
    values = {"optimizer": ("galore", "muon", "muonclip", "own", "lorap", "multimodal")}
    for other in reader.optimizers:
        lines += [f"{other}: {value}\n" for value in values.get(other, ("true",))]
    return lines


def known(name: str) -> str:
    try:
        return optimizer_name(name)
    except UnknownName:
        return ""


@pytest.mark.parametrize("tool", TOOLS)
def test_an_optimizer_is_predicted_or_said_not_to_be(tool: str, tmp_path: Path) -> None:
    seen = set()
    for line in asked(tool):
        (key, value), *_ = yaml.safe_load(line).items()
        name = str(value["class_path"] if isinstance(value, dict) else value)
        text = without_optimizer(tool) + line
        if refusal := refused(tmp_path, text):  # for full weights alone
            assert key in refusal, line
            assert f"{tool} refuses it" in refusal, line
            continue
        step = _read(tmp_path, text)
        said = [note for note in step.notes if re.match(r"optimizer .* is not predicted", note)]
        assert bool(said) == (step.optimizer == ""), line
        assert step.optimizer == "" or step.optimizer in OPTIMIZERS, line
        if key != OPTIMIZER[tool]:
            assert (step.optimizer == "") == (name not in ("lorap", "multimodal")), line
        elif tool == "LitGPT":
            ours = ("AdamW", "torch.optim.AdamW", "bitsandbytes.optim.PagedAdamW")
            assert step.optimizer == ("adamw" if name in ours else ""), line
        else:
            assert step.optimizer == known(name), line
        seen.add(step.optimizer)
    assert {"", "adamw"} <= seen or tool == "ms-swift"


def _read(folder: Path, text: str) -> RecipeStep:
    write_model(folder, LLAMA, max_position_embeddings=64)
    path = folder / "train.yaml"
    path.write_text(text)
    step = read_recipe(path).step
    assert step is not None
    return step


@pytest.mark.parametrize(
    ("tool", "line"),
    [("axolotl", "optimizer: muon\n"), ("TRL", "optim: lomo\n"), ("LitGPT", "optimizer: SGD\n"),
     ("LitGPT", "optimizer: {class_path: mine.AdamW}\n"), ("LLaMA-Factory", "optim: lomo\n"),
     ("LLaMA-Factory", "use_muon: true\n"), ("LLaMA-Factory", "use_adam_mini: true\n"),
     ("ms-swift", "optim: lomo\n"), ("ms-swift", "optimizer: muon\n"),
     ("ms-swift", "use_galore: true\n")],
)  # fmt: skip
def test_a_step_with_an_optimizer_that_is_not_predicted_fails(
    tool: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = predicted(tmp_path, without_optimizer(tool) + line, capsys)
    assert status == 1
    assert re.search(r"optimizer .* is not predicted", said)


@pytest.mark.parametrize(
    "line",
    ["optimizer: torch.optim.Banana\n", "optimizer: {class_path: torch.optim.Banana}\n",
     "optimizer: {class_path: AdamW}\n", "optimizer: {class_path: Banana}\n"],
)  # fmt: skip
def test_a_class_that_torch_does_not_have_is_refused(line: str, tmp_path: Path) -> None:
    said = refused(tmp_path, without_optimizer("LitGPT") + line)
    assert re.search(r"line 5: optimizer(\.class_path)? (torch\.optim\.)?\w+: LitGPT refuses", said)


def test_optimizers_of_litgpt_are_those_of_torch_by_their_path(tmp_path: Path) -> None:
    import torch

    for name in OF_TORCH:
        assert issubclass(getattr(torch.optim, name), torch.optim.Optimizer)
        text = f"{FILES['LitGPT']}optimizer: {{class_path: torch.optim.{name}}}\n"
        assert refused(tmp_path, text) == ""


PRECISIONS = {"bf16-true", "bf16-mixed", "16-true", "16-mixed", "32-true", "64-true", "bf16", "16",
              "32", "64", "transformer-engine", "transformer-engine-float16"}  # fmt: skip


def test_the_precisions_of_litgpt_are_those_of_fabric(tmp_path: Path) -> None:
    fabric = None
    for package in ("lightning.fabric", "lightning_fabric"):
        try:
            fabric = __import__(f"{package}.plugins.precision.precision", fromlist=["x"])
            break
        except ImportError:
            continue
    if fabric is not None:
        from typing import get_args

        texts = get_args(fabric._PRECISION_INPUT_STR) + get_args(fabric._PRECISION_INPUT_STR_ALIAS)
        assert set(texts) == PRECISIONS
    for name in PRECISIONS:
        assert refused(tmp_path, f"{FILES['LitGPT']}precision: '{name}'\n") == "", name
    for name in ("banana", "bf16_true", "8", ""):
        said = refused(tmp_path, f"{FILES['LitGPT']}precision: '{name}'\n")
        assert "line 5: precision must be one of bf16-true, bf16-mixed, " in said, name


# torch_dtype, what the config.json says, bf16, fp16 → precision and autocast, or a refusal; after
# `_init_mixed_precision` of ms-swift 4.6.0.
SWIFT = [
    ("bfloat16", None, "", ("bf16", "bf16")),
    ("float16", None, "", ("fp16", "fp16")),
    ("float32", None, "", ("fp32", "fp16")),
    ("torch.float16", None, "fp16:\nbf16:\n", ("fp16", "fp16")),
    ("float16", None, "fp16: false\n", ("fp16", None)),
    ("float32", None, "fp16: false\nbf16: true\n", ("fp32", "bf16")),
    ("bfloat16", None, "bf16: false\n", ("bf16", None)),
    ("bfloat16", None, "bf16: false\nfp16: true\n", ("bf16", "fp16")),
    ("bfloat16", None, "fp16: true\n", "bf16 is on for this torch_dtype"),
    ("float32", None, "bf16: true\n", "fp16 is on for this torch_dtype"),
    (None, "bfloat16", "", ("bf16", "bf16")),
    (None, "float16", "", ("fp16", "fp16")),
    (None, "float32", "", ("fp32", "fp16")),
    ("bfloat16", "float16", "", ("bf16", "bf16")),
    (None, "float16", "fp16: true\n", ("fp16", "fp16")),
    (None, "bfloat16", "fp16: true\n", "line 6: fp16: ms-swift refuses it on this model: bf16 is"),
    (None, "float32", "bf16: true\n", "line 6: bf16: ms-swift refuses it on this model: fp16 is"),
    (None, "bfloat16", "bf16: false\nfp16: true\n", ("bf16", "fp16")),
    (None, None, "", ("bf16", "bf16")),
]


@pytest.mark.parametrize(("asked_for", "stored", "more", "wanted"), SWIFT)
def test_the_halves_of_ms_swift_follow_the_dtype_of_the_weights(
    asked_for: str | None, stored: str | None, more: str, wanted: object, tmp_path: Path
) -> None:
    write_model(tmp_path, LLAMA, **({"torch_dtype": stored} if stored else {}))
    path = tmp_path / "train.yaml"
    text = "model: .\ntuner_type: lora\nlora_rank: 4\ntarget_modules: [q_proj]\nmax_length: 16\n"
    path.write_text(text + more + (f"torch_dtype: {asked_for}\n" if asked_for else ""))
    if isinstance(wanted, str):
        with pytest.raises(BenchError, match=wanted):
            check(path, Question(gradients=False))
        return
    step = check(path, Question(gradients=False)).recipe.step
    assert step is not None
    assert (step.precision, step.autocast) == wanted


def test_fp16_beside_weights_of_a_dtype_that_nobody_names_is_said(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA)
    path = tmp_path / "train.yaml"
    path.write_text(FILES["ms-swift"] + "fp16: true\n")
    step = check(path, Question(gradients=False)).recipe.step
    assert step is not None
    assert step.autocast == "fp16"
    assert any(note.startswith("fp16: ms-swift switches bf16 on beside it") for note in step.notes)


def test_a_dtype_within_the_text_model_is_read(tmp_path: Path) -> None:
    from types import SimpleNamespace

    path = tmp_path / "train.yaml"
    path.write_text(FILES["ms-swift"])
    recipe = read_recipe(path)
    assert recipe.step_on is not None
    config = {"text_config": {"dtype": "float16"}, "vision_config": {"dtype": "float32"}}
    model = SimpleNamespace(table=SimpleNamespace(model_type="llama"), config=config)
    step = recipe.step_on(model)  # type: ignore[arg-type]
    assert (step.precision, step.autocast) == ("fp16", "fp16")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", ()),
        ("gradient_checkpointing: true\n", ()),
        ("gradient_checkpointing: false\n", ("all the same; disable_gradient_checkpointing",)),
        ("gradient_checkpointing: false\ndisable_gradient_checkpointing: true\n", ()),
        ("gradient_checkpointing_kwargs: {use_reentrant: false}\n",
         ("gradient_checkpointing_kwargs: nothing without gradient_checkpointing: true",)),
        ("gradient_checkpointing: true\ngradient_checkpointing_kwargs: {use_reentrant: false}\n",
         ()),
    ],
)  # fmt: skip
def test_keys_of_checkpointing_that_llama_factory_leaves_are_said(
    more: str, said: tuple[str, ...], tmp_path: Path
) -> None:
    step = step_of(tmp_path, "LLaMA-Factory", more)
    notes = [note for note in step.notes if note.startswith("gradient_checkpointing")]
    assert len(notes) == len(said)
    assert all(text in note for text, note in zip(said, notes, strict=True))
    assert step.gradient_checkpointing == ("disable" not in more)
